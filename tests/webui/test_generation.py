"""The way of a generation through the script's callbacks, in a WebUI of a few lines."""

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from lib_ccn.hosts.controlnet_script import too_few
from lib_ccn.outcome import Account, Outcome
from lib_ccn.settings import Settings
from lib_ccn.showable import has_hidden
from lib_ccn.webui import generation
from lib_ccn.webui.arguments import RefusedError, Request, read
from lib_ccn.webui.generation import DONE, NOTE, WORD, Generations

SIZE = (4, 4)


class Host:
    """An adapter that says of each run what the test wants, and records for whom it ran."""

    def __init__(self):
        self.answers, self.samplings = {}, []

    def is_here(self, p):
        return True

    def attach(self, sampling):
        self.samplings.append(sampling)
        return self.answers.get(sampling.hires)


def some_places(words=lambda pictures: [""] * pictures):
    shown = [(SimpleNamespace(units=[]), torch.ones(2, 2, dtype=torch.bool))]
    return SimpleNamespace(shown=lambda picture: shown, words=words)


class P:
    """A processing object; `sample` does what a WebUI does around a run."""

    def __init__(self, generations, hires=False, saves=True):
        self.generations, self.hires, self.saves = generations, hires, saves
        self.extra_generation_params, self.comments = {}, {}
        self.is_hr_pass, self.batch_index, self.batch_size, self.iteration = False, 0, 1, 0

    def comment(self, text):
        self.comments[text] = 1

    def save_samples(self):
        return self.saves

    def run(self):
        self.generations.before_sampling(self, x=torch.zeros(1, 4, *SIZE), c=None)
        running = self.generations._of(self)
        sampling = running._samplings[-1] if running and running._samplings else None
        if sampling and sampling.aside is None:
            session = SimpleNamespace(
                notes=[],
                places=some_places(),
                units=[],
                shortfalls=[],
                ended_early=False,
                outcome=Outcome(Settings()),
                winners=None,
                close=lambda: None,
            )
            session.account = lambda: Account(notes=session.notes or ["all well"])
            sampling.session = session

    def sample(self):
        self.run()
        if self.hires:
            self.is_hr_pass = True
            self.run()
            self.is_hr_pass = False
        return "latents"


@pytest.fixture
def host(monkeypatch):
    host = Host()
    monkeypatch.setattr(generation, "HOSTS", (host,))
    monkeypatch.setattr(generation.options, "saves_masks", lambda: True)
    return host


@pytest.fixture
def saved(monkeypatch):
    saved = []
    monkeypatch.setattr(generation, "_save", lambda p, strip, number: saved.append(number))
    return saved


def a_request(strict=True, **settings):
    return Request(Settings(enabled=True, strict=strict, **settings), None, strict)


def generate(p, request, prepare=lambda p: None):
    """As a WebUI processes `p`; `prepare` is what another script does after ours."""
    p.generations.before_process(p)
    p.generations.process(p, request)
    prepare(p)
    p.sample()
    p.generations.postprocess(p, SimpleNamespace(images=[]))


class TestPasses:
    """A generation with the hires fix, where a unit may be for one pass only."""

    @pytest.mark.parametrize("idle", [False, True], ids=["first pass", "hires pass"])
    def test_nothing_to_fuse_in_one_pass_is_no_refusal(self, host, idle):
        host.answers = {idle: too_few(1, 1)}
        p = P(Generations(), hires=True)
        generate(p, a_request())
        assert "only one ControlNet unit is on" in p.extra_generation_params[NOTE]

    def test_nothing_to_fuse_in_both_is_one(self, host):
        host.answers = {False: too_few(1, 1), True: too_few(1, 1)}
        p = P(Generations(), hires=True)
        with pytest.raises(RefusedError, match="fewer than two units"):
            generate(p, a_request())

    def test_without_the_hires_fix_it_is_one(self, host):
        host.answers = {False: too_few(1, 1)}
        with pytest.raises(RefusedError, match="fewer than two units"):
            generate(P(Generations()), a_request())

    def test_an_error_in_one_pass_is_one(self, host, monkeypatch):
        def attach(sampling):
            if sampling.hires:
                raise RuntimeError("oh no")

        monkeypatch.setattr(host, "attach", attach)
        with pytest.raises(RefusedError, match="hires pass: could not step in"):
            generate(P(Generations(), hires=True), a_request())

    def test_a_run_that_was_only_prepared_does_not_count(self, host, monkeypatch):
        """Forge prepares the hires pass twice; at first the UNet is still the first pass's."""
        answers = iter([too_few(0, 0), None])
        monkeypatch.setattr(host, "attach", lambda sampling: next(answers))
        p = P(Generations())
        monkeypatch.setattr(p, "sample", lambda: (p.run(), p.run()))
        generate(p, a_request())
        assert p.extra_generation_params[NOTE] is None

    def test_nothing_is_kept_of_a_run(self, host):
        generate(P(Generations(), hires=True), a_request())
        assert [sampling.p for sampling in host.samplings] == [None, None]


def with_sessions(monkeypatch, p, *sessions):
    """Give the runs of `p` these sessions' attributes, in order."""
    coming, own = iter(sessions), p.run

    def run():
        own()
        for name, value in next(coming).items():
            setattr(p.generations._running[-1]._samplings[-1].session, name, value)

    monkeypatch.setattr(p, "run", run)


NOT_INJECTED = {
    "shortfalls": ["nothing was injected: no step"],
    "notes": ["nothing was injected: no step"],
}


class TestWhatIsSaid:
    def test_what_was_asked_and_not_done_is_noted(self, host, monkeypatch):
        p = P(Generations())
        with_sessions(monkeypatch, p, NOT_INJECTED)
        generate(p, a_request(strict=False))
        assert p.extra_generation_params[NOTE] == "nothing was injected: no step"
        assert list(p.comments) == ["Cross-ControlNet: nothing was injected: no step"]

    @pytest.mark.parametrize("passes", [[NOT_INJECTED], [NOT_INJECTED] * 2])
    def test_strict_refuses_what_no_pass_did(self, host, monkeypatch, passes):
        p = P(Generations(), hires=len(passes) > 1)
        with_sessions(monkeypatch, p, *passes)
        with pytest.raises(RefusedError, match="nothing was injected"):
            generate(p, a_request())

    @pytest.mark.parametrize("passes", [[{}, NOT_INJECTED], [NOT_INJECTED, {}]])
    def test_strict_accepts_what_one_pass_did(self, host, monkeypatch, passes):
        p = P(Generations(), hires=True)
        with_sessions(monkeypatch, p, *passes)
        generate(p, a_request())
        assert "nothing was injected" in p.extra_generation_params[NOTE]

    @pytest.mark.parametrize("hires", [False, True])
    def test_a_pass_without_any_controlnet_is_noted(self, host, monkeypatch, hires):
        """Another checkpoint in the hires pass: sd-webui-controlnet hooks the first one's UNet."""
        p = P(Generations(), hires=hires)
        own = p.run

        def run():
            own()
            if p.is_hr_pass == hires:
                p.generations._running[-1]._samplings[-1].session = None

        monkeypatch.setattr(p, "run", run)
        generate(p, a_request(strict=False))
        which = "hires pass: " if hires else ""
        said = f"{which}the WebUI ran no ControlNet unit, so nothing was fused"
        assert p.extra_generation_params[NOTE] == said
        if not hires:
            with pytest.raises(RefusedError, match="ran no ControlNet"):
                generate(p, a_request())

    def test_the_hosts_own_sum_needs_no_word(self, host, monkeypatch):
        p = P(Generations())
        monkeypatch.setattr(
            p, "run", lambda: p.generations.before_sampling(p, x=torch.zeros(1, 4, *SIZE), c=None)
        )
        generate(p, a_request(fusion="sum", inject=False))
        assert p.extra_generation_params[NOTE] is None

    def test_the_automatic_word_is_written(self, host, monkeypatch):
        p = P(Generations())
        word = {"places": some_places(lambda pictures: ["red (automatic)"] * pictures)}
        with_sessions(monkeypatch, p, word, {})
        generate(p, a_request())
        assert p.extra_generation_params[WORD] == "red (automatic)"
        generate(p, a_request())
        assert p.extra_generation_params[WORD] is None, "nothing stays of the picture before"

    def test_words_are_written_picture_by_picture_where_they_differ(self, host, monkeypatch):
        p = P(Generations())
        p.generations.process(p, a_request())
        p.batch_size = 2
        with_sessions(
            monkeypatch,
            p,
            {"places": some_places(lambda pictures: ["red (automatic)", ""])},
            {"places": some_places(lambda pictures: ["red (automatic)", "blue (automatic)"])},
        )
        for p.iteration in range(2):
            p.sample()
        written = p.extra_generation_params[WORD]
        assert written == ["red (automatic)", "", "red (automatic)", "blue (automatic)"]

    def test_a_given_word_stands_there_already(self, host, monkeypatch):
        p = P(Generations())
        with_sessions(monkeypatch, p, {"places": some_places(lambda pictures: ["star"])})
        generate(p, a_request(foreground_word="star"))
        assert p.extra_generation_params[WORD] is None
        assert p.extra_generation_params["CCN foreground word"] == "star"


class TestTheLine:
    """What was done: one line for each pass, under the picture, on the console, in the API."""

    def run(self, p, request, batches=1, params=None):
        p.generations.process(p, request)
        for p.iteration in range(batches):
            p.sample()
        shared = dict(p.extra_generation_params)
        processed = SimpleNamespace(images=[], extra_generation_params=shared)
        p.generations.postprocess(p, processed)
        return processed, shared

    def told(self, caplog):
        return [r.getMessage() for r in caplog.records if r.levelno == logging.INFO]

    @pytest.mark.parametrize("hires", [False, True])
    @pytest.mark.parametrize("batches", [1, 3])
    def test_is_one_for_each_pass(self, host, caplog, hires, batches):
        p = P(Generations(), hires=hires)
        with caplog.at_level(logging.INFO):
            processed, shared = self.run(p, a_request(), batches)
        lines = ["all well", "hires pass: all well"][: 1 + hires]
        assert list(p.comments) == [f"Cross-ControlNet: {line}" for line in lines]
        assert self.told(caplog) == lines
        assert processed.extra_generation_params[DONE] == lines
        assert DONE not in shared, "the cells of a grid share it"
        assert DONE not in p.extra_generation_params, "it is in no picture's text"

    def test_grows_with_the_batches(self, host, monkeypatch):
        p = P(Generations())
        accounts = iter(Account(Outcome(Settings(), fused=1, calls=1, seconds=n)) for n in (1, 2))
        with_sessions(monkeypatch, p, *({"account": lambda: next(accounts)} for _ in range(2)))
        self.run(p, a_request(), 2)
        (line,) = p.comments
        assert "about 3.0 s" in line

    def test_says_why_nothing_was_done(self, host):
        host.answers = {False: too_few(1, 1)}
        p = P(Generations())
        self.run(p, a_request(strict=False))
        (line,) = p.comments
        assert line.startswith("Cross-ControlNet: the units are summed: fewer than two units")
        assert line.endswith(too_few(1, 1))

    def test_of_others_comments_stays(self, host):
        p = P(Generations())
        p.comment("theirs")
        self.run(p, a_request(), 2)
        assert list(p.comments) == ["theirs", "Cross-ControlNet: all well"]

    @pytest.mark.parametrize("settings", [{}, {"fusion": "sum", "inject": False}])
    def test_is_none_where_the_method_is_off(self, host, settings):
        p = P(Generations())
        p.generations.process(p, Request(Settings(**settings)))
        p.sample()
        assert p.comments == {}


class TestTheSameObjectAgain:
    """A script may have one object processed several times: loopback, SD upscale, batches."""

    def controlnet(self, p):
        """As sd-webui-controlnet wraps `sample`: for good, over what was there the first time."""
        if not hasattr(p, "sample_before"):
            p.sample_before = p.sample
        p.sample = lambda: p.sample_before()

    def test_is_refused_each_time(self, host):
        host.answers = {False: too_few(0, 0)}
        p = P(Generations())
        for _time in range(3):
            with pytest.raises(RefusedError, match="no ControlNet unit"):
                generate(p, a_request(), self.controlnet)

    def test_runs_once_each_time(self, host):
        p = P(Generations())
        for _time in range(3):
            generate(p, a_request(), self.controlnet)
        assert len(host.samplings) == 3
        p.sample()
        assert len(host.samplings) == 3, "nothing when none of its generations is running"

    def test_runs_once_where_another_chains_them(self, host):
        def chain(p):
            inner = p.sample
            p.sample = lambda: inner()

        p = P(Generations())
        for _time in range(3):
            generate(p, a_request(), chain)
        assert len(host.samplings) == 3

    def test_leaves_what_was_there_before(self, host):
        p = P(Generations())
        generate(p, a_request())
        assert "sample" not in p.__dict__
        p.sample = theirs = lambda: "theirs"
        generate(p, a_request())
        assert p.sample is theirs


class TestGenerationsInside:
    """An extension may generate inside a generation, as ADetailer does, and not say so."""

    def generate(self, p, inside, batches=2):
        """Two batches, with `inside` after the pictures of each."""
        p.generations.before_process(p)
        p.generations.process(p, a_request())
        for p.iteration in range(batches):
            p.sample()
            inside()
        p.generations.postprocess(p, SimpleNamespace(images=[]))

    def test_the_outer_one_goes_on(self, host):
        generations = Generations()
        outer, inner = P(generations), P(generations)
        self.generate(outer, lambda: generate(inner, a_request()))
        assert len(host.samplings) == 4
        assert "sample" not in outer.__dict__
        assert generations._running == []

    def test_also_after_an_inner_one_that_broke(self, host):
        generations = Generations()
        outer = P(generations)

        def inside():
            inner = P(generations)
            inner.run = lambda: 1 / 0
            with pytest.raises(ZeroDivisionError):
                generate(inner, a_request())

        self.generate(outer, inside)
        assert len(host.samplings) == 2
        generate(P(generations), a_request())
        assert generations._running == []

    @pytest.mark.parametrize("wanted", [True, False])
    def test_a_copy_of_the_outer_one_samples_itself(self, host, wanted):
        """Also with the method switched off in it."""
        generations = Generations()
        outer = P(generations)
        sampled = []

        def inside():
            inner = copy.copy(outer)
            inner.run = lambda: sampled.append("inner")
            generate(inner, a_request() if wanted else Request(Settings()))

        outer.run = lambda: sampled.append("outer")
        self.generate(outer, inside)
        assert sampled == ["outer", "inner"] * 2

    def test_those_that_broke_without_a_word_do_not_pile_up(self, host):
        generations = Generations()
        for _time in range(9):
            p = P(generations)
            generations.before_process(p)
            generations.process(p, a_request())
            p.sample()  # and then something of the WebUI's own breaks
        assert len(generations._running) <= 2
        generate(P(generations), a_request())
        assert len(host.samplings) == 10

    def test_adetailers_are_left_to_the_host(self, host):
        generations = Generations()
        outer, inner = P(generations), P(generations)
        inner._ad_inner = True
        self.generate(outer, lambda: generate(inner, a_request()))
        assert len(host.samplings) == 2


class TestMaskStrips:
    def pictures(self, p, request, count=2, batches=2):
        """As a WebUI hands over what it has made: a grid first, and others' pictures last."""
        p.generations.process(p, request)
        p.batch_size = count
        images, texts = ["grid"], ["of the grid"]
        for p.iteration in range(batches):
            p.sample()
            result = p.generations._running[-1].result
            everywhere = [(0, torch.ones(2, 2, dtype=torch.bool))]
            result.pictures, result.fronts = count, [everywhere] * count
            for p.batch_index in range(count):
                p.generations.postprocess_image(p, Image.new("RGB", (8, 8)))
                images.append(f"{p.iteration}.{p.batch_index}")
                texts.append(f"of {p.iteration}.{p.batch_index}")
        images.append("detected map")
        processed = SimpleNamespace(images=images, infotexts=texts, index_of_first_image=1)
        p.generations.postprocess(p, processed)
        return processed

    def test_have_the_text_of_their_picture(self, host, saved):
        processed = self.pictures(P(Generations()), a_request(show_mask=True))
        assert len(processed.images) == len(processed.infotexts) == 10
        own = ["of 0.0", "of 0.1", "of 1.0", "of 1.1"]
        assert processed.infotexts == ["of the grid", *own, "of the grid", *own]
        assert all(isinstance(strip, Image.Image) for strip in processed.images[-4:])

    @pytest.mark.parametrize("plot", [True, False])
    def test_are_the_cells_of_a_plot(self, host, saved, plot):
        """X/Y/Z takes the first picture of a cell."""
        p = P(Generations())
        name = "xyz_grid.py" if plot else "prompt_matrix.py"
        scripts = [SimpleNamespace(filename="other.py"), SimpleNamespace(filename=f"/a/{name}")]
        p.scripts, p.script_args = SimpleNamespace(selectable_scripts=scripts), [2, "more"]
        processed = self.pictures(p, a_request(show_mask=True), 1, 1)
        assert isinstance(processed.images[0], Image.Image) == plot
        assert len(processed.images) == (3 if plot else 4)
        assert processed.infotexts[0] == "of the grid"

    @pytest.mark.parametrize("chosen", [0, 3, "2", None])
    def test_are_pictures_of_their_own_without_a_plot(self, host, saved, chosen):
        p = P(Generations())
        scripts = [SimpleNamespace(filename="xyz_grid.py")]
        p.scripts, p.script_args = SimpleNamespace(selectable_scripts=scripts), (chosen,)
        assert self.pictures(p, a_request(show_mask=True), 1, 1).images[0] == "grid"

    def test_without_them_the_results_are_the_hosts(self, host, saved):
        processed = self.pictures(P(Generations()), a_request())
        assert len(processed.images) == 6
        assert len(processed.infotexts) == 5

    @pytest.mark.parametrize("saves", [False, True])
    def test_are_saved_where_the_pictures_are(self, host, saved, saves):
        self.pictures(P(Generations(), saves=saves), a_request(show_mask=True))
        assert saved == ([0, 1, 0, 1] if saves else [])


class TestRefused:
    """A setting that is refused costs the method, not what the text says of the others."""

    GOOD = {"fusion": "max", "foreground_word": "fox"}  # noqa: RUF012
    TEXT = {"CCN enabled": "True", "CCN fusion": "max", "CCN foreground word": "fox"}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("bad", "told"),
        [
            ({"delta": 5}, "Delta (delta) = 5 is refused: expected a number from 0 to 1"),
            ({"delta": "0.5"}, "a number is wanted here, not text"),
            ({"start_step": -1, "inject": 2}, "Injection start step (start_step) = -1"),
            ({"detla": 1}, "did you mean delta"),
            ({"\ud800x": 1}, r"\ud800x"),
            ({"\x1b[31m\n": "\u202e"}, r"\x1b[31m\n = '\u202e'"),
            ({5: "\0"}, r"5 = '\x00'"),
            ({"preset": "<b>\x9b"}, "setting preset = "),
            ({"mask_source": "image"}, "Mask image (mask_image) is missing"),
            ({"mask_source": "image", "mask_image": "AAAA"}, "Mask image (mask_image) = "),
        ],
    )
    def test_the_others_stay_in_the_text(self, host, bad, told):
        p = P(Generations())
        generate(p, read([{**bad, **self.GOOD}]))
        texts = p.extra_generation_params
        assert texts.items() >= self.TEXT.items()
        assert told in texts[NOTE]
        assert list(p.comments) == [f"Cross-ControlNet: {texts[NOTE]}"]
        assert not has_hidden(str(texts))
        str(texts).encode("utf-8")
        assert host.samplings == [], "nothing is fused"
        kept = {k: v for k, v in bad.items() if k == "mask_source"}
        assert Settings.from_infotext(texts) == Settings(enabled=True, **kept, **self.GOOD)

    @pytest.mark.parametrize("bad", [{"delta": 5}, {"\ud800": 1}, {"mask_source": "image"}])
    def test_strict_tells_the_same(self, host, bad):
        p = P(Generations())
        with pytest.raises(RefusedError) as caught:
            generate(p, read([{**bad, "strict": True}]))
        assert caught.value.detail == f"Cross-ControlNet: {p.extra_generation_params[NOTE]}"

    @pytest.mark.parametrize("text", ["\ud800", "\x1b[2J", "a\nb", "\u202e", "\0", "\x9b"])
    def test_whatever_is_noted_can_be_written(self, host, monkeypatch, text):
        def attach(sampling):
            raise RuntimeError(text)

        monkeypatch.setattr(host, "attach", attach)
        p = P(Generations())
        generate(p, a_request(strict=False))
        assert "RuntimeError" in p.extra_generation_params[NOTE]
        assert not has_hidden(p.extra_generation_params[NOTE] + "".join(p.comments))
