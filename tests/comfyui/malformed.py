"""Generated graphs in which something is wrong: what ComfyUI refuses, and what it takes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

from comfyui.graphs import APPLY, Graph

NUMBERS = {
    "delta": (-0.1, 1.5, 7, -1e9, "much"),
    "mask_threshold": (-1, 2, 1e9, "high"),
    "start_percent": (-0.5, 1.001, 100, "late"),
    "end_percent": (-3, 1.5, 1e6, "never"),
    "injection_start": (-0.1, 1.2, 50, "x"),
    "start_layer": (-1, 41, 10**9, "first"),
    "mask_reduction": (0, 9, -4, "half"),
    "foreground_unit": (-2, 100, "a"),
    "background_unit": (-2, 100, "b"),
}
CHOICES = {
    "fusion": ("blend", "Pix", "", "sum "),
    "outside_places": ("mean", "", "the sum"),
    "mask_source": ("attention", "", "Word", "image"),
}
SOCKETS = {"positive": "IMAGE", "negative": "LATENT", "word": "STRING", "mask": "IMAGE"}


class Malformed(NamedTuple):
    """A graph that is wrong.

    Attributes:
        graph: up to the report.
        refused: a part of what ComfyUI says when it refuses it; "" where it is taken.
        says: a part of what the report says where it is taken.
        plain: whether the picture is the one of the summed ControlNets then.
    """

    graph: Graph
    refused: str = ""
    says: str = ""
    plain: bool = False


def _small() -> Graph:
    return Graph(size=(64, 64))


def _finished(graph: Graph) -> Graph:
    return graph.sample(steps=2, cfg=1.0).show()


def _changed(graph: Graph, **inputs: Any) -> Graph:
    """Our node with other inputs; None takes one away."""
    node = next(node for node in graph.nodes.values() if node["class_type"] == APPLY)
    for name, value in inputs.items():
        node["inputs"].pop(name, None)
        if value is not None:
            node["inputs"][name] = value
    return graph


def _value(generator: random.Random) -> Malformed:
    table: dict[str, tuple[Any, ...]] = {**NUMBERS, **CHOICES}
    name = generator.choice(sorted(table))
    graph = _changed(_small().two().fuse(), **{name: generator.choice(table[name])})
    return Malformed(_finished(graph), refused=name)


def _socket(generator: random.Random) -> Malformed:
    name = generator.choice(sorted(SOCKETS))
    graph = _small().two().fuse()
    wrong = {
        "IMAGE": graph.image(),
        "LATENT": graph.latent,
        "STRING": graph.out("StringConcatenate", string_a="a", string_b="star", delimiter=" "),
    }[SOCKETS[name]]
    return Malformed(_finished(_changed(graph, **{name: wrong})), refused=name)


def _missing(generator: random.Random) -> Malformed:
    name = generator.choice(("positive", "negative", "fusion", "delta", "injection"))
    return Malformed(_finished(_changed(_small().two().fuse(), **{name: None})), refused=name)


def _empty_socket(generator: random.Random) -> Malformed:
    name = generator.choice(("word", "mask"))
    graph = _changed(_small().two().fuse(mask_source=name), **{name: None})
    return Malformed(_finished(graph), refused=f"{name}: nothing is connected")


def _unit(generator: random.Random) -> Malformed:
    name = generator.choice(("foreground_unit", "background_unit"))
    graph = _small().two().fuse(**{name: generator.randrange(2, 99)})
    return Malformed(_finished(graph), says=name, plain=True)


def _same_unit(generator: random.Random) -> Malformed:
    number = generator.randrange(2)
    graph = _small().two().fuse(foreground_unit=number, background_unit=number)
    return Malformed(_finished(graph), says="background_unit", plain=True)


def _word(generator: random.Random) -> Malformed:
    word = generator.choice(("dragon", "st", "x" * 300, "(((", "a\x00b", "?!", "🌟", "green star"))
    graph = _small()
    graph.nodes[graph.word]["inputs"]["word"] = word
    return Malformed(_finished(graph.two().fuse(mask_source="word")), says="word")


def _prompt(generator: random.Random) -> Malformed:
    """The word's prompt is not the one that is sampled."""
    graph = _small()
    graph.positive = graph.encode("another prompt " + "x " * generator.randrange(5))
    graph.two().fuse(mask_source="word")
    return Malformed(_finished(graph), says="not what the foreground word's text encoder made")


def _too_few(generator: random.Random) -> Malformed:
    graph = _small()
    kind = generator.randrange(4)
    if kind == 1:
        graph.unit("a")
    elif kind == 2:
        graph.unit("a")
        graph.unit("b", 1, strength=0.0)
    elif kind == 3:
        graph.unit("a")
        graph.unit("t2iadapter", 1)
    return Malformed(_finished(graph.fuse()), says="nothing to fuse", plain=True)


def _twice(generator: random.Random) -> Malformed:
    graph = _small().two().fuse(fusion="sum", injection=False)
    if generator.randrange(2):
        graph.unit("c", 2)
    return Malformed(_finished(graph.fuse()), says="fused already")


def _no_span(generator: random.Random) -> Malformed:
    graph = _small().two().fuse(start_percent=0.9, end_percent=generator.uniform(0, 0.5))
    return Malformed(_finished(graph), says="start_percent", plain=True)


def _other_mask(generator: random.Random) -> Malformed:
    """A mask without a foreground, of another shape, or of several pictures: taken as it is."""
    graph = _small().two()
    value = generator.choice((0.0, 1.0))
    size = {"width": generator.randrange(1, 200), "height": generator.randrange(1, 200)}
    mask = graph.out("SolidMask", value=value, **size)
    return Malformed(_finished(graph.fuse(mask_source="mask", mask=mask)), says="mask from image")


def _layers(generator: random.Random) -> Malformed:
    """A layer of a ControlNet that is not there, one twice, or a word that no prompt has."""
    graph = _small().two()
    kind = generator.randrange(3)
    first = graph.layer(generator.randrange(2, 99) if kind == 0 else 0, "star")
    second = graph.layer(0 if kind == 1 else 1, "dragon" if kind == 2 else "hill", first)
    given = {"layers": second, "fusion": "layers", "word": [graph.word, 1]}
    says = "dragon" if kind == 2 else "layers"
    return Malformed(_finished(graph.fuse(**given)), says=says, plain=kind < 2)


KINDS: tuple[Callable[[random.Random], Malformed], ...] = (
    _value,
    _socket,
    _missing,
    _empty_socket,
    _unit,
    _same_unit,
    _word,
    _prompt,
    _too_few,
    _twice,
    _no_span,
    _other_mask,
    _layers,
)


def malformed(count: int, seed: int = 0) -> list[Malformed]:
    """So many wrong graphs, of every kind as many."""
    generator = random.Random(seed)
    return [KINDS[number % len(KINDS)](generator) for number in range(count)]
