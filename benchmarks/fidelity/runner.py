"""Making and scoring the pictures: jobs, what of them is done already, and the work itself."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from demo.demo_model import generate, with_controlnets, with_one_controlnet
from demo.metrics import mask_iou, widened
from lib_ccn.foreground import reduced_grid, resize_mask
from lib_ccn.hosts.diffusers import cross_controlnet
from lib_ccn.settings import Settings
from lib_ccn.silhouette import silhouette

from .authors import RULES, fused_by
from .methods import CEILINGS, MAIN, Ablation, Method, base_settings
from .pairs import COMPLEMENTARY, Batch, Plan, Source
from .processes import Processes
from .store import Row, Store


class RunError(Exception):
    """A picture could not be made as the method says."""


@dataclass(frozen=True)
class Sampling:
    """How every picture is made.

    Attributes:
        steps: of UniPC.
        guidance_scale: of classifier-free guidance.
        mask_reduction: which attention maps the mask is read from.
        bfloat16: the networks run in bfloat16 autocast.
    """

    steps: int
    guidance_scale: float
    mask_reduction: int
    bfloat16: bool = False


@dataclass(frozen=True)
class Job:
    """One method on one batch; no method stands for the ceilings."""

    plan: Plan
    method: Method | None

    @property
    def keys(self) -> list[str]:
        """The names of the rows that it makes."""
        return list(CEILINGS) if self.method is None else [self.method.key]


def jobs(
    source: Source,
    pairs: int,
    ablated: int,
    ablations: Sequence[Ablation],
    batch: int,
    methods: Sequence[Method] = MAIN,
) -> list[Job]:
    """Every job: the first `ablated` pairs under everything, then the others' main rows.

    Main rows of the first pairs come first, so that a run that is broken off has whole tables.
    What needs a mask or a picture that the pairs come without is left out.
    """
    early: list[Job] = []
    later: list[Job] = []
    extra: dict[tuple[str, str], Job] = {}
    for case in source.cases:
        own = [m for m in methods if m.suits(case) and not _is_shared(source, case, m)]
        for plan in source.plans(case, pairs, batch):
            where = early if plan.numbers[0] < ablated else later
            where += [Job(plan, m) for m in (None, *own) if _is_possible(source, plan, m)]
        for plan in source.plans(case, min(ablated, pairs), batch):
            for ablation in ablations:
                for _, method in ablation.methods if case in ablation.cases else ():
                    if method not in methods and _is_possible(source, plan, method):
                        extra.setdefault((method.key, plan.ids[0] + case), Job(plan, method))
    later.sort(key=lambda job: job.plan.numbers[0])
    return [*early, *extra.values(), *later]


def _is_shared(source: Source, case: str, method: Method) -> bool:
    """Whether the picture is the conflicting pair's own: the foreground unit's alone."""
    return source.shared_foreground and case == COMPLEMENTARY and method.unit == 0


def _is_possible(source: Source, plan: Plan, method: Method | None) -> bool:
    """Whether the pairs come with what the method, or a ceiling, is made from."""
    if method is None:
        return source.has_pictures(plan)
    return not method.true_mask or source.has_objects(plan)


def is_done(job: Job, store: Store) -> bool:
    """Whether every row of the job is in the store; of the ceilings, the first that all have."""
    return all((job.plan.case, job.keys[0], pair) in store.rows for pair in job.plan.ids)


def share(due: Sequence[Job], processes: Processes) -> list[Job]:
    """This process's part of the jobs: each goes to whoever has the fewest pictures so far."""
    loads = [0] * processes.count
    own = []
    for job in due:
        index = loads.index(min(loads))
        loads[index] += len(job.plan.ids)
        if index == processes.index:
            own.append(job)
    return own


class Worker:
    """Makes and scores the pictures of a job, with one pipeline.

    Args:
        pipe: its first two ControlNets are those of pairs; what there is beyond them is for
            batches that name their `nets`.
        source: of the pairs.
        sampling: how every picture is made.
    """

    def __init__(self, pipe: Any, source: Source, sampling: Sampling) -> None:
        self.everything, self.source, self.sampling = pipe, source, sampling
        self.pipe = with_controlnets(pipe, (0, 1))

    @property
    def token_side(self) -> int:
        """The pixels along one token of the map that a word's mask is read from."""
        return int(self.pipe.vae_scale_factor) * self.sampling.mask_reduction

    def run(self, job: Job, on_step: Callable[[int], Any] = lambda _: None) -> dict[str, list[Row]]:
        """The rows of a job by their method's key, one per pair."""
        batch = self.source.load(job.plan)
        began = time.monotonic()
        if job.method is None:
            made = self.source.ceilings(batch, self.pipe)
            return {key: self.source.score(batch, pictures) for key, pictures in made.items()}
        pictures, more = self.pictures(job.method, batch, on_step)
        seconds = (time.monotonic() - began) / len(pictures)
        rows = self.source.score(batch, pictures)
        for row, found in zip(rows, more, strict=True):
            row.update(found, seconds=round(seconds, 4))
        return {job.method.key: [{k: round(v, 6) for k, v in row.items()} for row in rows]}

    def pictures(
        self, method: Method, batch: Batch, on_step: Callable[[int], Any]
    ) -> tuple[Tensor, list[Row]]:
        """Pictures [B, 3, H, W], and what is known of each one's mask."""
        if method.masked:
            batch = replace(batch, conditions=masked_apart(batch))
        if method.unit is not None:
            alone = with_one_controlnet(self.pipe, method.unit)
            return self._generate(alone, batch, batch.conditions[method.unit], on_step), [
                {} for _ in batch.seeds
            ]
        if method.rule is not None:
            rule = RULES[method.rule]
            if self.sampling.guidance_scale <= 1:
                rule = replace(rule, unpacked=False)  # there are no halves
            parts = _singles(batch) if rule.over_batch else [batch]
            with fused_by(self.pipe, rule):
                made = [self._generate(self.pipe, p, p.conditions, on_step) for p in parts]
            return torch.cat(made), [{} for _ in batch.seeds]
        if method.true_mask:
            single = [self._method(method, part, on_step) for part in _singles(batch)]
            return torch.cat([p for p, _ in single]), [row for _, rows in single for row in rows]
        return self._method(method, batch, on_step)

    def settings(self, method: Method, batch: Batch) -> Settings:
        """The settings of a method for a batch."""
        values = base_settings(self.sampling.steps, self.sampling.mask_reduction)
        words = (batch.plan.word, *batch.more_words)
        named: dict[str, Any] = {"foreground_word": words[0]}
        if method.layered:
            named = {"layers": [{"unit": n, "word": word} for n, word in enumerate(words)]}
        values |= named | (method.settings or {})
        if method.true_mask:
            if batch.object_mask is None:
                raise RunError(f"pair {batch.plan.ids[0]} has no object_mask for {method.title!r}")
            mask = widened(batch.object_mask, method.widened * self.token_side)[0]
            values |= {"mask_source": "image", "mask_image": _png(mask)}
        return Settings.from_dict(values)

    def _method(
        self, method: Method, batch: Batch, on_step: Callable[[int], Any]
    ) -> tuple[Tensor, list[Row]]:
        pipe = self.pipe if batch.nets is None else with_controlnets(self.everything, batch.nets)
        with cross_controlnet(pipe, self.settings(method, batch)) as control:
            made = self._generate(weighted(pipe, method.weight), batch, batch.conditions, on_step)
        session = control.session
        if session is None or control.error is not None:
            raise RunError(f"{method.title}: {control.error}")
        mask = session.place.mask if control.settings.inject else None
        if mask is None or batch.object_mask is None:
            return made, [{} for _ in batch.seeds]
        # Sources differ in size; on the tokens of the word's map their rows can be compared.
        grid = reduced_grid((made.shape[-2], made.shape[-1]), self.token_side)
        found = resize_mask(mask.expand(len(made), -1, -1).cpu(), grid)
        truth = resize_mask(batch.object_mask, grid)
        return made, [{"mask": v} for v in mask_iou(found, truth).tolist()]

    def _generate(
        self, pipe: Any, batch: Batch, conditions: Any, on_step: Callable[[int], Any]
    ) -> Tensor:
        device = self.pipe.device.type
        cast = torch.autocast(device, torch.bfloat16) if self.sampling.bfloat16 else nullcontext()
        with cast:
            return generate(
                pipe,
                batch.prompts,
                batch.seeds,
                conditions,
                steps=self.sampling.steps,
                guidance_scale=self.sampling.guidance_scale,
                on_step=on_step,
            )


def masked_apart(batch: Batch) -> list[Tensor]:
    """The conditions, all but the foreground's black where the object is.

    Where it is unknown, what the foreground's condition shows is taken for it.
    """
    front, *others = batch.conditions
    inside = silhouette(front) if batch.object_mask is None else batch.object_mask
    return [front, *(other.masked_fill(inside[:, None], 0) for other in others)]


def weighted(pipe: Any, weight: float) -> Any:
    """The pipeline's call with that weight for every ControlNet."""
    if weight == 1:
        return pipe
    return partial(pipe, controlnet_conditioning_scale=[weight] * len(pipe.controlnet.nets))


def _singles(batch: Batch) -> Iterator[Batch]:
    """The batch's pairs, each in a batch of its own."""
    for n, number in enumerate(batch.plan.numbers):
        yield Batch(
            Plan(batch.plan.case, batch.plan.word, (number,)),
            batch.prompts[n : n + 1],
            batch.seeds[n : n + 1],
            [condition[n : n + 1] for condition in batch.conditions],
            None if batch.object_mask is None else batch.object_mask[n : n + 1],
            None,
        )


def _png(mask: Tensor) -> str:
    """A mask bool [H, W] as a base64 PNG."""
    file = io.BytesIO()
    Image.fromarray((mask.byte() * 255).numpy(), "L").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
