"""Textual inversions of diffusers: a name may be one token or several."""

import copy

import pytest
import torch

pytest.importorskip("diffusers")

from tiny import WIDTH, generate, tiny_pipeline

from lib_ccn.hosts.diffusers import cross_controlnet
from lib_ccn.settings import Settings


@pytest.fixture(params=[1, 3])
def pipe(request):
    """A pipeline that knows <toy>, of that many vectors."""
    pipe = tiny_pipeline()
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)  # tests share one
    torch.manual_seed(3)
    vectors = torch.randn(request.param, WIDTH)
    pipe.load_textual_inversion({"<toy>": vectors}, token="<toy>")
    pipe.vectors = request.param
    return pipe


@pytest.mark.parametrize("word", ["<toy>", "red <toy>", "star", "<toy> over"])
def test_a_name_covers_all_its_tokens(pipe, word):
    settings = Settings(foreground_word=word, start_step=1, strict=True)
    with cross_controlnet(pipe, settings) as control:
        generate(pipe, "a red <toy> over a star")
    session = control.session
    assert session.place.word.chosen == {0: word}
    assert session.injected
    toy = list(range(3, 3 + pipe.vectors))
    expected = {
        "<toy>": toy,
        "red <toy>": [2, *toy],
        "<toy> over": [*toy, toy[-1] + 1],
        "star": [toy[-1] + 3],
    }
    (found,) = session.place.word._decided.values()
    assert list(found.positions) == expected[word]


def test_the_automatic_word_may_be_one(pipe):
    with cross_controlnet(pipe, Settings(start_step=1)) as control:
        generate(pipe, "a <toy>")
    assert control.session.place.word.chosen == {0: "<toy>"}


def test_a_part_of_a_name_is_no_word(pipe):
    with cross_controlnet(pipe, Settings(foreground_word="toy", start_step=1)) as control:
        generate(pipe, "a red <toy> over a star")
    assert "word 'toy' is not in the prompt" in control.session.notes[0]
