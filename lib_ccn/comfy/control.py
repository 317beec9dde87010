"""The ControlNets of a conditioning, fused: a link of the host's list, in front of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy.controlnet import ControlBase
from comfy.patcher_extension import CallbacksMP

from ..hosts.linked_list import in_order, is_fusable
from .plan import Plan, Report
from .run import Entry, Run

# What is in a conditioning: [embedding, options].
Conditioning = list[Any]


class FusedControl(ControlBase):
    """Answers for all ControlNets behind it.

    They are the host's own and stay as they are; what a link of the host's list passes on to its
    predecessors (loading, `pre_run`, `cleanup`, hooks), this one passes on too. A sampling begins
    with `pre_run`, which comes once for each conditioning, and ends when the host cleans its model
    up, which it does after an error and an interrupt too, other than `cleanup`.

    Args:
        newest: the last that was added.
        plan: of the node.
        report: where it is told what was done.
    """

    def __init__(self, newest: Any, plan: Plan, report: Report) -> None:
        super().__init__()
        self.plan = plan
        self.report = report
        self.entries: list[Entry] = []
        self.run: Run | None = None
        self.timestep_percent_range = plan.span
        self.set_previous_controlnet(newest)

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        """A sampling is about to begin."""
        super().pre_run(model, percent_to_timestep_function)
        if self.run is not None and self.run.session is None:
            return
        self._end()
        self.run = Run(self.plan, self.entries, model)
        patcher = getattr(model, "current_patcher", None)
        if patcher is not None:
            patcher.add_callback_with_key(CallbacksMP.ON_CLEANUP, self._key, self._end)

    @property
    def _key(self) -> str:
        return f"cross-controlnet {id(self)}"

    def get_control(
        self, x_noisy: Any, t: Any, cond: Any, batched_number: int, transformer_options: Any
    ) -> Any:
        """The residuals of all units as one; where the method stands aside, the host's own sum."""
        newest, run = self.previous_controlnet, self.run
        if newest is None:
            return None
        arguments = (x_noisy, t, cond, batched_number, transformer_options)

        def hosts() -> Any:
            return newest.get_control(*arguments)

        if run is None or not self._in_range(t):
            return hosts()
        return run.attempt(lambda: run.answer(newest, arguments), hosts)

    def _in_range(self, t: Any) -> bool:
        if self.plan.span == (0.0, 1.0) or self.timestep_range is None:
            return True
        return bool(self.timestep_range[1] <= t[0] <= self.timestep_range[0])

    def cleanup(self) -> None:
        """The sampling is over."""
        self._end()
        super().cleanup()

    def _end(self, patcher: Any = None) -> None:
        if patcher is not None:
            patcher.remove_callbacks_with_key(CallbacksMP.ON_CLEANUP, self._key)
        run, self.run = self.run, None
        if run is not None:
            self.report.records[id(self)] = run.end()

    def copy(self) -> FusedControl:
        """Another one, without the ControlNets behind it, as the host's own copies are."""
        made = FusedControl(None, self.plan, self.report)
        made.entries = list(self.entries)
        return made

    def deepclone_multigpu(self, load_device: Any, autoregister: bool = False) -> FusedControl:
        """One for another device, behind which the host puts its clones of the ControlNets."""
        made = self.copy()
        if autoregister:
            self.multigpu_clones[load_device] = made
        return made


def fuse(
    positive: Sequence[Conditioning], negative: Sequence[Conditioning], plan: Plan
) -> tuple[list[Conditioning], list[Conditioning], Report]:
    """Both conditionings with their ControlNets fused, and the report of what comes of it.

    Conditionings that have the same ControlNets go on having the same, so that the host batches
    them. What cannot be fused stays as it is, and the report says why.
    """
    report = Report()
    heads: dict[int, FusedControl | None] = {}
    found: list[list[Conditioning]] = []
    for is_positive, conditioning in ((True, positive), (False, negative)):
        made = []
        for embedding, options in conditioning:
            newest = options.get("control")
            if newest is not None and id(newest) not in heads:
                why = _why_not(newest)
                heads[id(newest)] = None if why else FusedControl(newest, plan, report)
                if why:
                    report.note(why)
            head = None if newest is None else heads[id(newest)]
            if head is not None:
                options = {**options, "control": head}
                if is_positive:
                    head.entries.append(Entry(embedding, _is_word_of(plan, embedding)))
            made.append([embedding, options])
        found.append(made)
    if not heads:
        report.note("there are no ControlNets in these conditionings: nothing to fuse")
    if plan.span[0] >= plan.span[1]:
        report.note("start_percent is not before end_percent: the ControlNets are summed")
    for head in filter(None, heads.values()):
        if not any(entry.has_word for entry in head.entries):
            head.entries = [entry._replace(has_word=True) for entry in head.entries]
            if plan.word is not None and plan.settings.reads_word and head.entries:
                report.note(
                    "the positive conditioning is not what the foreground word's text encoder "
                    "made of its prompt: the word may be read in the wrong places"
                )
    return found[0], found[1], report


def _is_word_of(plan: Plan, embedding: Any) -> bool:
    return plan.word is not None and plan.word.is_of(embedding)


def _why_not(newest: Any) -> str | None:
    """Why these ControlNets are left to the host; None where they can be fused."""
    controls = in_order(newest)
    if any(isinstance(control, FusedControl) for control in controls):
        return (
            "these ControlNets are fused already: use one Apply Cross-ControlNet, behind the last "
            "Apply ControlNet"
        )
    eligible = sum(is_fusable(control) for control in controls)
    if eligible > 1:
        return None
    of_all = f"of the {len(controls)} ControlNets" if len(controls) > 1 else "of one ControlNet"
    return f"nothing to fuse: {of_all} of this conditioning, {eligible or 'none'} can be fused"
