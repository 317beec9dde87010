"""All benchmarks, or the named ones: `python3 run.py bench [fusion ...] [--quick | --write]`.

`python3 run.py bench gpu` needs a GPU; `bench fidelity` is about the pictures, not the cost, and
`bench prepare` makes pairs for it from photographs. Each has options of its own.
"""

from __future__ import annotations

import importlib
import sys
import time

from benchmarks.command import add_options
from benchmarks.page import GPU, RESULTS, TITLES, write
from demo.command_line import Parser, interruptible, leave, silence_libraries

PICTURES, PREPARE = "fidelity", "prepare"


def main() -> int:
    """Run the benchmarks and print, or write, their tables; returns the exit status."""
    if sys.argv[1:2] == [PICTURES]:
        silence_libraries()  # before what follows imports their pipelines
        from benchmarks.fidelity import command

        return command.main(sys.argv[2:])
    if sys.argv[1:2] == [PREPARE]:
        silence_libraries()
        from benchmarks.fidelity import prepare

        return prepare.main(sys.argv[2:])
    if sys.argv[1:2] == [GPU]:
        from benchmarks import gpu

        return gpu.main(sys.argv[2:])
    parser = Parser(prog="python3 run.py bench", description=__doc__)
    names = [name for name in TITLES if name != GPU]
    parser.add_argument("names", nargs="*", help=f"which of {', '.join(names)} (default: all)")
    add_options(parser)
    parser.add_argument(
        "--write", action="store_true", help=f"write {RESULTS.name}; what was not run stays there"
    )
    arguments = parser.parse_args()
    if arguments.write and arguments.quick:
        parser.error(f"--write: {RESULTS.name} is not for --quick")
    for name in arguments.names:
        if name not in names:
            parser.error(f"names: {name!r} is not one of {', '.join(names)}")
    parts: dict[str, str] = {}
    for name in arguments.names or names:
        began = time.monotonic()
        module = importlib.import_module(f"benchmarks.{name}")
        result = module.run(arguments.quick, arguments.device, arguments.dtype)
        parts[name] = f"{result['machine']}, {result['dtype']}.\n\n{module.markdown(result)}"
        print(
            f"## {TITLES[name]}\n\n{parts[name]}\n\n({time.monotonic() - began:.0f} s)\n",
            flush=True,
        )
    if arguments.write:
        write(parts)
        print(RESULTS)
    return 0


if __name__ == "__main__":
    leave(interruptible(main))
