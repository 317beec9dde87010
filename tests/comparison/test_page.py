"""The page: everything is on it, nothing from outside does anything on it."""

import base64
import html
import io
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from PIL import Image

from compare.comparison import Comparison
from compare.made import Sampling
from compare.page import page
from compare.pairs import PAIRS
from compare.report import UNJUDGED
from comparison.fake_webui import generation
from comparison.test_comparison import run


class Reader(HTMLParser):
    """Every tag of a page, and its text."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


class TestPage:
    EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\u202e\x1b[31m|@everyone"

    @pytest.fixture
    def evil(self, server, tmp_path):
        """A page whose every word from outside is hostile."""

        def generate(body):
            answer = generation(body)
            info = json.loads(answer["info"])
            info["extra_generation_params"] = {"CCN note": self.EVIL, "CCN done": [self.EVIL]}
            return {**answer, "info": json.dumps(info)}

        name = f"control_v11f1p_sd15_depth{self.EVIL}"
        server.answers["/controlnet/model_list"] = {
            "model_list": [name, "control_v11p_sd15_openpose"]
        }
        server.answers["/sdapi/v1/options"] = {"sd_model_checkpoint": self.EVIL}
        server.answers["/internal/sysinfo"] = {"Version": self.EVIL, "Platform": self.EVIL}
        server.answers["/sdapi/v1/txt2img"] = generate
        return run(server, tmp_path, "--pairs", "standing-room")

    def test_nothing_from_outside_becomes_a_tag_or_an_escape(self, evil):
        read = Reader(evil)
        kinds = [tag for tag, _ in read.tags]
        assert kinds.count("script") == 1
        assert not any(name.startswith("on") for _, attrs in read.tags for name in attrs)
        images = [attrs["src"] for tag, attrs in read.tags if tag == "img" and "src" in attrs]
        assert images
        assert all(re.match(r"data:image/(?:png|jpeg);base64,", source) for source in images)
        assert not any({"href", "action", "srcset"} & set(attrs) for _, attrs in read.tags)
        assert html.escape("<script>alert(1)</script>") in evil
        assert "\u202e" not in evil
        assert "\x1b" not in evil

    def test_the_text_to_paste_mentions_nobody_and_keeps_its_tables(self, evil):
        pasted = evil.split("<textarea")[1].split("</textarea>")[0]
        assert "\\@everyone" in pasted
        assert re.search(r"(?<!\\)@everyone", pasted) is None
        for line in html.unescape(pasted).splitlines():
            if line.startswith("| "):
                assert len(re.findall(r"(?<!\\)\|", line)) in (3, 4)

    def test_only_its_own_script_may_run(self, evil):
        (policy,) = [
            attrs["content"]
            for tag, attrs in Reader(evil).tags
            if tag == "meta" and "http-equiv" in attrs
        ]
        assert "default-src 'none'" in policy
        assert "script-src 'sha256-" in policy

    def test_all_pictures_settings_and_versions_are_on_it(self, server, tmp_path):
        said = run(server, tmp_path, "--pairs", "standing-room,balloon-hills")
        read = Reader(said)
        told = " ".join(read.texts)
        images = [attrs["src"] for tag, attrs in read.tags if tag == "img" and "src" in attrs]
        assert len(images) == 2 * (2 + 3 + 1), "conditions, methods, the whole method's strip"
        for word in (
            *("RTX 3060", "12.0 GiB", "v1.10.1", "2.1.2+cu121", "xformers", "v1-5-pruned"),
            *("control_v11p_sd15_openpose", "UniPC, 5 steps, CFG 7", "mask_threshold 0.65"),
            *("in front: openpose", "behind: depth", UNJUDGED, "0: a, 1: b: pix+channel"),
        ):
            assert word in told, word
        assert "cab727d4" not in told
        for private in ("secret", "/home/me", "Users"):
            assert private not in said

    def test_flat_pictures_are_remarked(self, server, tmp_path, capsys):
        def black(body):
            file = io.BytesIO()
            Image.new("RGB", (64, 64)).save(file, "PNG")
            return {**generation(body), "images": [base64.b64encode(file.getvalue()).decode()]}

        server.answers["/sdapi/v1/txt2img"] = black
        said = run(server, tmp_path, "--pairs", "standing-room", "--methods", "sum")
        assert "standing-room, seed 1, Plain sum: the picture is of one colour" in said
        assert "remark: " in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("parameters", "said"),
        [
            ({}, "says nothing of Cross-ControlNet"),
            ({"CCN note": "the WebUI ran no ControlNet unit"}, "is the checkpoint v1-5-pruned"),
            ({"CCN note": "fewer than two units can be fused"}, "are both models ControlNets"),
        ],
    )
    def test_a_method_that_stood_aside_is_remarked(self, server, tmp_path, parameters, said):
        def generate(body):
            info = {"extra_generation_params": parameters}
            return {**generation(body), "info": json.dumps(info)}

        server.answers["/sdapi/v1/txt2img"] = generate
        assert said in html.unescape(run(server, tmp_path, "--pairs", "standing-room"))

    def test_a_page_of_nothing_yet(self, tmp_path):
        maker = SimpleNamespace(
            sampling=Sampling((64, 64), 20, 7.0, "UniPC"), nets={"openpose": "a", "depth": "b"}
        )
        empty = Comparison([PAIRS["standing-room"]], ["sum"], [1], maker, {})
        assert "Not finished" in page(empty)
