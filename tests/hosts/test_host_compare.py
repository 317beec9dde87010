"""`run.py compare` against the WebUI: its pictures are those of requests made by hand."""

import contextlib
import io
import json

import numpy as np
import pytest
from hosts.cases import using
from hosts.client import encoded, same
from hosts.conftest import ERRORS
from PIL import Image

from compare.__main__ import main
from compare.pairs import NEGATIVE, PAIRS

pytestmark = [pytest.mark.timeout(1800), pytest.mark.usefixtures("settled")]

PAIR = PAIRS["balloon-hills"]
SIDE, STEPS, SEED = 64, 12, 5


@pytest.fixture(scope="module")
def made(host, tmp_path_factory):
    """What the command said, and its folder."""
    folder, said = tmp_path_factory.mktemp("compare"), io.StringIO()
    nets = [f"canny={host.requests.models}-a", f"depth={host.requests.models.upper()}-b"]
    words = ["--pairs", PAIR.name, "--size", str(SIDE), "--steps", str(STEPS), "--seed", str(SEED)]
    start = host.server.mark()
    words = ["--webui", host.server.url, "--out", str(folder), "--seeds", "1", *words]
    with contextlib.redirect_stdout(said):
        assert main([*words, "--controlnet", *nets]) == 0
    log = host.server.log(start)
    assert not ERRORS.search(log), f"the host printed an error:\n{log[-6000:]}"
    return said.getvalue(), folder


def by_hand(host):
    units = [
        host.requests.unit(name, image=encoded(image), processor_res=SIDE)
        for name, image in zip("ab", PAIR.conditions((SIDE, SIDE)), strict=True)
    ]
    texts = {"prompt": PAIR.prompt, "negative_prompt": NEGATIVE}
    sampling = {"seed": SEED, "steps": STEPS, "sampler_name": "UniPC", "cfg_scale": 7.0}
    return host.requests.body(units, width=SIDE, height=SIDE, **texts, **sampling)


def test_every_picture_is_that_of_a_request_by_hand(host, made, figures):
    _said, folder = made
    body = by_hand(host)
    asked = {
        "sum": body,
        "max": using(body, {"fusion": "max", "inject": False}),
        "full": using(body, {"foreground_word": PAIR.word}),
        "layers": using(body, {"fusion": "layers", "foreground_word": PAIR.word}),
    }
    pictures = {}
    for name, request in asked.items():
        reply = host.generate(request)
        file = folder / "pictures" / f"{PAIR.name}-{SEED}-{name}"
        with Image.open(file.with_suffix(".png")) as picture:
            pictures[name] = np.asarray(picture.convert("RGB"))
        assert np.array_equal(pictures[name], reply.pictures[0]), name
        record = json.loads(file.with_suffix(".json").read_text("utf-8"))
        assert record["note"] == ""
        assert record["seconds"] > record["step_seconds"] > 0
        figures[f"compare, a step, {name}, seconds"] = round(record["step_seconds"], 2)
    assert same(host.generate(body), host.generate(body))
    assert pictures["sum"].std() > 2
    assert (pictures["sum"] != pictures["full"]).any()
    assert (pictures["max"] != pictures["full"]).any()
    assert (pictures["layers"] != pictures["full"]).any()


def test_it_tells_what_was_done_and_shows_it(host, made):
    said, folder = made
    page = (folder / "compare.html").read_text("utf-8")
    assert f"canny: {host.requests.models}-a" in said
    assert "left out" not in said
    file = folder / "pictures" / f"{PAIR.name}-{SEED}-full"
    record = json.loads(file.with_suffix(".json").read_text("utf-8"))
    assert "KV-Injection in layers" in record["done"][0]
    with Image.open(f"{file}-strip.png") as strip:
        assert strip.width > 3 * strip.height / 2
    for word in ("PyTorch", "none: a CPU", host.installation.checkpoint, "Cross-ControlNet"):
        assert word in page
    assert str(host.installation.work) not in page, "no folder of this machine"
