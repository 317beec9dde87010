"""Puts into the wheel what the commands read beside their modules; see pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# A WebUI and a clone have these where they are; a wheel has them in demo/bundle.
BUNDLED = ("README.md", "style.css", "javascript/*.js", "models/demo/**/*")


class BuildWithBundle(build_py):
    """Builds the packages, and in a wheel the folder `demo/bundle`."""

    def run(self) -> None:
        """Build."""
        super().run()
        if self.editable_mode:
            return
        for path in (path for pattern in BUNDLED for path in ROOT.glob(pattern) if path.is_file()):
            target = Path(self.build_lib, "demo", "bundle", path.relative_to(ROOT))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


setup(cmdclass={"build_py": BuildWithBundle})
