"""What is compared: the rows of the main tables, and the ablations around the full method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .pairs import COMPLEMENTARY, CONFLICT, SEVERAL

PAPER_STEPS = 50


@dataclass(frozen=True)
class Method:
    """One way to make a picture of a pair.

    Attributes:
        key: its name in the results.
        title: its name in the tables.
        settings: of the method, what differs from `base_settings`; None where it is not asked.
        unit: the one ControlNet that is used alone.
        rule: one of `authors.RULES`, in place of the settings.
        true_mask: the mask is the pair's own object, one picture at a time.
        widened: by how many tokens of the word's map that object is grown.
        weight: of all ControlNets.
        layered: every unit in front is named, each with its own word.
        masked: the background's condition is black where the object is, so that the two do not
            overlap, as diffusers' documentation advises for several ControlNets.
    """

    key: str
    title: str
    settings: dict[str, Any] | None = None
    unit: int | None = None
    rule: str | None = None
    true_mask: bool = False
    widened: int = 0
    weight: float = 1.0
    masked: bool = False
    layered: bool = False

    def suits(self, case: str) -> bool:
        """Whether there is something to make: units alone and hand-made masks are of pairs."""
        pairs = self.unit is not None or self.rule is not None or self.masked or self.true_mask
        return case not in SEVERAL or not pairs


@dataclass(frozen=True)
class Ablation:
    """A set of methods that differ in one thing; `axis` makes it a line in the figure."""

    key: str
    title: str
    methods: Sequence[tuple[str, Method]] = field(default_factory=tuple)
    axis: str = ""
    cases: tuple[str, ...] = (CONFLICT,)


FULL = Method("full", "+ KV-Injection (full)", {"inject": True})
CHANNEL = Method("pix+channel", "+ ChannelFusion", {"fusion": "pix+channel"})
SUM = Method("sum", "Plain sum", {"fusion": "sum"})
TRUE_OBJECT = Method("full true object", "Full, true object", {"inject": True}, true_mask=True)
WIDENED_OBJECT = Method(
    "full wider object", "Full, wider object", {"inject": True}, true_mask=True, widened=1
)
# Weights scale the residuals, so for two units the sum at half weight is the mean.
MEAN = Method("mean", "Mean (= sum at half weight)", {"fusion": "mean"})
MASKED = Method("masked", "Plain sum, conditions masked apart", {"fusion": "sum"}, masked=True)
COUPLED = Method("coupled", "Coupled encoders, then PixFusion + ChannelFusion", rule="coupled")
UNPACKED = Method("unpacked", "PixFusion + ChannelFusion, unpacked by halves", rule="unpacked")
LAYERS = Method("layers", "Layers (this project's)", {"fusion": "layers"}, layered=True)
SILHOUETTES = Method(
    "layers silhouette",
    "Layers, by silhouette",
    {"fusion": "layers", "mask_source": "silhouette"},
    layered=True,
)
OVER = Method(
    "layers over",
    "Layers over the paper's fusion",
    {"fusion": "layers", "outside_places": "pix+channel"},
    layered=True,
)
OVER_SILHOUETTES = Method(
    "layers over silhouette",
    "The same, by silhouette",
    {"fusion": "layers", "outside_places": "pix+channel", "mask_source": "silhouette"},
    layered=True,
)
MAIN = (
    Method("unit 0", "Foreground unit alone", unit=0),
    Method("unit 1", "Background unit alone", unit=1),
    SUM,
    MEAN,
    MASKED,
    Method("max", "MaxFusion (output rule)", {"fusion": "max"}),
    Method("pix", "PixFusion", {"fusion": "pix"}),
    CHANNEL,
    FULL,
    LAYERS,
    SILHOUETTES,
    OVER,
    OVER_SILHOUETTES,
)
CEILINGS = {"drawn": "*the scenes as drawn*", "vae": "*the same through the VAE*"}


def base_settings(steps: int, mask_reduction: int) -> dict[str, Any]:
    """The settings of every method, before its own."""
    return {
        "inject": False,
        "start_step": scaled_step(5, steps),
        "mask_reduction": mask_reduction,
        "strict": True,
    }


def scaled_step(of_fifty: int, steps: int) -> int:
    """A step of the paper's fifty, in proportion."""
    return round(steps * of_fifty / PAPER_STEPS)


def ablations(steps: int, layers: int, mask_reduction: int) -> list[Ablation]:
    """Every ablation, for a model whose ControlNets have so many attention `layers`."""

    def full(value: str, **changes: Any) -> tuple[str, Method]:
        name = ", ".join(f"{k}={v}" for k, v in changes.items())
        return value, Method(f"full {name}", f"Full, {name}", {"inject": True, **changes})

    def by_rule(value: str, rule: str) -> tuple[str, Method]:
        return value, Method(rule, value, rule=rule)

    def weighted(value: str, method: Method, weight: float) -> tuple[str, Method]:
        name = f"{method.key} at {weight:g}"
        return value, Method(name, f"{method.title} at {weight:g}", method.settings, weight=weight)

    def layered(value: str, weight: float = 1.0, **changes: Any) -> tuple[str, Method]:
        name = ", ".join(f"{k}={v}" for k, v in changes.items()) or f"at {weight:g}"
        settings = {"fusion": "layers", **changes}
        title = f"Layers, {name}"
        return value, Method(f"layers {name}", title, settings, weight=weight, layered=True)

    deltas = (0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 1.0)
    starts = {scaled_step(k, steps): k for k in (0, 10, 15, 20)}
    return [
        Ablation(
            "delta",
            "delta (Fig. 6), full method",
            [("0.7", FULL) if d == 0.7 else full(f"{d:g}", delta=d) for d in deltas],
            axis="delta",
            cases=(CONFLICT, COMPLEMENTARY),
        ),
        Ablation(
            "step",
            f"Start step of {steps} (of the paper's 50, Table 4)",
            [
                *(
                    (f"{step} ({of})", FULL if of == 5 else full("", start_step=step)[1])
                    for step, of in sorted({**starts, scaled_step(5, steps): 5}.items())
                ),
                ("never", CHANNEL),
            ],
        ),
        Ablation(
            "layer",
            f"Start layer of {layers} (Table 4)",
            [
                ("0", FULL),
                *(full(str(layer), start_layer=layer) for layer in range(1, layers)),
                ("none", CHANNEL),
            ],
        ),
        Ablation(
            "mask",
            "Where the mask comes from",
            [
                ("the noun", FULL),
                full("automatic word", foreground_word=""),
                full("silhouette of the condition", mask_source="silhouette"),
                ("the true object", TRUE_OBJECT),
                ("the true object, a token wider", WIDENED_OBJECT),
                full("all ones", mask_source="all"),
                full(
                    f"the noun, maps reduced by {6 - mask_reduction}",
                    mask_reduction=6 - mask_reduction,
                ),
                ("no injection", CHANNEL),
            ],
        ),
        Ablation(
            "threshold",
            "Mask threshold",
            [
                full("0.3", mask_threshold=0.3),
                full("0.5", mask_threshold=0.5),
                ("0.65", FULL),
                full("0.8", mask_threshold=0.8),
            ],
            axis="mask threshold",
        ),
        Ablation(
            "weight",
            "Weight of both units, without injection",
            [
                ("sum at 0.5", MEAN),
                weighted("sum at 0.75", SUM, 0.75),
                ("sum", SUM),
                ("fusion", CHANNEL),
                weighted("fusion at 1.5", CHANNEL, 1.5),
                weighted("fusion at 2", CHANNEL, 2.0),
            ],
            cases=(CONFLICT, COMPLEMENTARY),
        ),
        Ablation(
            "layers",
            "Layers",
            [
                ("as they are", LAYERS),
                layered("agreement above 0.5", delta=0.5),
                layered("agreement above 0.3", delta=0.3),
                layered("no agreement", delta=1.0),
                layered("gain 1.5", foreground_gain=1.5),
                layered("with injection", inject=True),
                ("by silhouette", SILHOUETTES),
                layered("threshold 0.5", mask_threshold=0.5),
                layered("threshold 0.8", mask_threshold=0.8),
                layered(f"maps reduced by {6 - mask_reduction}", mask_reduction=6 - mask_reduction),
                layered("every weight at 2", 2.0),
            ],
            cases=(CONFLICT, COMPLEMENTARY, *SEVERAL),
        ),
        Ablation(
            "authors",
            "Details of the authors' code, without injection",
            [
                ("as the paper's text", CHANNEL),
                by_rule("kernel with 12 in the centre", "kernel 12"),
                by_rule("no kernel", "no kernel"),
                by_rule("variance", "variance"),
                by_rule("variance, normalised over the batch", "batch variance"),
                by_rule("kernel 12 and batch variance", "authors"),
                ("coupled encoders, the paper's fusion", COUPLED),
                by_rule("coupled encoders, the authors' fusion", "coupled authors"),
                ("one half's skips, the other's middle", UNPACKED),
                by_rule("all of it", "unpacked authors"),
            ],
        ),
    ]
