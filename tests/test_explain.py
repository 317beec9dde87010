"""The figures of docs/how-it-works.md, and the links of the documents."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from demo import explain
from demo.__main__ import main
from demo.demo_model import BUNDLED
from demo.examples import bundled_examples
from demo.explain import Explanation, Watched, _central_token, injection_figure
from demo.options import EXAMPLES, parse_explain
from lib_ccn.settings import Settings

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("docs/how-it-works.md", "docs/tutorial.md", "benchmarks/FIDELITY.md")


@pytest.mark.skipif(not BUNDLED.is_dir(), reason="THE TRAINED MODEL IS MISSING: models/demo")
def test_every_figure_of_the_document_is_drawn(tmp_path, capsys):
    assert main(["explain", "--steps", "4", "--out", str(tmp_path)]) == 0
    shown = set(re.findall(r"\(img/([\w-]+\.png)\)", (ROOT / DOCUMENTS[0]).read_text("utf-8")))
    assert {path.name for path in tmp_path.iterdir()} == shown
    for path in tmp_path.iterdir():
        assert path.stat().st_size < 60_000
        with Image.open(path) as figure:
            assert figure.width > 700
            assert len(figure.convert("RGB").getcolors(1 << 16)) > 8
    assert capsys.readouterr().out.count("KiB") == len(shown)


@pytest.mark.parametrize(
    ("options", "says"), [(["--steps", "2"], "--steps: 2"), (["--example", "99"], "--example: 99")]
)
def test_what_cannot_be_explained_is_refused(options, says, tmp_path, capsys):
    try:
        status = main(["explain", *options, "--out", str(tmp_path)])
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    assert says in capsys.readouterr().err


def test_the_central_token_is_the_deepest():
    inside = torch.zeros(6, 6, dtype=torch.bool)
    inside[1:6, 0:5] = True  # touches two edges of the picture, which count as outside
    assert _central_token(inside.flatten(), (6, 6)) == 3 * 6 + 2


def test_keys_are_shown_with_the_mask_of_their_own_step(monkeypatch):
    layer = SimpleNamespace(module=SimpleNamespace(heads=2))
    monkeypatch.setattr(explain, "self_attention_layers", lambda _net: [layer])
    config = SimpleNamespace(sample_size=8)
    pipe = SimpleNamespace(
        controlnet=SimpleNamespace(nets=[None, None]), unet=SimpleNamespace(config=config)
    )
    work = Explanation(pipe, bundled_examples()[0], 20, 5, Settings())
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(3, 64, 64, generator=generator)
    keys = [torch.randn(1, 64, 8, generator=generator) for _ in range(4)]
    early = torch.zeros(8, 8, dtype=torch.bool)
    early[1:4, 1:4] = True

    def figure(masks):
        return injection_figure(work, Watched([], keys[:2], keys[2:], {}, masks, picture))

    assert figure({5: early, 19: ~early}) == figure({5: early})
    assert figure({5: early}) != figure({5: ~early})


def test_explain_has_its_defaults():
    assert parse_explain([]).out == Path("docs/img")


def test_every_example_can_be_explained():
    assert len(bundled_examples()) == EXAMPLES
    assert parse_explain(["--example", str(EXAMPLES - 1)]).example == EXAMPLES - 1


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_of_the_documents_lead_somewhere(document):
    place = ROOT / document
    links = re.findall(r"\]\(([^)#][^)]*)\)", place.read_text("utf-8"))
    assert links
    files = {link: link.partition("#")[0] for link in links if not link.startswith("http")}
    assert [link for link, name in files.items() if not (place.parent / name).exists()] == []
