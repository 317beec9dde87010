"""`run.py` without a network: what it decides, what it tells the user, what it hands on."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GROUPS = ["compare", "torch", "demo"]
FIRST = ["venv", "idna", *GROUPS, "check"]  # what a first run does


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


run = load("run", ROOT / "run.py")
check = load("check", ROOT / "tests" / "check.py")


@pytest.fixture(autouse=True)
def no_index(monkeypatch):
    monkeypatch.delenv(run.INDEX, raising=False)


@pytest.fixture(autouse=True)
def signals():
    """`main` hears SIGTERM; whoever runs the tests may ignore interrupts, as children would."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def root(tmp_path):
    """A project, with a space and an umlaut in its path, whose demo tells what it was given."""
    root = tmp_path / "my pröject"
    shutil.copytree(ROOT / "requirements", root / "requirements")
    (root / "demo").mkdir()
    (root / "demo" / "__init__.py").touch()
    (root / "demo" / "__main__.py").write_text(
        "import json, os, sys\n"
        "print(json.dumps({'arguments': sys.argv[1:], 'folder': os.getcwd(),"
        " 'utf8': sys.flags.utf8_mode}))\n"
        "sys.exit(7)\n"
    )
    return root


class Recorded(run.Environment):
    """Decides as the real one does; what it would have run is written down, in short."""

    def __init__(self, root):
        super().__init__(root)
        self.steps: list[str] = []
        self.words: list[tuple[str, ...]] = []
        self.failing: dict[str, int] = {}  # how often a step is still to fail

    def run(self, *words, python="", **streams):
        if "venv" in words:
            kind = "venv"
            shutil.rmtree(self.folder, ignore_errors=True)
            self.python.parent.mkdir(parents=True)
            self.python.touch()
        elif "-c" in words:
            kind = "check"
        else:
            kind = Path(words[-1].removeprefix("-r")).stem
            (self.folder / f"{kind}.py").touch()
        self.steps.append(kind)
        self.words.append(words)
        self.failing[kind] = self.failing.get(kind, 0) - 1
        return int(self.failing[kind] >= 0)

    def taken(self, groups=GROUPS):
        """What it does to have these groups."""
        self.steps.clear()
        self.prepare(groups)
        return list(self.steps)


@pytest.fixture
def ready(root):
    """An environment that is ready for the demo."""
    environment = Recorded(root)
    assert environment.taken() == FIRST
    return environment


class TestPreparing:
    def test_a_second_run_does_nothing(self, ready):
        assert ready.taken() == []

    def test_another_command_only_adds(self, ready):
        assert ready.taken([*GROUPS, "test"]) == ["check", "test", "check"]
        assert ready.taken() == ready.taken([*GROUPS, "test"]) == []

    @pytest.mark.parametrize(
        ("file", "again"), [("demo", ["demo"]), ("torch", ["torch"]), ("constraints", GROUPS)]
    )
    def test_changed_pins_are_installed(self, ready, root, file, again):
        with open(root / "requirements" / f"{file}.txt", "a") as text:
            text.write("tqdm==4.70.1\n")
        assert ready.taken() == ["check", *again, "check"]
        assert ready.taken() == []

    def test_line_endings_of_a_checkout_do_not_matter(self, ready, root):
        path = root / "requirements" / "demo.txt"
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
        assert ready.taken() == []

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"python": "2.7"}', '{"groups": 3}'])
    def test_a_stamp_that_says_nothing_makes_it_anew(self, ready, text):
        ready.stamp.write_text(text)
        assert ready.taken() == FIRST

    @pytest.mark.parametrize("version", ["3.9", "3.99"])
    def test_another_python_makes_it_anew(self, ready, version):
        ready.write(python=version)
        assert ready.taken()[0] == "venv"

    def test_python_that_is_gone_makes_it_anew(self, ready):
        ready.python.unlink()
        assert ready.taken()[0] == "venv"

    def test_a_file_that_is_gone_makes_it_anew(self, ready):
        (ready.folder / "demo.py").unlink()  # as of numpy's folder, while its metadata stays
        ready.failing["check"] = 1
        assert ready.taken() == ["check", *FIRST]
        assert ready.taken() == []

    def test_a_package_of_the_users_own_is_left_alone(self, ready):
        (ready.folder / "mine.py").touch()
        assert ready.taken() == ["check", "check"]
        assert ready.taken() == []
        assert (ready.folder / "mine.py").exists()

    def test_what_python_compiles_changes_nothing(self, ready):
        (ready.folder / "__pycache__").mkdir()
        (ready.folder / "__pycache__" / "demo.pyc").touch()
        assert ready.taken() == []

    def test_packages_that_do_not_load_are_reported(self, root):
        environment = Recorded(root)
        environment.failing["check"] = 1
        with pytest.raises(run.SetupError, match="do not load"):
            environment.prepare(GROUPS)
        assert environment.taken() != []

    def test_an_installation_cut_short_goes_on(self, ready):
        ready.failing["test"] = 1
        with pytest.raises(run.SetupError, match=r"test\.txt: is the network there"):
            ready.prepare([*GROUPS, "test"])
        assert ready.taken([*GROUPS, "test"]) == ["check", "test", "check"]

    def test_without_a_network_nothing_large_is_tried(self, root):
        environment = Recorded(root)
        environment.failing["idna"] = 1
        with pytest.raises(run.SetupError, match="could not install idna: is the network there"):
            environment.prepare(GROUPS)
        assert environment.steps == ["venv", "idna"]
        assert "--retries=0" in environment.words[-1]

    def test_missing_venv_module_names_the_package(self, root):
        environment = Recorded(root)
        environment.failing["venv"] = 1
        with pytest.raises(run.SetupError, match=f"python{run.VERSION}-venv"):
            environment.prepare(GROUPS)

    def test_a_file_in_the_way(self, root):
        (root / ".venv").write_text("mine")
        with pytest.raises(run.SetupError, match="move it out of the way"):
            Recorded(root).prepare(GROUPS)
        assert (root / ".venv").read_text() == "mine"


class TestLight:
    """A command that needs neither torch nor diffusers."""

    def test_nothing_more_is_installed_or_looked_for(self, root):
        environment = Recorded(root)
        assert environment.taken(["compare"]) == ["venv", "idna", "compare", "check"]
        assert not any("torch" in word for word in environment.words[-1])
        assert environment.taken(["compare"]) == []

    def test_the_demo_adds_the_rest(self, root):
        environment = Recorded(root)
        environment.prepare(["compare"])
        assert environment.taken() == ["check", "idna", "torch", "demo", "check"]
        assert "torch" in environment.words[-1][-1]
        assert environment.taken(["compare"]) == environment.taken() == []

    def test_a_file_that_is_gone_makes_it_anew(self, root):
        environment = Recorded(root)
        environment.prepare(["compare"])
        (environment.folder / "compare.py").unlink()
        environment.failing["check"] = 1
        assert environment.taken(["compare"]) == ["check", "venv", "idna", "compare", "check"]


class TestTorch:
    def asked(self, environment):
        return next(words for words in environment.words if words[-1].endswith("torch.txt"))

    @pytest.mark.parametrize(
        ("system", "index"), [("linux", [run.CPU_INDEX]), ("darwin", []), ("win32", [])]
    )
    def test_no_build_with_cuda_is_asked_for(self, root, monkeypatch, system, index):
        monkeypatch.setattr(run.sys, "platform", system)
        environment = Recorded(root)
        environment.prepare(GROUPS)
        places = [word for word in self.asked(environment) if "index" in word]
        assert places == [f"--index-url={url}" for url in index]

    def test_an_index_of_ones_own(self, ready, root, monkeypatch):
        monkeypatch.setenv(run.INDEX, "https://example.org/cu130")
        os.close(ready.handle)  # as when that process ends
        other = Recorded(root)
        assert other.taken() == FIRST
        assert "--index-url=https://example.org/cu130" in self.asked(other)
        assert other.taken() == []
        monkeypatch.delenv(run.INDEX)
        os.close(other.handle)
        assert Recorded(root).taken() == []


class TestCommandLine:
    @pytest.mark.parametrize("words", [["dmo"], [], ["--verbose"]])
    def test_what_is_no_command(self, words, capsys, root):
        assert run.main(words, root) == 2
        shown = capsys.readouterr().out
        assert "error: no command" in shown
        assert all(name in shown for name in run.COMMANDS)

    @pytest.mark.parametrize("word", ["help", "-h", "--help"])
    def test_help(self, word, capsys, root):
        assert run.main([word], root) == 0
        shown = capsys.readouterr().out
        assert all(text in shown for _, _, text in run.COMMANDS.values())
        assert not (root / ".venv").exists()

    @pytest.mark.skipif(os.name == "nt", reason="its Python is a shell script")
    @pytest.mark.parametrize(
        "name", ["demo", "compare", "playground", "explain", "bench", "hosttest", "test"]
    )
    def test_a_commands_options_are_told_without_packages(self, name, tmp_path, monkeypatch, capfd):
        for folder in ("requirements", "demo", "compare", "lib_ccn", "benchmarks", "tests"):
            os.symlink(ROOT / folder, tmp_path / folder)
        bare = tmp_path / "python"
        bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
        bare.chmod(0o755)
        monkeypatch.setattr(run.sys, "executable", str(bare))
        assert run.main([name, "--help"], tmp_path) == 0
        assert "usage:" in capfd.readouterr().out
        assert not (tmp_path / ".venv").exists()

    def test_without_packages_a_line_says_so(self, root, capfd):
        assert run.main(["demo", "--help"], root) == 0  # this project's demo knows no such word
        assert run.COMMANDS["demo"][2] in capfd.readouterr().out

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 knows no safe path")
    def test_a_users_own_demo_is_not_taken_for_ours(self, root, tmp_path):
        (tmp_path / "demo.py").write_text("raise SystemExit('not ours')")
        self.test_options_folder_and_status_pass_through(root, tmp_path)

    def test_options_folder_and_status_pass_through(self, root, tmp_path):
        options = ["a b", "--prompt", "a red star — ünder", "", "-v", "demo"]
        code = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); import run; from pathlib import Path\n"
            "run.Environment.prepare = lambda self, groups: None\n"
            "made = run.Environment.__init__\n"
            "def init(self, root):\n made(self, root); self.python = Path(sys.executable)\n"
            "run.Environment.__init__ = init\n"
            f"sys.exit(run.main(sys.argv[1:], Path({str(root)!r})))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, "demo", *options],
            cwd=tmp_path,
            capture_output=True,
            encoding="utf-8",
        )
        assert done.returncode == 7, done.stderr
        assert json.loads(done.stdout) == {
            "arguments": ["demo", *options],
            "folder": str(tmp_path),
            "utf8": 1,
        }

    @pytest.mark.parametrize(
        ("words", "program", "groups"),
        [
            (["bench", "x"], ["-m", "benchmarks", "x"], ["bench"]),
            (["gates", "--quick"], ["-m", "training.gates", "--quick"], []),
            (
                ["test", "-k", "x"],
                [str(ROOT / "tests/check.py"), "-k", "x"],
                ["playground", "bench", "test"],
            ),
            (["compare", "--model", "x"], ["-m", "compare", "--model", "x"], []),
            (["hosttest"], [str(ROOT / "tests/hosts")], ["test"]),
            (["hosttest", "--page"], [str(ROOT / "tests/hosts"), "--page"], ["test", "page"]),
            (["hosttest", "--comfy=x"], [str(ROOT / "tests/hosts"), "--comfy=x"], ["test", "page"]),
        ],
    )
    def test_every_command_has_its_program_and_packages(self, monkeypatch, words, program, groups):
        prepared, started = [], []
        monkeypatch.setattr(run.Environment, "prepare", lambda self, names: prepared.append(names))
        monkeypatch.setattr(run.os, "execve", lambda _python, words, _env: started.append(words))
        monkeypatch.setattr(run.Environment, "run", lambda self, *words, **_: 0)
        run.main(words)
        assert prepared == [[*GROUPS, *groups]]
        assert [line[1:] for line in started] == [program]

    @pytest.mark.parametrize("model", [["--model", "x"], ["--model=x"]])
    def test_compare_needs_torch_only_without_a_webui(self, monkeypatch, model):
        prepared = []
        monkeypatch.setattr(run.Environment, "prepare", lambda self, names: prepared.append(names))
        monkeypatch.setattr(run.os, "execve", lambda *_: None)
        monkeypatch.setattr(run.Environment, "run", lambda self, *words, **_: 0)
        run.main(["compare", "--webui", "http://127.0.0.1:7860"])
        run.main(["compare", *model])
        assert prepared == [["compare"], GROUPS]

    @pytest.mark.parametrize("error", [run.SetupError("no network"), PermissionError("no network")])
    def test_what_goes_wrong_is_one_line(self, root, monkeypatch, capsys, error):
        def fail(self, groups):
            raise error

        monkeypatch.setattr(run.Environment, "prepare", fail)
        assert run.main(["demo"], root) == 1
        assert capsys.readouterr().err == "run.py: no network\n"

    def test_an_interrupted_setup_is_one_line(self, root, monkeypatch, capsys):
        def interrupt(self, groups):
            raise KeyboardInterrupt

        monkeypatch.setattr(run.Environment, "prepare", interrupt)
        assert run.main(["demo"], root) == 1
        assert capsys.readouterr().err.count("\n") == 1

    @pytest.mark.parametrize("version", [(3, 9), (3, 14), (4, 11)])
    def test_another_python_is_refused(self, root, monkeypatch, capsys, version):
        monkeypatch.setattr(run.sys, "version_info", (*version, 0, "final", 0))
        assert run.main(["demo"], root) == 1
        assert "Python 3.10 to 3.13" in capsys.readouterr().err
        assert not (root / ".venv").exists()

    def test_the_package_wants_the_same_pythons(self):
        text = (ROOT / "pyproject.toml").read_text()
        assert 'requires-python = ">=3.10,<3.14"' in text


class TestChecks:
    def statuses(self, monkeypatch, failing):
        seen = []

        def record(words, **_):
            name = words[2] if words[1] == "-m" else Path(words[1]).name
            seen.append(name)
            return subprocess.CompletedProcess(words, int(name in failing))

        monkeypatch.setattr(check.subprocess, "run", record)
        monkeypatch.setattr(pytest, "main", lambda words: seen.append(words) or 0)
        monkeypatch.chdir(ROOT)
        return seen

    def test_all_run_and_any_failure_counts(self, monkeypatch, capsys):
        seen = self.statuses(monkeypatch, {"ruff"})
        assert check.main([]) == 1
        assert seen == ["ruff", "ruff", "mypy", ["-rfEs"], "pythons.py"]
        assert "ruff check . FAILED (1)" in capsys.readouterr().out

    def test_all_well(self, monkeypatch, capsys):
        self.statuses(monkeypatch, set())
        assert check.main([]) == 0
        assert "all checks passed" in capsys.readouterr().out

    def test_with_options_pytest_alone(self, monkeypatch):
        seen = self.statuses(monkeypatch, set())
        assert check.main(["tests/test_run.py", "-k", "x"]) == 0
        assert seen == [["-rfEs", "tests/test_run.py", "-k", "x"]]


def test_torch_is_named_for_its_own_needs_too():
    """It is installed without them, so that another index is asked for it alone."""
    pins = [(ROOT / "requirements" / f"{name}.txt").read_text() for name in ("torch", "demo")]
    (alone,), (again,) = (re.findall(r"^torch==.+$", text, re.M) for text in pins)
    assert alone == again


@pytest.mark.parametrize(
    "group", ["torch", "demo", "bench", "playground", "test", "page", "constraints"]
)
def test_every_requirement_is_pinned(group):
    lines = (ROOT / "requirements" / f"{group}.txt").read_text().splitlines()
    named = [line for line in lines if line and not line.startswith("#")]
    assert named
    assert all(re.match(r"[\w.-]+==[\w.+]+(; python_version .+)?$", line) for line in named)


@pytest.mark.skipif(os.name == "nt", reason="locks and signals between processes are POSIX")
class TestTogether:
    PROGRAM = """
import sys, time
sys.path.insert(0, {root!r})
import run
from pathlib import Path
environment = run.Environment(Path({folder!r}))
{code}
"""

    def start(self, folder, code):
        words = self.PROGRAM.format(root=str(ROOT), folder=str(folder), code=code)
        return subprocess.Popen(
            [sys.executable, "-c", words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    USE = (
        "environment.lock(alone=False); import os, sys\n"
        "program = 'print(\"in use\", flush=True); input()'\n"
        "os.execv(sys.executable, [sys.executable, '-c', program])"
    )

    def test_nobody_clears_what_is_in_use(self, root):
        """The lock stays with the command that `run.py` becomes."""
        words = self.PROGRAM.format(root=str(ROOT), folder=str(root), code=self.USE)
        user = subprocess.Popen(
            [sys.executable, "-c", words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert user.stdout.readline() == "in use\n"
        other = self.start(root, "environment.lock(alone=True); print('alone', flush=True)")
        assert "waiting until it has ended" in other.stderr.readline()
        assert other.poll() is None
        user.communicate("\n", timeout=90)
        assert other.communicate(timeout=90)[0] == "alone\n"

    def test_several_use_it_at_a_time(self, root):
        first = self.start(root, "environment.lock(alone=False); print(1, flush=True); input()")
        assert first.stdout.readline() == "1\n"
        second = self.start(root, "environment.lock(alone=False); print(2)")
        out, error = second.communicate(timeout=90)
        first.kill()
        first.communicate(timeout=90)
        assert (out, error) == ("2\n", "")

    def test_two_first_runs_make_it_once(self, root):
        code = (
            f"sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
            "import test_run\n"
            "made = test_run.Recorded(environment.root)\n"
            "real = made.run\n"
            "made.run = lambda *words, **more: time.sleep(.2) or real(*words, **more)\n"
            "print(made.taken())"
        )
        both = [self.start(root, code) for _ in range(2)]
        found = [one.communicate(timeout=90)[0] for one in both]
        assert sorted(map(len, found))[0] == len("[]\n")
        assert f"{FIRST}\n" in found

    @pytest.mark.parametrize(("number", "status"), [("SIGTERM", 143), ("SIGINT", 1)])
    def test_a_step_ends_with_us(self, root, tmp_path, number, status):
        """The signal comes to `run.py` alone, while pip is at work."""
        code = (
            "environment.python = Path(sys.executable)\n"
            "sleep = 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'\n"
            "wait = lambda *_: environment.run('-c', sleep, stdout=None)\n"
            "run.Environment.prepare = wait\n"
            "sys.exit(run.main(['demo'], environment.root))"
        )
        process = self.start(root, code)
        child = int(process.stdout.readline())
        process.send_signal(getattr(signal, number))
        process.communicate(timeout=90)
        assert process.returncode == status
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and Path(f"/proc/{child}").exists():
            time.sleep(0.05)
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
