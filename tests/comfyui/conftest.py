"""Fixtures of the tests in a ComfyUI, which is started when the first test asks for it."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from comfyui.client import Client
from comfyui.installation import Comfy
from hosts.server import HostError, Server

HERE = Path(__file__).parent
NO_COMFY = "no ComfyUI: run `python3 run.py hosttest --comfy DIR`"
TROUBLE = re.compile(r"stands aside after|Traceback \(most recent call last\)")


def pytest_collection_modifyitems(config, items):
    """Skip at once, and say why, what this run cannot or need not do."""
    for item in items:
        if HERE not in item.path.parents or item.get_closest_marker("offline"):
            continue
        if not config.getoption("--comfy"):
            item.add_marker(pytest.mark.skip(reason=NO_COMFY))
        elif config.getoption("--webui-quick") and item.get_closest_marker("full"):
            item.add_marker(pytest.mark.skip(reason="left out of the --quick run"))
        elif item.get_closest_marker("page") and not config.getoption("--webui-page"):
            item.add_marker(pytest.mark.skip(reason="the page is tested with --page only"))


@pytest.fixture(scope="session")
def installation(request):
    """The ComfyUI that the user named."""
    option = request.config.getoption
    variables = dict(pair.split("=", 1) for pair in option("--webui-env"))
    beside = tuple(option("--webui-beside"))
    try:
        return Comfy.find(option("--comfy"), option("--webui-python"), variables, beside)
    except HostError as error:
        pytest.exit(f"hosttest: {error}", returncode=2)


@pytest.fixture(scope="session")
def figures(request, installation):
    """Measured values by name; shown at the end and written to the work folder."""
    found = request.config.ccn_figures = {}
    yield found
    path = installation.work / "figures.json"
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")


@pytest.fixture(scope="session", autouse=True)
def end_on_sigterm():
    """SIGTERM ends the run as Ctrl-C does, so that no ComfyUI stays behind."""

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    yield
    signal.signal(signal.SIGTERM, before)


class Host(Client):
    """A running ComfyUI with our pack and the probe's."""

    def __init__(self, server):
        super().__init__(server.url, server.installation.work / "output")
        self.server = server

    def state(self):
        """What the probe sees."""
        return self.call("/ccn-probe/state")

    def run(self, graph, fails=False):
        self.server.check_alive()
        mark = self.server.mark()
        done = super().run(graph, fails)
        trouble = TROUBLE.search(self.server.log(mark))
        assert fails or trouble is None, self.server.log(mark)[-6000:]
        return done


@pytest.fixture(scope="session")
def host(installation):
    """The ComfyUI with our pack."""
    installation.prepare()
    with Server(installation, installation.work / "server.log") as server:
        yield Host(server)


@pytest.fixture(scope="session")
def plain(host):
    """Latents without our node, by case; each is sampled once."""
    from comfyui.cases import CASES

    known = {}

    def latents(name):
        if name not in known:
            done = host.run(CASES[name].graph_of(lambda graph: None, "plain"))
            known[name] = done.kept("plain")
            assert np.isfinite(known[name]).all()
            assert known[name].std() > 0.1
        return known[name]

    return latents


@pytest.fixture
def settled(host, plain):
    """After the test nothing of ours is left, and the host samples as before."""
    before = plain("two")
    yield
    from comfyui.cases import CASES

    host.call("/ccn-probe/mend", {})
    state = host.state()
    assert (state["ours"], state["sessions"], state["hooks"]) == ([], 0, 0)
    again = host.run(CASES["two"].graph_of(lambda graph: None, "again", seed=7))
    assert np.array_equal(before, again.kept("again"))
