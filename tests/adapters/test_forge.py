"""The node in place of Forge's list of ControlNets."""

from types import SimpleNamespace

import torch

from lib_ccn.hosts.forge import FusedControlNets, attach
from lib_ccn.settings import Settings

from .stand_ins import Control, a_sampling, ask, chain


def a_node(settings, *controls):
    sampling = a_sampling(pictures=1)
    sampling.settings = settings
    sampling.p.sd_model = SimpleNamespace()
    chain(*controls)
    node = FusedControlNets(list(controls), sampling, torch.nn.Module(), [])
    node.transformer_options = {"cond_or_uncond": [1, 0]}
    return node


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
