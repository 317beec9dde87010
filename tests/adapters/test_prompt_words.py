"""Words that prompts have in some steps, for some pictures, or by another name; or not at all."""

from types import SimpleNamespace

import pytest
import torch

from lib_ccn.hosts import sampling
from lib_ccn.hosts.prompts import PromptBook, Tokenizer
from lib_ccn.prompt import find_word
from lib_ccn.settings import Settings, SettingsError
from lib_ccn.units import Unit

from .stand_ins import a_sampling, conditioning
from .text_encoders import Engine, EngineWithEmbeddings, PickyEngine, book, positions, schedules_of

EDITED = [
    # (prompts, their conditionings, the word, what is missing, what is missing in some steps)
    (["a [cat|star]"], [[[(10, 1), (20, 2)]]], "star", "", "in the prompt in steps 11 to 19 only"),
    (["a [star|cat]"], [[[(10, 1), (20, 2)]]], "star", "", "in the prompt in steps 0 to 10 only"),
    (["a [star|]"], [[[(10, 1), (20, 2)]]], "star", "", "in the prompt in steps 0 to 10 only"),
    (["a [cat|star]"], [[[(18, 1), (20, 2)]]], "star", "", "in the prompt in step 19 only"),
    (["a [red|blue] star"], [[[(10, 1), (20, 2)]]], "ship", "'ship' is not in the prompt", ""),
    (["[red star|blue star]"], [[[(10, 1), (20, 2)]]], "star", "", ""),
    (["[star|a|b|c]"], [[[(5, 1), (10, 2), (15, 3), (20, 4)]]], "a", "", "in steps 6 to 10 only"),
    (["[star|a|star|c]"], [[[(5, 1), (10, 2), (15, 3), (20, 4)]]], "a", "", "steps 6 to 10 only"),
    (["[a|b|a|c]"], [[[(4, 1), (9, 2), (14, 3), (20, 4)]]], "a", "", "in 10 of 20 steps only"),
    (["a sea AND a [cat|star]"], [[[(20, 1)], [(10, 1), (20, 2)]]], "star", "", "steps 11 to 19"),
    (["a star AND a [cat|star]"], [[[(20, 1)], [(10, 1), (20, 2)]]], "star", "", ""),
    (
        ["a star", "a cat", "a sea"],
        [[[(20, 1)]], [[(20, 2)]], [[(20, 3)]]],
        "star",
        "'star' is not in the prompts of pictures 2 and 3 of this batch",
        "",
    ),
    (
        ["a star", "a cat"],
        [[[(20, 1)]], [[(20, 2)]]],
        "star",
        "'star' is not in the prompt of picture 2 of this batch",
        "",
    ),
    (
        ["a [cat|star]", "a star"],
        [[[(10, 1), (20, 2)]], [[(20, 3)]]],
        "star",
        "",
        "in the prompt of picture 1 of this batch in steps 11 to 19 only",
    ),
    (["a sea", "a sea"], [[[(20, 1)]], [[(20, 1)]]], "star", "'star' is not in the prompt", ""),
]


class TestWordsInSomeSteps:
    @pytest.mark.parametrize(("texts", "parts", "word", "missing", "partly"), EDITED)
    def test_what_is_said_is_true(self, texts, parts, word, missing, partly):
        found = book(texts, conditioning(*parts), word)
        for said, expected in (
            (found.missing_words(), missing),
            (found.partly_missing_words(), partly),
        ):
            assert expected in (said or "")
            assert bool(said) is bool(expected)

    @pytest.mark.parametrize(("texts", "parts", "word", "missing", "partly"), EDITED)
    def test_it_agrees_with_what_is_looked_at(self, texts, parts, word, missing, partly):
        found = book(texts, conditioning(*parts), word)
        having = [
            [bool(positions(prompt, word)) for _part, prompt in found.in_force(step)]
            for step in range(20)
        ]
        assert bool(missing) is not all(map(any, zip(*having, strict=True)))
        if partly:
            assert not all(map(all, having))

    def test_steps_are_the_samplers_own(self):
        cond = conditioning([[(20, 1), (40, 2)]])
        assert "steps 10 to 19" in book(["a [cat|star]"], cond, "star").partly_missing_words(2)

    def test_the_hires_pass_is_named(self):
        cond = conditioning([[(10, 1), (20, 2)]])
        found = PromptBook(
            ["a [cat|star]"],
            cond,
            Tokenizer(Engine()),
            ["star"],
            lambda text: [text],
            schedules_of,
            hires=True,
        )
        assert "in the prompt of the hires pass in steps" in found.partly_missing_words()
        found = PromptBook(
            ["a cat"],
            conditioning([[(9, 1)]]),
            Tokenizer(Engine()),
            ["star"],
            str.split,
            str.split,
            True,
        )
        assert found.missing_words() == "word 'star' is not in the prompt of the hires pass"


class TestEmbeddings:
    """Names in place of which a host puts tokens of its own."""

    @pytest.mark.parametrize("vectors", [1, 3])
    def test_a_name_is_a_word(self, vectors):
        engine = EngineWithEmbeddings({"easy star": vectors})
        found = Tokenizer(engine).layout("a easy star sea")
        number = engine.tokenize(["easy star"])[0]
        assert find_word(found, number) == list(range(2, 2 + vectors))
        assert find_word(found, number[1:]) == list(range(2, 2 + vectors)), "a part of the name"
        assert positions(found, "sea") == [2 + vectors]

    def test_in_the_second_chunk(self):
        engine = EngineWithEmbeddings({"moon": 2})
        found = Tokenizer(engine).layout("a b c d e moon sea")
        assert find_word(found, engine.tokenize(["moon"])[0]) == [9, 10]
        assert positions(found, "sea") == [11]

    def test_it_counts_as_a_word_of_the_prompt(self):
        tokenizer = Tokenizer(EngineWithEmbeddings({"moon": 2}))
        cond = conditioning([[(10, 1)]])
        found = PromptBook(
            ["a moon sea"], cond, tokenizer, ["moon"], lambda text: [text], lambda text: [text]
        )
        assert found.missing_words() is None
        assert find_word(found.in_force(0)[0][1], tokenizer.encode("moon")) == [2, 3]

    def test_vectors_beyond_a_chunk_are_not_claimed(self):
        engine = EngineWithEmbeddings({"moon": 2})
        chunks, count = engine.tokenize_line("a moon")
        chunks[0].fixes = [(5, SimpleNamespace(name="moon", vectors=9))]
        engine.tokenize_line = lambda line: (chunks, count)
        assert find_word(Tokenizer(engine).layout("a moon"), engine.tokenize(["moon"])[0]) == [6]


class TestWhatCannotBeRead:
    """One prompt's tokens cost that prompt's word, and nothing else."""

    def test_tokens(self):
        cond = conditioning([[(10, 1)]], [[(10, 2)]])
        texts = ["a broken star", "a star"]
        found = PromptBook(
            texts,
            cond,
            Tokenizer(PickyEngine()),
            ["star"],
            lambda text: [text],
            lambda text: [text],
        )
        (_, broken), (_, whole) = found.in_force(3)
        assert not broken.tokens
        assert "could not be read (KeyError" in broken.problem
        assert positions(whole, "star") == [2]
        assert found.missing_words() == broken.problem
        automatic = PromptBook(
            texts, cond, Tokenizer(PickyEngine()), [], lambda text: [text], lambda text: [text]
        )
        assert automatic.missing_words() == broken.problem

    @pytest.mark.parametrize("parsed", [TypeError("signature"), [], ["a"], ["a", "b", "c"]])
    def test_the_hosts_parser(self, parsed):
        def fails(_text):
            if isinstance(parsed, Exception):
                raise parsed
            return parsed

        edited = conditioning([[(5, 1), (10, 2)]], [[(10, 3)]])
        texts = ["a [cat:star:0.5]", "a star"]
        found = PromptBook(texts, edited, Tokenizer(Engine()), ["star"], lambda text: [text], fails)
        (_, unknown), _ = found.in_force(0)
        assert not unknown.tokens
        assert "could not be read" in found.missing_words()
        if parsed != ["a"]:
            assert positions(found.in_force(0)[1][1], "star") == [2], "it does not change"
            found = PromptBook(texts, edited, Tokenizer(Engine()), ["star"], fails, schedules_of)
            assert positions(found.in_force(0)[1][1], "star") == [2]

    def test_conditionings_of_another_structure_are_refused_with_a_sentence(self):
        with pytest.raises(ValueError, match="2 prompts for 1 pictures"):
            book(["a", "b"], conditioning([[(10, 1)]]))

    @pytest.mark.parametrize("name", ["id_start", "id_end", "tokenize_line"])
    def test_text_encoders_of_another_kind(self, name):
        whole = Engine()
        lacking = SimpleNamespace(tokenize_line=print, id_start=0, id_end=1)
        setattr(lacking, name, None)
        model = SimpleNamespace(text_processing_engine=lacking, cond_stage_model=whole)
        assert Tokenizer.of(model).engine is whole
        assert Tokenizer.of(SimpleNamespace(text_processing_engine=lacking)) is None


class TestInARun:
    """What the session is told at its beginning, over a whole run of steps."""

    def begin(self, monkeypatch, texts, cond, **settings):
        run = a_sampling(cond, pictures=len(texts))
        run.p.sd_model = SimpleNamespace(text_processing_engine=Engine())
        run.settings = Settings(foreground_word="star", **settings)
        made = book(texts, cond, "star")
        monkeypatch.setattr(sampling, "prompt_book", lambda *args: made)
        session = run.begin(torch.nn.Module(), [Unit(torch.nn.Module()), Unit(torch.nn.Module())])
        return [note for note in session.notes if "word" in note]

    @pytest.mark.parametrize("strict", [False, True])
    @pytest.mark.parametrize(
        ("text", "steps"), [("a [cat|star]", "steps 11 to 19"), ("a [star|cat]", "steps 0 to 10")]
    )
    def test_a_word_of_some_steps_is_not_refused(self, monkeypatch, strict, text, steps):
        if strict:  # units without attention are refused then, which is another matter
            monkeypatch.setattr("lib_ccn.session.why_unreached", lambda units, start_layer: [])
        cond = conditioning([[(10, 1), (20, 2)]])
        notes = self.begin(monkeypatch, [text], cond, strict=strict)
        assert notes == [f"word 'star' is in the prompt in {steps} only"]

    def test_one_that_a_picture_lacks_is(self, monkeypatch):
        cond = conditioning([[(20, 1)]], [[(20, 2)]])
        said = "word 'star' is not in the prompt of picture 2 of this batch"
        assert self.begin(monkeypatch, ["a star", "a cat"], cond) == [said]
        with pytest.raises(SettingsError, match=said):
            self.begin(monkeypatch, ["a star", "a cat"], cond, strict=True)
