"""The oldest and the newest Python that this project is for, where the machine has them.

Torch has no small build for each of them in every registry, so that what is tried there is what
needs none: every file compiles, and the settings, messages and presets pass their tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("3.10", "3.13")
PACKAGES = ("pytest", "hypothesis", "numpy", "pillow")
FOLDERS = ("lib_ccn", "demo", "compare", "training", "benchmarks", "scripts", "tests")
TESTS = (
    "tests/test_layers_setting.py",
    "tests/test_settings.py",
    "tests/test_settings_messages.py",
    "tests/test_showable.py",
    "tests/webui/test_api.py",
    "tests/webui/test_installation.py",
    "tests/webui/test_options.py",
    "tests/webui/test_presets.py",
)


def main() -> int:
    """Try every version that is here; the exit status."""
    failed = 0
    for version in VERSIONS:
        if sys.version_info[:2] == tuple(map(int, version.split("."))):
            continue
        python = find(version)
        if python is None:
            print(f"Python {version}: NOT TRIED, it is not on this machine", flush=True)
            continue
        status = tried(python, ROOT / "runs" / "pythons" / version)
        print(f"Python {version}: {'passed' if not status else 'FAILED'}", flush=True)
        failed = failed or status
    return failed


def find(version: str) -> str | None:
    """The interpreter of a version: on the path, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    kept = sorted(pyenv.glob(f"{version}.*/bin/python"))
    # A shim on the path is there for every version that pyenv knows, chosen or not.
    found = [str(path) for path in kept[-1:]] or [shutil.which(f"python{version}") or ""]
    works = [name for name in found if name and not _status(name, "-c", "pass")]
    return works[0] if works else None


def tried(python: str, folder: Path) -> int:
    """Compile everything and run the tests in an environment of its own; the exit status."""
    own = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if _status(str(own), "-c", f"import {', '.join(PACKAGES[:-1])}, PIL"):
        shutil.rmtree(folder, ignore_errors=True)
        made = _status(python, "-m", "venv", str(folder))
        if made or _status(str(own), "-m", "pip", "install", "-q", *PACKAGES):
            print(f"no environment for {python} could be made", flush=True)
            return 1
    files = [*FOLDERS, "run.py", "install.py", "preload.py", "__init__.py"]
    # Compiled files stay with their version.
    compiled = _status(str(own), "-m", "compileall", "-q", *files, prefix=folder / "cache")
    options = ("-q", "-p", "no:cacheprovider", *TESTS)
    return compiled or _status(str(own), "-m", "pytest", *options, prefix=folder / "cache")


def _status(*words: str, prefix: Path | None = None) -> int:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    if prefix is not None:
        env["PYTHONPYCACHEPREFIX"] = str(prefix)
    try:
        return subprocess.run(words, cwd=ROOT, env=env, capture_output=prefix is None).returncode
    except OSError:
        return 1


if __name__ == "__main__":
    sys.exit(main())
