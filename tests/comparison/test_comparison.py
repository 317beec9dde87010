"""The comparison end to end: what a WebUI is asked for, what is kept, and what the page says."""

import base64
import io
import itertools
import json
import re

import pytest
from PIL import Image

from compare.__main__ import main
from compare.comparison import Comparison, Row
from compare.made import Made, Sampling
from compare.pairs import METHODS, PAIRS, methods_for
from compare.report import text
from compare.store import Store
from comparison.fake_webui import FakeWebUI, generation
from lib_ccn.settings import fields
from lib_ccn.webui.api import schema

QUICK = ["--size", "64", "--seeds", "1", "--steps", "5", "--methods", "sum,max,full"]


def run(server, folder, *words):
    assert main(["--webui", server.url, "--out", str(folder), *QUICK, *words]) == 0
    return (folder / "compare.html").read_text("utf-8")


def units_of(body):
    return body["alwayson_scripts"]["ControlNet"]["args"]


class Maker:
    """It makes nothing."""

    def __init__(self):
        self.sampling = Sampling((64, 64), 20, 7.0, "UniPC")
        self.nets = {"openpose": "a", "depth": "b"}


def noise(size=(64, 64)):
    return Image.effect_noise(size, 60).convert("RGB")


class TestRequests:
    def test_every_method_has_the_same_seed_prompt_and_conditions(self, server, tmp_path):
        run(server, tmp_path, "--pairs", "waving-street", "--seeds", "2", "--seed", "7")
        plain, fused, whole, *again = server.generated
        assert [body["seed"] for body in server.generated] == [7, 7, 7, 8, 8, 8]
        for body in (fused, whole):
            for name in set(plain) - {"alwayson_scripts", "force_task_id"}:
                same = [str(one[name]).strip() for one in (body, plain)]
                assert same[0] == same[1], name
            assert units_of(body) == units_of(plain) == units_of(again[0])
        settings = [
            body["alwayson_scripts"]["Cross-ControlNet"]["args"] for body in server.generated[:3]
        ]
        assert settings[0] == [{"enabled": False}]
        assert settings[1][0]["fusion"] == "max"
        assert settings[1][0]["inject"] is False
        word = {"fusion": "pix+channel", "inject": True, "foreground_word": "man"}
        assert settings[2][0].items() >= word.items()
        known = schema()["properties"]
        assert all(set(one) <= set(known) for (one,) in settings)

    def test_no_request_finds_its_texts_encoded_by_the_one_before(self, server, tmp_path):
        """A WebUI keeps those of the last request, by their letters; encoding belongs to a time."""
        run(server, tmp_path, "--pairs", "standing-room", "--seeds", "2")
        asked = [body for path, body in server.asked if path == "/sdapi/v1/txt2img"]
        assert len(asked) == 2 + 6
        for name in ("prompt", "negative_prompt"):
            texts = [body[name] for body in asked]
            assert len({text.rstrip() for text in texts}) == 1
            assert all(one != other for one, other in itertools.pairwise(texts))

    def test_units_are_as_both_kinds_of_webui_take_them(self, server, tmp_path):
        run(server, tmp_path, "--pairs", "standing-room")
        front, back = units_of(server.generated[0])
        assert front["model"] == "control_v11p_sd15_openpose [cab727d4]"
        assert back["model"] == "control_v11f1p_sd15_depth [cfd03158]"
        assert {unit["module"] for unit in (front, back)} == {"none"}, "as this WebUI spells it"
        assert "type_filter" not in front
        picture = Image.open(io.BytesIO(base64.b64decode(front["image"])))
        assert (picture.size, picture.mode) == ((64, 64), "RGB")
        assert not server.generated[0]["save_images"]

    def test_forge_spells_no_module_otherwise(self, tmp_path):
        modules = {"controlnet/module_list": {"module_list": ["canny", "None"]}}
        with FakeWebUI(**modules) as server:
            run(server, tmp_path, "--pairs", "standing-room")
            assert units_of(server.generated[0])[0]["module"] == "None"

    def test_a_union_is_told_what_it_gets(self, server, tmp_path):
        names = {"model_list": ["xinsir_controlnet_union_promax [9460e4db]"]}
        server.answers["/controlnet/model_list"] = names
        said = run(server, tmp_path, "--sdxl", "--pairs", "standing-street")
        told = [unit["union_control_type"] for unit in units_of(server.generated[0])]
        assert told == ["OpenPose", "Segmentation"]
        assert "other WebUIs cannot be" in said

    def test_only_the_address_given_is_asked(self, server, tmp_path):
        run(server, tmp_path)
        assert {headers["Host"] for headers in server.headers} == {server.url[len("http://") :]}

    def test_a_rule_that_the_webui_does_not_know_is_left_out(self, server, tmp_path, capsys):
        known = schema()
        known["properties"]["fusion"]["enum"] = ["pix+channel", "sum"]
        server.answers["/cross-controlnet/v1/schema"] = known
        said = run(server, tmp_path, "--pairs", "standing-room")
        assert len(server.generated) == 2
        assert "left out: MaxFusion, as the WebUI" in capsys.readouterr().out
        assert "MaxFusion, as the WebUI&#x27;s Cross-ControlNet does not know it" in said

    def test_every_method_is_tried_if_none_is_named(self, server, tmp_path):
        words = ["--size", "64", "--seeds", "1", "--steps", "5", "--pairs", "standing-room"]
        assert main(["--webui", server.url, "--out", str(tmp_path), *words]) == 0
        asked = [
            body["alwayson_scripts"]["Cross-ControlNet"]["args"][0] for body in server.generated
        ]
        assert [one.get("fusion") for one in asked] == [None, "max", "pix+channel", "layers"]
        assert asked[3]["foreground_word"] == "woman"
        said = (tmp_path / "compare.html").read_text("utf-8")
        assert "Layers: what was done" in said
        assert "fusion layers" in said

    def test_methods_are_those_that_the_settings_know(self):
        here = methods_for()
        assert {"sum", "max", "full"} <= set(here)
        assert ("layers" in here) == ("layers" in fields()["fusion"].choices)
        assert set(methods_for(["layers"])) == {"sum", "layers"}
        assert set(methods_for([])) == {"sum"}


class TestFinding:
    def test_what_is_found_and_what_is_left_out_is_said(self, server, tmp_path, capsys):
        said = run(server, tmp_path)
        told = capsys.readouterr().out
        assert "openpose: control_v11p_sd15_openpose [cab727d4]" in told
        assert "t2i" not in told
        assert re.search(r"left out: .*vase-room: there is no ControlNet for seg, such as", told)
        assert "there is no ControlNet for seg" in said
        asked = {body["prompt"].strip() for body in server.generated}
        assert asked == {pair.prompt for pair in PAIRS.values() if "seg" not in pair.kinds}

    def test_sdxl_has_models_and_a_size_of_its_own(self, server, tmp_path):
        words = ["--webui", server.url, "--sdxl", "--seeds", "1", "--steps", "5"]
        assert main([*words, "--out", str(tmp_path), "--pairs", "standing-room"]) == 0
        body = server.generated[0]
        assert (body["width"], body["height"]) == (1024, 1024)
        names = [unit["model"].partition(" ")[0] for unit in units_of(body)]
        assert names == ["thibaud_xl_openpose", "diffusers_xl_depth_full"]

    def test_a_named_model_takes_the_place_of_the_one_found(self, server, tmp_path):
        run(server, tmp_path, "--pairs", "standing-room", "--controlnet",
            "depth=T2IADAPTER_depth_sd15v2")  # fmt: skip
        assert units_of(server.generated[0])[1]["model"] == "t2iadapter_depth_sd15v2 [e1f51eb9]"


class TestResuming:
    PAIR = ("--pairs", "standing-room")

    def test_a_second_run_asks_for_no_picture(self, server, tmp_path):
        first = run(server, tmp_path, *self.PAIR)
        count = len(server.generated)
        assert count == 3
        assert run(server, tmp_path, *self.PAIR) == first
        assert len(server.generated) == count
        assert not list(tmp_path.rglob("*.part"))
        conditions = sorted(path.name for path in (tmp_path / "conditions").iterdir())
        assert conditions == ["depth-room.png", "openpose-standing.png"]

    @pytest.mark.parametrize(
        ("words", "made"),
        [
            (["--steps", "6"], 3),
            (["--guidance-scale", "5"], 3),
            (["--size", "72"], 3),
            (["--sampler", "euler"], 3),
            (["--controlnet", "depth=t2iadapter_depth_sd15v2"], 3),
            (["--seeds", "2"], 3),
            (["--methods", "full"], 0),
            (["--pairs", "standing-room,waving-street"], 3),
        ],
    )
    def test_what_another_setting_changes_is_made_anew(self, server, tmp_path, words, made):
        run(server, tmp_path, *self.PAIR)
        run(server, tmp_path, *self.PAIR, *words)
        assert len(server.generated) == 3 + made

    def test_another_checkpoint_too(self, server, tmp_path):
        run(server, tmp_path, *self.PAIR)
        server.answers["/sdapi/v1/options"] = {"sd_model_checkpoint": "other"}
        assert "other" in run(server, tmp_path, *self.PAIR)
        assert len(server.generated) == 6

    def test_another_setting_of_one_method_that_method(self, server, tmp_path, monkeypatch):
        run(server, tmp_path, *self.PAIR)
        changed = METHODS["full"].settings | {"delta": 0.5}
        monkeypatch.setitem(METHODS, "full", type(METHODS["full"])("Other", "", changed))
        run(server, tmp_path, *self.PAIR)
        assert len(server.generated) == 4

    @pytest.mark.parametrize("harm", ["no record", "cut", "no strip", "no json", "other json"])
    def test_what_is_not_whole_is_made_anew(self, server, tmp_path, harm):
        run(server, tmp_path, *self.PAIR)
        folder = tmp_path / "pictures"
        picture, note = folder / "standing-room-1-full.png", folder / "standing-room-1-full.json"
        if harm == "no record":
            note.unlink()
        elif harm == "cut":
            picture.write_bytes(picture.read_bytes()[:-60])
        elif harm == "no strip":
            (folder / "standing-room-1-full-strip.png").unlink()
        else:
            note.write_text("{" if harm == "no json" else "[1]")
        run(server, tmp_path, *self.PAIR)
        assert len(server.generated) == 4


class TestTimes:
    def comparison(self, tmp_path, times):
        """Of three methods; a list of seconds a step for each row."""

        store = Store(tmp_path)
        pair = PAIRS["standing-room"]
        made = Comparison([pair], ["sum", "max", "full"], range(len(times)), Maker(), {})
        for seed, row in enumerate(times):
            kept = {
                method: store.keep(f"{seed}-{method}", {}, Made(noise(), None, 1.0, seconds))
                for method, seconds in zip(made.methods, row, strict=True)
            }
            made.rows.append(Row(pair, seed, kept))
        return made

    def test_a_ratio_is_to_the_sum_of_the_same_row(self, tmp_path):
        made = self.comparison(tmp_path, [(1.0, 1.1, 1.2), (4.0, 4.8, 4.4), (2.0, 2.6, 2.6)])
        assert made.step_seconds("sum") == 2.0
        assert made.ratio("sum") == 1.0
        assert made.ratio("max") == pytest.approx(1.2)
        assert made.ratio("full") == pytest.approx(1.2)
        assert "| Cross-ControlNet | 2.60 s | 1.20 |" in text(made)

    def test_what_was_not_timed_is_said_so(self, tmp_path):
        made = self.comparison(tmp_path, [(None, 1.0, None)])
        assert made.ratio("max") is None
        assert "| Plain sum | not timed |  |" in text(made)

    def test_a_webui_s_time_is_that_of_further_steps(self, tmp_path):
        """Less what a short run takes: loading, text and VAE take no steps."""
        import time

        def generate(body):
            time.sleep(0.3 + 0.02 * body["steps"])
            return generation(body)

        with FakeWebUI() as server:
            server.answers["/sdapi/v1/txt2img"] = generate
            words = ("--pairs", "standing-room", "--steps", "14", "--methods", "sum")
            run(server, tmp_path, *words)
            steps = [b["steps"] for path, b in server.asked if path == "/sdapi/v1/txt2img"]
            record = json.loads((tmp_path / "pictures/standing-room-1-sum.json").read_text())
        assert steps == [4, 4, 14]
        assert 0.015 < record["step_seconds"] < 0.04
