"""The harness itself, with a stand-in for a WebUI; needs none."""

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hosts import further_weights, weights
from hosts import server as server_module
from hosts.client import Client, HttpError
from hosts.malformed import LATE, malformed, malformed_layers
from hosts.server import EXTENSION, ROOT, HostError, Installation, Server, copy_extension

from lib_ccn.images import decode_mask
from lib_ccn.settings import SettingsError
from lib_ccn.webui.arguments import read

pytestmark = pytest.mark.offline

# Answers every GET, refuses every POST, and starts a child, as a WebUI does. As one with gradio 3,
# it does not bear a question between the page's start and the API's.
STAND_IN = """
import json, os, subprocess, sys, threading, time
from http.server import BaseHTTPRequestHandler, HTTPServer

child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)

class Handler(BaseHTTPRequestHandler):
    def answer(self, status, value):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())
    def do_GET(self):
        if not started.is_set():
            os._exit(7)
        self.answer(200, {"arguments": sys.argv[1:], "path": os.environ.get("PYTHONPATH"),
                          "own": os.environ.get("OWN")})
    def do_POST(self):
        self.answer(422, {"detail": "delta"})
    def log_message(self, *_):
        pass

started = threading.Event()
server = HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler)
threading.Thread(target=server.serve_forever).start()
time.sleep(1)
started.set()
print("Startup time: 1.0s", flush=True)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A WebUI's folder, with a space in its path; AUTOMATIC1111's by its looks."""
    monkeypatch.setattr(server_module, "WORK", tmp_path / "work")
    folder = tmp_path / "web ui"
    (folder / "modules").mkdir(parents=True)
    (folder / "launch.py").write_text(STAND_IN)
    known = "'--no-half', '--precision', '--use-cpu', '--api', '--always-cpu'"
    (folder / "modules" / "cmd_args.py").write_text(f"flags = [{known}]")
    (folder / "extensions" / "sd-webui-controlnet" / "scripts").mkdir(parents=True)
    (folder / "extensions" / "sd-webui-controlnet" / "scripts" / "controlnet.py").touch()
    return folder


class TestFinding:
    def test_no_webui(self, tmp_path):
        with pytest.raises(HostError, match=r"is no WebUI: it has no launch\.py"):
            Installation.find(tmp_path)

    def test_no_python(self, folder):
        with pytest.raises(HostError, match="no Python at nowhere"):
            Installation.find(folder, "nowhere")

    def test_a1111_needs_controlnet(self, folder):
        (folder / "extensions" / "sd-webui-controlnet").rename(folder / "elsewhere")
        with pytest.raises(HostError, match="without sd-webui-controlnet"):
            Installation.find(folder)
        assert Installation.find(folder, beside=(folder / "elsewhere",)).family == "a1111"

    @pytest.mark.parametrize(
        ("marks", "family"),
        [
            ((), "a1111"),
            (("backend",), "forge"),
            (("backend", "backend/args.py"), "neo"),
            (("ldm_patched",), "classic"),
            (("ldm_patched", "ldm_patched/ldm/common_dit.py"), "reforge"),
        ],
    )
    def test_family(self, folder, marks, family):
        for mark in marks:
            path = folder / mark
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("'--cpu'") if mark.endswith(".py") else path.mkdir(exist_ok=True)
        assert Installation.find(folder).family == family

    @pytest.mark.skipif(os.name == "nt", reason="a venv's layout differs")
    def test_its_own_python_comes_first(self, folder):
        assert Installation.find(folder).python == Path(sys.executable)
        own = folder / "venv" / "bin" / "python"
        own.parent.mkdir(parents=True)
        own.symlink_to(sys.executable)
        assert Installation.find(folder).python == own

    def test_only_flags_that_it_knows(self, folder):
        command = Installation.find(folder).command(7000)
        assert command[-4:] == ["all", "--no-half", "--precision", "full"]
        assert "--disable-nan-check" not in command

    def test_a_stamp_that_it_wants_in_its_settings(self, folder):
        assert Installation.find(folder).stamp() == {}
        source = folder / "modules" / "launch_utils.py"
        source.write_text('VERSION_UID: Final[str] = "PY313"\nother = VERSION_UID == "no"\n')
        assert Installation.find(folder).stamp() == {"VERSION_UID": "PY313"}

    def test_an_attention_of_ones_own_is_not_contradicted(self, folder):
        (folder / "modules/cmd_args.py").write_text("'--attention-pytorch', '--attention-split'")
        (folder / "ldm_patched").mkdir()
        assert "--attention-pytorch" in Installation.find(folder).command(7000)
        own = {"COMMANDLINE_ARGS": "--attention-split"}
        assert "--attention-pytorch" not in Installation.find(folder, variables=own).command(7000)


@pytest.mark.skipif(os.name == "nt", reason="processes are watched as POSIX has them")
class TestServer:
    def test_runs_and_leaves_no_process(self, folder, tmp_path, monkeypatch):
        monkeypatch.setenv("PYTHONPATH", "ours")
        found = Installation.find(folder, variables={"OWN": "yes"})
        with Server(found, tmp_path / "log") as server:
            told = Client(server.url).call("/anything")
            child = int(server.log().split()[1])
            assert is_running(child)
            with pytest.raises(HttpError, match="HTTP 422") as caught:
                Client(server.url).call("/refused", {"a": 1})
        assert (told["path"], told["own"]) == (None, "yes")
        assert told["arguments"][:2] == ["--data-dir", str(found.work)]
        assert json.loads(caught.value.text) == {"detail": "delta"}
        deadline = time.monotonic() + 5
        while is_running(child) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not is_running(child)

    def test_one_that_ends_is_told_with_its_log(self, folder, tmp_path):
        (folder / "launch.py").write_text("print('out of luck'); raise SystemExit(3)")
        with (
            pytest.raises(HostError, match=r"status 3[^$]*out of luck"),
            Server(Installation.find(folder), tmp_path / "log"),
        ):
            pass

    @pytest.mark.parametrize(
        ("said", "lacking"),
        [("hm", "after 1 s it has not printed"), ("Startup time: 0s", "after 1 s /.* not answer")],
    )
    def test_one_that_never_answers_is_ended(self, folder, tmp_path, monkeypatch, said, lacking):
        monkeypatch.setattr(server_module, "START_SECONDS", 1)
        waits = f"import time; print({said!r}, flush=True); time.sleep(600)"
        (folder / "launch.py").write_text(waits)
        server = Server(Installation.find(folder), tmp_path / "log")
        with pytest.raises(HostError, match=lacking), server:
            pass
        assert server.process is None


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A child that has ended and that nobody waits for is still listed.
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_copy_has_what_a_user_gets(tmp_path):
    copy_extension(tmp_path / "copy")
    copied = {path.name for path in (tmp_path / "copy").iterdir()}
    assert copied == {name for name in EXTENSION if (ROOT / name).exists()}
    assert (tmp_path / "copy" / "lib_ccn" / "session.py").is_file()
    assert not list((tmp_path / "copy").rglob("__pycache__"))


def test_generated_settings_are_malformed():
    """Each is refused when read, or names a unit that two units do not have."""

    class NoPresets:
        def load(self, name):
            raise KeyError(name)

    generated = malformed(400)
    assert generated == malformed(400)
    late = 0
    for arguments in generated:
        json.dumps(arguments, allow_nan=False)
        request = read(arguments, presets=NoPresets())
        if request.problem is None:
            late += 1
            units = {request.settings.foreground_unit, request.settings.background_unit}
            if not units & {7, 9}:
                assert not is_usable(request.settings)
    assert late < len(generated) / 4


def test_generated_layers_are_malformed():
    generated = malformed_layers(400)
    assert generated == malformed_layers(400)
    for arguments in generated:
        json.dumps(arguments, allow_nan=False)
        if read(arguments).problem is None:
            given = arguments[0]["layers"] if len(arguments) == 1 else arguments[-1]
            assert given in LATE, given


def is_usable(settings):
    try:
        settings.check_usable()
        decode_mask(settings.mask_image)
    except SettingsError:
        return False
    return True


def pytest_words(*words):
    path = Path(__file__).with_name("__main__.py")
    spec = importlib.util.spec_from_file_location("hosttest_main", path)
    main = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(main)
    return main.pytest_arguments(main.parser().parse_args(["--webui", "D", *words]))


def test_command_line_reaches_pytest():
    words = ["--env", "A=1", "--env", "B=2", "--quick", "--only", "x and y"]
    text = " ".join(pytest_words(*words))
    assert "--webui D --webui-env A=1 --webui-env B=2 --webui-quick -k x and y" in text
    assert "--webui-page" not in text
    assert "--webui-sdxl" not in text
    assert "--webui-models" not in text
    assert "--webui-models" in pytest_words("--models")


def test_further_weights_are_made_for_the_tests_that_run(folder):
    def item(*marks):
        return SimpleNamespace(
            get_closest_marker=lambda name: next((m for m in marks if m.name == name), None),
            iter_markers=lambda name: [m for m in marks if m.name == name],
        )

    mark = pytest.mark
    items = [
        item(),
        item(mark.models("ccn-random-sd21").mark, mark.families("forge", why="").mark),
        item(mark.models("ccn-random-union").mark, mark.skip(reason="").mark),
        item(mark.models("a").mark, mark.models("b", "c").mark),
    ]
    assert further_weights.asked_for(items, "forge") == {"ccn-random-sd21", "a", "b", "c"}
    assert further_weights.asked_for(items, "neo") == {"a", "b", "c"}


def test_further_weights_are_of_the_families_that_the_hosts_know():
    shapes = {Path(name).stem: make() for name, make in further_weights.files().items()}
    union = shapes["ccn-random-union"]
    assert union["task_embedding"] == (8, 320)
    assert len([name for name in union if "controlnet_down_blocks" in name]) == 2 * 12
    face = shapes["ccn-random-instant_id-face"]
    assert len([name for name in face if name.endswith("_ip.weight")]) == 2 * 16
    text = shapes["ccn-random-sd21"]["cond_stage_model.model.token_embedding.weight"]
    assert text == (49408, 1024)


def test_sdxl_runs_the_tests_of_pictures_only():
    words = pytest_words("--sdxl")
    paths = [Path(word) for word in words if word.endswith(".py")]
    assert {"--webui-sdxl", "--webui-quick"} < set(words)
    assert len(paths) == 4
    assert all(path.is_file() for path in paths)


@pytest.mark.parametrize(
    ("family", "sdxl", "models", "flag"),
    [
        ("forge", False, "ccn-random", "--all-in-fp32"),
        ("forge", True, "ccn-random-sdxl", "--unet-in-bf16"),
        ("neo", False, "ccn-random", "--force-fp32"),
        ("neo", True, "ccn-random-sdxl", "--bf16-unet"),
        ("a1111", False, "ccn-random", "--no-half"),
        ("a1111", True, "ccn-random-sdxl-mid", "--no-half"),
    ],
)
def test_models_fit_into_memory(folder, family, sdxl, models, flag):
    own = {
        "forge": "'--all-in-fp32', '--unet-in-bf16'",
        "neo": "'--cpu', '--force-fp32', '--bf16-unet'",
    }
    if family in own:
        (folder / "backend").mkdir()
        (folder / "backend" / "args.py").write_text(own[family])
    made = Installation.find(folder, sdxl=sdxl)
    assert made.family == family
    assert made.controlnets == models
    assert flag in made.command(7860)
    assert f"models/Stable-diffusion/{made.checkpoint}" in weights.files(sdxl)
    assert f"models/ControlNet/{models}-a.safetensors" in weights.files(sdxl)
    assert made.work.name == (f"{family}-sdxl" if sdxl else family)
