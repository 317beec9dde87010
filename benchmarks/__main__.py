"""All benchmarks, or the named ones: `python3 run.py bench [fusion ...] [--quick | --write]`.

`python3 run.py bench fidelity` is about the pictures, not the cost, and has options of its own.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

from benchmarks.command import add_options
from demo.command_line import Parser, interruptible, leave

TITLES = {
    "fusion": "Fusion of the 13 residuals of SD 1.5 at 512x512, batch 2, to the plain sum",
    "injection": "KV-Injection, to one plain self-attention",
    "mask": "Reading the mask, to the layers that are listened to",
    "operations": "What a step asks of an accelerator: operations and waits",
    "step": "A whole denoising step with two ControlNets, to the same step with the plain sum",
    "family": "A step of SDXL and of FLUX with two ControlNets, to the same with the plain sum",
}
PICTURES = "fidelity"
RESULTS = Path(__file__).with_name("RESULTS.md")
HEAD = """# What the method costs

Medians of interleaved runs; a ratio is the median over rounds of a variant's time to the plain
one's of the same round. Made by `python3 run.py bench --write`.
"""


def main() -> int:
    """Run the benchmarks and print, or write, their tables; returns the exit status."""
    if sys.argv[1:2] == [PICTURES]:
        from demo.quiet import silence_libraries

        silence_libraries()  # before what follows imports their pipelines
        from benchmarks.fidelity import command

        return command.main(sys.argv[2:])
    parser = Parser(prog="python3 run.py bench", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which of {', '.join(TITLES)} (default: all)")
    add_options(parser)
    parser.add_argument(
        "--write", action="store_true", help=f"write {RESULTS.name}; what was not run stays there"
    )
    arguments = parser.parse_args()
    if arguments.write and arguments.quick:
        parser.error(f"--write: {RESULTS.name} is not for --quick")
    for name in arguments.names:
        if name not in TITLES:
            parser.error(f"names: {name!r} is not one of {', '.join(TITLES)}")
    parts: dict[str, str] = {}
    for name in arguments.names or TITLES:
        began = time.monotonic()
        module = importlib.import_module(f"benchmarks.{name}")
        result = module.run(arguments.quick, arguments.device, arguments.dtype)
        parts[name] = (
            f"## {TITLES[name]}\n\n{result['machine']}, {result['dtype']}.\n\n"
            f"{module.markdown(result)}\n"
        )
        print(parts[name], f"\n({time.monotonic() - began:.0f} s)\n", flush=True)
    if arguments.write:
        before = RESULTS.read_text("utf-8") if RESULTS.exists() else ""
        parts = sections(before) | parts
        RESULTS.write_text("\n".join([HEAD, *(parts[n] for n in TITLES if n in parts)]), "utf-8")
        print(RESULTS)
    return 0


def sections(text: str) -> dict[str, str]:
    """The benchmarks' parts of a written page, by name."""
    names = {title: name for name, title in TITLES.items()}
    parts = {}
    for part in text.split("\n## ")[1:]:
        title = part.partition("\n")[0]
        if title in names:
            parts[names[title]] = f"## {part.rstrip()}\n"
    return parts


if __name__ == "__main__":
    leave(interruptible(main))
