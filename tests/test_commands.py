"""What every command does with options that are wrong, files it cannot write, and Ctrl-C."""

import builtins
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.fidelity import command as fidelity
from compare.__main__ import main as compare
from demo import demo_model
from demo.__main__ import main
from demo.command_line import INTERRUPTED
from demo.examples import bundled_examples
from demo.options import parse_demo
from demo.progress import step_bar
from lib_ccn.settings import Settings
from lib_ccn.webui.presets import METHOD, PresetStore
from training import command as training
from training import gates

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "demo": lambda words: main(["demo", *words]),
    "compare": compare,
    "playground": lambda words: main(["page", *words]),
    "explain": lambda words: main(["explain", *words]),
    "gates": gates.main,
    "train": training.main,
    "fidelity": fidelity.main,
}
NUMBERS = {
    "demo": ("seed", "steps", "guidance-scale", "size", "control-mode", "delta", "start-step"),
    "compare": ("seed", "seeds", "steps", "guidance-scale", "size"),
    "playground": ("port",),
    "explain": ("steps", "example"),
    "gates": ("scenes", "steps", "guidance-scale", "batch"),
    "train": ("processes", "port", "seed", "scale", "pool"),
    "fidelity": ("count", "ablated", "minutes", "steps", "guidance-scale", "batch", "processes"),
}


def refused(capsys, command, *words):
    """What is said, which must be one line."""
    try:
        status = COMMANDS[command]([*words])
    except SystemExit as left:
        status = left.code
    said = capsys.readouterr()
    assert status == 2
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize("value", ["abc", "nan", "-1", "", "8x", "1e99", "9" * 5000, "\x1b[31m"])
@pytest.mark.parametrize(("command", "option"), [(c, o) for c in NUMBERS for o in NUMBERS[c]])
def test_a_number_that_cannot_be_is_refused_in_a_sentence(capsys, command, option, value):
    said = refused(capsys, command, f"--{option}={value}")
    assert option.replace("-", "_") in said.replace("-", "_")
    assert "\x1b" not in said
    assert len(said) < 300


@pytest.mark.parametrize("seed", [2**64, 10**30, -(2**70)])
def test_a_seed_has_64_bits(capsys, seed):
    assert "18446744073709551615" in refused(capsys, "demo", f"--seed={seed}")


@pytest.mark.parametrize("seed", [2**63, 2**64 - 1])
def test_and_all_of_them(seed):
    assert parse_demo(["--seed", str(seed)]).seed == seed
    for example in bundled_examples(seed):
        torch.Generator().manual_seed(example.seed)


@pytest.mark.parametrize("size", ["8x", "x8", "8x8x8", "8 8", "65", "0", "8x-8", "800000", "٨"])
def test_sizes(capsys, size):
    assert "multiples of 8" in refused(capsys, "demo", f"--size={size}")


@pytest.mark.parametrize("words", [["--bogus"], ["--steps"], ["--ste", "3"]])
@pytest.mark.parametrize(
    "command", ["demo", "compare", "playground", "explain", "gates", "fidelity"]
)
def test_unknown_options_are_a_line_too(capsys, command, words):
    refused(capsys, command, *words)


class TestOut:
    @pytest.fixture(autouse=True)
    def no_model(self, monkeypatch):
        """Nothing is loaded, much less sampled."""
        for module in ("demo.load_family", "explain.load_pipeline", "demo_model.load_pipeline"):
            place = f"demo.{module}"
            monkeypatch.setattr(place, lambda *_, **__: pytest.fail("the model was loaded"))

    @pytest.fixture
    def file(self, tmp_path):
        path = tmp_path / "file"
        path.write_text("kept")
        return path

    @pytest.mark.parametrize(
        "name", ["x.xyz", "x", "x.", ".png", "x.txt", "x.h5", "x.xbm", "", "/"]
    )
    def test_a_name_that_is_no_pictures(self, capsys, name):
        said = refused(capsys, "demo", "--out", name)
        assert "--out" in said
        assert ".png" in said
        assert "--sheet" in refused(capsys, "gates", f"--sheet={name}")

    @pytest.mark.parametrize("name", ["a folder.png", "file/x.png", "file/a/b.png", "{}.png"])
    def test_a_place_that_cannot_be_written(self, capsys, tmp_path, file, name):
        (tmp_path / "a folder.png").mkdir()
        out = str(tmp_path / name.format("x" * 300))
        assert f"--out{'' if 'file/' not in name else ':'}" in refused(capsys, "demo", "--out", out)
        refused(capsys, "gates", "--sheet", out)
        refused(capsys, "gates", "--json", out)
        assert file.read_text() == "kept"

    def test_a_folder_that_is_a_file(self, capsys, file):
        for command in ("explain", "train", "fidelity"):
            assert "--out" in refused(capsys, command, "--out", str(file))

    def test_what_was_there_is_kept_until_there_is_better(self, capsys, tmp_path, monkeypatch):
        out = tmp_path / "demo.png"
        out.write_text("before")

        def stop(*_, **__):
            raise demo_model.ModelError("as a test")

        monkeypatch.setattr("demo.demo.load_family", stop)
        assert main(["demo", "--out", str(out)]) == 1
        assert out.read_text() == "before"
        assert main(["demo", "--out", str(tmp_path / "new.png")]) == 1
        assert not (tmp_path / "new.png").exists()


class TestSettingsFile:
    def test_a_file_that_the_page_saved(self, tmp_path):
        store = PresetStore(tmp_path)
        store.save("Mine", {"delta": 0.2, "fusion": "pix", "foreground_word": "star"})
        (path,) = tmp_path.iterdir()
        settings = parse_demo(["--settings", str(path)]).settings
        saved = store.load("Mine")
        assert saved["start_step"] == "auto"
        saved["start_step"] = 2  # a tenth of the demo's steps
        assert {name: getattr(settings, name) for name in METHOD} == {
            name: saved[name] for name in METHOD
        }
        assert settings.foreground_word == "star"
        assert parse_demo(["--settings", str(path), "--delta", "0.5"]).settings.delta == 0.5

    def test_or_that_settings_give(self, tmp_path):
        path = tmp_path / "settings.json"
        path.write_text("\ufeff" + json.dumps(Settings(delta=0.3).to_dict()), "utf-8")
        assert parse_demo(["--settings", str(path)]).settings.delta == 0.3

    @pytest.mark.parametrize(
        "content",
        [
            {"name": "x", "settings": 5},
            {"name": "x", "settings": {"delta": 7}},
            {"name": "x", "settings": {"detla": 0.7}},
            {"name": "x", "version": "y", "settings": {}},
            [1],
            "[" * 100_000,
            "\udcff",
        ],
    )
    def test_what_is_in_it_may_be_wrong(self, capsys, tmp_path, content):
        path = tmp_path / "preset.json"
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        refused(capsys, "demo", "--settings", str(path))


class TestPictures:
    @pytest.fixture
    def broken(self, tmp_path):
        path = tmp_path / "broken one.png"
        Image.effect_noise((64, 64), 50).save(path)
        path.write_bytes(path.read_bytes()[:-900])
        return path

    def test_a_truncated_mask_names_its_file(self, capsys, broken):
        said = refused(capsys, "demo", "--mask-source", "image", "--mask-image", str(broken))
        assert str(broken) in said

    def test_a_truncated_condition_names_its_file(self, capsys, broken, tmp_path):
        words = ["--prompt", "a star", "--foreground", str(broken), "--background", str(broken)]
        assert main(["demo", *words, "--out", str(tmp_path / "x.png")]) == 1
        assert str(broken) in capsys.readouterr().err


class TestCtrlC:
    """In one line, wherever it comes, with the status that a shell knows."""

    @pytest.fixture
    def press(self):
        def pressed(*_, **__):
            raise KeyboardInterrupt

        return pressed

    def stopped(self, capsys, status):
        assert status == INTERRUPTED
        assert capsys.readouterr().err.splitlines()[-1] == "stopped"

    @pytest.mark.parametrize("command", ["demo", "playground", "explain", "gates"])
    def test_while_importing(self, capsys, monkeypatch, press, command):
        own = builtins.__import__

        def importing(name, *more):
            return press() if name.startswith("diffusers") else own(name, *more)

        monkeypatch.setattr(builtins, "__import__", importing)
        self.stopped(capsys, COMMANDS[command]([]))

    def test_while_loading(self, capsys, monkeypatch, press, tmp_path):
        monkeypatch.setattr("demo.demo.load_family", press)
        self.stopped(capsys, main(["demo", "--out", str(tmp_path / "x.png")]))

    def test_while_sampling(self, capsys, monkeypatch, press, tmp_path):
        monkeypatch.setattr("demo.demo.generate", press)
        self.stopped(capsys, main(["demo", "--out", str(tmp_path / "x.png")]))
        assert not (tmp_path / "x.png").exists()

    def test_while_writing(self, capsys, monkeypatch, press, tmp_path):
        monkeypatch.setattr("demo.demo._generate_all", lambda *_: {})
        monkeypatch.setattr("demo.demo._figure", lambda *_: Image.new("RGB", (8, 8)))
        monkeypatch.setattr(Image.Image, "save", press)
        self.stopped(capsys, main(["demo", "--out", str(tmp_path / "x.jpg")]))

    def test_while_serving(self, capsys, monkeypatch, press, tmp_path):
        pytest.importorskip("gradio", reason="gradio is not installed")
        monkeypatch.setattr("demo.page.threading.Event.wait", press)
        words = ["--presets", str(tmp_path), "--port", "17861"]
        self.stopped(capsys, main(["page", *words]))

    @pytest.mark.skipif(os.name == "nt", reason="signals are sent as POSIX has them")
    @pytest.mark.parametrize("how", ["import torch", "exec('press()')"])
    def test_a_library_that_catches_it_does_not_lose_it(self, tmp_path, how):
        """A module that can do without another; and a Python that then ends by the signal."""
        (tmp_path / "torch.py").write_text("import os; os.kill(os.getpid(), 2)")
        caught = "try:\n  import torch\n except BaseException: pass\n time.sleep(60)"
        body = caught if how.startswith("import") else how
        program = (
            "import os, signal, time\n"
            "from demo.command_line import interruptible, leave\n"
            "def press(): os.kill(os.getpid(), signal.SIGINT)\n"
            f"def command():\n {body}\n return 0\n"
            "leave(interruptible(command))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))},
            capture_output=True,
            text=True,
            timeout=50,
        )
        assert (done.returncode, done.stderr) == (INTERRUPTED, "stopped\n")

    @pytest.mark.skipif(os.name == "nt", reason="signals are sent as POSIX has them")
    @pytest.mark.parametrize("delay", [0.5, 2])
    @pytest.mark.parametrize(
        "words",
        [
            ["-m", "demo", "demo", "--steps", "500", "--out", os.devnull + ".png"],
            ["-m", "training.gates"],
            ["-m", "training", "--scale", "50"],
            ["-m", "benchmarks", "step"],
            ["-m", "benchmarks.fidelity"],
        ],
        ids=["demo", "gates", "train", "bench", "fidelity"],
    )
    def test_a_real_one(self, tmp_path, words, delay):
        paths = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        if "demo" in words:
            words = [*words[:-1], str(tmp_path / "x.png")]
        with subprocess.Popen(
            [sys.executable, *words], cwd=tmp_path, env=paths, stderr=subprocess.PIPE, text=True,
            stdout=subprocess.DEVNULL,
        ) as child:  # fmt: skip
            time.sleep(delay)
            child.send_signal(signal.SIGINT)
            _, said = child.communicate(timeout=120)
        assert child.returncode == INTERRUPTED, said
        assert "Traceback" not in said
        assert said.splitlines()[-1] == "stopped"


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_plain_lines_without_a_terminal(monkeypatch, capsys, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    with step_bar(6) as bar:
        for _ in range(6):
            bar.set_description("Plain sum")
            bar.update(1)
    told = capsys.readouterr().err
    assert "6/6" in told
    assert ("\r" in told) == terminal
    if not terminal:
        assert all(line.startswith(("0%", "Plain sum")) for line in told.splitlines() if line)
