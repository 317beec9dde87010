"""Units in front in every case of generation; settings that are refused, and many in a row."""

import pytest
from hosts.cases import ABSENT, BIG, HALVES, LONG, MATRIX, PROMPT, WORDS, hires, layered, using
from hosts.client import HttpError, distance, done, same
from hosts.malformed import malformed_layers

pytestmark = pytest.mark.timeout(3000)

CASES = [
    pytest.param(case, id=case.name, marks=() if case.quick else pytest.mark.full)
    for case in MATRIX
    if case.fused
]


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("case", CASES)
def test_case(host, case):
    """Every case of generation: no place is the host's sum, and painted places change it."""
    body = case.make(host.requests)
    plain = host.generate(body)
    repeatable = case.repeatable or same(plain, host.generate(body))
    absent = host.generate(using(body, layered(ABSENT)))
    assert "zeppelin" in absent.note
    if repeatable:
        assert same(plain, absent), "without a place it is not the host's sum"
    host.state()
    settings = layered(*HALVES, foreground_gain=1.5)
    reply = host.generate(using(body, settings))
    counts = host.state()["counts"]
    assert len(reply.pictures) == case.pictures
    assert counts["fuse_residuals"] > 0
    assert counts["inject_keys_values"] == 0
    assert reply.note == ""
    assert "layers, delta 0.7, gain 1.5" in done(reply)
    assert all(picture.std() > 1 for picture in reply.pictures)
    assert distance(plain, reply) > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 2},
        {"cfg_scale": 1},
        {"prompt": f"{PROMPT} AND a blue boat :0.7"},
        {"prompt": "a red star AND the wide sea", "batch_size": 2},
        {"prompt": f"{LONG} AND the wide sea AND a red star"},
        {"negative_prompt": LONG},
        {"prompt": f"[{PROMPT}:{PROMPT} and a boat:0.5]"},
    ],
    ids=[
        "batch",
        "CFG 1",
        "AND",
        "words apart",
        "words apart, long",
        "long negative prompt",
        "prompt editing",
    ],
)
def test_words_where_the_rows_are_others(host, changes):
    body = host.requests.body(**{**BIG, **changes})
    reply = host.generate(using(body, layered(*WORDS)))
    assert reply.note == ""
    for entry in WORDS:
        assert f"mask from word {entry['word']} (given)" in done(reply)
    assert distance(reply, host.generate(body)) > 0
    assert same(reply, host.generate(using(body, layered(*WORDS))))


def test_each_picture_of_a_batch_has_places_of_its_own(host):
    """A batch gives the pictures that its seeds give alone, to rounding."""
    body = using(host.requests.body(**BIG), layered(*WORDS))
    batch = host.generate({**body, "batch_size": 2})
    alone = host.generate({**body, "seed": 2})
    assert distance(type(batch)(batch.pictures[1:], batch.info), alone) < 1


class TestHires:
    def test_two_words(self, host):
        body = hires(host.requests)
        host.state()
        reply = host.generate(using(body, layered(*WORDS, mask_threshold=0.3)))
        assert reply.note == ""
        first, second = done(reply).splitlines()
        assert second.startswith("hires pass: ")
        assert all("mask from word sea (given)" in line for line in (first, second))
        assert distance(reply, host.generate(body)) > 0

    @pytest.mark.usefixtures("settled")
    @pytest.mark.parametrize("more", [{}, {"foreground_unit": 1, "foreground_word": "star"}])
    def test_a_unit_of_the_other_pass(self, host, more):
        """It is left out of the list there, with a note; what is left of it counts."""
        body = hires(host.requests)
        units = host.requests.three()
        units[1]["hr_option"] = "Low res only"
        body["alwayson_scripts"] = {"ControlNet": {"args": units}}
        entries = ({"unit": 1, "word": "star"}, {"unit": 0, "word": "sea"})
        reply = host.generate(using(body, layered(*entries, mask_threshold=0.3, **more)))
        assert reply.note == (
            "hires pass: unit 1 is not for this pass, so it is not in front in it"
        )
        first, second = done(reply).splitlines()
        assert "mask from word star (given)" in first
        assert "mask from word star" not in second
        assert "mask from word sea (given)" in second

    def test_nobody_of_the_list_is_for_this_pass(self, host):
        """Then nobody is in front in it: the host's sum, not a unit that nobody named."""
        body = hires(host.requests)
        units = host.requests.three()
        units[1]["hr_option"] = "High res only"
        body["alwayson_scripts"] = {"ControlNet": {"args": units}}
        settings = layered({"unit": 1, "mask_source": "all"}, delta=1)
        reply = host.generate(using(body, settings))
        assert "unit 1 is not for this pass" in reply.note
        first, second = done(reply).splitlines()
        assert "sum, as the host makes it" in first
        assert "layers, delta 1" in second


def test_malformed(host, figures):
    """No picture is lost, and a reason is given."""
    body = host.requests.body(steps=1, cfg_scale=1)
    own = host.generate(body)
    wrong, silent = [], []
    lot = malformed_layers(60)
    for arguments in lot:
        try:
            reply = host.generate(using(body, *arguments))
        except (HttpError, AssertionError) as error:
            wrong.append((repr(arguments)[:300], str(error)[-300:]))
            continue
        if not same(own, reply):
            wrong.append((repr(arguments)[:300], "another picture than the host's own"))
        if not reply.note:
            silent.append(repr(arguments)[:300])
    figures["malformed layers"] = (
        f"{len(lot)} requests, {len(wrong)} failed, {len(silent)} without a reason"
    )
    assert not wrong
    assert not silent


def test_many_in_a_row(host, figures):
    """Neither memory nor hooks nor sessions grow."""
    body = using(
        host.requests.body(host.requests.three()), layered(*WORDS, inject=True, show_mask=True)
    )
    for _ in range(10):
        host.generate(body)
    start = host.state()
    for _ in range(20):
        host.generate(body)
    end = host.state()
    growth = end["memory"] - start["memory"]
    figures["memory growth over 20 generations with layers, MB"] = round(growth, 1)
    assert end["hooks"] == start["hooks"]
    assert end["sessions"] <= 1
    assert growth < 30
