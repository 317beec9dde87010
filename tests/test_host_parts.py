"""The parts of the WebUI adapters that need no WebUI; the rest is tests/hosts/ on real ones."""

import re
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lib_ccn.hosts.a1111 import RowClock
from lib_ccn.hosts.controlnet_script import enabled_units, too_few
from lib_ccn.hosts.forge import FusedControlNets, attach
from lib_ccn.hosts.in_front import put_in_front
from lib_ccn.hosts.prompts import PromptBook, Tokenizer
from lib_ccn.hosts.sampling import Sampling
from lib_ccn.settings import Settings, SettingsError
from lib_ccn.webui.pictures import mask_strip

VOCABULARY = ["<bos>", "<eos>"]


class Engine:
    """A text encoder that makes a token of every word, 6 to a chunk."""

    chunk_length = 6
    id_start, id_end = 0, 1

    def tokenize(self, texts):
        return [[self.number(word) for word in text.replace(",", " ").split()] for text in texts]

    def number(self, word):
        if word not in VOCABULARY:
            VOCABULARY.append(word)
        return VOCABULARY.index(word)

    def tokenize_line(self, line):
        ids = self.tokenize([line])[0]
        parts = [ids[i : i + 6] for i in range(0, len(ids), 6)] or [[]]
        padded = [[0, *part, *[1] * (7 - len(part))] for part in parts]
        return [SimpleNamespace(tokens=tokens) for tokens in padded], len(ids)


def embedding(seed, tokens=8):
    return torch.randn(tokens, 4, generator=torch.Generator().manual_seed(seed))


def conditioning(*pictures):
    """Of each picture its sub-prompts, of each sub-prompt (end_at_step, seed)."""
    return SimpleNamespace(
        batch=[
            [
                SimpleNamespace(
                    schedules=[
                        SimpleNamespace(end_at_step=end, cond=embedding(seed)) for end, seed in part
                    ]
                )
                for part in parts
            ]
            for parts in pictures
        ]
    )


def schedules_of(text):
    """`a [b|c]` stands for `a b`, then `a c`."""
    head, bracket, tail = text.partition("[")
    return [head + option for option in tail.rstrip("]").split("|")] if bracket else [text]


def book(texts, cond, word=""):
    return PromptBook(
        texts, cond, Tokenizer(Engine()), word, lambda text: text.split(" AND "), schedules_of
    )


def positions(prompt, word):
    number = Engine().number(word)
    return [token.position for token in prompt.tokens if token.id == number]


class TestPromptBook:
    def test_words_stand_where_the_host_puts_them(self):
        (entry,) = book(["a red star over the wide sea"], conditioning([[(10, 1)]])).in_force(0)
        assert entry[0] == 0
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
        assert chosen == [1, 0]
        assert [part for part, _ in book(texts, cond, "ship").in_force(0)] == [0, 0]
        assert book(texts, cond, "star").missing_word() is None
        assert book(texts, cond, "").missing_word() is None
        assert "'ship' is not in the prompt" in book(texts, cond, "ship").missing_word()

    def test_sub_prompts_are_told_apart_by_their_embeddings(self):
        prompts = book(["a sea AND a star"], conditioning([[(10, 1)], [(10, 2)]]))
        context = torch.stack([embedding(2), embedding(9), embedding(1)])
        assert prompts.parts_of(context, [0, 2], 0) == [1, 0]
        half = context.half()
        assert prompts.parts_of(half, [0, 2], 0) == [1, 0]

    def test_an_unforeseen_split_costs_nothing(self):
        cond = conditioning([[(10, 1)], [(10, 2)], [(10, 3)]])
        ((part, prompt),) = book(["a sea AND a star"], cond, "star").in_force(0)
        assert part == 0
        assert positions(prompt, "star")


def a_sampling(cond=None, pictures=2, size=(8, 8), step=0):
    denoiser = SimpleNamespace(step=step)
    sampler = SimpleNamespace(model_wrap_cfg=denoiser, config=SimpleNamespace(options={}))
    p = SimpleNamespace(sampler=sampler)
    return Sampling(p, Settings(), size, pictures, cond)


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

    def test_tiles_are_no_whole_picture(self):
        sampling = a_sampling()
        rows = {(0, 0): 2, (1, 0): 3}
        whole = sampling.call((8, 8), [0, 1, 0, 1], rows)
        assert whole.whole
        assert list(whole.conditional) == [2, 3]
        assert not sampling.call((4, 8), [0, 1, 0, 1], rows).whole
        assert not sampling.call((8, 8), [0, 1, 2, 3], rows).whole, "more pictures than sampled"
        assert not sampling.call((8, 8), [], {}).whole

    def test_half_a_batch_is_not_read(self):
        call = a_sampling().call((8, 8), [0, 1], {(0, 0): 0})
        assert call.whole
        assert list(call.conditional) == []

    def test_everything_is_undone_even_if_something_cannot_be(self, caplog):
        sampling, done = a_sampling(), []
        sampling.on_close += [lambda: done.append(1), lambda: 1 / 0, lambda: done.append(3)]
        sampling.close()
        sampling.close()
        assert done == [3, 1]
        assert "could not clean up" in caplog.text

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


class TestInFront:
    class Owner:
        def greet(self, name):
            return f"hello {name}"

    def test_is_undone(self):
        owner = self.Owner()
        undo = put_in_front(owner, "greet", lambda own, name: own(name) + "!")
        assert owner.greet("you") == "hello you!"
        assert self.Owner().greet("you") == "hello you", "only this instance"
        undo()
        assert owner.greet("you") == "hello you"
        assert owner.__dict__ == {}

    def test_what_was_there_comes_back(self):
        owner = self.Owner()
        owner.greet = theirs = lambda name: "hi"
        put_in_front(owner, "greet", lambda own, name: own(name) + "!")()
        assert owner.greet is theirs

    def test_what_others_put_over_it_stays(self):
        owner = self.Owner()
        undo = put_in_front(owner, "greet", lambda own, name: own(name) + "!")
        ours = owner.greet
        owner.greet = theirs = lambda name: ours(name) + "?"
        undo()
        assert owner.greet is theirs
        assert owner.greet("you") == "hello you?"


class Control:
    """What a ControlNet of the Forge family is to us: a link of a list."""

    def __init__(self, value, *, adapter=False, scope=None):
        self.value, self.adapter, self.timestep_range = value, adapter, scope
        self.previous_controlnet, self.strength = None, 1.0
        self.cond_hint_original = torch.rand(1, 3, 64, 64)
        self.control_model = torch.nn.Module()
        if not adapter:
            self.control_model.zero_convs = torch.nn.ModuleList()
            self.control_model.middle_block_out = torch.nn.Identity()

    def get_control(self, x, t, cond, count):
        before = None
        if self.previous_controlnet is not None:
            before = self.previous_controlnet.get_control(x, t, cond, count)
        if self.timestep_range and not self.timestep_range[1] <= t[0] <= self.timestep_range[0]:
            return before
        layer = torch.full((len(x), 2, 4, 4), self.value)
        if self.adapter:
            mine = {"input": [None, layer], "middle": [], "output": []}
        else:
            mine = {"input": [], "middle": [layer[..., :1, :1] * 10], "output": [layer]}
        for key, values in (before or {}).items():
            for i, value in enumerate(values):
                if i >= len(mine[key]):
                    mine[key].append(value)
                elif value is not None:
                    own = mine[key][i]
                    mine[key][i] = value if own is None else own + value
        return mine


def chain(*controls):
    for older, newer in pairwise(controls):
        newer.previous_controlnet = older
    return controls[-1]


def a_node(settings, *controls):
    sampling = a_sampling(pictures=1)
    sampling.settings = settings
    sampling.p.sd_model = SimpleNamespace()
    chain(*controls)
    node = FusedControlNets(list(controls), sampling, torch.nn.Module(), [])
    node.transformer_options = {"cond_or_uncond": [1, 0]}
    return node


def ask(control, t=0.5):
    return control.get_control(torch.zeros(2, 4, 8, 8), torch.tensor([t, t]), {}, 2)


def as_numbers(control):
    return {
        key: [None if v is None else float(v.flatten()[0]) for v in values]
        for key, values in control.items()
    }


class TestForgeNode:
    SUM = Settings(fusion="sum", inject=False)
    MEAN = Settings(fusion="mean", inject=False)

    def test_sum_is_the_hosts_own_list(self):
        controls = [Control(1.0), Control(2.0, adapter=True), Control(0.3)]
        native = ask(chain(*controls))
        ours = ask(a_node(self.SUM, *controls))
        assert as_numbers(ours) == as_numbers(native)

    def test_adapters_are_added_to_what_is_fused(self):
        node = a_node(self.MEAN, Control(1.0), Control(5.0, adapter=True), Control(3.0))
        assert as_numbers(ask(node)) == {"input": [None, 5.0], "middle": [20.0], "output": [2.0]}

    def test_a_unit_out_of_its_range_takes_no_part(self):
        node = a_node(self.MEAN, Control(1.0), Control(3.0, scope=(0.9, 0.6)))
        assert as_numbers(ask(node, 0.7))["output"] == [2.0]
        assert as_numbers(ask(node, 0.5))["output"] == [1.0]
        assert ask(a_node(self.MEAN, *[Control(v, scope=(0.9, 0.6)) for v in (1.0, 2.0)])) is None

    def test_the_hosts_own_controls_are_not_touched(self):
        first, second = Control(1.0), Control(3.0)
        node = a_node(self.MEAN, first, second)
        ask(node)
        assert second.previous_controlnet is first
        links = [node.previous_controlnet, node.previous_controlnet.previous_controlnet]
        assert [link.value for link in links] == [3.0, 1.0], "it can be walked like the host's"

    def test_an_error_of_ours_costs_the_fusion_only(self, monkeypatch, caplog):
        node = a_node(self.MEAN, Control(1.0), Control(3.0))
        monkeypatch.setattr(node, "_describe", lambda *args: 1 / 0)
        for _ in range(2):
            assert as_numbers(ask(node))["output"] == [4.0]
        assert "ZeroDivisionError" in node.sampling.aside
        assert caplog.text.count("stands aside") == 1

    def test_one_unit_is_left_alone(self):
        unet = SimpleNamespace(controlnet_linked_list=chain(Control(1.0), Control(2, adapter=True)))
        sampling = a_sampling()
        sampling.p.sd_model = SimpleNamespace(forge_objects=SimpleNamespace(unet=unet))
        assert "of the 2 ControlNet units that are on, 1 can be" in attach(sampling)
        assert not isinstance(unet.controlnet_linked_list, FusedControlNets)


def test_units_are_numbered_as_on_the_page():
    script = SimpleNamespace(title=lambda: "ControlNet", args_from=1, args_to=4)
    units = [
        SimpleNamespace(enabled=False, model="a"),
        {"enabled": True, "model": "openpose [cab727d4]"},
        SimpleNamespace(enabled=True, model=None),
    ]
    p = SimpleNamespace(
        scripts=SimpleNamespace(alwayson_scripts=[script]), script_args=["x", *units]
    )
    assert enabled_units(p) == [(1, "openpose"), (2, "ControlNet")]
    assert enabled_units(SimpleNamespace(scripts=None)) == []


@pytest.mark.parametrize(
    ("eligible", "active", "words"),
    [
        (0, 0, "no ControlNet unit"),
        (1, 1, "only one"),
        (1, 3, "of the 3 .* 1 can be"),
        (0, 2, "none"),
    ],
)
def test_too_few_says_why(eligible, active, words):
    text = too_few(eligible, active)
    assert text.startswith("fewer than two units can be fused")
    assert re.search(words, text)


def test_mask_strip_shows_picture_mask_and_both():
    picture = Image.new("L", (12, 6), 200)
    mask = torch.tensor([[True, False], [False, False]])
    strip = np.asarray(mask_strip(picture, mask)).astype(int)
    assert strip.shape == (6, 36, 3)
    assert (strip[:, :12] == 200).all()
    assert (strip[:3, 12:18] == 255).all()
    assert (strip[3:, 12:][:, :12] == 0).all()
    inside, outside = strip[1, 24 + 2], strip[5, 24 + 10]
    assert inside[0] > inside[1]
    assert (outside < 200).all()
