"""Settings that cannot be used cost neither the request nor the picture."""

import pytest
from hosts.cases import EVERYWHERE, METHOD, using
from hosts.client import HttpError, same
from hosts.malformed import malformed

pytestmark = pytest.mark.timeout(3000)


@pytest.fixture(scope="module")
def short(host):
    """A cheap request with two units, and the host's own answer to it."""
    body = host.requests.body(steps=1, cfg_scale=1)
    return body, host.generate(body)


def test_generated(host, short, figures, quick, settled):
    body, own = short
    count = 30 if quick else 200
    wrong, silent = [], []
    for arguments in malformed(count):
        try:
            reply = host.generate(using(body, *arguments))
        except (HttpError, AssertionError) as error:
            wrong.append((shown(arguments), str(error)[-300:]))
            continue
        if not same(own, reply):
            wrong.append((shown(arguments), "another picture than the host's own"))
        if not reply.note:
            silent.append(shown(arguments))
    figures["malformed settings"] = (
        f"{count} requests, {len(wrong)} failed, {len(silent)} without a reason"
    )
    assert not wrong
    assert not silent


def shown(arguments):
    return repr(arguments)[:300]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"delta": 2}, ("delta", "2", "from 0 to 1")),
        ({"detla": 0.5}, ("detla", "did you mean delta")),
        ({"foreground_unit": 7}, ("foreground_unit", "7")),
        ({"mask_source": "image"}, ("mask_image",)),
        ({"preset": "no such preset"}, ("preset", "no such preset")),
        # What no text of a picture can hold, and what a terminal obeys.
        ({"\ud800x": 1}, (r"\ud800x",)),
        ({"foreground_word": "\udfff"}, ("foreground_word", r"\udfff")),
        ({"\x1b[31mred": 1}, (r"\x1b[31mred",)),
    ],
)
class TestReason:
    def test_is_given(self, host, short, changes, words):
        body, own = short
        reply = host.generate(using(body, {**METHOD, **changes}))
        assert same(own, reply)
        assert all(word in reply.note for word in words), reply.note

    def test_strict_refuses(self, host, short, changes, words):
        body, own = short
        with pytest.raises(HttpError) as caught:
            host.generate(using(body, {**METHOD, **changes, "strict": True}), errors=True)
        assert caught.value.status == 422
        assert all(word in caught.value.text for word in words), caught.value.text
        # The WebUI prints the refusal, maybe late.
        assert same(own, host.generate(body, errors=True))


def test_strict_with_good_settings_makes_the_picture(host, short):
    body, _ = short
    good = {**EVERYWHERE, "start_step": 0}
    plain = host.generate(using(body, good))
    assert same(plain, host.generate(using(body, {**good, "strict": True})))


def test_strict_refuses_an_injection_that_never_begins(host, short):
    body, _ = short
    late = {**EVERYWHERE, "start_step": body["steps"]}
    assert "start step" in host.generate(using(body, late)).note
    with pytest.raises(HttpError, match="nothing was injected") as caught:
        host.generate(using(body, {**late, "strict": True}), errors=True)
    assert caught.value.status == 422


def test_word_that_is_not_in_the_prompt_is_named(host, short):
    body, _ = short
    reply = host.generate(using(body, {**METHOD, "foreground_word": "zeppelin"}))
    assert "zeppelin" in reply.note
