"""The way of a generation through the script's callbacks, in a WebUI of a few lines."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from lib_ccn.hosts.controlnet_script import too_few
from lib_ccn.settings import Settings
from lib_ccn.webui import generation
from lib_ccn.webui.arguments import Request
from lib_ccn.webui.generation import NOTE, Generations
from lib_ccn.webui.refusal import RefusedError

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


class P:
    """A processing object; `sample` does what a WebUI does around a run."""

    def __init__(self, generations, hires=False, saves=True):
        self.generations, self.hires, self.saves = generations, hires, saves
        self.extra_generation_params, self.comments = {}, []
        self.is_hr_pass, self.batch_index, self.batch_size, self.iteration = False, 0, 1, 0

    def comment(self, text):
        self.comments.append(text)

    def save_samples(self):
        return self.saves

    def run(self):
        self.generations.before_sampling(self, x=torch.zeros(1, 4, *SIZE), c=None)
        sampling = self.generations._running and self.generations._running._samplings[-1]
        if sampling and sampling.aside is None:
            sampling.session = SimpleNamespace(
                notes=[],
                error=None,
                mask=torch.ones(1, 2, 2, dtype=torch.bool),
                summary=str,
                close=lambda: None,
            )

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


class TestMaskStrips:
    def pictures(self, p, request, count=2, batches=2):
        """As a WebUI hands over what it has made: a grid first, and others' pictures last."""
        p.generations.process(p, request)
        p.batch_size = count
        images, texts = ["grid"], ["of the grid"]
        for p.iteration in range(batches):
            p.sample()
            p.generations._running.masks = torch.ones(count, 2, 2, dtype=torch.bool)
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

    def test_without_them_the_results_are_the_hosts(self, host, saved):
        processed = self.pictures(P(Generations()), a_request())
        assert len(processed.images) == 6
        assert len(processed.infotexts) == 5

    @pytest.mark.parametrize("saves", [False, True])
    def test_are_saved_where_the_pictures_are(self, host, saved, saves):
        self.pictures(P(Generations(), saves=saves), a_request(show_mask=True))
        assert saved == ([0, 1, 0, 1] if saves else [])
