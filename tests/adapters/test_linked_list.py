"""Units of a host's list, fused: what a transformer's ControlNets say, and what does not fit."""

from types import SimpleNamespace

import pytest
import torch

from lib_ccn.fusion import channel_fusion, pix_fusion
from lib_ccn.hosts.linked_list import as_map, as_tokens, fused, is_fusable, total
from lib_ccn.session import Session
from lib_ccn.settings import Settings
from lib_ccn.units import Call, Unit

GRID = (3, 4)
DELTA = 0.5


def tokens(seed, count=12, channels=8):
    return torch.randn(2, count, channels, generator=torch.Generator().manual_seed(seed))


def ask_all(*said, fusion="pix+channel", grid=GRID, eligible=None):
    """What is made of units that say this."""
    flags = eligible or [True] * len(said)
    units = [
        Unit(torch.nn.Module(), str(n), flag)
        for n, flag in zip(range(len(said)), flags, strict=True)
    ]
    settings = Settings(fusion=fusion, delta=DELTA, inject=False)
    controls = {
        unit: SimpleNamespace(said=one, timestep_range=None)
        for unit, one in zip(units, said, strict=True)
    }
    with Session(settings, torch.nn.Module(), units) as session:
        call = Call(grid or (8, 8), 0, [0, 0], [0], total=1)
        made = fused(session, call, controls, torch.ones(2), lambda one: one.said, grid)
    return made, session


def fused_again(one, other, rule):
    return as_tokens(rule([as_map(one, GRID), as_map(other, GRID)], DELTA))


class TestTransformers:
    """FLUX: "input" and "output" are tokens, and one tensor stands at several places."""

    def said(self, seed):
        first, second, single = tokens(seed), tokens(seed + 1), tokens(seed + 2)
        return {"input": (first, first, second, second), "output": (single, single)}

    def test_each_shared_tensor_is_fused_once(self):
        one, other = self.said(0), self.said(10)
        made, session = ask_all(one, other)
        assert session.outcome.fused == 1
        assert made["middle"] == []
        for key, n, rule in (
            ("input", 0, pix_fusion),
            ("input", 2, pix_fusion),
            ("output", 0, channel_fusion),
        ):
            assert torch.equal(made[key][n], fused_again(one[key][n], other[key][n], rule))
            assert made[key][n] is made[key][n + 1]
        assert len({id(t) for key in ("input", "output") for t in made[key]}) == 3

    def test_sum_is_the_hosts(self):
        one, other = self.said(0), self.said(10)
        made, _ = ask_all(one, other, fusion="sum")
        for key in ("input", "output"):
            for got, first, second in zip(made[key], one[key], other[key], strict=True):
                assert torch.equal(got, first + second)

    def test_where_one_unit_has_nothing_the_others_own_stays(self):
        one, other = self.said(0), {"input": self.said(10)["input"][:2]}
        made, _ = ask_all(one, other)
        assert torch.equal(
            made["input"][0], fused_again(one["input"][0], other["input"][0], channel_fusion)
        )
        assert torch.equal(made["input"][2], one["input"][2])
        assert torch.equal(made["output"][1], one["output"][1])

    def test_tokens_of_another_grid_are_summed(self):
        made, session = ask_all({"input": [tokens(0, 10)]}, {"input": [tokens(1, 10)]})
        assert torch.equal(made["input"][0], tokens(0, 10) + tokens(1, 10))
        assert session.shortfalls == [
            "nothing was fused: the units' residuals do not fit each other"
        ]

    def test_a_bystander_is_added(self):
        one, other, third = self.said(0), self.said(10), {"input": [tokens(30)]}
        alone, _ = ask_all(one, other)
        made, _ = ask_all(one, other, third, eligible=[True, True, False])
        assert torch.equal(made["input"][0], alone["input"][0] + tokens(30))
        assert made["input"][1] is made["input"][0] or torch.equal(
            made["input"][1], alone["input"][1]
        )


def test_units_of_different_depth_are_summed_in_a_unet():
    maps = [torch.randn(2, 4, 8, 8) for _ in range(4)]
    one = {"output": maps[:2], "middle": [maps[2]]}
    made, _ = ask_all(one, {"input": [maps[3]], "output": [], "middle": []}, grid=None)
    assert torch.equal(made["output"][0], maps[0])
    assert torch.equal(made["input"][0], maps[3])


def test_maps_and_tokens_are_each_others_inverse():
    one = tokens(3)
    assert torch.equal(as_tokens(as_map(one, GRID)), one)
    assert as_map(one, (3, 5)) is None
    assert as_map(torch.zeros(1, 8, 3, 4), GRID) is None


def test_nothing_said_is_nothing():
    assert total([None, None]) is None


@pytest.mark.parametrize(
    ("model", "fits"),
    [
        (SimpleNamespace(zero_convs=[], middle_block_out=[]), True),
        (SimpleNamespace(controlnet_blocks=[]), True),
        (SimpleNamespace(), False),
    ],
)
def test_what_is_fusable(model, fits):
    control = SimpleNamespace(control_model=model, strength=1.0)
    assert is_fusable(control) is fits
    control.strength = 0
    assert not is_fusable(control)
