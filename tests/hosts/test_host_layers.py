"""Several units in front, each with its place: what a user can rely on, over the host's API."""

import json

import pytest
from hosts.cases import ABSENT, BIG, HALVES, WORDS, layered, painted, using
from hosts.client import HttpError, distance, done, same

pytestmark = pytest.mark.timeout(3000)


@pytest.fixture
def ours(host):
    """Makes a request of some size with settings of ours, expecting no note."""

    def generate(settings, units=None, note="", **changes):
        reply = host.generate(using(host.requests.body(units, **{**BIG, **changes}), settings))
        assert reply.note == note
        assert all(picture.std() > 1 for picture in reply.pictures)
        return reply

    return generate


class TestOneInFront:
    @pytest.mark.parametrize("front", [0, 1])
    @pytest.mark.parametrize("gain", [1, 2])
    def test_everywhere_is_its_unit_alone(self, host, ours, front, gain):
        """Bit by bit, with the gain as its weight."""
        units = host.requests.two()
        settings = layered({"unit": front, "mask_source": "all"}, delta=1, foreground_gain=gain)
        alone = host.generate(host.requests.body([{**units[front], "weight": gain}], **BIG))
        assert same(alone, ours(settings))

    @pytest.mark.parametrize("front", [0, 2])
    def test_absent_word_is_the_hosts_sum(self, host, front):
        body = host.requests.body(host.requests.three(), **BIG)
        plain = host.generate(body)
        reply = host.generate(using(body, layered({**ABSENT, "unit": front})))
        assert same(plain, reply)
        assert "zeppelin" in reply.note
        assert "no unit had its place, so all were added up" in reply.note
        assert "layers, but all added up" in done(reply)

    @pytest.mark.parametrize("front", [0, 2])
    def test_absent_word_over_the_papers_fusion_is_that(self, host, front):
        body = host.requests.body(host.requests.three(), **BIG)
        paper = host.generate(using(body, {"fusion": "pix+channel", "inject": False}))
        over = {"outside_places": "pix+channel"}
        reply = host.generate(using(body, layered({**ABSENT, "unit": front}, **over)))
        assert same(paper, reply)
        assert "no unit had its place, so it was pix+channel everywhere" in reply.note
        assert "layers, but pix+channel everywhere" in done(reply)
        painted = host.generate(using(body, layered(HALVES[0], **over)))
        assert painted.note == ""
        assert "layers over pix+channel, delta 0.7" in done(painted)
        assert "CCN outside places: pix+channel" in painted.infotexts[0]
        assert distance(painted, paper) > 0
        assert distance(painted, host.generate(using(body, layered(HALVES[0])))) > 0

    def test_strict_refuses_an_absent_word(self, host):
        for entries in ([ABSENT], [ABSENT, WORDS[1]]):
            body = using(host.requests.body(), layered(*entries, strict=True))
            with pytest.raises(HttpError) as caught:
                host.generate(body, errors=True)
            assert caught.value.status == 422
            assert "layers" in caught.value.text
            assert "zeppelin" in caught.value.text
        host.generate(host.requests.body(), errors=True)  # the WebUI prints the refusal, maybe late

    def test_a_list_of_one_is_the_foreground_unit(self, host, ours):
        """Under every rule: the paper's mode with a list of one is the paper's mode."""
        for changes in ({"fusion": "layers", "inject": False}, {"fusion": "pix+channel"}):
            common = {"start_step": 1, "mask_threshold": 0.3, **changes}
            listed = ours({"layers": [{"unit": 1, "word": "star"}], **common})
            named = ours({"foreground_unit": 1, "foreground_word": "star", **common})
            assert same(listed, named)


class TestTwoInFront:
    def test_by_two_words(self, host, ours, figures, settled):
        units = host.requests.three()  # the second one's place is for who is behind it
        plain = host.generate(host.requests.body(units, **BIG))
        host.state()
        both = ours(layered(*WORDS), units)
        counts = host.state()["counts"]
        one, other = (ours(layered(entry), units) for entry in WORDS)
        assert same(both, ours(layered(*WORDS), units))
        apart = {
            "the sum": distance(both, plain),
            "the first alone": distance(both, one),
            "the second alone": distance(both, other),
            "the other order": distance(both, ours(layered(*WORDS[::-1]), units)),
        }
        figures["two in front by words, grey levels from"] = ", ".join(
            f"{name}: {value:.2f}" for name, value in apart.items()
        )
        assert min(list(apart.values())[:3]) > 0, apart
        # Before there is a mask it is the sum.
        assert counts["fuse_residuals"] == BIG["steps"] - 1
        assert "(foreground)" in done(both)
        for entry in WORDS:
            assert f"mask from word {entry['word']} (given)" in done(both)

    def test_the_order_decides_where_places_overlap(self, ours, figures):
        apart = distance(ours(layered(*HALVES)), ours(layered(*HALVES[::-1])))
        figures["painted places in the other order, grey levels"] = round(apart, 2)
        assert apart > 0

    def test_one_word_absent_leaves_the_other(self, host, ours):
        lacking = {"unit": 1, "word": "zeppelin"}
        reply = host.generate(using(host.requests.body(**BIG), layered(WORDS[0], lacking)))
        assert "zeppelin" in reply.note
        assert "added up" not in reply.note
        assert same(reply, ours(layered(WORDS[0])))

    def test_units_of_one_word_share_its_place(self, host, ours):
        """They are added up in it, with no note, as nobody is in front of the other."""
        shared = layered({"unit": 0, "word": "star"}, {"unit": 2, "word": "star"})
        both = ours(shared, host.requests.three())
        assert done(both).count("mask from word star (given)") == 1
        assert distance(both, ours(layered({"unit": 0, "word": "star"}), host.requests.three())) > 0
        swapped = layered(*shared["layers"][::-1])
        assert same(both, ours(swapped, host.requests.three()))

    def test_a_word_that_is_there_twice_is_told_apart(self, host):
        body = host.requests.body(prompt="a star beside a star above the sea", **BIG)
        settings = layered({"unit": 0, "word": "star"}, {"unit": 1, "word": "star"})
        reply = host.generate(using(body, settings))
        assert "'star' more than once" in reply.note
        assert "added up" not in reply.note
        assert done(reply).count("mask from word star (given)") == 2
        assert same(reply, host.generate(using(body, settings)))
        assert distance(reply, host.generate(body)) > 0

    def test_automatic_words_are_not_the_same_twice(self, host, ours):
        reply = ours(layered({"unit": 0}, {"unit": 1}, start_step=1))
        words = str(reply.parameters["CCN word"]).split(", ")
        assert len(words) == len(set(words)) == 2

    def test_every_place_from_elsewhere(self, host, ours):
        """A painted one, a silhouette and a word; an entry that has none has the common one."""
        mixed = [HALVES[1], {"unit": 2, "mask_source": "silhouette"}, {"unit": 0, "word": "star"}]
        reply = ours(layered(*mixed), host.requests.three())
        for source in ("mask from image", "mask from silhouette", "mask from word star (given)"):
            assert source in done(reply)
        assert distance(reply, host.generate(host.requests.body(host.requests.three(), **BIG))) > 0
        own = layered(painted(0, "left"))
        common = layered({"unit": 0}, mask_source="image", mask_image=HALVES[1]["mask_image"])
        assert same(ours(own), ours(common))
        both = layered({"unit": 0, "word": "star"}, {"unit": 1}, mask_source="all")
        assert "mask from word star (given)" in done(ours(both))

    def test_thresholds_of_their_own(self, ours):
        low, high = ([{**WORDS[0], "mask_threshold": t}, WORDS[1]] for t in (0.1, 0.9))
        assert distance(ours(layered(*low)), ours(layered(*high))) > 0

    def test_injection_with_two_in_front(self, host, ours, figures, settled):
        """The unit behind both gets the keys and values of both."""
        settings = layered(*HALVES, inject=True, start_step=1)
        host.state()
        reply = ours(settings, host.requests.three())
        counts = host.state()["counts"]
        assert counts["inject_keys_values"] == BIG["steps"] - 1
        line = done(reply)
        assert "KV-Injection in layers 0 to " in line
        assert "steps 1 to 2" in line
        figures["two in front, injected"] = line[line.index("KV-Injection") :].split(";")[0]
        one = ours({**settings, "layers": [HALVES[0]]}, host.requests.three())
        assert distance(reply, one) > 0
        assert distance(reply, ours(layered(*HALVES), host.requests.three())) > 0

    def test_strict_is_content_with_words_that_are_there(self, ours):
        assert same(ours(layered(*WORDS)), ours(layered(*WORDS, strict=True)))

    def test_strict_refuses_a_unit_that_is_not_there(self, host):
        body = using(host.requests.body(), layered(WORDS[0], {"unit": 2}, strict=True))
        with pytest.raises(HttpError) as caught:
            host.generate(body, errors=True)
        assert caught.value.status == 422
        assert "layers" in caught.value.text
        host.generate(host.requests.body(), errors=True)


class TestHowItIsAskedFor:
    def test_text(self, ours):
        listed = ours(layered(*WORDS, mask_threshold=0.3, start_step=1))
        text = "0 star, 1 sea"
        named = {"fusion": "layers", "inject": False, "layers": text, "mask_threshold": 0.3}
        assert same(listed, ours({**named, "start_step": 1}))

    def test_positional(self, host, ours):
        """Arguments of earlier versions keep their places; the list comes behind them all."""
        listed = ours(layered(*WORDS, mask_threshold=0.3, start_step=1))
        page = [True, "layers", 0.7, False, 1, 0, "auto", "auto", "", "word", 0.3, 4, None, False]
        body = host.requests.body(**BIG)
        assert same(listed, host.generate(using(body, *page, "0 star, 1 sea", 1.0)))
        assert same(listed, host.generate(using(body, *page, layered(*WORDS)["layers"])))
        former = host.generate(using(body, *page))  # a list of one: the foreground unit
        assert same(former, ours({**layered(), "mask_threshold": 0.3, "start_step": 1}))

    def test_preset(self, host, ours):
        listed = json.dumps(host.client.call("/cross-controlnet/v1/presets"))
        assert '"Layers"' in listed
        assert same(ours({"preset": "Layers", "layers": "0 star, 1 sea"}), ours(layered(*WORDS)))

    @pytest.mark.parametrize(
        "words", [("star", "sea"), ('a, (b) "c": 100%', "12x34"), ("星 ⭐", "<lora:x:1> \\ \n")]
    )
    def test_infotext_comes_back(self, host, words):
        from lib_ccn.settings import Settings

        entries = [
            {"unit": 1, "word": words[0], "mask_threshold": 0.35},
            {"unit": 0, "word": words[1], "mask_source": "word"},
            {"unit": 2, "mask_source": "silhouette"},
        ]
        settings = {**layered(*entries), "foreground_gain": 1.35}
        reply = host.generate(using(host.requests.body(host.requests.three(), steps=1), settings))
        assert "CCN layers: " in reply.infotexts[0]
        if words[0] == "star":
            text = '"1 star (threshold 0.35), 0 sea (word), 2 (silhouette)"'
            assert f"CCN layers: {text}" in reply.infotexts[0]
        read = Settings.from_infotext(host.client.pasted(reply.infotexts[0]))
        assert read == Settings.from_dict({**settings, "enabled": True})

    def test_text_of_an_image_says_only_that_there_was_one(self, host):
        reply = host.generate(using(host.requests.body(steps=1), layered(*HALVES)))
        assert host.client.pasted(reply.infotexts[0])["CCN layers"] == "0 (image), 1 (image)"
