"""`python tests/hosts --webui DIR`: tries the extension in an installed WebUI, or ComfyUI."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
COMFY = HERE.with_name("comfyui")
# What is another with another family of models; the page, the API and failures are the same.
SDXL_TESTS = (
    "test_host_equality.py",
    "test_host_residuals.py",
    "test_host_layers_residuals.py",
    "test_host_matrix.py",
)


def parser() -> argparse.ArgumentParser:
    """The command line of `run.py hosttest`."""
    made = argparse.ArgumentParser(
        prog="run.py hosttest",
        description="Try the extension in a WebUI that is installed on this machine: Forge, "
        "Forge Neo, reForge, Forge Classic, or AUTOMATIC1111 with sd-webui-controlnet. It runs on "
        "the CPU with random weights (4.5 GB, made once) and a data folder below runs/hosttest/; "
        "nothing in its own folder is changed. Needs 12 GB of free memory. Or try the nodes in a "
        "ComfyUI, with small models, in the same way.",
    )
    host = made.add_mutually_exclusive_group(required=True)
    host.add_argument("--webui", metavar="DIR", help="where its launch.py lies")
    host.add_argument("--comfy", metavar="DIR", help="where ComfyUI's main.py lies")
    made.add_argument(
        "--python", metavar="PATH", help="its Python (default: DIR/venv's, else this one)"
    )
    made.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a variable for its environment, such as COMMANDLINE_ARGS=--medvram; may be repeated",
    )
    made.add_argument(
        "--beside",
        action="append",
        default=[],
        metavar="DIR",
        help="another extension to install with ours, such as sd-webui-controlnet where it does "
        "not lie in the WebUI's extensions folder; may be repeated",
    )
    made.add_argument("--quick", action="store_true", help="the short run: about 5 minutes")
    made.add_argument(
        "--page", action="store_true", help="also the page, in Chromium (needs chromedriver)"
    )
    made.add_argument(
        "--models",
        action="store_true",
        help="also models that few have: Union and InstantID ControlNets, SD 2, a second "
        "checkpoint in a picture; up to 9 GB more of weights, as the tests need them",
    )
    made.add_argument(
        "--sdxl",
        action="store_true",
        help="Stable Diffusion XL instead of 1.5: fewer tests, 13 GB of weights, and 20 GB of free "
        "memory",
    )
    made.add_argument("--only", metavar="WORDS", help="only tests with these words (pytest's -k)")
    return made


def pytest_arguments(options: argparse.Namespace) -> list[str]:
    """The same for pytest."""
    names = SDXL_TESTS if options.sdxl else (".",)
    where = [COMFY] if options.comfy else [HERE / name for name in names]
    given = [*map(str, where), "--rootdir", str(HERE.parents[1]), "-v", "-rfEs"]
    given += ["--comfy", options.comfy] if options.comfy else ["--webui", options.webui]
    given += ["--webui-python", options.python] if options.python else []
    given += [word for pair in options.env for word in ("--webui-env", pair)]
    given += [word for path in options.beside for word in ("--webui-beside", path)]
    given += ["--webui-quick"] if options.quick or options.sdxl else []
    given += ["--webui-sdxl"] if options.sdxl else []
    given += ["--webui-page"] if options.page else []
    given += ["--webui-models"] if options.models else []
    given += ["-k", options.only] if options.only else []
    return given


def main(arguments: list[str] | None = None) -> int:
    """Run the tests; pytest's exit status."""
    options = parser().parse_args(arguments)
    import pytest

    return int(pytest.main(pytest_arguments(options)))


if __name__ == "__main__":
    sys.exit(main())
