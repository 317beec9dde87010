"""Ways in which graphs use ControlNets: each is made with our node, or without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from comfyui.graphs import Graph, Json

Fuse = Callable[[Graph], object]
LONG = "a red star over a green hill, " + "painted with many fine strokes, " * 16


@dataclass(frozen=True)
class Case:
    """One way.

    Attributes:
        make: puts the ControlNets in, and calls what it is given where our node belongs.
        graph, sampler: what is special about the model's loader, and about the sampler.
        injects: whether anything is injected in it.
        says: a part of what the report says.
    """

    make: Callable[[Graph, Fuse], object] = lambda g, fuse: fuse(g.two())
    graph: Json = field(default_factory=dict)
    sampler: Json = field(default_factory=dict)
    injects: bool = True
    says: str = ""

    def graph_of(self, fuse: Fuse, keep: str = "picture", **sampler: Any) -> Graph:
        """Its graph, up to the kept latents."""
        made = Graph(**self.graph)
        self.make(made, fuse)
        return made.sample(keep, **{**self.sampler, **sampler})


def _plus(conditioning: Any, g: Graph, kind: str, **more: Any) -> Any:
    return g.out(kind, conditioning=conditioning, **more)


def _three(g: Graph, fuse: Fuse) -> None:
    g.two()
    g.unit("c", 2, strength=0.7)
    fuse(g)


def _apart(g: Graph, fuse: Fuse) -> None:
    """The negative conditioning has no ControlNets, so that the host calls the UNet twice."""
    plain = g.negative
    fuse(g.two())
    g.negative = plain


def _to_uncond(g: Graph, fuse: Fuse) -> None:
    """The old node works on one conditioning, and marks it as for the other one too."""
    for number, name in enumerate("ab"):
        g.positive = _plus(
            g.positive,
            g,
            "ControlNetApply",
            control_net=g.control(name),
            image=g.image(number),
            strength=1.0,
        )
    fuse(g)


def _combined(g: Graph, fuse: Fuse) -> None:
    other = g.encode("a blue moon in the fog")
    g.positive = g.out("ConditioningCombine", conditioning_1=other, conditioning_2=g.positive)
    fuse(g.two())


def _each_its_own(g: Graph, fuse: Fuse) -> None:
    """Two conditionings with ControlNets of their own, combined behind them."""
    g.two()
    first, negative = g.positive, g.negative
    g.positive = g.encode("a blue moon in the fog")
    g.unit("b", 2)
    g.unit("c", 0)
    g.positive = g.out("ConditioningCombine", conditioning_1=first, conditioning_2=g.positive)
    g.negative = g.out("ConditioningCombine", conditioning_1=negative, conditioning_2=g.negative)
    fuse(g)


def _masked(g: Graph, fuse: Fuse) -> None:
    other = g.encode("a blue moon in the fog")
    left = {"mask": g.mask(), "strength": 1.0, "set_cond_area": "default"}
    g.positive = _plus(g.positive, g, "ConditioningSetMask", **left)
    g.positive = g.out("ConditioningCombine", conditioning_1=g.positive, conditioning_2=other)
    fuse(g.two())


def _area(g: Graph, fuse: Fuse) -> None:
    other = g.encode("a blue moon in the fog")
    part = {"width": 64, "height": 128, "x": 64, "y": 0, "strength": 1.0}
    other = _plus(other, g, "ConditioningSetArea", **part)
    g.positive = g.out("ConditioningCombine", conditioning_1=g.positive, conditioning_2=other)
    fuse(g.two())


def _in_time(g: Graph, fuse: Fuse) -> None:
    """One prompt in the first half, another in the second."""
    other = _plus(
        g.encode("a blue moon in the fog"), g, "ConditioningSetTimestepRange", start=0.5, end=1.0
    )
    g.positive = _plus(g.positive, g, "ConditioningSetTimestepRange", start=0.0, end=0.5)
    g.positive = g.out("ConditioningCombine", conditioning_1=g.positive, conditioning_2=other)
    fuse(g.two())


def _late(g: Graph, fuse: Fuse) -> None:
    g.unit("a", 0, end_percent=0.6)
    g.unit("b", 1, start_percent=0.3, strength=0.8)
    fuse(g)


def _lora(g: Graph, fuse: Fuse) -> None:
    g.unit("a", 0)
    g.unit("controllora", 1)
    fuse(g)


def _beside(g: Graph, fuse: Fuse) -> None:
    g.unit("a", 0)
    g.unit("t2iadapter", 2, strength=0.5)
    g.unit("b", 1)
    fuse(g)


def _one_net_twice(g: Graph, fuse: Fuse) -> None:
    net = g.control("a")
    g.unit(net=net, image=0)
    g.unit(net=net, image=1)
    fuse(g)


def _behind(g: Graph, fuse: Fuse) -> None:
    """A unit that was applied behind our node is added to what was fused."""
    fuse(g.two())
    g.unit("c", 2)


def in_windows(g: Graph) -> None:
    """The model looks at two pictures of a batch at a time."""
    g.model = g.out(
        "ContextWindowsManual",
        model=g.model,
        context_length=2,
        context_overlap=1,
        context_schedule="standard_static",
        context_stride=1,
        closed_loop=False,
        fuse_method="pyramid",
        dim=0,
        freenoise=False,
        split_conds_to_windows=False,
        causal_window_fix=True,
        cond_retain_index_list="",
        latent_retain_index_list="",
    )


def _windows(g: Graph, fuse: Fuse) -> None:
    in_windows(g)
    fuse(g.two())


def _long(g: Graph, fuse: Fuse) -> None:
    g.negative = g.encode(LONG)
    fuse(g.two())


SPLIT = "of parts of the picture the units are fused only"
CASES: dict[str, Case] = {
    "two": Case(),
    "three": Case(_three),
    "no guidance": Case(sampler={"cfg": 1.0}),
    "batch": Case(graph={"batch": 3}),
    "not square": Case(graph={"size": (192, 104)}),
    "heun": Case(sampler={"sampler_name": "heun"}),
    "dpmpp_sde": Case(sampler={"sampler_name": "dpmpp_sde", "scheduler": "karras"}),
    "uni_pc": Case(sampler={"sampler_name": "uni_pc"}),
    "image to image": Case(sampler={"denoise": 0.6}),
    "apart": Case(_apart),
    "to uncond": Case(_to_uncond),
    "combined": Case(_combined),
    "each its own": Case(_each_its_own),
    "masked": Case(_masked),
    "area": Case(_area, says=SPLIT),
    "in time": Case(_in_time),
    "late": Case(_late),
    "long negative": Case(_long),
    "ControlLoRA": Case(_lora),
    "T2I-Adapter beside": Case(_beside),
    "one model twice": Case(_one_net_twice),
    "a unit behind": Case(_behind),
    "context windows": Case(_windows, graph={"batch": 3}),
}
