"""The node in place of Forge's list of ControlNets."""

from types import SimpleNamespace

import torch

from lib_ccn.hooks import is_in_front
from lib_ccn.hosts.forge import FusedControlNets, _is_ours, attach
from lib_ccn.hosts.linked_list import in_order
from lib_ccn.settings import Settings

from .stand_ins import Control, a_sampling, ask, chain, walk


def a_node(settings, *controls):
    sampling = a_sampling(pictures=1)
    sampling.settings = settings
    sampling.p.sd_model = SimpleNamespace()
    chain(*controls)
    for control in controls:
        control.transformer_options = {"cond_or_uncond": [1, 0]}
    return FusedControlNets(list(controls), sampling, torch.nn.Module(), [])


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
        ours = ask(a_node(self.SUM, *controls).head)
        assert as_numbers(ours) == as_numbers(native)

    def test_adapters_are_added_to_what_is_fused(self):
        node = a_node(self.MEAN, Control(1.0), Control(5.0, adapter=True), Control(3.0))
        assert as_numbers(ask(node.head)) == {
            "input": [None, 5.0],
            "middle": [20.0],
            "output": [2.0],
        }

    def test_a_unit_out_of_its_range_takes_no_part(self):
        node = a_node(self.MEAN, Control(1.0), Control(3.0, scope=(0.9, 0.6)))
        assert as_numbers(ask(node.head, 0.7))["output"] == [2.0]
        assert as_numbers(ask(node.head, 0.5))["output"] == [1.0]
        assert (
            ask(a_node(self.MEAN, *[Control(v, scope=(0.9, 0.6)) for v in (1.0, 2.0)]).head) is None
        )

    def test_the_hosts_own_controls_are_not_touched(self):
        first, second = Control(1.0), Control(3.0)
        node = a_node(self.MEAN, first, second)
        ask(node.head)
        assert second.previous_controlnet is first
        assert ask(second)["output"][0].unique().item() == 4.0

    def test_the_list_is_as_long_as_the_hosts_and_of_its_classes(self):
        """MultiDiffusion has room for as many links as the host has, and asks for their class."""
        controls = [Control(1.0), Control(3.0), Control(5.0)]
        links = list(walk(a_node(self.MEAN, *controls).head))
        assert [link.value for link in links] == [5.0, 3.0, 1.0]
        assert {type(link) for link in links} == {Control}
        assert not any(link is control for link in links for control in controls)

    def test_each_unit_uses_the_hint_that_others_gave_its_link(self):
        node = a_node(self.MEAN, Control(1.0), Control(3.0))
        for link, value in zip(walk(node.head), (30.0, 10.0), strict=True):
            link.value = value
        assert as_numbers(ask(node.head))["output"] == [20.0]

    def test_cleanup_reaches_every_unit_and_ends_the_run(self):
        node = a_node(self.MEAN, Control(1.0), Control(3.0))
        closed = []
        node.sampling.on_close.append(lambda: closed.append(True))
        node.head.cleanup()
        assert all(link.cleaned for link in walk(node.head))
        assert closed == [True]

    def test_our_own_list_is_not_taken_for_the_hosts(self):
        """Another extension may have added a unit behind which ours from the pass before stand."""
        node = a_node(self.MEAN, Control(1.0), Control(3.0))
        newest = chain(node.head, Control(7.0))
        assert [link.value for link in in_order(newest, ends=_is_ours)] == [7.0]

    def test_an_error_of_ours_costs_the_fusion_only(self, monkeypatch, caplog):
        node = a_node(self.MEAN, Control(1.0), Control(3.0))
        monkeypatch.setattr(node, "_describe", lambda *args: 1 / 0)
        for _ in range(2):
            assert as_numbers(ask(node.head))["output"] == [4.0]
        assert "ZeroDivisionError" in node.sampling.aside
        assert caplog.text.count("stands aside") == 1

    def test_one_unit_is_left_alone(self):
        unet = SimpleNamespace(controlnet_linked_list=chain(Control(1.0), Control(2, adapter=True)))
        sampling = a_sampling()
        sampling.p.sd_model = SimpleNamespace(forge_objects=SimpleNamespace(unet=unet))
        assert "of the 2 ControlNet units that are on, 1 can be" in attach(sampling)
        assert not is_in_front(unet.controlnet_linked_list, "get_control")
