"""What a user can rely on: off and plain sum change no bit, the method does and repeats."""

from itertools import combinations

import numpy as np
import pytest
from hosts.cases import EVERYWHERE, METHOD, SIZE, STEPS, SUM, hires, using
from hosts.client import TITLE, distance, same

pytestmark = pytest.mark.timeout(1200)


def test_script_is_there_in_both_tabs(host):
    scripts = host.client.call("/sdapi/v1/scripts")
    for tab in ("txt2img", "img2img"):
        assert TITLE.lower() in [name.lower() for name in scripts[tab]]


class TestOff:
    def test_as_without_the_extension(self, host, baseline, first):
        assert same(baseline["two units"], first)
        assert not first.enabled
        assert not any(name.startswith("CCN") for name in first.parameters)

    def test_no_unit(self, host, baseline):
        assert same(baseline["no unit"], host.generate(host.requests.body([])))

    def test_hires(self, host, baseline):
        assert same(baseline["hires pass"], host.generate(hires(host.requests)))

    def test_more_important(self, host, baseline):
        units = host.requests.two(control_mode="ControlNet is more important")
        assert same(baseline["more important"], host.generate(host.requests.body(units)))

    def test_disabled_by_argument(self, host, first):
        reply = host.generate(using(host.requests.body(), {**METHOD, "enabled": False}))
        assert same(first, reply)
        assert not reply.enabled


class TestSum:
    def test_bit_identical(self, host, first, settled):
        reply = host.generate(using(host.requests.body(), SUM))
        assert same(first, reply)
        assert "CCN fusion: sum" in reply.infotexts[0]

    def test_hires(self, host, baseline, settled):
        assert same(baseline["hires pass"], host.generate(using(hires(host.requests), SUM)))

    def test_more_important(self, host, baseline, settled):
        units = host.requests.two(control_mode="ControlNet is more important")
        reply = host.generate(using(host.requests.body(units), SUM))
        assert same(baseline["more important"], reply)


class TestMethod:
    def test_different_finite_and_repeatable(self, host, first, figures, settled):
        host.state()
        body = using(host.requests.body(), EVERYWHERE)
        reply = host.generate(body)
        counts = host.state()["counts"]
        again = host.generate(body)
        figures["method against plain sum, grey levels"] = round(distance(first, reply), 1)
        assert distance(first, reply) > 1
        assert reply.pictures[0].std() > 1, "a picture of one colour: something was not finite"
        assert same(reply, again)
        assert counts["fuse_residuals"] == host.requests.body()["steps"]
        assert counts["inject_keys_values"] == host.requests.body()["steps"] - 1
        assert reply.enabled
        assert reply.note == ""

    def test_every_part_has_its_effect(self, host, figures):
        # At 64x64 the word's mask has four places, and may well be all of them; in the last step
        # alone injection changes next to nothing.
        body = host.requests.body(width=2 * SIZE, height=2 * SIZE, steps=2 * STEPS)
        pictures = {
            name: host.generate(using(body, {**EVERYWHERE, **changes})).pictures[0]
            for name, changes in {
                "all": {},
                "no injection": {"inject": False},
                "earlier": {"start_step": 0},
                "deeper": {"start_layer": 2},
                "pix": {"fusion": "pix"},
                "max": {"fusion": "max"},
                "mean": {"fusion": "mean"},
                "delta": {"delta": 0.1},
                "other foreground": {"foreground_unit": 1},
                "word": {"mask_source": "word", "mask_threshold": 0.9},
            }.items()
        }
        apart = {
            (one, other): int(np.abs(pictures[one].astype(int) - pictures[other]).max())
            for one, other in combinations(pictures, 2)
        }
        closest = min(apart, key=lambda pair: apart[pair])
        figures["parts of the method that differ least, largest difference in grey levels"] = (
            f"{' and '.join(closest)}: {apart[closest]}"
        )
        assert apart[closest] > 0, closest

    def test_positional_arguments_as_named(self, host):
        named = host.generate(using(host.requests.body(), {**EVERYWHERE, "delta": 0.4}))
        page = [True, "pix+channel", 0.4, True, 1, 0, "auto", "auto", "star", "all"]
        assert same(named, host.generate(using(host.requests.body(), *page)))

    def test_log_has_one_line(self, host):
        start = host.server.mark()
        host.generate(using(host.requests.body(), METHOD))
        lines = [line for line in host.server.log(start).splitlines() if TITLE in line]
        assert len(lines) == 1, lines
        for word in ("foreground", "background", "pix+channel", "star"):
            assert word in lines[0]
