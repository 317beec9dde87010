"""The parts of the WebUI adapters that need no WebUI; the rest is tests/hosts/ on real ones."""

import enum
import re
import sys
import types
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lib_ccn.hosts import a1111
from lib_ccn.hosts.a1111 import Interception, RowClock
from lib_ccn.hosts.controlnet_script import EnabledUnit, enabled_units, too_few
from lib_ccn.hosts.forge import FusedControlNets, attach
from lib_ccn.hosts.in_front import put_in_front
from lib_ccn.hosts.prompts import PromptBook, Tokenizer, prompt_book
from lib_ccn.hosts.sampling import Sampling
from lib_ccn.settings import Settings, SettingsError
from lib_ccn.units import Role, Unit
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
        found = prompt_book(p, cond, False, Tokenizer(Engine()), "dog")
        ((part, prompt),) = found.in_force(0)
        assert part == 1
        assert positions(prompt, "dog")
        assert not positions(prompt, "cat"), "the sub-prompt, and not the whole text"

    @pytest.mark.parametrize(
        ("sampler", "hires_sampler", "asked"),
        [("Euler", None, 3), ("Heun", None, 6), ("Euler", "Heun", 6), ("Heun", "Euler", 3)],
    )
    def test_hires_steps_are_counted_as_the_host_does(
        self, prompt_parser, sampler, hires_sampler, asked
    ):
        p = SimpleNamespace(hr_prompts=["a sea"], steps=4, firstpass_steps=8)
        p.sampler_name, p.hr_sampler_name, p.hr_second_pass_steps = sampler, hires_sampler, 3
        prompt_book(p, conditioning([[(3, 1)]]), True, Tokenizer(Engine()), "")
        assert prompt_parser.asked == [(8, asked)]


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

    def test_a_batch_in_pieces_is_read_piece_by_piece(self):
        sampling = a_sampling(conditioning([[(1, 1)], [(1, 2)]], [[(1, 1)], [(1, 2)]]))
        clock = RowClock(sampling)
        calls = [sampling.call((8, 8), *clock.next_call(2)) for _ in range(3)]
        assert all(call.whole and call.total == 2 for call in calls)
        assert [list(call.conditional) for call in calls] == [[0], [0], []]
        assert [list(call.pictures) for call in calls] == [[0, 0], [1, 1], [0, 1]]

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

    def test_a_named_unit_that_is_not_there_is_an_error(self):
        for numbers, allowed in (((1, 2), r"'auto' or one of \[1, 2\]"), ((-1, -2), "not sure")):
            sampling = a_sampling()
            sampling.p.sd_model = SimpleNamespace()
            sampling.settings = Settings(inject=False, foreground_unit=0)
            units = [Unit(torch.nn.Module(), number=number) for number in numbers]
            assert sampling.begin(torch.nn.Module(), units) is None
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

    def test_what_stays_goes_on_behind_others(self):
        owner = self.Owner()
        undo = put_in_front(owner, "greet", lambda own, name: own(name) + "!", stays=True)
        ours = owner.greet
        owner.greet = lambda name: ours(name) + "?"
        undo()
        assert owner.greet("you") == "hello you!?"
        del owner.greet
        put_in_front(owner, "greet", lambda own, name: own(name) + "!", stays=True)()
        assert owner.greet("you") == "hello you"


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


def a_page(*units, **more):
    """A processing object with these ControlNet units, and a script that has others before."""
    script = SimpleNamespace(title=lambda: "ControlNet", args_from=1, args_to=1 + len(units))
    script.current_params, script.latest_network = {}, None
    scripts = SimpleNamespace(alwayson_scripts=[script])
    return SimpleNamespace(scripts=scripts, script_args=["x", *units], **more)


class TestEnabledUnits:
    def test_are_numbered_as_on_the_page(self):
        p = a_page(
            SimpleNamespace(enabled=False, model="a"),
            {"enabled": True, "model": "openpose [cab727d4]"},
            SimpleNamespace(enabled=True, model=None),
        )
        found = enabled_units(p, by_default=True)
        assert found == [EnabledUnit(1, "openpose"), EnabledUnit(2, "ControlNet")]
        assert enabled_units(SimpleNamespace(scripts=None), by_default=True) == []

    def test_the_api_need_not_say_that_they_are(self):
        p = a_page({"model": "a"}, {"model": "b", "enabled": 0}, {"model": "c", "enabled": 1}, None)
        assert [unit.number for unit in enabled_units(p, by_default=True)] == [0, 2]
        assert [unit.number for unit in enabled_units(p, by_default=False)] == [2]

    def test_one_with_several_pictures_is_several(self):
        merge = enum.Enum("InputMode", {"MERGE": "merge"}).MERGE
        p = a_page(
            SimpleNamespace(enabled=True, input_mode=merge, model="a", image=[{}, {}]),
            {"enabled": True, "input_mode": "merge", "multi_inputs_gallery": [{}, {}, {}]},
            SimpleNamespace(
                enabled=True, input_mode=merge, image=[{}, {}], accepts_multiple_inputs=True
            ),
            SimpleNamespace(enabled=True, input_mode=merge, image=np.zeros((8, 8, 3))),
            SimpleNamespace(enabled=True, image=[{}, {}]),
        )
        numbers = [unit.number for unit in enabled_units(p, by_default=False)]
        assert numbers == [0, 0, 1, 1, 1, 2, 3, 4]

    @pytest.mark.parametrize("option", ["Low res only", 1, "HiResFixOption.LOW_RES_ONLY"])
    def test_may_rest_in_the_hires_pass(self, option):
        low = enum.Enum("HiResFixOption", {"LOW": option}).LOW
        for unit in (EnabledUnit(0, "", option), EnabledUnit(0, "", low)):
            assert unit.rests(True)
            assert not unit.rests(False)

    def test_may_rest_in_the_first_pass(self):
        assert EnabledUnit(0, "", "High res only").rests(False)
        assert not EnabledUnit(0, "", "High res only").rests(True)
        assert not any(
            EnabledUnit(0, "", option).rests(hires)
            for option in (None, "Both", 0, "?")
            for hires in (False, True)
        )


class TestForgeNumbers:
    """Which of the host's units each link of its list is."""

    UNITS = (
        {"model": "a", "hr_option": "Low res only"},
        {"model": "b", "enabled": False},
        {"model": "c"},
    )

    def units(self, controls, units, patchers, **more):
        """The units of the run that `attach` finds, by the objects behind these units."""
        unet = SimpleNamespace(controlnet_linked_list=chain(*controls))
        unet.model = SimpleNamespace(diffusion_model=torch.nn.Module())
        unet.clone = lambda: unet
        sampling = a_sampling(pictures=1)
        sampling.settings = Settings(inject=False, **more.pop("settings", {}))
        sampling.hires = more.pop("hires", False)
        counted = more.pop("counted", None)
        sampler = sampling.p.sampler
        sampling.p = a_page(*units, sampler=sampler, **more)
        sampling.p.sd_model = SimpleNamespace(forge_objects=SimpleNamespace(unet=unet))
        script = sampling.p.scripts.alwayson_scripts[0]
        if counted is not None:
            script.get_enabled_units = lambda args: [None] * counted
        script.current_params = {
            place: SimpleNamespace(model=SimpleNamespace(model_patcher=patcher))
            for place, patcher in patchers.items()
        }
        assert attach(sampling) is None
        node = unet.controlnet_linked_list
        for control in node.controls:  # as when the run begins
            if isinstance(control, Lora):
                control.control_model = Control(0.0).control_model
        node.transformer_options = {"cond_or_uncond": [1, 0]}
        ask(node)
        self.sampling = sampling
        return [(unit.number, unit.name) for unit in node.units]

    def test_units_without_a_word_are_on(self):
        a, c = Control(1.0), Control(2.0)
        assert self.units([a, c], self.UNITS, {0: a, 1: c}) == [(0, "0: a"), (2, "2: c")]

    def test_no_numbers_where_the_counts_differ(self):
        a, c = Control(1.0), Control(2.0)
        found = self.units([a, c], self.UNITS, {0: a, 1: c, 2: c})
        assert found == [(-1, "Control"), (-2, "Control")]
        named = {"foreground_unit": 0}
        self.units([a, c], self.UNITS, {0: a, 1: c, 2: c}, settings=named)
        assert "foreground_unit = 0" in self.sampling.aside

    def test_a_unit_that_the_host_could_not_load_leaves_a_gap(self):
        a, c = Control(1.0), Control(2.0)
        units = [{"model": name} for name in "abc"]
        assert self.units([a, c], units, {0: a, 2: c}, counted=3) == [(0, "0: a"), (2, "2: c")]

    def test_a_control_lora_is_known_by_its_weights(self):
        a, c = Lora({"x": torch.ones(2)}), Lora({"x": torch.ones(2)})
        found = self.units([a, c], self.UNITS[1:] + self.UNITS[:1], {0: c, 1: a})
        assert found == [(2, "2: a"), (1, "1: c")]

    def test_a_unit_of_the_other_pass_leaves_its_number_alone(self):
        same, c = Control(1.0), Control(2.0)
        units = (self.UNITS[0], self.UNITS[1], {"model": "a"}, {"model": "c"})
        patchers = {0: same, 1: same, 2: c}
        found = self.units([same, c], units, patchers, hires=True, enable_hr=True)
        assert found == [(2, "2: a"), (3, "3: c")]
        assert self.sampling.resting == {0}
        found = self.units([same, c], units, patchers, enable_hr=False)
        assert found == [(0, "0: a"), (3, "3: c")], "without the hires fix the option is ignored"


class Lora(Control):
    """A ControlLora: its model is made for each run, its weights are the same."""

    def __init__(self, weights):
        super().__init__(1.0)
        del self.control_model
        self.control_weights = weights


Lora.__name__ = "ControlLora"


class Param:
    """What a unit of sd-webui-controlnet is to us."""

    def __init__(self, hires=None):
        self.hires = hires
        self.control_model = torch.nn.Module()
        self.control_model.control_model = Control(1.0).control_model
        self.control_model_type = SimpleNamespace(is_controlnet=True)
        self.guidance_stopped, self.weight = False, 1.0
        self.global_average_pooling = False
        self.hint_cond = torch.rand(1, 3, 8, 8)

    def disabled_by_hr_option(self, is_in_high_res_fix):
        return self.hires is not None and self.hires != is_in_high_res_fix

    def apply_effective_region_mask(self, out):
        return out


class TestA1111Units:
    def interception(self, params, units, hires):
        sampling = a_sampling(pictures=1)
        sampling.p = a_page(*units, sampler=sampling.p.sampler)
        sampling.settings, sampling.hires = Settings(inject=False), hires
        hook = SimpleNamespace(control_params=params, model=torch.nn.Module())
        hook.is_in_high_res_fix = False
        sampling.p.scripts.alwayson_scripts[0].latest_network = hook
        self.attached = a1111.attach(sampling)
        sampling.close()
        return Interception(sampling, hook, params)

    def test_a_unit_of_the_other_pass_takes_no_part(self):
        units = [{"enabled": True, "model": name} for name in "abc"]
        params = [Param(hires=False), Param(), Param()]
        first = self.interception(params, units, hires=False)
        assert [unit.name for unit in first.units] == ["0: a", "1: b", "2: c"]
        second = self.interception(params, units, hires=True)
        assert self.attached is None
        assert [unit.name for unit in second.units] == ["1: b", "2: c"]
        assert second.sampling.resting == {0}
        assert [unit.eligible for _param, unit in second.running] == [False, True, True]
        self.interception([Param(hires=False), Param(hires=False), Param()], units, hires=True)
        assert "only one ControlNet unit is on" in self.attached

    def test_a_unit_with_several_pictures_keeps_the_others_numbers(self):
        units = [{"enabled": True, "model": name} for name in "ab"]
        units[0].update(input_mode="merge", image=[{}, {}])
        found = self.interception([Param(), Param(), Param()], units, hires=False)
        assert [unit.number for unit in found.units] == [0, 0, 1]

    def test_no_numbers_where_the_counts_differ(self):
        units = [{"enabled": True, "model": name} for name in "ab"]
        found = self.interception([Param(), Param(), Param()], units, hires=False)
        assert [unit.number for unit in found.units] == [-1, -2, -3]


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
