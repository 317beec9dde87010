"""Which word the mask is made from, step by step, and what is said of it."""

from dataclasses import replace

import pytest
import torch
from clip_like import encode, piece

from benchmarks.counting import counting
from lib_ccn.foreground_word import ForegroundWord
from lib_ccn.masking import WordMaps
from lib_ccn.prompt import TokenizedPrompt, tokenize
from lib_ccn.settings import Settings
from lib_ccn.units import Call, Unit

SIZE = (32, 32)  # of the latents; maps are 8x8
UNIT = Unit(torch.nn.Module())


class Maps:
    """In place of a recorder: every token is attended to at a place of its own."""

    reduction, error, recording, tokens = 4, None, True, frozenset({64})

    def __init__(self, pictures=1, tokens=77):
        self.maps = torch.zeros(pictures, tokens, 8, 8)
        for token in range(tokens):
            self.maps[:, token].view(pictures, -1)[:, token % 64] = 1.0

        self.called = False

    def begin_call(self, size, rows):
        self.called = True

    def pause(self):
        pass

    def take(self):
        maps, self.called = self.maps if self.called else None, False
        return maps


@pytest.fixture
def watch():
    """Makes a word mask over such maps; `notes` is what it said."""

    def make(word, prompts, pictures=1, encoder=encode, tokens=77):
        settings = Settings(foreground_word=word, start_step=5)
        chosen = ForegroundWord(word, encoder, notes.append)
        maps = Maps(pictures, tokens)
        return WordMaps(settings, maps, prompts, [(chosen, UNIT)], notes.append)

    notes = []
    make.notes = notes
    return make


def read(text):
    return tokenize(text, encode, decode_piece=piece)


def a_step(mask, step, prompts=None, pictures=1):
    """A step with one UNet call; the word's map for the next one, and who has a mask."""
    if prompts is not None:
        mask.change_prompts(prompts)
    mask.begin_call(Call(SIZE, step, range(pictures), range(pictures)))
    deviation = torch.zeros(pictures, 16, 8, 8)
    deviation[:, ::2, 0, 3] = 1.0  # where the third token is looked at
    mask.observe(UNIT, [deviation, deviation], range(pictures))
    found = mask.next_maps(step + 1)
    return found.heats[0], found.usable[0]


SCHEDULES = [
    (["a red cat", "a red star"], "star", [False, True], "star"),
    (["a red star", "a red cat"], "Star", [True, False], "Star"),
    (["a cat", "a star", "a cat", "a star"], "star", [False, True, False, True], "star"),
    (["a cat", "a dog"], "star", [False, False], None),
]


@pytest.mark.parametrize(("texts", "word", "usable", "chosen"), SCHEDULES)
def test_a_word_that_comes_and_goes(watch, texts, word, usable, chosen):
    """The host knows all steps, and says itself in which of them the word is not."""
    mask = watch(word, [read(texts[0])])
    got = [bool(a_step(mask, step, [read(text)])[1]) for step, text in enumerate(texts)]
    assert got == usable
    assert mask.words[0][0].chosen == {0: chosen}
    assert watch.notes == []


def test_a_prompt_that_stays_and_lacks_the_word_is_noted(watch):
    mask = watch("moon", [read("a red star")])
    assert not a_step(mask, 0)[1].any()
    assert watch.notes == ["word 'moon' is not in the prompt"]
    assert mask.words[0][0].chosen == {0: None}


def test_each_picture_has_its_word(watch):
    prompts = [read("a red star"), read("a blue field"), read("the Star")]
    mask = watch("star", prompts, pictures=3)
    _bits, usable = a_step(mask, 0, prompts, pictures=3)
    assert usable.tolist() == [True, False, True]
    assert mask.words[0][0].chosen == {0: "star", 1: None, 2: "star"}


def test_an_automatic_word_stays_while_prompt_editing_changes_the_rest(watch):
    mask = watch("", [read("a red star")])
    for step in range(5):  # until injection begins the choice is not settled
        a_step(mask, step, [read("a red star")])
    assert mask.words[0][0].chosen == {0: "star"}
    # The star has moved to where another word fits better; it is still the foreground.
    a_step(mask, 6, [read("star over sea")])
    assert mask.words[0][0].chosen == {0: "star"}
    # It is gone: another one is chosen, and both were used.
    a_step(mask, 7, [read("a blue field")])
    a_step(mask, 8, [read("a red star")])
    assert mask.words[0][0].chosen == {0: "star, field"}
    assert watch.notes == []


@pytest.mark.parametrize("word", ["star", ""])
def test_a_prompt_that_could_not_be_read_costs_its_own_word(watch, word):
    unread = TokenizedPrompt((), problem="the prompt could not be read (KeyError: 1)")
    prompts = [unread, read("a red star")]
    mask = watch(word, prompts, pictures=2)
    _bits, usable = a_step(mask, 5, prompts, pictures=2)
    assert usable.tolist() == [False, True]
    assert watch.notes == [unread.problem]


@pytest.mark.parametrize("word", ["star", ""])
def test_tokens_that_the_unet_does_not_get(watch, word):
    mask = watch(word, [read("a " * 80 + "red star")])
    assert not a_step(mask, 5)[1].any()
    assert watch.notes == ["the prompt's tokens go beyond the 77 that the UNet gets: no mask"]


def test_a_tokenizer_that_raises_costs_the_word(watch):
    def broken(text):
        raise OSError("gone")

    mask = watch("star", [read("a star")], encoder=broken)
    assert not a_step(mask, 0)[1].any()
    assert watch.notes == ["word 'star' cannot be looked for (OSError: gone)"]


@pytest.mark.parametrize("text", ["", "of the", "42, !"])
def test_a_prompt_without_words(watch, text):
    mask = watch("", [read(text)])
    a_step(mask, 5)
    assert watch.notes == ["the prompt has no word that can name the foreground: no mask"]


@pytest.mark.parametrize("word", ["star", ""])
@pytest.mark.parametrize("pictures", [1, 3])
def test_an_accelerator_is_waited_for_once_a_step(watch, word, pictures, monkeypatch):
    monkeypatch.setattr("lib_ccn.masking.smoothed_deviation", lambda residual: residual.std(1))
    prompts = [read("a red star over a blue field")] * pictures
    mask = watch(word, prompts, pictures)
    mask.recorder.maps = mask.recorder.maps.to("meta")
    deviation = torch.ones(2 * pictures, 16, 8, 8, device="meta")
    rows = [*range(pictures)] * 2
    for step in range(3, 7):
        mask.begin_call(Call(SIZE, step, rows, range(pictures)))
        with counting() as counts:
            mask.observe(UNIT, [deviation, deviation], rows)
            assert not counts.waits
            mask.next_maps(step + 1)
        assert counts.waits.total() == 1


class Sequences(Maps):
    """In place of a recorder: what each call is said to record."""

    def __init__(self):
        self.waiting, self.called = [], False

    def take(self):
        maps = self.waiting.pop(0) if self.called and self.waiting else None
        self.called = False
        return maps


def looked_at(*places, tokens):
    """A row [tokens, 8, 8] whose token 3, the noun of "a red star", is looked at in one place."""
    maps = torch.zeros(tokens, 8, 8)
    for token, place in places:
        maps[token].view(-1)[place] = 1.0
    return maps


@pytest.mark.parametrize("together", [True, False])
def test_words_of_several_sub_prompts_are_read_each_in_its_own(together):
    """`a red star AND a blue whale`: rows of both, in one call or, where lengths differ, in two."""
    notes = []
    prompt = replace(read("a red star"), more=(read("a blue whale"),))
    words = [ForegroundWord(word, encode, notes.append) for word in ("whale", "star")]
    units = [Unit(torch.nn.Module()) for _ in words]
    recorder = Sequences()
    maps = WordMaps(
        Settings(layers="0 whale, 1 star", start_step=5),
        recorder,
        [prompt],
        list(zip(words, units, strict=True)),
        notes.append,
    )
    long = 77 if together else 154
    first, second = looked_at((3, 9), tokens=77), looked_at((3, 54), tokens=long)
    if together:
        recorder.waiting = [torch.stack([first, second])]
        calls = [Call(SIZE, 0, [0, 0, 0], [1, 2], total=1, parts=[0, 1])]
    else:
        recorder.waiting = [second[None], first[None]]
        calls = [Call(SIZE, 0, [0, 0], [1], total=1, parts=[part]) for part in (1, 0)]
    for call in calls:
        maps.begin_call(call)
    found = maps.next_maps(1)
    peaks = [int(heat[0].flatten().argmax()) for heat in found.heats]
    assert peaks == [54, 9]
    assert [bool(usable[0]) for usable in found.usable] == [True, True]
    assert [word.chosen for word in words] == [{0: "whale"}, {0: "star"}]
    assert notes == []

    # A step that asks for one of them only has no map of the other.
    recorder.waiting = [first[None]]
    maps.begin_call(Call(SIZE, 1, [0, 0], [1], total=1, parts=[0]))
    found = maps.next_maps(2)
    assert [bool(usable[0]) for usable in found.usable] == [False, True]


def test_a_word_in_no_sub_prompt_is_looked_for_in_the_first():
    notes = []
    prompt = replace(read("a red star"), more=(read("a blue whale"),))
    assert ForegroundWord("moon", encode, notes.append).part(prompt) == 0
    assert ForegroundWord("", encode, notes.append).part(prompt) == 0
    assert ForegroundWord("whale", encode, notes.append).part(prompt) == 1
    assert ForegroundWord("whale", encode, notes.append).part(read("a blue whale")) == 0
    assert notes == []
