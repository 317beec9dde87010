"""Fixtures of the host tests: one WebUI at a time, started when the first test asks for it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hosts import further_weights
from hosts.cases import Requests, blocks, hires, using
from hosts.checks import Dumped
from hosts.client import Client, Reply, same
from hosts.page import WINDOW, Page, start_browser
from hosts.server import OWN_FOLDER, WORK, HostError, Installation, Server

HERE = Path(__file__).parent
NO_WEBUI = "no WebUI: run `python3 run.py hosttest --webui DIR`"
# The host swallows what a script throws, and prints this.
ERRORS = re.compile(r"^(?:\*\*\* Error.*|Traceback \(most recent call last\):)$", re.MULTILINE)


def pytest_collection_modifyitems(config, items):
    """Skip at once, and say why, what this run cannot or need not do."""
    for item in items:
        if HERE not in item.path.parents:
            continue
        if item.get_closest_marker("offline"):
            continue
        if not config.getoption("--webui"):
            item.add_marker(pytest.mark.skip(reason=NO_WEBUI))
        elif config.getoption("--webui-quick") and item.get_closest_marker("full"):
            item.add_marker(pytest.mark.skip(reason="left out of the --quick run"))
        elif item.get_closest_marker("page") and not config.getoption("--webui-page"):
            item.add_marker(pytest.mark.skip(reason="the page is tested with --page only"))
        elif item.get_closest_marker("models") and not config.getoption("--webui-models"):
            item.add_marker(pytest.mark.skip(reason="needs more weights: --models"))


def pytest_configure(config):
    config.addinivalue_line("markers", "models(*stems): needs these of the further weights")
    config.addinivalue_line("markers", "families(*names, why): for these WebUIs only")


@pytest.fixture(scope="session")
def figures(request, installation):
    """Measured values by name; shown at the end and written to the work folder."""
    found = request.config.ccn_figures = {}
    yield found
    if found:
        path = installation.work / "figures.json"
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")


@pytest.fixture(scope="session")
def quick(request):
    return request.config.getoption("--webui-quick")


@pytest.fixture(scope="session")
def installation(request):
    """The WebUI that the user named."""
    option = request.config.getoption
    variables = dict(pair.split("=", 1) for pair in option("--webui-env"))
    try:
        return Installation.find(
            option("--webui"),
            option("--webui-python"),
            variables,
            tuple(option("--webui-beside")),
            option("--webui-sdxl"),
        )
    except HostError as error:
        pytest.exit(f"hosttest: {error}", returncode=2)


@pytest.fixture(scope="session", autouse=True)
def end_on_sigterm(request):
    """SIGTERM ends the run as Ctrl-C does, so that no WebUI stays behind."""

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    yield
    signal.signal(signal.SIGTERM, before)


class Host:
    """A running WebUI with our extension, and what the tests ask of it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.installation = server.installation
        self.family = server.installation.family
        self.client = Client(server.url)
        self.requests = Requests(self.client, self.family, self.installation.controlnets)
        self.problems: list[str] = []

    def generate(self, body, errors: bool = False) -> Reply:
        """One generation; unless `errors` are expected, the host may print none."""
        self.server.check_alive()
        start = self.server.mark()
        reply = self.client.generate(body)
        if not errors:
            log = self.server.log(start)
            assert not ERRORS.search(log), f"the host printed an error:\n{log[-6000:]}"
        return reply

    @contextmanager
    def restarted(self, name: str, prepared: Callable[[], None] = lambda: None):
        """The WebUI with our extension in a folder of another name; afterwards as before.

        `prepared` is called when the data folder is ready.
        """
        self.server.stop()
        self._start(name, prepared)
        try:
            yield
        finally:
            self.server.stop()
            self._start(OWN_FOLDER)

    def _start(self, name: str, prepared: Callable[[], None] = lambda: None) -> None:
        self.installation.prepare(name=name)
        prepared()
        self.server.__enter__()

    def state(self):
        """What the probe sees (see probe/scripts/ccn_probe.py)."""
        return self.client.call("/ccn-probe/state")


BASELINE = {
    "two units": lambda r: r.body(),
    "no unit": lambda r: r.body([]),
    "hires pass": hires,
    "more important": lambda r: r.body(r.two(control_mode="ControlNet is more important")),
}


@pytest.fixture(scope="session")
def baseline(installation):
    """Pictures of the host without our extension, by name; kept while nothing about it changes."""
    folder = installation.work / "baseline"
    key = hashlib.sha256(baseline_key(installation).encode()).hexdigest()
    if (folder / "key").is_file() and (folder / "key").read_text() == key:
        return load_pictures(folder)
    installation.prepare(ours=False)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "key").unlink(missing_ok=True)
    with Server(installation, installation.work / "baseline.log") as server:
        client = Client(server.url)
        requests = Requests(client, installation.family, installation.controlnets)
        for name, make in BASELINE.items():
            reply = client.generate(make(requests))
            assert same(reply, client.generate(make(requests))), f"{name}: not repeatable"
            np.savez_compressed(folder / f"{name}.npz", *reply.pictures)
    (folder / "key").write_text(key)
    return load_pictures(folder)


def baseline_key(installation):
    """Changes with the WebUI, its Python, and the requests."""
    sources = sorted(installation.folder.glob("*.py")) + sorted(
        path
        for name in ("modules", "backend", "ldm_patched")
        for path in (installation.folder / name).rglob("*.py")
    )
    stamps = [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in sources]
    own = [(HERE / name).read_text(encoding="utf-8") for name in ("cases.py", "weights.py")]
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")}
    environment = json.dumps({**threads, **installation.variables}, sort_keys=True)
    return "\n".join([str(installation.python), environment, *stamps, *own])


def load_pictures(folder):
    found = {}
    for name in BASELINE:
        with np.load(folder / f"{name}.npz") as pictures:
            found[name] = SimpleNamespace(pictures=[pictures[key] for key in pictures.files])
    return found


@pytest.fixture(autouse=True)
def for_this_family(request):
    """Skip what a WebUI of this family has not."""
    families = request.node.get_closest_marker("families")
    if families and request.getfixturevalue("installation").family not in families.args:
        pytest.skip(families.kwargs["why"])


@pytest.fixture(scope="session")
def host(request, installation, baseline, figures):
    """The WebUI with our extension and the probe. `baseline` comes first: one host at a time."""
    installation.prepare()
    asked = further_weights.asked_for(request.session.items, installation.family)
    further_weights.add(installation, asked)
    started = time.monotonic()
    log = installation.work / "server.log"
    with Server(installation, log, ready=("/ccn-probe/state",)) as server:
        figures["start, seconds"] = round(time.monotonic() - started, 1)
        figures["WebUI"] = f"{installation.family} at {installation.folder}"
        yield Host(server)


@pytest.fixture(scope="session")
def first(host):
    """The reply to the first request of all, with the extension installed and off."""
    return host.generate(host.requests.body())


@pytest.fixture
def settled(host, first):
    """After the test: nothing of the extension is left on the host, and off is as at first."""
    yield
    assert host.state()["ours"] == [], "left on the host's objects"
    again = host.generate(host.requests.body())
    assert same(first, again), "the next request with the extension off differs from the first"
    assert not again.enabled
    state = host.state()
    assert (state["ours"], state["linked"], state["sessions"]) == ([], 0, 0)


@pytest.fixture
def dumped(host, tmp_path):
    """Make a picture and return one UNet call (see `Dumped`), by default the second."""

    def dump(arguments, units=None, skip=1, **changes):
        # Large enough for the middle residual to have a spatial deviation.
        body = host.requests.body(units, **{"width": 128, **changes})
        host.client.call("/ccn-probe/dump", {"folder": str(tmp_path), "skip": skip})
        host.generate(using(body, arguments))
        return Dumped.read(tmp_path)

    return dump


@pytest.fixture(scope="session")
def work():
    return WORK


@pytest.fixture(scope="session")
def browser():
    try:
        driver = start_browser()
    except RuntimeError as reason:
        pytest.skip(str(reason))
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def screenshots(installation):
    folder = installation.work / "screenshots"
    shutil.rmtree(folder, ignore_errors=True)
    return folder


@pytest.fixture
def page(browser, host, screenshots):
    """The page, loaded anew; none of our scripts may have complained when the test ends."""
    page = Page(browser, host.server.url, screenshots)
    browser.set_window_size(*WINDOW)
    page.open()
    yield page
    assert page.errors() == []


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditions")
    for seed in (1, 2):
        blocks(seed, 128).save(folder / f"{seed}.png")
    return [folder / "1.png", folder / "2.png"]
