"""Every case of generation that the host offers: plain, summed by us, and fused."""

import pytest
from hosts.cases import EVERYWHERE, MATRIX, SIZE, STEPS, SUM, using
from hosts.client import distance, same

pytestmark = [pytest.mark.timeout(1200), pytest.mark.usefixtures("settled")]

CASES = [
    pytest.param(case, id=case.name, marks=() if case.quick else pytest.mark.full)
    for case in MATRIX
]


@pytest.mark.parametrize("case", CASES)
def test_case(host, case):
    body = case.make(host.requests)
    plain = host.generate(body)
    assert len(plain.pictures) == case.pictures
    repeatable = case.repeatable or same(plain, host.generate(body))
    summed = host.generate(using(body, SUM))
    if repeatable:
        assert same(plain, summed), "our plain sum is not the host's"
    host.state()
    fused = host.generate(using(body, EVERYWHERE))
    counts = host.state()["counts"]
    assert len(fused.pictures) == case.pictures
    if case.fused:
        assert counts["fuse_residuals"] > 0
        assert counts["inject_keys_values"] > 0
        assert distance(plain, fused) > 0  # little where the units meet in the last step only
        assert fused.enabled
        assert fused.note == ""
        assert all(picture.std() > 1 for picture in fused.pictures)
    else:
        assert counts["fuse_residuals"] == 0
        assert "fewer than two" in fused.note
        if repeatable:
            assert same(plain, fused)


def test_guidance_range_decides_call_by_call(host):
    """With one of two units out of its range there is nothing to fuse."""
    units = [host.requests.unit(), host.requests.unit("b", 2, guidance_end=0.25)]
    host.state()
    host.generate(using(host.requests.body(units, steps=4), EVERYWHERE))
    assert 0 < host.state()["counts"]["fuse_residuals"] < 4


@pytest.mark.full
def test_each_picture_of_a_batch_is_its_own(host):
    """A batch gives the pictures that its seeds give alone, to rounding."""
    body = using(host.requests.body(), EVERYWHERE)
    batch = host.generate({**body, "batch_size": 2})
    alone = host.generate({**body, "seed": 2})
    part = type(batch)(batch.pictures[1:], batch.info)
    assert distance(part, alone) < 1


@pytest.mark.full
def test_order_of_units_decides_the_foreground(host):
    # Twice the size: at 64x64 the deepest maps have one pixel, where PixFusion's shares tie and
    # the earlier unit wins.
    size = {"width": 2 * SIZE, "height": 2 * SIZE}
    one = host.requests.two()
    straight = host.generate(using(host.requests.body(one, **size), EVERYWHERE))
    swapped = using(host.requests.body(one[::-1], **size), {**EVERYWHERE, "foreground_unit": 1})
    # The same units play the same roles; only rounding can differ.
    assert distance(straight, host.generate(swapped)) < 1


@pytest.mark.full
def test_start_step_beyond_the_last(host):
    host.state()
    host.generate(using(host.requests.body(), {**EVERYWHERE, "start_step": STEPS}))
    counts = host.state()["counts"]
    assert counts["inject_keys_values"] == 0
    assert counts["fuse_residuals"] == STEPS
