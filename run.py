"""The commands of this project: `run.py demo`, `playground`, `test`, `bench`, `hosttest`, ...

Makes `.venv` beside this file, installs the pinned packages of `requirements/` in it, and runs the
command there. Its stamp says what was installed; what no longer fits is completed or made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
INDEX = "CCN_TORCH_INDEX"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
LIGHT = "import numpy, PIL.Image, tqdm"
IMPORTS = (LIGHT, f"{LIGHT}, torch, sympy, safetensors, diffusers, transformers")  # the demo's too
WINDOWS = os.name == "nt"
NOTHING: dict[str, Any] = {"python": "", "index": "", "groups": {}, "files": 0}  # installed so far

# What Python is given to run a command, what it needs beside that of the demo, and what it is.
COMMANDS = {
    "demo": ("-m demo demo", "", "conditions that disagree, fused in every way"),
    "compare": ("-m compare", "", "see it on your own models: --webui URL, or --model DIR"),
    "playground": ("-m demo page", "playground", "a page to try the method in"),
    "test": ("tests/check.py", "playground bench test", "linters, types and the test suite"),
    "bench": ("-m benchmarks", "bench", "what the method costs; on a GPU: gpu; its use: fidelity"),
    "hosttest": ("tests/hosts", "test", "try it in an installed host: --webui DIR, --comfy DIR"),
    "explain": ("-m demo explain", "", "draw the figures of docs/how-it-works.md"),
    "train": ("-m training", "", "train the demo model from scratch"),
    "gates": ("-m training.gates", "", "measure the demo model's quality gates"),
}
USAGE = f"""usage: python3 run.py COMMAND [options of the command...]

{chr(10).join(f"  {name:11} {text}" for name, (_, _, text) in COMMANDS.items())}

`run.py COMMAND --help` tells a command's own options, and installs nothing.
{INDEX}=URL takes torch from that package index, such as a CUDA build's."""


class SetupError(Exception):
    """What the user is told; the message says what to do."""


class Environment:
    """The virtual environment `.venv` of a folder, and what its stamp says was installed in it."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder, self.pinned = root, root / ".venv", root / "requirements"
        self.python = self.folder / ("Scripts/python.exe" if WINDOWS else "bin/python")
        self.stamp = self.folder / "ccn-stamp.json"
        self.index = os.environ.get(INDEX) or ""
        self.handle = os.open(root / ".venv.lock", os.O_CREAT | os.O_RDWR)
        os.set_inheritable(self.handle, True)  # the command that we become holds the lock too
        astray = ("PYTHONHOME", "PYTHONPATH", "PIP_TARGET", "PIP_PREFIX")
        kept = {name: value for name, value in os.environ.items() if name not in astray}
        kept["PYTHONSAFEPATH"] = "1"  # a `demo.py` where the user is, is not ours
        self.variables = {**kept, "PYTHONUTF8": "1", "PIP_USER": "0", "PYTHONPATH": str(root)}

    def prepare(self, groups: list[str]) -> None:
        """Make, complete or repair it; do nothing where it fits. Raises `SetupError`."""
        self.lock(alone=False)
        if self.fits(groups):
            return
        self.lock(alone=True)
        if not self.fits(groups):  # no other run.py has done it meanwhile
            done = self.read()
            same = done["python"] == VERSION and self.index in ("", done["index"])
            same = same and self.python.exists()
            if not same or self.run("-I", "-c", IMPORTS["demo" in done["groups"]]):
                self.create()
            self.install(groups)
        self.lock(alone=False)

    def fits(self, groups: list[str]) -> bool:
        """Whether these groups are installed as pinned, with every file that was there then."""
        done = self.read()
        here = {"python": VERSION, "index": self.index or done["index"], "files": self.files()}
        same = {**done, **here, "groups": {**done["groups"], **self.pins(groups)}} == done
        return same and self.python.exists()

    def pins(self, groups: list[str]) -> dict[str, str]:
        """For each group what changes whenever its pinned versions do."""
        more = (self.pinned / "constraints.txt").read_text("utf-8")
        texts = {name: (self.pinned / f"{name}.txt").read_text("utf-8") + more for name in groups}
        return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}

    def files(self) -> int:
        """How many files there are, less those that Python compiles."""
        return sum(len(n) for f, _, n in os.walk(self.folder) if "__pycache__" not in f)

    def read(self) -> dict[str, Any]:
        """What the stamp says; nothing where it cannot be read."""
        try:
            found = json.loads(self.stamp.read_text(encoding="utf-8"))
            return {key: type(like)(found[key]) for key, like in NOTHING.items()}
        except (OSError, ValueError, TypeError, KeyError):
            return NOTHING

    def write(self, **changes: Any) -> None:
        """Change the stamp."""
        self.stamp.write_text(json.dumps({**self.read(), **changes}), encoding="utf-8")

    def create(self) -> None:
        """Make `.venv` over whatever was there."""
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise SetupError(f"{self.folder} is not a folder; move it out of the way")
        print("run.py: making .venv", file=sys.stderr)
        if self.run("-m", "venv", "--clear", str(self.folder), python=sys.executable):
            raise SetupError(f"on Debian and Ubuntu: sudo apt install python{VERSION}-venv")
        self.write(python=VERSION)

    def install(self, groups: list[str]) -> None:
        """Install groups; torch first and alone, as PyPI's for Linux brings gigabytes of CUDA."""
        done = self.read()
        self.write(files=0)  # it is not whole before the end
        if "demo" not in done["groups"]:  # small: without a network it fails at once
            self.pip("-qqq", "--retries=0", "--timeout=15", "idna")
        index = self.index or done["index"]
        pins = f"-c{self.pinned / 'constraints.txt'}"
        for group, pinned in self.pins(groups).items():
            words = [pins, f"--extra-index-url={index}"] if index else [pins]
            if group == "torch":
                place = index or (CPU_INDEX if sys.platform == "linux" else "")
                words = ["--no-deps", *([f"--index-url={place}"] if place else [])]
            if done["groups"].get(group) != pinned:
                self.pip(*words, f"-r{self.pinned / group}.txt")
                self.write(index=index, groups={**self.read()["groups"], group: pinned})
        if self.run("-I", "-c", IMPORTS["demo" in self.read()["groups"]]):
            raise SetupError("the packages are installed but do not load, as said above")
        self.write(files=self.files())

    def pip(self, *words: str) -> None:
        """Run `pip install`. Raises `SetupError`."""
        if self.run("-m", "pip", "--disable-pip-version-check", "--no-input", "install", *words):
            hint = f"{INDEX}=https://pypi.org/simple takes torch with CUDA, several GB"
            raise SetupError(f"pip could not install {words[-1]}: is the network there? {hint}")

    def run(self, *words: str, python: str = "", **streams: int | None) -> int:
        """Run Python, its output on stderr; its exit status. It is ended when we are."""
        command, streams = [python or str(self.python), *words], {"stdout": 2, **streams}
        return subprocess.run(command, env=self.variables, **streams).returncode  # type: ignore

    def lock(self, alone: bool) -> None:
        """Use the environment, `alone` or with others, until this process ends."""
        if WINDOWS:  # which clears no folder of a program that runs
            return
        import fcntl

        mode = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
        try:
            fcntl.flock(self.handle, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            print("run.py: another run.py uses .venv: waiting until it has ended", file=sys.stderr)
            fcntl.flock(self.handle, mode)


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Entry point; the exit status."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if name not in COMMANDS:
        asked = name in ("help", "-h", "--help")
        print(USAGE if asked else f"{USAGE}\n\nerror: no command {name!r}")
        return 0 if asked else 2
    program, more, text = COMMANDS[name]
    words = [str(root / word) if "/" in word else word for word in program.split()] + rest
    # A browser is driven, or a ComfyUI's websocket is listened to.
    page = name == "hosttest" and any(word.startswith(("--page", "--comfy")) for word in rest)
    light = name == "compare" and "--model" not in " ".join(rest)  # a WebUI does the work
    groups = ["compare", *["torch", "demo"] * (not light), *more.split(), *["page"] * page]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what we run is ended with us
    environment = Environment(root)
    try:
        if not (3, 10) <= sys.version_info[:2] <= (3, 13):
            raise SetupError(f"Python 3.10 to 3.13 is needed; this is {VERSION}")
        if {"-h", "--help"} & {*rest} and not environment.fits(groups):
            if environment.run(*words, python=sys.executable, stdout=None, stderr=-3):  # DEVNULL
                print(f"{name}: {text}; more is told once its packages are installed")
            return 0
        environment.prepare(groups)
        if program.startswith("tests"):  # they start programs that are not this project's
            del environment.variables["PYTHONSAFEPATH"]
        if not WINDOWS:  # to go on as the environment's Python, so that every signal is its own
            os.execve(environment.python, [str(environment.python), *words], environment.variables)
        return environment.run(*words, stdout=None)
    except (SetupError, OSError) as failure:
        print(f"run.py: {failure}", file=sys.stderr)
    except KeyboardInterrupt:
        print("run.py: stopped; the same command goes on from here", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
