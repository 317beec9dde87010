"""The files that the WebUI looks for in an extension's folder."""

import argparse
import configparser
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def webui(tmp_path):
    extension = tmp_path / "data" / "extensions" / "sd-webui-cross-controlnet"
    extension.mkdir(parents=True)
    shutil.copy(ROOT / "install.py", extension)
    (extension / "scripts").mkdir()
    (extension / "scripts" / "cross_controlnet.py").write_text("")
    (tmp_path / "webui").mkdir()
    return tmp_path


def install(webui, **more):
    """Run install.py as the WebUI does."""
    path = webui / "data/extensions/sd-webui-cross-controlnet/install.py"
    environment = {**os.environ, "PYTHONPATH": f"{webui / 'webui'}{os.pathsep}", **more}
    done = subprocess.run(
        [sys.executable, path], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert done.stderr == ""
    return done.stdout


def add_controlnet(folder):
    (folder / "scripts").mkdir(parents=True)
    (folder / "scripts" / "controlnet.py").write_text("raise SystemExit('not to be run')")


def test_one_line_when_controlnet_is_missing(webui):
    output = install(webui)
    assert len(output.splitlines()) == 1
    assert "no ControlNet found" in output
    assert "https://github.com/Mikubill/sd-webui-controlnet" in output
    assert install(webui, PYTHONPATH="") == output


@pytest.mark.parametrize(
    "place",
    [
        "data/extensions/sd-webui-controlnet",
        "data/extensions/controlnet-renamed",
        "webui/extensions-builtin/sd_forge_controlnet",
    ],
)
def test_silent_when_there_is_one(webui, place):
    add_controlnet(webui / place)
    assert install(webui) == ""


def test_a_linked_extension_looks_beside_the_link(webui):
    extensions = webui / "data" / "extensions"
    shutil.move(extensions / "sd-webui-cross-controlnet", webui / "clone")
    (extensions / "sd-webui-cross-controlnet").symlink_to(webui / "clone")
    assert "no ControlNet found" in install(webui)
    add_controlnet(extensions / "sd-webui-controlnet")
    assert install(webui) == ""


def test_preload_adds_the_presets_flag():
    namespace = {}
    exec((ROOT / "preload.py").read_text("utf-8"), namespace)
    parser = argparse.ArgumentParser()
    namespace["preload"](parser)
    assert parser.parse_args([]).cross_controlnet_presets is None
    chosen = parser.parse_args(["--cross-controlnet-presets", "here"])
    assert chosen.cross_controlnet_presets == "here"


def test_the_script_runs_after_controlnet():
    config = configparser.ConfigParser()
    assert config.read(ROOT / "metadata.ini", "utf-8")
    assert config.get("Extension", "Name") == "sd-webui-cross-controlnet"
    (section,) = (s for s in config.sections() if s.startswith("scripts/"))
    assert (ROOT / section).is_file()
    assert config.get(section, "After").split(", ") == [
        "sd-webui-controlnet",
        "sd_forge_controlnet",
    ]
