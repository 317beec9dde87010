"""Which units are on, and what their numbers are."""

import enum
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lib_ccn.hosts import a1111
from lib_ccn.hosts.a1111 import Interception
from lib_ccn.hosts.controlnet_script import EnabledUnit, enabled_units, too_few
from lib_ccn.hosts.forge import attach
from lib_ccn.settings import Settings

from .stand_ins import Control, a_page, a_sampling, ask, chain, walk


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
        head, seen, begin = unet.controlnet_linked_list, [], sampling.begin
        for control in walk(head):  # as when the run begins
            if isinstance(control, Lora):
                control.control_model = Control(0.0).control_model
        head.transformer_options = {"cond_or_uncond": [1, 0]}
        sampling.begin = lambda unet, units: [begin(unet, units), seen.extend(units)][0]
        ask(head)
        self.sampling = sampling
        return [(unit.number, unit.name) for unit in seen]

    def test_units_without_a_word_are_on(self):
        a, c = Control(1.0), Control(2.0)
        assert self.units([a, c], self.UNITS, {0: a, 1: c}) == [(0, "0: a"), (2, "2: c")]

    def test_no_numbers_where_the_counts_differ(self):
        a, c = Control(1.0), Control(2.0)
        found = self.units([a, c], self.UNITS, {0: a, 1: c, 2: c})
        assert found == [(-1, "Control"), (-2, "Control")]
        named = {"foreground_unit": 0}
        self.units([a, c], self.UNITS, {0: a, 1: c, 2: c}, settings=named)
        assert "(foreground_unit) = 0" in self.sampling.aside

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
