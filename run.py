"""The commands of this project: `run.py demo`, `playground`, `test`, `bench`, `hosttest`, ...

Needs Python 3.10 to 3.12 and nothing else. Makes `.venv` beside this file, installs the pinned
packages of `requirements/` in it, and runs the command there. Runs again are quick: the
environment carries a stamp of what was installed, and is repaired when it no longer fits.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent
MINORS = (10, 11, 12)
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
INDEX_VARIABLE = "CCN_TORCH_INDEX"
MODULE_OF = {"pillow": "PIL"}  # where it is not the package's own name
WINDOWS = os.name == "nt"
LINE_EVERY = 30  # seconds between two lines of a step's progress where there is no terminal


class SetupError(Exception):
    """What the user is told; the message says what to do."""


@dataclass(frozen=True)
class Command:
    """A word after `run.py`: the module or folder it runs, and the requirements of that."""

    help: str
    module: str
    arguments: tuple[str, ...] = ()
    groups: tuple[str, ...] = ("demo",)


COMMANDS = {
    "demo": Command(
        "conflicting conditions, fused in every way, side by side in out/demo.png",
        "demo",
        ("demo",),
    ),
    "playground": Command(
        "a page in the browser to try the method: draw, choose, compare, look inside",
        "demo",
        ("page",),
        ("demo", "playground"),
    ),
    "test": Command(
        "ruff, mypy and pytest; with pytest options, pytest alone",
        "pytest",
        ("-rfEs",),
        ("demo", "playground", "test"),
    ),
    "bench": Command(
        "what the method costs: [names...] [--quick]; what it is good for: fidelity", "benchmarks"
    ),
    "hosttest": Command(
        "try the extension in an installed WebUI: --webui DIR [--quick] [--page]",
        "tests/hosts",
        groups=("demo", "test"),
    ),
    "explain": Command("draw the figures of docs/how-it-works.md", "demo", ("explain",)),
    "train": Command("train the demo model from scratch", "training"),
    "gates": Command("measure the demo model's quality gates", "training.gates"),
}

CHECKS = (
    ("ruff check", ("-m", "ruff", "check", ".")),
    ("ruff format", ("-m", "ruff", "format", "--check", ".")),
    ("mypy", ("-m", "mypy")),
)

# Runs inside the environment. A package counts when its metadata and its module are both there.
PROBE = """
import importlib.metadata, importlib.util, json, sys
found = {}
for name, module in json.loads(sys.argv[1]).items():
    try:
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:
            found[name] = importlib.metadata.version(name)
    except (ImportError, ValueError):
        pass
print(json.dumps({"python": "%d.%d" % sys.version_info[:2], "packages": found}))
"""

IMPORTS = "import torch, numpy, PIL.Image, safetensors.torch, diffusers, transformers"


def say(text: str, end: str = "\n") -> None:
    """Print to stderr, which leaves stdout to the command itself."""
    print(text, end=end, file=sys.stderr, flush=True)


def unsupported(version: tuple[int, int], system: str, machine: str, is_64bit: bool) -> str | None:
    """Why the packages cannot be had for this Python, or None when they can."""
    if version[0] != 3 or version[1] not in MINORS:
        return f"this is Python {version[0]}.{version[1]}; Python 3.10, 3.11 or 3.12 is needed"
    if not is_64bit:
        return "this is a 32-bit Python; PyTorch needs a 64-bit one"
    if system == "darwin" and machine == "x86_64":
        return (
            "PyTorch has no packages for Macs with an Intel processor any more; on a Mac with "
            "Apple silicon, use a Python that is not run through Rosetta"
        )
    return None


def other_python() -> str | None:
    """A supported Python of this machine, as one would type it."""
    for minor in reversed(MINORS):
        words = ["py", f"-3.{minor}"] if WINDOWS else [f"python3.{minor}"]
        if shutil.which(words[0]) is None:
            continue
        # A version manager's shim may be on the path for a Python that is not.
        if subprocess.run([*words, "-c", ""], capture_output=True).returncode == 0:
            return " ".join(words)
    return None


def pins(text: str) -> dict[str, set[str]]:
    """The versions that `name==version; marker` lines allow, by name, whatever the marker."""
    allowed: dict[str, set[str]] = {}
    for line in text.splitlines():
        name, _, version = line.split("#")[0].split(";")[0].strip().partition("==")
        if name:
            allowed.setdefault(name, set()).add(version)
    return allowed


def torch_attempts(
    version: str, system: str, index: str | None
) -> list[tuple[str, tuple[str, ...]]]:
    """Where to look for torch: (words for the user, pip's arguments), to be tried in this order.

    PyPI's build for Linux brings gigabytes of CUDA libraries, hence the two places before it; the
    first of them costs a second where pip knows no such build. Elsewhere PyPI's is the CPU's.
    """
    if index:
        return [(f"from {index}", ("--force-reinstall", "--index-url", index, f"torch=={version}"))]
    if not system.startswith("linux"):
        return [("", (f"torch=={version}",))]
    patience = ("--retries", "2", "--timeout", "20")
    return [
        ("for the CPU, from pip's own sources", (*patience, f"torch=={version}+cpu")),
        (
            "for the CPU, from download.pytorch.org (about 200 MB)",
            (*patience, "--index-url", CPU_INDEX, f"torch=={version}+cpu"),
        ),
        ("with CUDA libraries, from PyPI (several GB)", (f"torch=={version}",)),
    ]


class Environment:
    """The virtual environment `.venv` beside this file, and what its stamp says of it."""

    def __init__(self, root: Path = ROOT, verbose: bool = False) -> None:
        self.root = root
        self.verbose = verbose
        self.folder = root / ".venv"
        self.python = self.folder / ("Scripts/python.exe" if WINDOWS else "bin/python")
        self.stamp = self.folder / "ccn-stamp.json"
        self.version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        self.torch_index = os.environ.get(INDEX_VARIABLE) or None

    def prepare(self, groups: tuple[str, ...]) -> None:
        """Make, complete or repair the environment; do nothing when it fits already.

        Raises `SetupError` when packages cannot be installed, or do not work once they are.
        """
        found = self.probe(groups)
        if found is not None and self.stamped(groups) and not self.lacking(groups, found):
            return
        started = time.monotonic()
        fresh = found is None or found["python"] != self.version or "pip" not in found["packages"]
        if fresh:
            self.create(found)
        trouble = self.install(groups)
        if trouble and not fresh:
            say(f"{trouble}; starting over")
            self.create(found)
            trouble = self.install(groups)
        if trouble:
            raise SetupError(trouble)
        say(f"environment ready in {time.monotonic() - started:.0f} s")

    def requirements(self, group: str) -> Path:
        """The file that pins a group."""
        return self.root / "requirements" / f"{group}.txt"

    def pinned(self, groups: tuple[str, ...]) -> dict[str, set[str]]:
        """Allowed versions by package name."""
        texts = [self.requirements(group).read_text(encoding="utf-8") for group in groups]
        return pins("\n".join(texts))

    def fingerprint(self, group: str) -> str:
        """Changes whenever the pins of a group do."""
        digest = hashlib.sha256()
        for name in (group, "constraints"):
            digest.update(self.requirements(name).read_text(encoding="utf-8").encode())
        return digest.hexdigest()

    def probe(self, groups: tuple[str, ...]) -> dict[str, Any] | None:
        """Python's version and the packages found, or None when there is no Python that runs."""
        names = [*self.pinned(groups), "pip"]
        modules = {name: MODULE_OF.get(name, name.replace("-", "_")) for name in names}
        try:
            done = subprocess.run(
                [str(self.python), "-I", "-c", PROBE, json.dumps(modules)],
                capture_output=True,
                text=True,
                check=True,
            )
            answer: dict[str, Any] = json.loads(done.stdout)
        except (OSError, subprocess.CalledProcessError, ValueError):
            return None
        return answer

    def lacking(self, groups: tuple[str, ...], found: dict[str, Any]) -> list[str]:
        """Pinned packages that are missing, or there in another version."""
        packages = found["packages"]
        return [
            name
            for name, versions in self.pinned(groups).items()
            if str(packages.get(name)).split("+")[0] not in versions
        ]

    def read_stamp(self) -> dict[str, Any]:
        """What was installed last; empty when that was never finished or cannot be read."""
        try:
            stamp = json.loads(self.stamp.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return stamp if isinstance(stamp, dict) else {}

    def stamped(self, groups: tuple[str, ...]) -> bool:
        """Whether the stamp vouches for these groups as they are pinned now."""
        stamp = self.read_stamp()
        return (
            stamp.get("python") == self.version
            and all(stamp.get(group) == self.fingerprint(group) for group in groups)
            and self.torch_index in (None, stamp.get("torch_index"))
        )

    def create(self, found: dict[str, Any] | None) -> None:
        """Make `.venv`, over whatever was there."""
        missing = [name for name in ("venv", "ensurepip") if not importlib.util.find_spec(name)]
        if missing:
            raise SetupError(
                f"this Python has no {' and no '.join(missing)} module, so no virtual environment "
                f"can be made. On Debian and Ubuntu: sudo apt install python{self.version}-venv"
            )
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise SetupError(f"{self.folder} is not a folder; move it out of the way")
        title = "making .venv"
        if found is not None and found["python"] != self.version:
            title += f" anew for Python {self.version} (it was of {found['python']})"
        elif self.folder.exists():
            title += " anew (it is incomplete)"
        command = [sys.executable, "-m", "venv", "--clear", str(self.folder)]
        status, output = self.step(title, command)
        if status:
            raise SetupError(f"no virtual environment could be made:\n{tail(output)}")

    def install(self, groups: tuple[str, ...]) -> str | None:
        """Install what the groups lack and stamp it; what is still wrong afterwards, or None."""
        stamp = self.read_stamp()
        # An installation that is cut short must not look finished.
        self.stamp.unlink(missing_ok=True)
        if stamp.get("python") != self.version:
            stamp = {"python": self.version}
        found = self.probe(groups)
        if found is None:
            return "the environment's Python does not run"
        lacking = self.lacking(groups, found)
        other_index = self.torch_index not in (None, stamp.get("torch_index"))
        if "torch" in lacking or other_index:
            self.install_torch()
            stamp["torch_index"] = self.torch_index
        for group in groups:
            wanted = self.fingerprint(group)
            if stamp.get(group) == wanted and not set(lacking) & set(self.pinned((group,))):
                continue
            arguments = ["-r", str(self.requirements(group))]
            arguments += ["-c", str(self.requirements("constraints"))]
            if self.torch_index:  # a CUDA build's own libraries may be there alone
                arguments += ["--extra-index-url", self.torch_index]
            status, output = self.pip(f"installing packages: {group}", arguments)
            if status:
                raise SetupError(
                    f"pip could not install {self.requirements(group)}:\n{tail(output)}\n"
                    "Is the network there? Behind a proxy, set HTTPS_PROXY."
                )
            stamp[group] = wanted
        found = self.probe(groups)
        lacking = self.lacking(groups, found) if found else ["Python"]
        if lacking:
            return f"after the installation {', '.join(lacking)} did not fit"
        status, output = self.step("checking", [str(self.python), "-I", "-c", IMPORTS])
        if status:
            hint = "\nPyTorch needs the Visual C++ Redistributable." if WINDOWS else ""
            return f"the packages are installed but do not load:\n{tail(output)}{hint}"
        partial = self.stamp.with_suffix(".tmp")
        partial.write_text(json.dumps(stamp, indent=1), encoding="utf-8")
        partial.replace(self.stamp)
        return None

    def install_torch(self) -> None:
        """Install torch alone, from the first place that has it."""
        (version,) = self.pinned(("demo",))["torch"]
        attempts = torch_attempts(version, sys.platform, self.torch_index)
        output = ""
        for number, (place, arguments) in enumerate(attempts):
            if number == 2:
                say(
                    f"no build for the CPU alone was found; to have another one, stop this and "
                    f"name its index in {INDEX_VARIABLE}"
                )
            title = f"installing torch {version} {place}".rstrip()
            status, output = self.pip(title, ["--no-deps", *arguments])
            if status == 0:
                return
            # Any other failure (a full disk, a broken download) would only come again elsewhere.
            if "No matching distribution" not in output:
                break
        raise SetupError(
            f"pip could not install torch {version}:\n{tail(output)}\n"
            f"Is the network there? Behind a proxy, set HTTPS_PROXY; for another package index, "
            f"{INDEX_VARIABLE}."
        )

    def pip(self, title: str, arguments: list[str]) -> tuple[int, str]:
        """Run `pip install`; its exit status and output."""
        options = ["--disable-pip-version-check", "--no-input", "install"]
        return self.step(title, [str(self.python), "-m", "pip", *options, *arguments])

    def step(self, title: str, command: list[str]) -> tuple[int, str]:
        """Run one step and show that it goes on; its exit status and output.

        On a terminal that is one line that counts the seconds, elsewhere a line now and then.
        Raises KeyboardInterrupt, once the program has ended, when we were told to stop.
        """
        if self.verbose:
            return self.shown(title, command)
        started, line = time.monotonic(), f"{title} ..."
        back, end = ("\r", "") if sys.stderr.isatty() else ("", "\n")
        due = 1 if back else LINE_EVERY
        say(line, end=end)
        with tempfile.TemporaryFile() as file:
            with apart(command, env=self.variables(), stdout=file, stderr=file) as (child, told):
                while True:
                    try:
                        status = child.wait(timeout=1)
                        break
                    except subprocess.TimeoutExpired:
                        seconds = time.monotonic() - started
                        if seconds >= due:
                            due += 1 if back else LINE_EVERY
                            say(f"{back}{line} {seconds:.0f} s", end=end)
            file.seek(0)
            output = file.read().decode("utf-8", "replace")
        if told:
            raise KeyboardInterrupt
        seconds = time.monotonic() - started
        say(f"{back}{line} " + (f"{seconds:.0f} s" if status == 0 else "no"))
        return status, output

    def shown(self, title: str, command: list[str]) -> tuple[int, str]:
        """`step` with the program's output let through."""
        say(f"{title}: {' '.join(command)}")
        options: dict[str, Any] = {"text": True, "encoding": "utf-8", "errors": "replace"}
        options.update(stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        lines = []
        with apart(command, env=self.variables(), **options) as (child, told):
            for line in child.stdout or ():
                lines.append(line)
                say(line, end="")
            status = child.wait()
        if told:
            raise KeyboardInterrupt
        return status, "".join(lines)

    def variables(self) -> dict[str, str]:
        """The user's variables, less those that would lead the environment's Python astray."""
        astray = ("PYTHONHOME", "PYTHONPATH", "PIP_TARGET", "PIP_PREFIX")
        kept = {name: value for name, value in os.environ.items() if name not in astray}
        kept.update(PYTHONUTF8="1", PIP_USER="0")
        return kept

    def become(self, arguments: list[str], folder: Path | None = None) -> int:
        """Go on as the environment's Python, in the user's terminal and folder.

        It is this process then, so that every signal is its own, whoever sends it. Windows knows
        no such thing: there it is run, and its exit status returned.
        """
        if not WINDOWS:
            sys.stdout.flush()
            if folder is not None:
                os.chdir(folder)
            os.execve(self.python, [str(self.python), *arguments], self.own_variables())
        return self.run(arguments, folder)

    def run(self, arguments: list[str], folder: Path | None = None) -> int:
        """Run the environment's Python, one program of several; its exit status.

        A child ended by signal n gives 128 + n, as in a shell.
        """
        command = [str(self.python), *arguments]
        with apart(command, env=self.own_variables(), cwd=folder) as (child, _):
            status = child.wait()
        return 128 - status if status < 0 else status

    def own_variables(self) -> dict[str, str]:
        """`variables` for a program of this project."""
        return {**self.variables(), "PYTHONPATH": str(self.root)}


@contextmanager
def apart(command: list[str], **options: Any) -> Iterator[tuple[subprocess.Popen[Any], list[int]]]:
    """Start a program in a session of its own, and hand on to it every signal that we get.

    A terminal's Ctrl-C goes to us alone then, as a signal sent to our number does: it reaches the
    program once in either case. On Windows a console's Ctrl-C has reached it already.

    Yields the program and the signals handed on so far.
    """
    child: subprocess.Popen[Any] | None = None
    told: list[int] = []

    def hand_on(number: int, _frame: FrameType | None) -> None:
        told.append(number)
        if child is not None and not (WINDOWS and number == signal.SIGINT):
            child.send_signal(number)

    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, hand_on)
        child = subprocess.Popen(command, start_new_session=True, **options)
        if told:  # before there was a child
            hand_on(told.pop(), None)
        yield child, told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def tail(output: str, lines: int = 15) -> str:
    """The end of a program's output, indented."""
    return "\n".join(f"    {line}" for line in output.strip().splitlines()[-lines:])


def run_tests(environment: Environment, options: list[str]) -> int:
    """Every check, whether or not an earlier one failed; with options, pytest alone."""
    pytest = ("-m", COMMANDS["test"].module, *COMMANDS["test"].arguments)
    if options:
        return environment.become([*pytest, *options], environment.root)
    results = []
    for name, arguments in (*CHECKS, ("pytest", pytest)):
        print(f"== {name}", flush=True)
        started = time.monotonic()
        status = environment.run(list(arguments), environment.root)
        results.append((name, status, time.monotonic() - started))
        if status == 128 + signal.SIGINT:
            break
    print("== summary (skipped tests are listed by pytest above, with their reasons)")
    for name, status, seconds in results:
        print(f"{name:12} {'ok' if status == 0 else f'FAILED ({status})':12} {seconds:6.1f} s")
    return next((status for _, status, _ in results if status), 0)


def parser() -> argparse.ArgumentParser:
    """The options before the command; what follows it belongs to the command."""
    width = max(map(len, COMMANDS))
    words = [f"  {name:{width}}  {command.help}" for name, command in COMMANDS.items()]
    made = argparse.ArgumentParser(
        prog="run.py",
        usage="python3 run.py [--verbose] COMMAND [options of the command...]",
        description="Run this project in its own environment (.venv), made when it is missing.",
        epilog="commands:\n"
        + "\n".join(words)
        + "\n\n`python3 run.py COMMAND --help` shows a command's own options."
        + f"\n{INDEX_VARIABLE}=URL takes torch from that package index, such as a CUDA build's.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("-v", "--verbose", action="store_true", help="show what pip prints")
    return made


def dispatch(arguments: list[str], root: Path) -> int:
    """Run the command line; its exit status. Raises `SetupError`."""
    cut = next((i for i, word in enumerate(arguments) if not word.startswith("-")), len(arguments))
    own = parser()
    options = own.parse_args(arguments[:cut])
    if cut == len(arguments):
        own.print_help(sys.stderr)
        return 2
    name, rest = arguments[cut], arguments[cut + 1 :]
    if name == "help":
        own.print_help()
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        own.error(f"no command {name!r}; {hint}The commands are {', '.join(COMMANDS)}.")
    command = COMMANDS[name]
    if name == "test" and rest in (["-h"], ["--help"]):
        print(f"usage: python3 run.py test [pytest options...]\n\n{command.help}")
        return 0
    version = (sys.version_info[0], sys.version_info[1])
    reason = unsupported(version, sys.platform, platform.machine(), sys.maxsize > 2**32)
    if reason:
        other = other_python()
        raise SetupError(reason + (f"; try: {other} run.py {name}" if other else ""))
    environment = Environment(root, options.verbose)
    # Only the tests of the page drive a browser.
    page = ("page",) if name == "hosttest" and "--page" in rest else ()
    environment.prepare((*command.groups, *page))
    if name == "test":
        return run_tests(environment, rest)
    # `tests` is no package, and another one of that name may be installed.
    is_folder = "/" in command.module
    start = [str(root / command.module)] if is_folder else ["-m", command.module]
    return environment.become([*start, *command.arguments, *rest])


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Entry point; the exit status."""
    try:
        return dispatch(sys.argv[1:] if arguments is None else arguments, root)
    except SetupError as failure:
        say(f"run.py: {failure}")
        return 1
    except KeyboardInterrupt:
        say("\nrun.py: stopped; the same command goes on from here")
        return 130


if __name__ == "__main__":
    sys.exit(main())
