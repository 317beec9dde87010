"""How the extension is installed: what the WebUI runs first, and its place among the others."""

import subprocess

import pytest
from hosts.cases import EVERYWHERE, using
from hosts.client import same
from hosts.server import CONTROLNET_FOLDER, OWN_FOLDER, copy_extension

pytestmark = pytest.mark.timeout(1800)


def run_install(installation, extension):
    """Run install.py as a WebUI does at its start."""
    environment = {**installation.environment(), "PYTHONPATH": str(installation.folder)}
    return subprocess.run(
        [str(installation.python), str(extension / "install.py")],
        cwd=installation.folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_install_script_is_silent_where_all_is_there(host):
    done = run_install(host.installation, host.installation.work / "extensions" / OWN_FOLDER)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_install_script_says_what_is_missing(installation, tmp_path):
    """Beside no other extension, only a WebUI of the Forge family has a ControlNet."""
    copy_extension(tmp_path / "extensions" / OWN_FOLDER)
    done = run_install(installation, tmp_path / "extensions" / OWN_FOLDER)
    assert done.returncode == 0
    assert (CONTROLNET_FOLDER in done.stdout) == (installation.family == "a1111")


@pytest.mark.full
@pytest.mark.parametrize("name", ["00-cross-controlnet", "zz-cross-controlnet"])
def test_place_among_the_extensions_does_not_matter(host, name):
    body = using(host.requests.body(), EVERYWHERE)
    wanted = host.generate(body)
    with host.restarted(name):
        reply = host.generate(body)
        counts = host.state()["counts"]
    assert same(wanted, reply)
    assert reply.note == ""
    assert counts["inject_keys_values"] > 0
