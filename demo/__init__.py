"""The embedded default: a demo model of our own and commands to try the method with it."""

from pathlib import Path

_HERE = Path(__file__).parent
# Where models/, javascript/ and style.css are: the clone, or what setup.py put into the wheel.
ROOT = _HERE / "bundle" if (_HERE / "bundle").is_dir() else _HERE.parent
