"""What a node has been told, and its word, without a ComfyUI."""

from types import SimpleNamespace

import pytest
import torch

from lib_ccn.comfy.plan import InFront, Plan, Report, plan_of
from lib_ccn.comfy.words import PromptWord, begins_alike
from lib_ccn.outcome import Account
from lib_ccn.settings import Settings, SettingsError

pytestmark = pytest.mark.offline

GIVEN = {"fusion": "pix", "delta": 0.5, "injection": True}
PIECES = ["<s>", "</s>", "red</w>", "star</w>", "green</w>", "hill</w>", "hou", "se</w>"]
BOS, EOS = 0, 1


class Clip:
    """A text encoder as far as words are concerned: one chunk of 8 tokens, words are its pieces."""

    def __init__(self, names=("l",)):
        pieces = dict(enumerate(PIECES))
        side = SimpleNamespace(start_token=BOS, end_token=EOS, inv_vocab=pieces)
        self.names, self.tokenizer = names, SimpleNamespace(clip_l=side)

    def tokenize(self, text):
        ids = [PIECES.index(f"{word}</w>") for word in text.split()]
        chunk = [(number, 1.0) for number in [BOS, *ids, *[EOS] * (7 - len(ids))]]
        return {name: [chunk] for name in self.names}


def word_of(word, text="red star green hill", clip=None):
    return PromptWord.of(clip or Clip(), text, word, torch.ones(1, 8, 4))


class TestPlan:
    def test_automatic_takes_what_is_connected(self):
        mask, word = torch.ones(1, 4, 4), word_of("star")
        assert plan_of(**GIVEN, mask=mask, word=word).settings.mask_source == "image"
        assert plan_of(**GIVEN, word=word).settings.mask_source == "word"
        assert plan_of(**GIVEN).settings.mask_source == "silhouette"
        assert plan_of(**GIVEN, is_flux=True).settings.mask_source == "all"

    def test_its_settings_are_those_of_other_hosts(self):
        plan = plan_of(
            **GIVEN, word=word_of("star"), foreground_unit=1, start_layer=2, record=False
        )
        assert plan.settings == Settings(
            fusion="pix",
            delta=0.5,
            foreground_word="star",
            foreground_unit=1,
            start_layer=2,
        )

    @pytest.mark.parametrize(("steps", "start"), [(50, 5), (20, 2), (4, 0), (10, 1)])
    def test_the_papers_start_is_a_share_of_the_steps(self, steps, start):
        settings = Plan(Settings()).settings_for(steps)
        assert settings.start_step == start == Settings().at_steps(steps).start_step

    @pytest.mark.parametrize("name", ["word", "mask"])
    def test_an_empty_socket_is_named(self, name):
        with pytest.raises(SettingsError, match=f"{name} = None.*a connection"):
            plan_of(**GIVEN, mask_source=name)

    def test_a_flat_mask_is_a_batch_of_one(self):
        plan = plan_of(**GIVEN, mask=torch.tensor([[0.2, 0.9]]))
        assert plan.masks[None].tolist() == [[[False, True]]]


class TestLayers:
    def test_they_are_in_front_in_their_order(self):
        mask = torch.ones(1, 4, 4, dtype=torch.bool)
        layers = (InFront(1, "star", threshold=0.5), InFront(0, mask=mask))
        plan = plan_of(**GIVEN, word=word_of("hill"), layers=layers)
        first, second = plan.settings.layers
        assert (first.unit, first.word, first.mask_threshold) == (1, "star", 0.5)
        assert (second.unit, second.mask_source) == (0, "image")
        assert plan.masks_for(2) == {second.mask_image: mask}
        assert plan.settings.foreground_word == ""

    def test_masks_are_as_many_as_pictures(self):
        mask = torch.tensor([[[1.0]], [[0.0]]])
        plan = plan_of(**GIVEN, mask=mask)
        assert plan.masks_for(3)[None].flatten().tolist() == [True, False, True]
        assert plan.masks_for(2)[None].flatten().tolist() == [True, False]

    def test_a_unit_twice_is_refused(self):
        with pytest.raises(SettingsError, match="each unit only once"):
            plan_of(**GIVEN, layers=(InFront(1, "star"), InFront(1, "hill")))


class TestWord:
    def test_is_found_where_it_stands(self):
        word = word_of("star")
        assert word.missing() is None
        assert [token.position for token in word.prompt.tokens] == [1, 2, 3, 4]
        assert word.encode("green hill") == [4, 5]

    def test_a_missing_one_is_named_with_what_is_near(self):
        assert word_of("house", "red star", SimpleClip()).missing().startswith("word 'house' is")

    def test_an_encoder_whose_tokens_stand_elsewhere_is_said(self):
        assert "encoders: l, g, t5xxl" in word_of("star", clip=Clip(("l", "g", "t5xxl"))).missing()

    def test_a_refused_word_costs_the_word_only(self):
        word = word_of("x" * 300)
        assert word.word == ""
        assert "foreground_word" in word.missing()

    def test_an_encoder_that_fails_costs_the_word_only(self):
        broken = SimpleNamespace(tokenize=lambda text: 1 / 0)
        assert "ZeroDivisionError" in word_of("star", clip=broken).missing()

    def test_its_prompt_is_known_again(self):
        word = word_of("star")
        assert word.is_of(torch.ones(2, 16, 4))
        assert not word.is_of(torch.zeros(1, 8, 4))
        assert not begins_alike(torch.ones(1, 8, 5), torch.ones(1, 8, 4))


class SimpleClip(Clip):
    """Knows a word of two pieces."""

    def tokenize(self, text):
        if text == "house":
            return {"l": [[(number, 1.0) for number in [BOS, 6, 7, *[EOS] * 5]]]}
        return super().tokenize(text)


def test_a_report_says_why_there_is_nothing():
    report = Report()
    assert report.account() == Account(notes=["nothing was sampled with this conditioning so far"])
    report.note("nothing to fuse")
    report.note("nothing to fuse")
    assert report.account().line() == "nothing to fuse"
