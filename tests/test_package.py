"""The wheel, as `pip install` gets it: what is in it, and that it works outside a clone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import lib_ccn

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("lib_ccn", "demo", "models", "javascript")
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "style.css")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The project's wheel, built from a copy: the build leaves folders beside its sources."""
    pytest.importorskip("setuptools")
    copy = tmp_path_factory.mktemp("project")
    for name in NEEDED:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, copy)
    code = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    built = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return copy / built.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder that holds what pip would put into an environment."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_what_the_commands_read_is_in_it(installed):
    bundle = installed / "demo" / "bundle"
    for pattern in ("javascript/*.js", "models/demo/**/*", "style.css", "README.md"):
        wanted = [path.relative_to(ROOT) for path in ROOT.glob(pattern) if path.is_file()]
        assert wanted
        assert all((bundle / path).is_file() for path in wanted)
    for name in ("page.css", "page.js", "first"):
        assert (installed / "demo" / name).exists()
    assert (installed / "lib_ccn" / "py.typed").is_file()
    assert not (installed / "tests").exists()


def test_its_version_is_the_package_s(wheel, installed):
    assert wheel.name.split("-")[1] == lib_ccn.__version__
    (metadata,) = installed.glob("*.dist-info/METADATA")
    text = metadata.read_text("utf-8")
    assert f"\nVersion: {lib_ccn.__version__}\n" in text
    assert {"demo", "playground", "bench", "test"} == set(
        re.findall(r"Provides-Extra: (\w+)", text)
    )


def test_the_changelog_has_this_version():
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert f"\n## [{lib_ccn.__version__}] - 2" in text


def test_extras_are_ranges_that_the_pinned_versions_are_in():
    packaging = pytest.importorskip("packaging.requirements")
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    extras = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    wanted = [packaging.Requirement(word) for word in re.findall(r'"([^"]+)"', extras)]
    pins = "\n".join(
        (ROOT / "requirements" / f"{name}.txt").read_text()
        for name in ("compare", "demo", "bench", "playground", "test")
    )
    for requirement in wanted:
        if requirement.name == "sd-webui-cross-controlnet":
            continue
        assert not any("==" in part.operator for part in requirement.specifier)
        pinned = re.findall(rf"^{requirement.name}==([\w.]+)", pins, re.M)
        assert pinned, requirement.name
        assert all(version in requirement.specifier for version in pinned), requirement


@pytest.mark.parametrize("module", ["demo"])
def test_commands_work_outside_a_clone(installed, tmp_path, module):
    environment = {**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    words = ["-m", module, "demo", "--steps", "1", "--columns", "full", "--out", "figure.png"]
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "figure.png").stat().st_size > 1000
    code = "from demo import demo_model, page; print(demo_model.BUNDLED, len(page.head()))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert str(installed) in found.stdout, found.stderr
