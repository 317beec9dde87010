"""One sampling: whose rows are whose, steps, errors, and methods put in front."""

import re
import weakref
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import lib_ccn.hosts.sampling as sampling_module
from lib_ccn.hosts.a1111 import RowClock
from lib_ccn.hosts.forge import FusedControlNets
from lib_ccn.prompt import Token, TokenizedPrompt
from lib_ccn.settings import Settings, SettingsError
from lib_ccn.units import Role, Unit

from .stand_ins import Control, a_sampling, ask, chain, conditioning
from .text_encoders import book


class TestRowClock:
    def test_one_call_for_all(self):
        clock = RowClock(a_sampling(conditioning([[(1, 1)]], [[(1, 1)]])))
        pictures, rows = clock.next_call(4)
        assert pictures == [0, 1, 0, 1]
        assert rows == {(0, 0): 0, (1, 0): 1}

    def test_several_sub_prompts(self):
        clock = RowClock(a_sampling(conditioning([[(1, 1)], [(1, 2)]], [[(1, 1)], [(1, 2)]])))
        pictures, rows = clock.next_call(6)
        assert pictures == [0, 0, 1, 1, 0, 1]
        assert rows == {(0, 0): 0, (0, 1): 1, (1, 0): 2, (1, 1): 3}

    def test_halves_apart(self):
        sampling = a_sampling(conditioning([[(1, 1)]], [[(1, 1)]]))
        clock = RowClock(sampling)
        for step in (0, 1):
            sampling.p.sampler.model_wrap_cfg.step = step
            assert clock.next_call(2) == ([0, 1], {(0, 0): 0, (1, 0): 1})
            assert clock.next_call(2) == ([0, 1], {})

    def test_more_rows_than_expected(self):
        clock = RowClock(a_sampling(conditioning([[(1, 1)]], [[(1, 1)]])))
        assert clock.next_call(6) == ([], {})


class TestSampling:
    def test_second_order_samplers_ask_twice_a_step(self):
        sampling = a_sampling(step=5)
        assert sampling.step == 5
        sampling.p.sampler.config.options["second_order"] = True
        assert sampling.step == 2

    @pytest.mark.parametrize(
        ("calls", "twice", "chosen", "start"),
        [(20, False, "auto", 2), (40, True, "auto", 2), (4, False, "auto", 0), (20, False, 7, 7),
         (None, False, "auto", 5)],
    )  # fmt: skip
    def test_an_automatic_start_is_a_tenth_of_the_runs_own_steps(self, calls, twice, chosen, start):
        """The hires pass has its own, img2img makes fewer than were asked for."""
        sampling = a_sampling()
        sampling.p.sd_model = SimpleNamespace()
        sampling.p.sampler.model_wrap_cfg.total_steps = calls
        sampling.p.sampler.config.options["second_order"] = twice
        sampling.settings = Settings(start_step=chosen)
        units = [Unit(torch.nn.Module()), Unit(torch.nn.Module())]
        assert sampling.begin(torch.nn.Module(), units).settings.start_step == start

    def test_tiles_are_no_whole_picture(self):
        sampling = a_sampling()
        rows = {(0, 0): 2, (1, 0): 3}
        whole = sampling.call((8, 8), [0, 1, 0, 1], rows)
        assert whole.whole
        assert list(whole.conditional) == [2, 3]
        assert not sampling.call((4, 8), [0, 1, 0, 1], rows).whole
        assert not sampling.call((8, 8), [0, 1, 2, 3], rows).whole, "more pictures than sampled"
        assert not sampling.call((8, 8), [], {}).whole

    def test_a_batch_in_pieces_is_read_piece_by_piece(self):
        sampling = a_sampling(conditioning([[(1, 1)], [(1, 2)]], [[(1, 1)], [(1, 2)]]))
        clock = RowClock(sampling)
        calls = [sampling.call((8, 8), *clock.next_call(2)) for _ in range(3)]
        assert all(call.whole and call.total == 2 for call in calls)
        assert [list(call.conditional) for call in calls] == [[0], [0], []]
        assert [list(call.pictures) for call in calls] == [[0, 0], [1, 1], [0, 1]]

    def test_rows_of_several_sub_prompts_are_read_where_words_are_in_several(self):
        texts = ["a sea AND a star", "a star AND a sea"]
        cond = conditioning([[(10, 1)], [(10, 2)]], [[(10, 1)], [(10, 2)]])
        sampling = a_sampling(cond)
        rows = {(0, 0): 4, (0, 1): 5, (1, 0): 6, (1, 1): 7}
        for words, read, parts in (
            (["star", "sea"], [4, 5, 6, 7], [0, 1, 0, 1]),
            (["star"], [5, 6], [0, 0]),
        ):
            sampling._book = book(texts, cond, *words)
            call = sampling.call((8, 8), [0, 1, 0, 1, 0, 0, 1, 1], rows)
            assert list(call.conditional) == read
            assert list(call.parts) == parts
            pictures = call.conditional_pictures
            assert list(call.conditional_parts) == list(zip(pictures, parts, strict=True))
        piece = sampling.call((8, 8), [0, 1], {(0, 1): 0, (1, 1): 1})
        assert (list(piece.conditional), list(piece.parts)) == ([0], [0]), "one has the word"

    def test_everything_is_undone_even_if_something_cannot_be(self, caplog):
        sampling, done = a_sampling(), []
        sampling.on_close += [lambda: done.append(1), lambda: 1 / 0, lambda: done.append(3)]
        sampling.close()
        sampling.close()
        assert done == [3, 1]
        assert "could not clean up" in caplog.text

    def test_nothing_large_is_kept_when_it_is_over(self):
        sampling = a_sampling(conditioning([[(1, 1)]]))
        sampling.end()
        sampling.end()
        assert sampling.p is None
        assert sampling.cond is None
        assert sampling.begin(torch.nn.Module(), []) is None
        assert sampling.step == 0

    @pytest.mark.parametrize("name", ["foreground_unit", "background_unit"])
    def test_a_named_unit_of_the_other_pass_is_automatic(self, name):
        sampling = a_sampling()
        sampling.p.sd_model = SimpleNamespace()
        sampling.settings = Settings(inject=False, strict=True, **{name: 0})
        sampling.resting = {0}
        units = [Unit(torch.nn.Module(), number=1), Unit(torch.nn.Module(), number=2)]
        session = sampling.begin(torch.nn.Module(), units)
        assert [unit.role for unit in units] == [Role.FOREGROUND, Role.BACKGROUND]
        assert "unit 0 is not for this pass" in session.notes[-1]

    @pytest.mark.parametrize("again", [{}, {"foreground_unit": 0, "foreground_word": "star"}])
    def test_who_is_in_front_in_the_other_pass_only_is_left_out(self, again):
        sampling = a_sampling()
        sampling.p.sd_model = SimpleNamespace()
        sampling.settings = Settings(layers="0 star, 2 ring", fusion="layers", **again)
        sampling.resting = {0}
        units = [Unit(torch.nn.Module(), number=1), Unit(torch.nn.Module(), number=2)]
        session = sampling.begin(torch.nn.Module(), units)
        assert [unit.role for unit in units] == [Role.BACKGROUND, Role.FOREGROUND]
        assert [layer.word for layer in session.settings.layers_in_front] == ["ring"]
        assert "unit 0 is not for this pass, so it is not in front in it" in session.notes

    @pytest.mark.parametrize(("fusion", "left"), [("layers", "sum"), ("pix", "pix")])
    def test_nobody_is_in_front_in_place_of_those_of_the_other_pass(self, fusion, left):
        sampling = a_sampling()
        sampling.p.sd_model = SimpleNamespace()
        sampling.settings = Settings(layers="0 star, 3 ring", fusion=fusion, strict=True)
        sampling.resting = {0, 3}
        units = [Unit(torch.nn.Module(), number=1), Unit(torch.nn.Module(), number=2)]
        settings = sampling.begin(torch.nn.Module(), units).settings
        assert (settings.layers, settings.fusion, settings.inject) == ((), left, False)

    def test_a_named_unit_that_is_not_there_is_an_error(self):
        for numbers, allowed in (((1, 2), r"'auto' or one of \[1, 2\]"), ((-1, -2), "not sure")):
            sampling = a_sampling()
            sampling.p.sd_model = SimpleNamespace()
            sampling.settings = Settings(inject=False, foreground_unit=0)
            units = [Unit(torch.nn.Module(), number=number) for number in numbers]
            begin = partial(sampling.begin, torch.nn.Module(), units)
            assert sampling.attempt(begin, lambda: None) is None
            assert re.search(allowed, sampling.aside)

    def test_errors_are_kept_or_raised(self):
        sampling = a_sampling()
        sampling.fail(RuntimeError("oh no"))
        assert sampling.aside == "RuntimeError: oh no"
        strict = a_sampling()
        strict.settings = Settings(strict=True)
        error = SettingsError("delta", 2, "less")
        with pytest.raises(SettingsError):
            strict.fail(error)
        assert strict.failed_with(error)
        assert not strict.failed_with(RuntimeError("the host's"))


def a_broken_book(at):
    """A book of prompts in which something goes wrong at one of its ends."""

    class Book:
        def missing_words(self):
            return 1 / 0 if at == "missing_words" else None

        def partly_missing_words(self, order):
            return 1 / 0 if at == "partly_missing_words" else None

        def in_force(self, step):
            if at == "in_force" or (at == "a later step" and step > 0):
                raise KeyError("no such schedule")
            return [((0,), prompt_of("star"))] * 2

        def parts_of(self, context, rows, step):
            raise ValueError("no such part")

    if at == "making it":
        raise TypeError("takes 2 positional arguments but 4 were given")
    return Book()


def prompt_of(word):
    return TokenizedPrompt((Token(1, 1, f"{word}</w>"),))


class TestPromptsThatCannotBeRead:
    """What goes wrong there costs the word, not the fusion."""

    def begin(self, monkeypatch, at, **settings):
        monkeypatch.setattr(sampling_module, "prompt_book", lambda *args: a_broken_book(at))
        if at == "tokenizer":
            monkeypatch.setattr(sampling_module.Tokenizer, "of", lambda model: 1 / 0)
        sampling = a_sampling()
        sampling.p.sd_model = SimpleNamespace()
        sampling.settings = Settings(foreground_word="star", **settings)
        units = [Unit(torch.nn.Module(), number=number) for number in (0, 1)]
        sampling.begin(torch.nn.Module(), units)
        return sampling

    def said(self, sampling):
        """What the user is told of the prompt; these units have no attention, which is another."""
        return [note for note in sampling.session.notes if "attention" not in note]

    @pytest.mark.parametrize(
        "at", ["tokenizer", "making it", "missing_words", "partly_missing_words", "in_force"]
    )
    def test_the_session_begins_and_says_so(self, monkeypatch, at):
        sampling = self.begin(monkeypatch, at)
        assert sampling.aside is None
        assert any("the prompt could not be read" in note for note in sampling.session.notes)
        assert sampling.call((8, 8), [0, 1], {(0, 0): 0, (1, 0): 1}).whole

    def test_later_too(self, monkeypatch):
        sampling = self.begin(monkeypatch, "a later step")
        assert self.said(sampling) == []
        rows = {(0, 0): 2, (1, 0): 3}
        assert sampling.call((8, 8), [0, 1, 0, 1], rows).prompts == [prompt_of("star")] * 2
        sampling.p.sampler.model_wrap_cfg.step = 1
        call = sampling.call((8, 8), [0, 1, 0, 1], rows)
        assert (list(call.conditional), call.prompts) == ([2, 3], None)
        assert self.said(sampling) == [
            "the prompt could not be read (KeyError: 'no such schedule')"
        ]

    def test_where_sub_prompts_cannot_be_told_apart_they_are_in_order(self, monkeypatch):
        sampling = self.begin(monkeypatch, "parts_of")
        assert sampling.parts_of(torch.zeros(2, 3, 4), [0, 1]) == [0, 1]
        assert "ValueError" in self.said(sampling)[0]

    @pytest.mark.parametrize(
        "settings", [{"mask_source": "all"}, {"inject": False}, {"fusion": "mean", "inject": False}]
    )
    def test_nothing_is_said_where_no_word_is_wanted(self, monkeypatch, settings):
        for strict in (False, True):
            sampling = self.begin(monkeypatch, "making it", strict=strict, **settings)
            assert self.said(sampling) == []

    @pytest.mark.parametrize(
        "at", ["tokenizer", "making it", "missing_words", "partly_missing_words", "in_force"]
    )
    def test_strict_raises_where_one_is(self, monkeypatch, at):
        with pytest.raises((TypeError, ZeroDivisionError, KeyError)):
            self.begin(monkeypatch, at, strict=True)


class TestSecondTries:
    def test_forges_sum_has_the_memory_of_the_failed_call(self):
        """Also what stood aside keeps nothing of it."""
        held = []

        class Failing(Control):
            def get_control(self, x, t, cond, count):
                if not held:
                    large = torch.zeros(3)
                    held.append(weakref.ref(large))
                    raise RuntimeError("CUDA out of memory")
                self.back = held[0]() is None
                return super().get_control(x, t, cond, count)

        sampling = a_sampling(pictures=1)
        sampling.settings = Settings(fusion="mean", inject=False)
        sampling.p.sd_model = SimpleNamespace()
        controls = [Control(1.0), Failing(3.0)]
        chain(*controls).transformer_options = {"cond_or_uncond": [1, 0]}
        node = FusedControlNets(controls, sampling, torch.nn.Module(), [])
        assert ask(node.head)["output"][0].unique().item() == 4.0
        assert node.head.back
        assert sampling.aside == "RuntimeError: CUDA out of memory"
        said = "the units are summed: RuntimeError: CUDA out of memory"
        assert sampling.account().line() == f"stood aside after an error, {said}"
