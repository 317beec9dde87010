"""Generated settings that must be refused.

Only JSON is sent, nested less deeply than the hosts' own echo of the request can bear; NaN, lone
surrogates and integers of more than 64 bits end in HTTP 500 there whatever the scripts do.
"""

from __future__ import annotations

import random
from typing import Any

from hosts.cases import EVERYWHERE

NUMBERS = ("delta", "start_step", "start_layer", "mask_threshold", "mask_reduction")
WORDS = ("fusion", "mask_source")
FLAGS = ("inject", "show_mask")
UNITS = ("foreground_unit", "background_unit")


def deep(levels: int) -> Any:
    """A list in a list in a list."""
    found: Any = 0
    for _ in range(levels):
        found = [found]
    return found


def wrong(generator: random.Random, name: str) -> Any:
    """A value that no setting of this name accepts."""
    anything: list[Any] = [{}, {"a": 1}, [], [[]], [1, "x"], deep(60), {"x": deep(50)}, None]
    if name in NUMBERS:
        more = [-1, 1e9, 1e308, -(2**62), 1e-300 - 1, "0.5", "NaN", True, "", "x"]
        more += [generator.uniform(151, 1e6), generator.uniform(-1e6, -0.001)]
    elif name in WORDS:
        more = ["", "Pix", "pix ", "sum\x00", "🌟" * 20, 1, True, "x" * 100_000]
    elif name in FLAGS:
        more = ["true", "False", 0, 1, "", 2.5]
    elif name in UNITS:
        more = [-1, 100, 1.5, "first", "", True, "0x1", 2**62]
    elif name == "foreground_word":
        more = ["x" * 201, "a\x00b", 5, True, "\x1b[31m"]
    else:  # mask_image
        more = ["no base64!", "data:image/png;base64,", "====", 7, True]
        return generator.choice([value for value in [*anything, *more] if value is not None])
    return generator.choice([*anything, *more])


def unknown(generator: random.Random) -> str:
    """A name that no setting has."""
    names = ["Delta", "detla", "", " ", "fg_word", "__class__", "__init__", "self", "x" * 5000]
    names += ["fusion\n", "ключ", "args", "$ref", f"key{generator.randrange(10**6)}"]
    return generator.choice(names)


def malformed(count: int, seed: int = 0) -> list[list[Any]]:
    """Arguments for the extension, as the API takes them, each with something refused in it."""
    generator = random.Random(seed)
    names = (*NUMBERS, *WORDS, *FLAGS, *UNITS, "foreground_word", "mask_image")
    found: list[list[Any]] = []
    while len(found) < count:
        kind = generator.choice(("field", "field", "field", "two", "name", "other", "positional"))
        settings: dict[str, Any] = dict(EVERYWHERE)
        if kind in ("field", "two"):
            for name in generator.sample(names, 1 if kind == "field" else 2):
                settings[name] = wrong(generator, name)
            if "mask_image" in settings:
                settings["mask_source"] = "image"
            found.append([settings])
        elif kind == "name":
            settings[unknown(generator)] = generator.choice([1, None, "x", deep(60)])
            found.append([settings])
        elif kind == "other":
            found.append([generator.choice(OTHERS)])
        else:
            found.append(generator.choice(POSITIONAL))
    return found


def malformed_layers(count: int, seed: int = 0) -> list[list[Any]]:
    """Arguments whose `layers` are refused: an entry, the list, its text, or with other settings.

    Those of `LATE` are refused by what is in the picture only: the units, or a mask image.
    """
    generator = random.Random(seed)
    good = [{"unit": 0, "word": "star"}, {"unit": 1, "word": "sea"}]
    base = {"fusion": "layers", "start_step": 0}
    found: list[list[Any]] = []
    while len(found) < count:
        kind = generator.choice(("entry", "entry", "list", "text", "beside", "late"))
        settings: dict[str, Any] = dict(base)
        if kind == "entry":
            entries = [dict(entry) for entry in good]
            generator.choice(entries).update(generator.choice(WRONG_PARTS))
            settings["layers"] = entries
        elif kind == "list":
            settings["layers"] = generator.choice(
                [
                    *(7, True, {"unit": 0}, [7], [None], [[]], deep(40), [{}], [{"word": "star"}]),
                    *(good * 2, [{"unit": n} for n in range(11)], good[:1] * 50, [good]),
                ]
            )
        elif kind == "text":
            settings["layers"] = generator.choice(WRONG_TEXTS)
        elif kind == "beside":
            settings["layers"] = good
            settings.update(generator.choice(WRONG_BESIDE))
        else:
            settings["layers"] = generator.choice(LATE)
        found.append([settings] if generator.random() < 0.8 else positional(settings))
    return found


def positional(settings: dict[str, Any]) -> list[Any]:
    """The same in the order of the page, if that can say it, else as it is."""
    names = ["fusion", "layers", "start_step"]
    if sorted(settings) != names:
        return [settings]
    blank: list[Any] = [None] * 9
    return [True, "layers", None, None, settings["start_step"], *blank, settings["layers"]]


WRONG_PARTS: tuple[dict[str, Any], ...] = (
    {"unit": -1},
    {"unit": 100},
    {"unit": "0"},
    {"unit": True},
    {"unit": 0.5},
    {"unit": None},
    {"unit": "auto"},
    {"unit": []},
    {"word": 5},
    {"word": "x" * 201},
    {"word": "a\x00b"},
    {"word": ["star"]},
    {"mask_source": "Word"},
    {"mask_source": 1},
    {"mask_source": ""},
    {"mask_threshold": 1.5},
    {"mask_threshold": -0.1},
    {"mask_threshold": "0.5"},
    {"mask_image": "no base64!"},
    {"mask_image": 7},
    {"wrd": "star"},
    {"": 1},
    {"__class__": "x"},
    {"enabled": True},
)
WRONG_TEXTS = (
    "star",
    "0 star,, 1 sea",
    "0 star, 0 sea",
    "-1 star",
    "1000 star",
    "0 star (x)",
    "0 star (threshold)",
    "0 star (threshold 9)",
    ",",
    "0 (",
    "0 a" + "🌟" * 300,
    "x" * 100_000,
    "\x1b[31m",
    "0\x00",
    "[{'unit': 0}]",
    "0 a\x00b",
)
WRONG_BESIDE: tuple[dict[str, Any], ...] = (
    {"foreground_unit": 1},
    {"foreground_word": "sea"},
    {"background_unit": 1},
    {"foreground_gain": 0.4},
    {"foreground_gain": "2"},
    {"outside_places": "max"},
    {"outside_places": None, "foreground_gain": []},
    {"layer": "0 star"},
)
LATE: tuple[Any, ...] = (
    "7 star",
    [{"unit": 0, "word": "star"}, {"unit": 42}],
    [{"unit": 0, "mask_source": "image"}],
    [{"unit": 0, "mask_source": "image", "mask_image": "AAAA"}],
    [{"unit": 1, "word": "star", "mask_source": "image", "mask_image": "iVBORw0KGgo="}],
)

# Each alone is a dict of settings that cannot be used with two units.
OTHERS: tuple[Any, ...] = (
    {**EVERYWHERE, "foreground_unit": 7},
    {**EVERYWHERE, "background_unit": 9},
    {**EVERYWHERE, "foreground_unit": 1, "background_unit": 1},
    {**EVERYWHERE, "mask_source": "image"},
    {**EVERYWHERE, "mask_source": "image", "mask_image": "AAAA"},
    {**EVERYWHERE, "mask_source": "image", "mask_image": "iVBORw0KGgo="},
    {**EVERYWHERE, "preset": "no such preset"},
    {**EVERYWHERE, "preset": "../../config"},
    {**EVERYWHERE, "preset": 5},
    {**EVERYWHERE, "preset": {"a": []}},
    {**EVERYWHERE, "version": 0},
    {**EVERYWHERE, "version": "one"},
    {**EVERYWHERE, "enabled": "yes"},
    {**EVERYWHERE, "strict": 1},
)
POSITIONAL: tuple[list[Any], ...] = (
    [True, "blend"],
    [True, 5],
    [True, "pix", "much"],
    [True, "pix", 7],
    [True, "pix", 0.5, "maybe"],
    [True, "pix", 0.5, True, -3],
    [True, "pix", 0.5, True, 1, 1.5],
    [True, "pix", 0.5, True, 1, 0, "second"],
    [True, "pix", 0.5, True, 1, 0, "auto", "auto", ["star"]],
    [True, {"fusion": "pix"}],
    [True, []],
    [True, deep(60)],
)
