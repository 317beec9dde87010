"""An installed WebUI, started with a data folder of its own, so that the user's stays untouched.

The family is told by what is there: `backend/` is Forge or Forge Neo, `ldm_patched/` is reForge or
Forge Classic, anything else is AUTOMATIC1111, which needs sd-webui-controlnet beside it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "runs" / "hosttest"
PROBE = Path(__file__).with_name("probe")

# What of this project an installed extension consists of; what is not there yet is left out.
EXTENSION = (
    "scripts",
    "lib_ccn",
    "javascript",
    "style.css",
    "install.py",
    "preload.py",
    "metadata.ini",
    "README.md",
    "LICENSE",
)
OWN_FOLDER = "sd-webui-cross-controlnet"
PROBE_FOLDER = "zz-ccn-probe"
CONTROLNET_FOLDER = "sd-webui-controlnet"
DISTRIBUTED_FOLDER = "stable-diffusion-webui-distributed"
# Otherwise it measures this machine's speed, images a minute, in the first generation, for hours.
DISTRIBUTED_SPEED = {"avg_ipm": 10.0, "eta_percent_error": []}
DISTRIBUTED_CONFIG: dict[str, Any] = {
    "workers": [{"master": {**DISTRIBUTED_SPEED, "master": True}}],
    "benchmark_payload": {},
}
LARGEST_FILE = 10 * 2**20  # another extension's model files stay where they are

# Each is passed where the WebUI knows it.
FLAGS = (
    ("--skip-prepare-environment",),
    ("--skip-install",),
    ("--skip-ort",),
    ("--skip-torch-cuda-test",),
    ("--skip-python-version-check",),
    ("--skip-version-check",),
    ("--no-download-sd-model",),
    ("--do-not-download-clip",),
    ("--no-hashing",),
    ("--disable-console-progressbars",),
    ("--always-cpu",),
    ("--cpu",),
    ("--attention-pytorch",),
    ("--use-pytorch-cross-attention",),
)
A1111_FLAGS = (
    ("--use-cpu", "all"),
    ("--no-half",),
    ("--precision", "full"),
    ("--disable-nan-check",),
)
FORGE_FLAGS = (("--all-in-fp32",), ("--force-fp32",))
# Half the memory for the weights; each is cast to float32 when it is used.
SDXL_FLAGS = (
    ("--unet-in-bf16",),
    ("--vae-in-fp32",),
    ("--clip-in-fp16",),
    ("--bf16-unet",),
    ("--fp32-vae",),
    ("--fp16-text-enc",),
)
FLAG_SOURCES = (
    "modules/cmd_args.py",
    "modules/paths_internal.py",
    "modules_forge/*.py",
    "backend/args.py",
    "ldm_patched/modules/args_parser.py",
    "extensions/*/preload.py",
    "extensions-builtin/*/preload.py",
)
# Only the pictures themselves come back; nothing is written into output folders.
CONFIG = {
    "control_net_no_detectmap": True,
    "return_grid": False,
    "grid_save": False,
    "samples_save": False,
    "show_progress_every_n_steps": -1,
    "live_previews_enable": False,
    "disable_all_extensions": "none",
    # AUTOMATIC1111 restores what a request overrides only where it is in this file.
    "batch_cond_uncond": True,
}
START_SECONDS = 300


class HostError(Exception):
    """The WebUI cannot be started or has ended; the message says what to do."""


class Startable(Protocol):
    """What a server needs to know of a host.

    `says` is what it prints once it may be asked, `ready` are routes that answer once it runs.
    """

    @property
    def folder(self) -> Path: ...

    @property
    def says(self) -> str: ...

    @property
    def ready(self) -> tuple[str, ...]: ...

    def command(self, port: int) -> list[str]: ...

    def environment(self) -> dict[str, str]: ...


@dataclass(frozen=True)
class Installation:
    """A WebUI on this machine.

    Attributes:
        folder: where `launch.py` lies.
        python: the interpreter that it runs with.
        variables: what is set in its environment beyond this process's own.
        beside: folders of other extensions that are installed with ours.
        sdxl: whether it runs Stable Diffusion XL instead of 1.5.
    """

    folder: Path
    python: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    beside: tuple[Path, ...] = ()
    sdxl: bool = False
    # With gradio 3, a request between the page's start and the API's costs the API.
    says: str = "Startup time: "
    ready: tuple[str, ...] = ("/sdapi/v1/scripts", "/controlnet/model_list")

    @classmethod
    def find(
        cls,
        folder: str | Path,
        python: str | Path | None = None,
        variables: Mapping[str, str] | None = None,
        beside: tuple[str | Path, ...] = (),
        sdxl: bool = False,
    ) -> Installation:
        """Look at the folder; raises HostError when no WebUI can be run from it."""
        folder = Path(folder).expanduser().resolve()
        if not (folder / "launch.py").is_file() or not (folder / "modules").is_dir():
            raise HostError(f"{folder} is no WebUI: it has no launch.py and modules/")
        if python is None:
            own = [folder / "venv" / part for part in ("bin/python", "Scripts/python.exe")]
            python = next((path for path in own if path.is_file()), sys.executable)
        found = shutil.which(str(python))
        if found is None:
            raise HostError(f"there is no Python at {python}")
        others = [Path(path).expanduser().resolve() for path in beside]
        near = folder / "extensions" / CONTROLNET_FOLDER
        if near.is_dir() and not any(path.name == CONTROLNET_FOLDER for path in others):
            others.append(near)
        made = cls(folder, Path(found).absolute(), dict(variables or {}), tuple(others), sdxl)
        if made.family == "a1111" and not any(
            (path / "scripts" / "controlnet.py").is_file() for path in others
        ):
            raise HostError(
                f"{folder} is AUTOMATIC1111's WebUI without sd-webui-controlnet; install that, or "
                f"name its folder with --beside"
            )
        return made

    @property
    def family(self) -> str:
        """One of "forge", "neo", "reforge", "classic" and "a1111"."""
        if (self.folder / "backend").is_dir():
            return "neo" if "--cpu" in self.known_flags() else "forge"
        if (self.folder / "ldm_patched").is_dir():
            recent = (self.folder / "ldm_patched" / "ldm" / "common_dit.py").is_file()
            return "reforge" if recent else "classic"
        return "a1111"

    @property
    def work(self) -> Path:
        """The data folder; one per family of WebUI and of model, kept from run to run."""
        return WORK / (f"{self.family}-sdxl" if self.sdxl else self.family)

    @property
    def saved(self) -> Path:
        """Where the page's "Save" puts pictures; each WebUI has a folder of its own for that."""
        return self.work / "saved"

    @property
    def checkpoint(self) -> str:
        """The checkpoint's file name."""
        return f"ccn-random-{'sdxl' if self.sdxl else 'sd15'}.safetensors"

    @property
    def controlnets(self) -> str:
        """What the file names of the ControlNets begin with."""
        if not self.sdxl:
            return "ccn-random"
        # On a CPU, AUTOMATIC1111 holds all weights in float32: full ones would need 28 GB.
        return "ccn-random-sdxl-mid" if self.family == "a1111" else "ccn-random-sdxl"

    def known_flags(self) -> set[str]:
        """Every command-line option that the WebUI's sources mention."""
        paths = [path for pattern in FLAG_SOURCES for path in self.folder.glob(pattern)]
        texts = [path.read_text(encoding="utf-8", errors="replace") for path in paths]
        return set(re.findall(r"""["'](--[a-z0-9-]+)["']""", "\n".join(texts)))

    def command(self, port: int) -> list[str]:
        """The command line that serves page and API on this port, on the CPU."""
        known = self.known_flags()
        precision = SDXL_FLAGS if self.sdxl else FORGE_FLAGS
        wanted = [*FLAGS, *(A1111_FLAGS if self.family == "a1111" else precision)]
        if "--attention-" in self.variables.get("COMMANDLINE_ARGS", ""):
            wanted.remove(("--attention-pytorch",))  # only one of these may be given
        flags = [word for flag in wanted if flag[0] in known for word in flag]
        where = ["--data-dir", str(self.work), "--server-name", "127.0.0.1", "--port", str(port)]
        if "--gradio-allowed-path" in known:
            # With a data folder elsewhere, Forge would refuse its page its own scripts.
            where += ["--gradio-allowed-path", str(self.folder)]
        return [str(self.python), "-u", "launch.py", *where, "--api", *flags]

    def environment(self) -> dict[str, str]:
        """This process's variables, less what `run.py` sets for its own environment."""
        kept = dict(os.environ)
        for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONUTF8", "VIRTUAL_ENV", "COMMANDLINE_ARGS"):
            kept.pop(name, None)
        # The last one keeps A1111 and its kin from opening a browser.
        kept.update(GRADIO_ANALYTICS_ENABLED="False", SD_WEBUI_RESTARTING="1")
        return {**kept, **self.variables}

    def stamp(self) -> dict[str, str]:
        """What Forge Neo wants in its settings, or it asks whether it shall start at all."""
        path = self.folder / "modules" / "launch_utils.py"
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        found = re.search(r"""^VERSION_UID\b[^=\n]*=\s*["'](.+)["']""", text, re.MULTILINE)
        return {"VERSION_UID": found[1]} if found else {}

    def prepare(self, ours: bool = True, name: str = OWN_FOLDER) -> None:
        """Fill the data folder: random weights, settings, and the extensions, copied anew.

        `ours` False leaves out this extension and the probe; `name` is its folder's name, which
        decides about its place among the others.
        """
        from hosts import weights

        shared = WORK / "weights"
        for relative, shapes in weights.files(self.sdxl).items():
            weights.write(shared / relative, shapes())
            link_or_copy(shared / relative, self.work / relative)
        extensions = self.work / "extensions"
        shutil.rmtree(extensions, ignore_errors=True)
        extensions.mkdir(parents=True)
        for stale in ("config.json", "ui-config.json", "params.txt"):
            (self.work / stale).unlink(missing_ok=True)
        shutil.rmtree(self.work / "cross-controlnet-presets", ignore_errors=True)
        (self.work / "tmp").mkdir(exist_ok=True)  # Neo takes it to be there
        settings = {
            **CONFIG,
            **self.stamp(),
            "sd_model_checkpoint": self.checkpoint,
            "outdir_save": str(self.saved),
        }
        (self.work / "config.json").write_text(json.dumps(settings), encoding="utf-8")
        for path in self.beside:
            shutil.copytree(path, extensions / path.name, ignore=ignored)
        if (extensions / DISTRIBUTED_FOLDER).is_dir():
            config = extensions / DISTRIBUTED_FOLDER / "distributed-config.json"
            config.write_text(json.dumps(DISTRIBUTED_CONFIG), encoding="utf-8")
        if ours:
            shutil.copytree(PROBE, extensions / PROBE_FOLDER, ignore=ignored)
            copy_extension(extensions / name)


def link_or_copy(source: Path, target: Path) -> None:
    """Have a large file in a second place without a second copy, where the system allows that."""
    if target.is_file() and target.stat().st_size == source.stat().st_size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def ignored(folder: str, names: list[str]) -> list[str]:
    """What `copytree` leaves out: version control, caches, large files."""
    paths = [Path(folder) / name for name in names]
    return [
        path.name
        for path in paths
        if path.name in (".git", "__pycache__", "venv")
        or (path.is_file() and path.stat().st_size > LARGEST_FILE)
    ]


def copy_extension(target: Path) -> None:
    """Install this project's extension: the files that a user's copy would run."""
    target.mkdir(parents=True)
    for name in EXTENSION:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, target / name, ignore=ignored)
        elif path.is_file():
            shutil.copyfile(path, target / name)


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Server:
    """A running WebUI; a context manager that ends it, and all it has started, always."""

    def __init__(self, installation: Startable, log: Path, ready: Sequence[str] = ()) -> None:
        """`ready` are routes that must answer before the WebUI counts as started."""
        self.installation = installation
        self.ready = (*installation.ready, *ready)
        self.log_path = log
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        group = (
            {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
            if os.name == "nt"
            else {"start_new_session": True}
        )
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                self.installation.command(self.port),
                cwd=self.installation.folder,
                env=self.installation.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                **group,
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while lacking := self._lacking():
            self.check_alive()
            if time.monotonic() > deadline:
                raise HostError(f"after {START_SECONDS} s {lacking}; {self.end_of_log()}")
            time.sleep(0.5)

    def _lacking(self) -> str:
        """What the WebUI has not done yet, for a message; empty when it runs."""
        if self.installation.says not in self.log():
            return f"it has not printed {self.installation.says!r}"
        for path in self.ready:
            try:
                urllib.request.urlopen(self.url + path, timeout=60).close()
            except OSError as error:  # urllib's errors are among them
                return f"{path} does not answer ({error})"
        return ""

    def check_alive(self) -> None:
        """Raise HostError, with the end of the log, when the WebUI has ended."""
        if self.process is None or self.process.poll() is not None:
            status = None if self.process is None else self.process.returncode
            raise HostError(f"the WebUI ended with status {status}; {self.end_of_log()}")

    def end_of_log(self, lines: int = 25) -> str:
        """The last lines of the log, for a message."""
        text = "\n".join(self.log().splitlines()[-lines:])
        return f"the end of {self.log_path}:\n{text}"

    def log(self, start: int = 0) -> str:
        """What the WebUI has printed, from a byte position on."""
        with self.log_path.open("rb") as file:
            file.seek(start)
            return file.read().decode("utf-8", "replace")

    def mark(self) -> int:
        """The present end of the log, for `log`."""
        return self.log_path.stat().st_size

    def stop(self) -> None:
        """End the WebUI and every process it has started."""
        process, self.process = self.process, None
        if process is None:
            return
        if os.name == "nt":
            command = ["taskkill", "/F", "/T", "/PID", str(process.pid)]
            subprocess.run(command, capture_output=True, check=False)
        else:
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(process.pid, number)
                    process.wait(timeout=10)
                except ProcessLookupError:
                    break
                except subprocess.TimeoutExpired:
                    continue
        process.wait()
