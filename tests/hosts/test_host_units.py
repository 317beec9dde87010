"""Which unit is which, and which of them run in which pass."""

import pytest
from hosts.cases import EVERYWHERE, METHOD, PROMPT, hires, using
from hosts.client import distance, same

pytestmark = [pytest.mark.timeout(1200), pytest.mark.usefixtures("settled")]


def test_units_that_do_not_say_enabled(host):
    """Forge and its kin take them as enabled, sd-webui-controlnet does not."""
    units = host.requests.two()
    silent = [{key: unit[key] for key in unit if key != "enabled"} for unit in units]
    chosen = {**EVERYWHERE, "foreground_unit": 1}
    reply = host.generate(using(host.requests.body(silent), chosen))
    if host.family == "a1111":
        assert "fewer than two" in reply.note
    else:
        assert same(host.generate(using(host.requests.body(units), chosen)), reply)


def test_a_disabled_unit_keeps_its_number(host):
    """Roles by number: the same two units with a disabled one before them."""
    units = host.requests.two()
    plain = host.generate(using(host.requests.body(units), {**EVERYWHERE, "foreground_unit": 1}))
    later = [host.requests.unit("c", 3, enabled=False), *units]
    moved = host.generate(using(host.requests.body(later), {**EVERYWHERE, "foreground_unit": 2}))
    assert same(plain, moved)


def test_strict_accepts_units_of_one_pass(host):
    """Both units are for the first pass: the second has nothing to fuse, and that is no error."""
    body = hires(host.requests, alwayson_scripts={})
    units = host.requests.two(hr_option="Low res only")
    body["alwayson_scripts"] = {"ControlNet": {"args": units}}
    host.state()
    reply = host.generate(using(body, {**EVERYWHERE, "strict": True}))
    assert host.state()["counts"]["fuse_residuals"] == body["steps"]
    assert reply.enabled
    assert distance(host.generate(body), reply) > 0


def test_word_where_the_batch_comes_in_parts(host):
    """Two pictures of two sub-prompts, which AUTOMATIC1111 can be told to run apart."""
    body = host.requests.body(
        prompt=f"{PROMPT} AND a blue boat",
        batch_size=2,
        steps=3,
        override_settings={"batch_cond_uncond": False} if host.family == "a1111" else {},
    )
    host.state()
    reply = host.generate(using(body, {**METHOD, "mask_threshold": 0.3}))
    counts = host.state()["counts"]
    assert len(reply.pictures) == 2
    assert reply.note == ""
    assert counts["fuse_residuals"] > 0
    assert counts["inject_keys_values"] > 0


def test_a_control_lora_is_fused_and_injected(host):
    units = [host.requests.unit("a", 1), host.requests.unit("controllora", 2)]
    body = host.requests.body(units)
    plain = host.generate(body)
    assert same(host.generate(using(body, {"fusion": "sum", "inject": False})), plain)
    found = []
    for foreground in (0, 1):
        host.state()
        reply = host.generate(using(body, {**EVERYWHERE, "foreground_unit": foreground}))
        counts = host.state()["counts"]
        assert reply.note == ""
        assert counts["fuse_residuals"] == body["steps"]
        assert counts["inject_keys_values"] > 0
        found.append(reply)
    assert distance(*found) > 0, "either can be the foreground"
    assert same(host.generate(body), plain), "nothing of it stays"


def test_a_unit_with_two_pictures_is_two_units_of_one_number(host):
    if host.family != "a1111":
        pytest.skip("only sd-webui-controlnet makes units of the pictures")
    one, other, last = (host.requests.unit(name, n) for name, n in (("a", 1), ("a", 3), ("b", 2)))
    images = [{"image": unit["image"], "mask": None} for unit in (one, other)]
    merged = {**one, "input_mode": "merge", "image": images}
    apart = [{**one, "weight": 0.5}, {**other, "weight": 0.5}, last]
    chosen = {**EVERYWHERE, "foreground_unit": 1}
    together = host.generate(using(host.requests.body([merged, last]), chosen))
    assert together.note == ""
    alike = host.generate(using(host.requests.body(apart), {**chosen, "foreground_unit": 2}))
    assert same(together, alike)
