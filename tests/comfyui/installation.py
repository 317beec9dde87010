"""An installed ComfyUI, started with a base folder of its own: the user's stays as it is."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from hosts.server import OWN_FOLDER, ROOT, WORK, HostError, ignored
from PIL import Image, ImageDraw

PROBE = Path(__file__).with_name("probe")
WATCHING = ROOT / "tests" / "hosts" / "probe" / "ccn_watching.py"
PROBE_FOLDER = "zz-ccn-probe"
PACK = ("__init__.py", "lib_ccn", "example_workflows", "pyproject.toml", "README.md", "LICENSE")
SIZE = 128  # of the conditions' pictures


@dataclass(frozen=True)
class Comfy:
    """A ComfyUI on this machine.

    Attributes:
        folder: where `main.py` lies.
        python: the interpreter that it runs with.
        variables: what is set in its environment beyond this process's own.
        beside: folders of other packs that are installed with ours.
    """

    folder: Path
    python: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    beside: tuple[Path, ...] = ()
    flags: tuple[str, ...] = ("--cpu",)
    says: str = ""
    ready: tuple[str, ...] = ("/system_stats", "/ccn-probe/state")

    @classmethod
    def find(
        cls,
        folder: str | Path,
        python: str | Path | None = None,
        variables: Mapping[str, str] | None = None,
        beside: tuple[str | Path, ...] = (),
    ) -> Comfy:
        """Look at the folder; raises HostError when no ComfyUI can be run from it."""
        folder = Path(folder).expanduser().resolve()
        if not (folder / "main.py").is_file() or not (folder / "comfy").is_dir():
            raise HostError(f"{folder} is no ComfyUI: it has no main.py and comfy/")
        if python is None:
            names = [
                f"{v}/{part}"
                for v in (".venv", "venv")
                for part in ("bin/python", "Scripts/python.exe")
            ]
            own = [folder / name for name in names]
            python = next((path for path in own if path.is_file()), sys.executable)
        found = shutil.which(str(python))
        if found is None:
            raise HostError(f"there is no Python at {python}")
        others = tuple(Path(path).expanduser().resolve() for path in beside)
        return cls(folder, Path(found).absolute(), dict(variables or {}), others)

    @property
    def work(self) -> Path:
        """The base folder, kept from run to run."""
        return WORK / "comfy"

    def command(self, port: int) -> list[str]:
        """The command line that serves page and API on this port, on the CPU."""
        where = ["--base-directory", str(self.work), "--listen", "127.0.0.1", "--port", str(port)]
        quiet = ["--disable-auto-launch", "--disable-api-nodes", "--dont-print-server"]
        return [str(self.python), "-u", "main.py", *where, *quiet, *self.flags]

    def environment(self) -> dict[str, str]:
        """This process's variables, less what `run.py` sets for its own environment."""
        kept = dict(os.environ)
        for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONUTF8", "VIRTUAL_ENV"):
            kept.pop(name, None)
        return {**kept, "HF_HUB_OFFLINE": "1", **self.variables}

    def prepare(self) -> None:
        """Fill the base folder: random weights, pictures, and the packs, copied anew."""
        from comfyui import models

        models.write(self.work / "models")
        packs = self.work / "custom_nodes"
        shutil.rmtree(packs, ignore_errors=True)
        for name in ("input", "output", "temp", "user"):
            (self.work / name).mkdir(parents=True, exist_ok=True)
        pictures(self.work / "input")
        for path in self.beside:
            shutil.copytree(path, packs / path.name, ignore=ignored)
        shutil.copytree(PROBE, packs / PROBE_FOLDER, ignore=ignored)
        shutil.copy(WATCHING, packs / PROBE_FOLDER)
        copy_pack(packs / OWN_FOLDER)


def copy_pack(target: Path) -> None:
    """Install this project: the files that a user's copy would run."""
    target.mkdir(parents=True)
    for name in PACK:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, target / name, ignore=ignored)
        elif path.is_file():
            shutil.copyfile(path, target / name)


def pictures(folder: Path) -> None:
    """The conditions and the mask that graphs load."""
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 40, (SIZE, SIZE, 3), dtype=np.uint8)
        picture = Image.fromarray(noise)
        box = (20 + 20 * number, 30, 80 + 15 * number, 100)
        ImageDraw.Draw(picture).ellipse(box, outline=(255, 255, 255), width=4)
        picture.save(folder / f"ccn-condition-{number}.png")
    # ComfyUI's masks are what is transparent.
    alpha = Image.new("L", (SIZE, SIZE), 255)
    ImageDraw.Draw(alpha).rectangle((0, 0, SIZE // 2 - 1, SIZE), fill=0)
    mask = Image.new("RGB", (SIZE, SIZE))
    mask.putalpha(alpha)
    mask.save(folder / "ccn-mask.png")
