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
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"


def load():
    spec = importlib.util.spec_from_file_location("run", ROOT / "run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["run"] = module
    spec.loader.exec_module(module)
    return module


run = load()


@pytest.fixture
def root(tmp_path):
    """A project, with a space and an umlaut in its path, whose demo tells what it was given."""
    root = tmp_path / "my pröject"
    shutil.copytree(ROOT / "requirements", root / "requirements")
    package = root / "demo"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        "import json, os, sys\n"
        "print(json.dumps({'arguments': sys.argv[1:], 'folder': os.getcwd(),"
        " 'utf8': sys.flags.utf8_mode}))\n"
        "sys.exit(7)\n"
    )
    return root


class FakeEnvironment(run.Environment):
    """Decides as the real one does; what it would have run is written down in `steps`."""

    def __init__(self, root, python=VERSION, packages=None):
        super().__init__(root)
        self.steps: list[list[str]] = []
        self.refused: list[str] = []  # a command with one of these words fails
        self.refusal = "ERROR: No matching distribution found for that"
        self.broken_imports = 0
        self.found = None if python is None else {"python": python, "packages": packages or {}}

    def probe(self, groups):
        return self.found

    def all_packages(self):
        found = {name: sorted(v)[0] for name, v in self.pinned(("demo", "test")).items()}
        return {**found, "pip": "23.0", "torch": "2.13.0+cpu"}

    def step(self, title, command):
        self.steps.append(command)
        if any(word in command for word in self.refused):
            return 1, self.refusal
        if "venv" in command:
            self.folder.mkdir(exist_ok=True)
            self.stamp.unlink(missing_ok=True)
            self.found = {"python": self.version, "packages": {"pip": "23.0"}}
        elif "pip" in command:
            self.found["packages"] = self.all_packages()
        elif run.IMPORTS in command and self.broken_imports:
            self.broken_imports -= 1
            return 1, "ImportError: libgomp"
        return 0, ""

    def kinds(self):
        """The steps in short."""
        words = []
        for command in self.steps:
            if "venv" in command:
                words.append("venv")
            elif "--no-deps" in command:
                words.append("torch")
            elif "-r" in command:
                words.append(Path(command[command.index("-r") + 1]).stem)
            else:
                words.append("check")
        return words


@pytest.fixture(autouse=True)
def no_index(monkeypatch):
    monkeypatch.delenv(run.INDEX_VARIABLE, raising=False)


class TestPreparing:
    def test_first_run_makes_everything_and_second_nothing(self, root):
        environment = FakeEnvironment(root, python=None)
        environment.prepare(("demo",))
        assert environment.kinds() == ["venv", "torch", "demo", "check"]
        environment.steps.clear()
        environment.prepare(("demo",))
        assert environment.steps == []

    def test_test_after_demo_only_adds(self, root):
        environment = FakeEnvironment(root, python=None)
        environment.prepare(("demo",))
        environment.steps.clear()
        environment.prepare(("demo", "test"))
        assert environment.kinds() == ["test", "check"]
        environment.steps.clear()
        environment.prepare(("demo",))
        assert environment.steps == []

    @pytest.mark.parametrize("file", ["demo", "constraints"])
    def test_changed_pin_installs_again(self, root, file):
        environment = FakeEnvironment(root, python=None)
        environment.prepare(("demo",))
        environment.steps.clear()
        with open(root / "requirements" / f"{file}.txt", "a") as text:
            text.write("tqdm==4.70.1\n")
        environment.prepare(("demo",))
        assert environment.kinds() == ["demo", "check"]

    def test_line_endings_of_a_checkout_do_not_matter(self, root):
        before = FakeEnvironment(root).fingerprint("demo")
        path = root / "requirements" / "demo.txt"
        path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
        assert FakeEnvironment(root).fingerprint("demo") == before

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"python": "2.7"}'])
    def test_bad_stamp_installs_again(self, root, text):
        environment = FakeEnvironment(root, python=None)
        environment.prepare(("demo",))
        environment.steps.clear()
        environment.stamp.write_text(text)
        environment.prepare(("demo",))
        assert environment.kinds() == ["demo", "check"]

    @pytest.mark.parametrize("version", [None, "2.12.0+cpu", "2.12.0"])
    def test_torch_that_went_is_installed_again(self, root, version):
        environment = FakeEnvironment(root, python=None)
        environment.prepare(("demo",))
        environment.steps.clear()
        environment.found["packages"]["torch"] = version
        environment.prepare(("demo",))
        assert environment.kinds() == ["torch", "demo", "check"]

    @pytest.mark.parametrize(
        ("python", "packages"), [("3.9", {"pip": "23.0"}), (VERSION, {}), (None, {})]
    )
    def test_unusable_environment_is_made_anew(self, root, python, packages):
        environment = FakeEnvironment(root, python, packages)
        environment.prepare(("demo",))
        assert environment.kinds() == ["venv", "torch", "demo", "check"]

    def test_environment_that_no_repair_helps_is_made_anew_once(self, root):
        environment = FakeEnvironment(root, VERSION, {"pip": "23.0"})
        environment.folder.mkdir()
        environment.broken_imports = 1
        environment.prepare(("demo",))
        assert environment.kinds() == ["torch", "demo", "check", "venv", "torch", "demo", "check"]

    def test_packages_that_do_not_load_are_reported(self, root):
        environment = FakeEnvironment(root, python=None)
        environment.broken_imports = 9
        with pytest.raises(run.SetupError, match="libgomp"):
            environment.prepare(("demo",))
        assert environment.kinds() == ["venv", "torch", "demo", "check"]
        assert not environment.stamp.exists()

    def test_unfinished_installation_leaves_no_stamp(self, root):
        environment = FakeEnvironment(root, python=None)
        environment.prepare(("demo",))
        environment.refused = ["-r"]
        environment.refusal = "ERROR: disk full"
        with pytest.raises(run.SetupError, match=r"test\.txt[^$]*disk full"):
            environment.prepare(("demo", "test"))
        assert not environment.stamp.exists()

    def test_missing_venv_module_names_the_package(self, root, monkeypatch):
        found = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == "ensurepip" else found(name)
        )
        with pytest.raises(run.SetupError, match=f"no ensurepip.*python{VERSION}-venv"):
            FakeEnvironment(root, python=None).prepare(("demo",))

    def test_file_in_the_way(self, root):
        (root / ".venv").write_text("mine")
        with pytest.raises(run.SetupError, match="move it out of the way"):
            FakeEnvironment(root, python=None).prepare(("demo",))
        assert (root / ".venv").read_text() == "mine"

    def test_real_probe_of_a_real_python(self, root):
        environment = run.Environment(root)
        assert environment.probe(("demo",)) is None
        environment.python = Path(sys.executable)
        found = environment.probe(("test",))
        assert found["python"] == VERSION
        assert found["packages"]["pytest"] == pytest.__version__

    def test_damaged_python_counts_as_none(self, root):
        environment = run.Environment(root)
        environment.python.parent.mkdir(parents=True)
        environment.python.write_text("not a program")
        environment.python.chmod(0o755)
        assert environment.probe(("demo",)) is None


class TestTorch:
    def test_linux_never_asks_for_cuda_first(self):
        attempts = run.torch_attempts("2.13.0", "linux", None)
        assert [arguments[-1] for _, arguments in attempts] == [
            "torch==2.13.0+cpu",
            "torch==2.13.0+cpu",
            "torch==2.13.0",
        ]
        assert run.CPU_INDEX in attempts[1][1]

    @pytest.mark.parametrize("system", ["darwin", "win32"])
    def test_elsewhere_pypi_is_enough(self, system):
        assert run.torch_attempts("2.13.0", system, None) == [("", ("torch==2.13.0",))]

    def test_next_place_when_one_has_no_such_build(self, root, monkeypatch, capsys):
        monkeypatch.setattr(run.sys, "platform", "linux")
        environment = FakeEnvironment(root, python=None)
        environment.refused = ["torch==2.13.0+cpu"]
        environment.prepare(("demo",))
        assert environment.kinds() == ["venv", *["torch"] * 3, "demo", "check"]
        assert run.INDEX_VARIABLE in capsys.readouterr().err

    def test_another_failure_is_not_retried_elsewhere(self, root, monkeypatch):
        monkeypatch.setattr(run.sys, "platform", "linux")
        environment = FakeEnvironment(root, python=None)
        environment.refused = ["torch==2.13.0+cpu"]
        environment.refusal = "ERROR: [Errno 28] No space left on device"
        with pytest.raises(run.SetupError, match="No space left"):
            environment.prepare(("demo",))
        assert environment.kinds() == ["venv", "torch"]

    def test_index_of_ones_own(self, root, monkeypatch):
        environment = FakeEnvironment(root, python=None)
        environment.prepare(("demo",))
        monkeypatch.setenv(run.INDEX_VARIABLE, "https://example.org/cu130")
        other = FakeEnvironment(root, VERSION, environment.all_packages())
        other.prepare(("demo",))
        assert other.kinds() == ["torch", "check"]
        assert "https://example.org/cu130" in other.steps[0]
        assert "--force-reinstall" in other.steps[0]
        other.steps.clear()
        other.prepare(("demo",))
        monkeypatch.delenv(run.INDEX_VARIABLE)
        kept = FakeEnvironment(root, VERSION, environment.all_packages())
        kept.prepare(("demo",))
        assert other.steps == kept.steps == []


class TestCommandLine:
    def test_unknown_command(self, capsys, root):
        with pytest.raises(SystemExit) as stop:
            run.main(["dmo"], root)
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert "did you mean 'demo'" in error
        assert all(name in error for name in run.COMMANDS)

    def test_no_command_shows_help(self, capsys, root):
        assert run.main([], root) == 2
        error = capsys.readouterr().err
        assert all(name in error for name in run.COMMANDS)

    def test_help(self, capsys, root):
        with pytest.raises(SystemExit) as stop:
            run.main(["--help"], root)
        assert stop.value.code == 0
        help_text = capsys.readouterr().out
        assert all(command.help in help_text for command in run.COMMANDS.values())

    def test_options_and_status_pass_through(self, root, monkeypatch, capfd, tmp_path):
        prepared = []
        # As on Windows: elsewhere the tests themselves would become the command.
        monkeypatch.setattr(run, "WINDOWS", True)
        monkeypatch.setattr(
            run.Environment, "prepare", lambda self, groups: prepared.append(groups)
        )
        use_this_python(monkeypatch)
        monkeypatch.chdir(tmp_path)
        options = ["--help", "a b", "--prompt", "a red star — ünder", "", "-v", "demo"]
        assert run.main(["demo", *options], root) == 7
        got = json.loads(capfd.readouterr().out)
        assert got == {"arguments": ["demo", *options], "folder": str(tmp_path), "utf8": 1}
        assert prepared == [("demo",)]

    @pytest.mark.parametrize(
        ("name", "module"),
        [("bench", "benchmarks"), ("train", "training"), ("gates", "training.gates")],
    )
    def test_other_commands_run_their_modules(self, root, monkeypatch, name, module):
        calls = record_runs(monkeypatch)
        assert run.main([name, "x", "--quick"], root) == 0
        assert calls == [["-m", module, "x", "--quick"]]

    def test_host_tests_are_a_folder(self, root, monkeypatch):
        calls = record_runs(monkeypatch)
        assert run.main(["hosttest", "--webui", "x"], root) == 0
        assert calls == [[str(root / "tests" / "hosts"), "--webui", "x"]]

    def test_browser_packages_are_for_the_page_only(self, root, monkeypatch):
        prepared = []
        record_runs(monkeypatch)
        monkeypatch.setattr(
            run.Environment, "prepare", lambda self, groups: prepared.append(groups)
        )
        run.main(["hosttest", "--webui", "somewhere"], root)
        run.main(["hosttest", "--webui", "somewhere", "--page"], root)
        assert prepared == [("demo", "test"), ("demo", "test", "page")]

    def test_verbose_is_ours_before_the_command_only(self, root, monkeypatch):
        seen = []
        monkeypatch.setattr(run.Environment, "prepare", lambda self, _: seen.append(self.verbose))
        monkeypatch.setattr(run.Environment, "become", lambda self, arguments, folder=None: 0)
        run.main(["--verbose", "demo"], root)
        run.main(["demo", "--verbose"], root)
        assert seen == [True, False]

    def test_setup_error_is_one_message(self, root, monkeypatch, capsys):
        def fail(self, groups):
            raise run.SetupError("no network")

        monkeypatch.setattr(run.Environment, "prepare", fail)
        assert run.main(["demo"], root) == 1
        assert capsys.readouterr().err == "run.py: no network\n"

    def test_interrupted_setup(self, root, monkeypatch, capsys):
        def interrupt(self, groups):
            raise KeyboardInterrupt

        monkeypatch.setattr(run.Environment, "prepare", interrupt)
        assert run.main(["demo"], root) == 130
        assert "Traceback" not in capsys.readouterr().err


class TestTests:
    def test_every_check_runs_and_any_failure_counts(self, root, monkeypatch, capsys):
        calls = record_runs(monkeypatch, {"ruff": 1, "mypy": 2})
        assert run.main(["test"], root) == 1
        assert [call[1] for call in calls] == ["ruff", "ruff", "mypy", "pytest"]
        assert "-rfEs" in calls[-1]
        summary = capsys.readouterr().out.split("summary")[1]
        assert re.search(r"mypy +FAILED \(2\)", summary)
        assert re.search(r"pytest +ok", summary)

    def test_all_well(self, root, monkeypatch):
        record_runs(monkeypatch)
        assert run.main(["test"], root) == 0

    def test_with_options_pytest_alone(self, root, monkeypatch):
        calls = record_runs(monkeypatch, {"pytest": 5})
        assert run.main(["test", "tests/test_run.py", "-k", "x"], root) == 5
        assert calls == [["-m", "pytest", "-rfEs", "tests/test_run.py", "-k", "x"]]


class TestSupport:
    @pytest.mark.parametrize("version", [(3, 10), (3, 11), (3, 12)])
    def test_supported(self, version):
        assert run.unsupported(version, "linux", "x86_64", True) is None

    @pytest.mark.parametrize("version", [(3, 9), (3, 13), (4, 11)])
    def test_unsupported_version(self, version):
        reason = run.unsupported(version, "linux", "x86_64", True)
        assert "3.10, 3.11 or 3.12" in reason
        assert f"{version[0]}.{version[1]}" in reason

    def test_machines_without_packages(self):
        assert "Intel" in run.unsupported((3, 11), "darwin", "x86_64", True)
        assert run.unsupported((3, 11), "darwin", "arm64", True) is None
        assert "32-bit" in run.unsupported((3, 11), "win32", "x86", False)

    def test_user_is_told_of_a_python_that_would_do(self, root, monkeypatch, capsys):
        monkeypatch.setattr(run, "MINORS", ())
        monkeypatch.setattr(run, "other_python", lambda: "python3.12")
        assert run.main(["demo", "--help"], root) == 1
        assert "python3.12 run.py demo" in capsys.readouterr().err
        assert not (root / ".venv").exists()

    def test_agrees_with_the_package(self):
        (lowest, above) = re.search(
            r'requires-python = ">=3\.(\d+),<3\.(\d+)"', (ROOT / "pyproject.toml").read_text()
        ).groups()
        assert tuple(range(int(lowest), int(above))) == run.MINORS


@pytest.mark.parametrize("group", ["demo", "playground", "test", "page", "constraints"])
def test_every_requirement_is_pinned(group):
    text = (ROOT / "requirements" / f"{group}.txt").read_text()
    for name, versions in run.pins(text).items():
        assert all(versions), name


def test_pins_read_comments_and_markers():
    text = '# all\na==1; python_version < "3.11"\na==2  # new\n\nb-c==0.1+cpu\n'
    assert run.pins(text) == {"a": {"1", "2"}, "b-c": {"0.1+cpu"}}


@pytest.mark.skipif(os.name == "nt", reason="signals between processes are POSIX")
class TestSignals:
    @pytest.fixture(autouse=True)
    def heard(self):
        """Whoever runs the tests may ignore interrupts, which its children would inherit."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        signal.signal(signal.SIGINT, before)

    SCRIPT = """
import sys
sys.path.insert(0, {root!r})
import run
from pathlib import Path
environment = run.Environment(Path({root!r}))
environment.python = Path(sys.executable)
sys.exit(environment.{way}(["-c", {child!r}]))
"""
    PATIENT = (
        "import time\n"
        "try:\n print('up', flush=True); time.sleep(30)\n"
        "except KeyboardInterrupt:\n time.sleep(.5); print('tidied'); raise SystemExit(9)"
    )

    def start(self, child, way):
        code = self.SCRIPT.format(root=str(ROOT), child=child, way=way)
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout.readline() == "up\n"
        return process

    @pytest.mark.parametrize("way", ["become", "run"])
    @pytest.mark.parametrize("to", [os.kill, getattr(os, "killpg", None)], ids=["alone", "group"])
    def test_an_interrupt_reaches_the_program_once(self, way, to):
        process = self.start(self.PATIENT, way)
        time.sleep(0.1)
        to(process.pid, signal.SIGINT)
        out, error = process.communicate(timeout=90)
        assert (process.returncode, out, error) == (9, "tidied\n", "")

    @pytest.mark.parametrize("way", ["become", "run"])
    def test_termination_ends_the_program(self, way):
        process = self.start("import time; print('up', flush=True); time.sleep(30)", way)
        process.terminate()
        process.communicate(timeout=90)  # returns once the child has let go of the pipes
        assert process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)

    def test_child_that_is_killed(self):
        code = "print('up', flush=True); import os; os.kill(os.getpid(), 9)"
        process = self.start(code, "run")
        process.communicate(timeout=90)
        assert process.returncode == 137

    @pytest.mark.parametrize("verbose", [False, True])
    def test_an_interrupted_step_ends_its_program(self, root, verbose, capfd):
        """The interrupt comes from the program itself, to this process alone."""
        code = (
            "import os, signal, time\n"
            "os.kill(os.getppid(), signal.SIGINT)\n"
            "try:\n time.sleep(30)\n"
            "except KeyboardInterrupt:\n print('told')"
        )
        environment = run.Environment(root, verbose)
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            environment.step("waiting", [sys.executable, "-c", code])
        assert time.monotonic() - started < 20
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class TestProgress:
    def test_without_a_terminal_it_is_plain_lines(self, root, monkeypatch, capfd):
        monkeypatch.setattr(run, "LINE_EVERY", 1)
        status, _ = run.Environment(root).step(
            "installing", [sys.executable, "-c", "import time; time.sleep(2.5)"]
        )
        lines = capfd.readouterr().err.splitlines()
        assert status == 0
        assert lines[0] == "installing ..."
        assert len(lines) >= 3
        assert all(re.fullmatch(r"installing \.\.\. \d+ s", line) for line in lines[1:])

    def test_on_a_terminal_it_is_one_line(self, root, monkeypatch, capfd):
        monkeypatch.setattr(run.sys.stderr, "isatty", lambda: True, raising=False)
        run.Environment(root).step("installing", [sys.executable, "-c", "raise SystemExit(1)"])
        assert capfd.readouterr().err == "installing ...\rinstalling ... no\n"


def use_this_python(monkeypatch):
    real = run.Environment.__init__

    def init(self, *arguments, **options):
        real(self, *arguments, **options)
        self.python = Path(sys.executable)

    monkeypatch.setattr(run.Environment, "__init__", init)


def record_runs(monkeypatch, statuses=None):
    calls = []

    def record(self, arguments, folder=None):
        calls.append(arguments)
        return (statuses or {}).get(arguments[1], 0)

    monkeypatch.setattr(run.Environment, "prepare", lambda self, groups: None)
    monkeypatch.setattr(run.Environment, "run", record)
    monkeypatch.setattr(run.Environment, "become", record)
    return calls
