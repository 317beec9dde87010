"""The prompts of a host: sub-prompts, schedules, tokens."""

import sys
import types
from types import SimpleNamespace

import pytest
import torch

from lib_ccn.hosts.prompts import Tokenizer, prompt_book

from .stand_ins import conditioning, embedding
from .text_encoders import Engine, book, positions


class TestPromptBook:
    def test_words_stand_where_the_host_puts_them(self):
        (entry,) = book(["a red star over the wide sea"], conditioning([[(10, 1)]])).in_force(0)
        assert entry[0] == (0,)
        assert positions(entry[1], "star") == [3]
        assert positions(entry[1], "sea") == [8 + 1], "the second chunk has its own beginning"

    def test_prompt_editing_follows_the_step(self):
        prompts = book(["a [star|moon]"], conditioning([[(4, 1), (10, 2)]]))
        for step, word, other in ((0, "star", "moon"), (4, "star", "moon"), (5, "moon", "star")):
            ((_, prompt),) = prompts.in_force(step)
            assert positions(prompt, word)
            assert not positions(prompt, other)

    def test_the_sub_prompt_with_the_word_is_taken(self):
        cond = conditioning([[(10, 1)], [(10, 2)]], [[(10, 1)], [(10, 2)]])
        texts = ["a sea AND a star", "a star AND a sea"]
        chosen = [part for part, _ in book(texts, cond, "star").in_force(0)]
        assert chosen == [(1,), (0,)]
        assert [part for part, _ in book(texts, cond, "ship").in_force(0)] == [(0,), (0,)]
        assert book(texts, cond, "star").missing_words() is None
        assert book(texts, cond, "").missing_words() is None
        assert "'ship' is not in the prompts" in book(texts, cond, "ship").missing_words()

    @pytest.mark.parametrize(
        ("words", "parts"),
        [
            (("star", "sea"), (0, 1)),
            (("moon", "star"), (1, 2)),
            (("sea", "star", "moon"), (0, 1, 2)),
            (("moon", "cloud", "star"), (2, 1)),
            (("star", "ship"), (1,)),
        ],
    )
    def test_sub_prompts_are_read_until_every_word_is_found(self, words, parts):
        """The first that has the most of the words, then those of the words that are left."""
        cond = conditioning([[(10, 1)], [(10, 2)], [(10, 3)]])
        texts = ["a sea AND a star AND a moon behind a cloud"]
        prompts = book(texts, cond, *words)
        ((chosen, prompt),) = prompts.in_force(0)
        assert chosen == parts
        assert len(prompt.parts) == len(parts)
        there = [word for part in prompt.parts for word in words if positions(part, word)]
        assert sorted(there) == sorted({*words} - {"ship"})
        assert prompts.in_force(1) == [(chosen, prompt)]

    def test_sub_prompts_are_told_apart_by_their_embeddings(self):
        prompts = book(["a sea AND a star"], conditioning([[(10, 1)], [(10, 2)]]))
        context = torch.stack([embedding(2), embedding(9), embedding(1)])
        assert prompts.parts_of(context, [0, 2], 0) == [1, 0]
        half = context.half()
        assert prompts.parts_of(half, [0, 2], 0) == [1, 0]

    def test_an_unforeseen_split_costs_nothing(self):
        cond = conditioning([[(10, 1)], [(10, 2)], [(10, 3)]])
        ((part, prompt),) = book(["a sea AND a star"], cond, "star").in_force(0)
        assert part == (0,)
        assert positions(prompt, "star")


class SharedEngine(Engine):
    """As the WebUIs' class for OpenCLIP, whose module has the tokenizer."""


class TestTokenizer:
    def test_pieces_come_from_the_engines_module_where_it_has_none(self, monkeypatch):
        engine = SharedEngine()
        number = engine.number("sea")
        assert Tokenizer(engine).layout("sea").tokens[0].piece is None
        module = types.ModuleType("sd_hijack_open_clip")
        module.tokenizer = SimpleNamespace(decoder={number: "sea</w>"})
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(SharedEngine, "__module__", module.__name__)
        assert Tokenizer(engine).layout("sea").tokens[0].piece == "sea</w>"


@pytest.fixture
def prompt_parser(monkeypatch):
    """The WebUIs' parser as far as it is asked, which also records how."""

    def get_multicond_prompt_list(prompts):
        indexes, flat = [], []
        for prompt in prompts:
            parts = [part.strip() for part in prompt.split("AND")]
            flat += [part for part in dict.fromkeys(parts) if part not in flat]
            indexes.append([(flat.index(part), 1.0) for part in parts])
        return indexes, flat, {}

    def get_learned_conditioning_prompt_schedules(prompts, steps, hires_steps=None, old=False):
        asked.append((steps, hires_steps))
        last = hires_steps or steps
        return [[[step, prompt] for step in range(1, last + 1)] for prompt in prompts]

    asked = []
    second_order = {"Heun": True, "Euler": False}
    modules = types.ModuleType("modules")
    modules.prompt_parser = SimpleNamespace(
        get_multicond_prompt_list=get_multicond_prompt_list,
        get_learned_conditioning_prompt_schedules=get_learned_conditioning_prompt_schedules,
        asked=asked,
    )
    modules.shared = SimpleNamespace(opts=SimpleNamespace())
    modules.sd_samplers = SimpleNamespace(
        find_sampler_config=lambda name: SimpleNamespace(
            total_steps=lambda steps: steps * (2 if second_order[name] else 1)
        )
    )
    monkeypatch.setitem(sys.modules, "modules", modules)
    return modules.prompt_parser


class TestPromptsOfTheHost:
    def test_a_repeated_sub_prompt_counts_each_time(self, prompt_parser):
        p = SimpleNamespace(prompts=["a cat AND a dog AND a cat"], steps=1)
        cond = conditioning([[(1, 1)], [(1, 2)], [(1, 1)]])
        found = prompt_book(p, cond, False, Tokenizer(Engine()), ["dog"])
        ((part, prompt),) = found.in_force(0)
        assert part == (1,)
        assert positions(prompt, "dog")
        assert not positions(prompt, "cat"), "the sub-prompt, and not the whole text"

    @pytest.mark.parametrize(
        "takes",
        [
            "steps, hires_steps=None, use_old_scheduling=False",
            "base_steps, hires_steps=None",
            "steps",
            "steps, *, use_old_scheduling=True, more=1",
        ],
    )
    @pytest.mark.parametrize("hires", [False, True])
    def test_the_parser_is_told_what_it_takes(self, prompt_parser, takes, hires):
        told = []
        namespace = {"told": told}
        exec(
            f"def parse(prompts, {takes}):\n"
            "    told.append(dict(locals()))\n"
            "    return [[[3, prompt]] for prompt in prompts]",
            namespace,
        )
        prompt_parser.get_learned_conditioning_prompt_schedules = namespace["parse"]
        p = SimpleNamespace(prompts=["a star"], hr_prompts=["a star"], steps=3)
        p.sampler_name = "Euler"
        found = prompt_book(p, conditioning([[(3, 1)]]), hires, Tokenizer(Engine()), ["star"])
        assert found.missing_words() is None
        assert told[0].get("base_steps", told[0].get("steps")) == 3
        assert told[0].get("hires_steps") == (3 if hires and "hires_steps" in takes else None)
        assert told[0].get("use_old_scheduling", False) is False

    def test_the_hires_pass_has_its_own_prompts(self, prompt_parser):
        p = SimpleNamespace(prompts=["a star"], hr_prompts=["a sea"], steps=3, sampler_name="Euler")
        cond = conditioning([[(3, 1)]])
        assert prompt_book(p, cond, False, Tokenizer(Engine()), ["star"]).missing_words() is None
        missing = prompt_book(p, cond, True, Tokenizer(Engine()), ["star"]).missing_words()
        assert missing == "word 'star' is not in the prompt of the hires pass"

    @pytest.mark.parametrize(
        ("sampler", "hires_sampler", "asked"),
        [("Euler", None, 3), ("Heun", None, 6), ("Euler", "Heun", 6), ("Heun", "Euler", 3)],
    )
    def test_hires_steps_are_counted_as_the_host_does(
        self, prompt_parser, sampler, hires_sampler, asked
    ):
        p = SimpleNamespace(hr_prompts=["a sea"], steps=4, firstpass_steps=8)
        p.sampler_name, p.hr_sampler_name, p.hr_second_pass_steps = sampler, hires_sampler, 3
        prompt_book(p, conditioning([[(3, 1)]]), True, Tokenizer(Engine()), [])
        assert prompt_parser.asked == [(8, asked)]
