"""Whatever is wrong is said in one sentence that says what to do, and what is done stays."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from compare import webui as maker
from compare.__main__ import main
from compare.client import Client, WebUIError
from compare.options import parse
from comparison.fake_webui import FakeWebUI, generation

ROOT = Path(__file__).parents[2]
QUICK = ["--size", "64", "--seeds", "1", "--steps", "5", "--pairs", "standing-room"]
QUICK += ["--methods", "sum,max,full"]


@pytest.fixture
def failing(tmp_path, capsys):
    """Run the command against a WebUI; what it says on stderr, which must be one line."""

    def run(url, *words, status=1):
        assert main(["--webui", url, "--out", str(tmp_path), *QUICK, *words]) == status
        said = [line for line in capsys.readouterr().err.splitlines() if line and "|" not in line]
        assert len(said) == 1
        assert said[0].startswith("error: ")
        assert "Traceback" not in said[0]
        return said[0]

    return run


def refusing(**answers):
    return FakeWebUI(**{name.replace("__", "/"): answer for name, answer in answers.items()})


class TestAddresses:
    def test_nobody_is_there(self, failing):
        with FakeWebUI() as gone:
            pass
        said = failing(gone.url)
        assert gone.url in said
        assert "is it running" in said

    @pytest.mark.parametrize(
        "url", ["", "ftp://x", "http://", "http://[::1", "http://x:99999", "\x1b[31m", "a b://"]
    )
    def test_what_is_no_address(self, failing, url):
        said = failing(url)
        assert "\x1b" not in said
        assert "such as http://127.0.0.1:7860" in said or "is this its address" in said

    def test_something_else_answers(self, failing):
        with refusing(sdapi__v1__samplers=(200, "<html>")) as server:
            assert "not as a WebUI's API does" in failing(server.url)

    @pytest.mark.parametrize("suffix", ["/", ""])
    def test_a_slash_or_no_scheme(self, suffix):
        assert Client(f"127.0.0.1:7860{suffix}").url == "http://127.0.0.1:7860"

    def test_it_is_redirected_and_does_not_follow(self, failing):
        with FakeWebUI() as other:
            place = {"Location": f"{other.url}/sdapi/v1/samplers"}
            with refusing(sdapi__v1__samplers=(302, "", place)) as server:
                assert f"sends us to {other.url}" in failing(server.url)
            assert other.asked == []

    def test_no_proxy_gets_anything(self, tmp_path, monkeypatch):
        with FakeWebUI() as proxy, FakeWebUI() as server:
            for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
                monkeypatch.setenv(name, proxy.url)
            assert main(["--webui", server.url, "--out", str(tmp_path), *QUICK]) == 0
            assert proxy.asked == []

    def test_it_does_not_answer_in_time(self):
        late = pytest.raises(WebUIError, match="does not answer in time")
        with refusing(slow=lambda _body: time.sleep(2) or {}) as server, late:
            Client(server.url).call("/slow", seconds=0.1)


class TestWhatIsMissing:
    def test_the_api(self, failing):
        with refusing(sdapi__v1__samplers=404) as server:
            assert "--api" in failing(server.url)

    def test_this_extension(self, failing):
        with FakeWebUI(**{"cross-controlnet/v1/schema": 404}) as server:
            said = failing(server.url)
        assert "no Cross-ControlNet" in said
        assert "Install from URL" in said

    def test_or_it_is_another_version(self, failing):
        with FakeWebUI(**{"cross-controlnet/v1/schema": {"properties": {}}}) as server:
            assert "another version" in failing(server.url)

    def test_controlnet(self, failing):
        with FakeWebUI(**{"controlnet/model_list": 404}) as server:
            said = failing(server.url)
        assert "no ControlNet" in said
        assert "sd-webui-controlnet" in said

    def test_every_model(self, failing, capsys):
        models = {"model_list": ["None", "t2iadapter_depth_sd15v2", "ip-adapter_sd15"]}
        with FakeWebUI(**{"controlnet/model_list": models}) as server:
            said = failing(server.url)
            assert server.generated == []
        assert "nothing to compare" in said
        assert "--controlnet KIND=NAME" in said

    def test_a_named_model(self, failing):
        with FakeWebUI() as server:
            said = failing(server.url, "--controlnet", "depth=control_v11f1p_sd15_dept")
        assert "did you mean control_v11f1p_sd15_depth" in said

    def test_a_sampler(self, failing):
        with FakeWebUI() as server:
            assert "the WebUI has Euler, UniPC" in failing(server.url, "--sampler", "DDIM")


class TestPasswords:
    @pytest.fixture
    def guarded(self):
        """A WebUI with --api-auth me:secret."""
        server = FakeWebUI()
        own = server.RequestHandlerClass.reply

        def reply(handler, body):
            right = "Basic bWU6c2VjcmV0"
            if handler.headers.get("Authorization") == right:
                return own(handler, body)
            handler.send_response(401)
            handler.end_headers()
            return handler.wfile.write(b'{"detail": "Not authenticated"}')

        server.RequestHandlerClass = type(
            "Handler", (server.RequestHandlerClass,), {"reply": reply}
        )
        with server:
            yield server

    def test_one_is_asked_for(self, failing, guarded):
        assert "--user NAME --password WORD" in failing(guarded.url)

    def test_a_wrong_one(self, failing, guarded):
        said = failing(guarded.url, "--user", "me", "--password", "wrong")
        assert "does not accept" in said
        assert "wrong" not in said

    @pytest.mark.parametrize("how", ["options", "address", "typed"])
    def test_the_right_one_is_written_nowhere(self, guarded, tmp_path, capsys, monkeypatch, how):
        monkeypatch.setattr("getpass.getpass", lambda _prompt: "secret")
        words = {
            "options": [guarded.url, "--user", "me", "--password", "secret"],
            "address": [guarded.url.replace("//", "//me:secret@")],
            "typed": [guarded.url, "--user", "me"],
        }
        out = ["--out", str(tmp_path), *QUICK]
        assert main(["--webui", *words[how], *out]) == 0
        told = capsys.readouterr()
        texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
        assert len(texts) > 3
        assert not any(b"secret" in text for text in [*texts, (told.out + told.err).encode()])


class TestGenerations:
    def test_shapes_that_do_not_fit_are_another_family(self, failing):
        wrong = {"error": "RuntimeError", "errors": "mat1 and mat2 shapes cannot be multiplied"}
        with refusing(sdapi__v1__txt2img=(500, json.dumps(wrong))) as server:
            said = failing(server.url)
        assert "another family" in said
        assert "v1-5-pruned.safetensors" in said
        assert "--sdxl" in said

    def test_memory(self, failing):
        with refusing(sdapi__v1__txt2img=(500, '{"error": "OutOfMemoryError"}')) as server:
            assert "--size 48" in failing(server.url)

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            ((422, '{"detail": [{"msg": "no such field"}]}'), "no such field"),
            ((500, "<h1>\x1b[31mInternal\n Server Error"), "Internal Server Error"),
            ({"images": []}, "sent no picture"),
            ([], "sent no picture"),
            ({"images": ["bm90IGEgcGljdHVyZQ=="], "info": "{}"}, "cannot be read"),
            ((0, ""), "stopped answering"),
        ],
    )
    def test_what_comes_instead_of_a_picture(self, failing, answer, said):
        with refusing(sdapi__v1__txt2img=answer) as server:
            told = failing(server.url)
        assert said in told
        assert "\x1b" not in told

    def test_what_is_done_before_is_kept_and_shown(self, failing, tmp_path, capsys):
        made = []

        def third_fails(body):
            if body["steps"] != maker.SHORT:
                made.append(body)
            return (0, "") if len(made) == 3 else generation(body)

        with refusing(sdapi__v1__txt2img=third_fails) as server:
            failing(server.url)
            pictures = sorted(path.name for path in (tmp_path / "pictures").glob("*.png"))
            assert pictures == ["standing-room-1-max.png", "standing-room-1-sum.png"]
            assert "Not finished" in (tmp_path / "compare.html").read_text("utf-8")
            server.answers.clear()
            before = len(server.generated)
            assert main(["--webui", server.url, "--out", str(tmp_path), *QUICK]) == 0
            assert len(server.generated) == before + 1
        assert "Not finished" not in (tmp_path / "compare.html").read_text("utf-8")

    def test_a_folder_that_cannot_be_written(self, failing, tmp_path):
        (tmp_path / "file").touch()
        with FakeWebUI() as server:
            failing(server.url, "--out", str(tmp_path / "file"), status=2)
            assert server.asked == []

    @pytest.mark.skipif(os.name == "nt", reason="signals are sent as POSIX has them")
    @pytest.mark.parametrize("ours", [True, False])
    def test_ctrl_c_keeps_what_is_done_and_ends_our_picture_alone(self, tmp_path, ours):
        reached, go_on = threading.Event(), threading.Event()

        def second_waits(body):
            if len(server.generated) > 1:
                reached.set()
                go_on.wait(30)
            return generation(body)

        server = FakeWebUI()
        server.answers["/sdapi/v1/txt2img"] = second_waits
        server.answers["/internal/progress"] = {"active": ours}
        server.answers["/sdapi/v1/interrupt"] = {}
        words = ["-m", "compare", "--webui", server.url, "--out", str(tmp_path), *QUICK]
        paths = {**os.environ, "PYTHONPATH": str(ROOT)}
        with server, subprocess.Popen(
            [sys.executable, *words], env=paths, stderr=subprocess.PIPE, text=True,
            stdout=subprocess.PIPE,
        ) as child:  # fmt: skip
            assert reached.wait(60)
            child.send_signal(signal.SIGINT)
            out, said = child.communicate(timeout=60)
            go_on.set()
        assert child.returncode == 130, said
        assert said.splitlines()[-1] == "stopped"
        assert "Traceback" not in said
        assert "the same command goes on" in out
        assert (tmp_path / "pictures" / "standing-room-1-sum.json").exists()
        assert "Not finished" in (tmp_path / "compare.html").read_text("utf-8")
        paths = [path for path, _body in server.asked]
        assert ("/sdapi/v1/interrupt" in paths) == ours
        task = server.generated[-1]["force_task_id"]
        assert task in [
            body["id_task"] for path, body in server.asked if path == "/internal/progress"
        ]


class TestOptions:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ([], "--webui --model"),
            (["--webui", "x", "--model", "y"], "not allowed with"),
            (["--model", "x"], "two ControlNets"),
            (["--model", "x", "--controlnet", "depth=a"], "two ControlNets"),
            (["--webui", "x", "--controlnet", "nose=a"], "KIND of openpose, depth, seg, canny"),
            (["--webui", "x", "--controlnet", "depth"], "KIND=NAME"),
            (["--webui", "x", "--controlnet", "depth="], "KIND=NAME"),
            (["--webui", "x", "--pairs", "sitting"], "choose among standing-room"),
            (["--webui", "x", "--methods", ""], "choose among sum, max, full"),
            (["--webui", "x", "--size", "500"], "multiples of 8"),
            (["--webui", "x", "--steps", "0"], "less than 1"),
            (["--webui", "x", "--seed", str(2**64 - 1)], "is more than"),
            (["--webui", "x", "--password", "y"], "needs a --user"),
            (
                ["--model", "x", "--controlnet", "depth=a", "seg=b", "--user", "y"],
                "are for --webui",
            ),
            (["--model", "x", "--controlnet", "depth=a", "seg=b", "--sampler", "y"], "UniPC"),
        ],
    )
    def test_what_cannot_be_is_refused_in_a_line(self, capsys, words, said):
        with pytest.raises(SystemExit) as left:
            parse(words)
        told = capsys.readouterr().err
        assert left.value.code == 2
        assert said in told
        assert told.count("\n") == 1

    def test_what_is_left_out(self):
        options = parse(["--webui", "x", "--sdxl", "--methods", "full"])
        assert options.size == (1024, 1024)
        assert options.methods == ("sum", "full")
        assert parse(["--webui", "x"]).size == (512, 512)

    def test_controlnets_may_be_named_at_once_or_one_by_one(self):
        words = ["--controlnet", "depth=a=b", "seg=c", "--controlnet", "DEPTH=d"]
        assert parse(["--webui", "x", *words]).controlnets == {"depth": "d", "seg": "c"}
