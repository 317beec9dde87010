"""Finding the ControlNets that a comparison needs among a user's, by their names.

Names are all that a WebUI tells of its models. Those on the hubs follow a few habits, and of
several that fit the best known is taken. What the method does not fuse is never taken:
T2I-Adapters, IP-Adapters, ControlNet-LLLite.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

SD15, SDXL = "sd15", "sdxl"
TITLES = {SD15: "Stable Diffusion 1.5", SDXL: "SDXL"}
# Each kind of condition, and a model that is one, for those who have none.
WELL_KNOWN: dict[str, dict[str, str]] = {
    SD15: {
        "openpose": "control_v11p_sd15_openpose",
        "depth": "control_v11f1p_sd15_depth",
        "seg": "control_v11p_sd15_seg",
        "canny": "control_v11p_sd15_canny",
    },
    SDXL: {
        "openpose": "controlnet-openpose-sdxl-1.0",
        "depth": "controlnet-depth-sdxl-1.0",
        "seg": "controlnet-union-sdxl-1.0",
        "canny": "controlnet-canny-sdxl-1.0",
    },
}
KINDS = tuple(WELL_KNOWN[SD15])

_KIND = {
    "openpose": r"open\W?pose",
    "depth": r"depth",
    "seg": r"\bsegm?\b|segmentation|\bade20k",
    "canny": r"canny",
}
_UNION = r"union|promax"
# Adapters, what is for a part of the body or another condition beside these, other kinds of model.
_NEVER = (
    r"t2i|adapter|lllite|instant\W?id|shuffle|inpaint|\btile|animal|\bface|\bhands?\b|mediapipe|"
    r"dense\W?pose|normal|scribble|lineart|soft\W?edge|mlsd|ip2p|qr\W?code|recolor|revision|"
    r"sparse\W?ctrl|animate\W?diff|pulid|style|\bblur"
)
_OTHER_FAMILY = (
    r"\bsd\W?[23]|\bv2\W?[01]|\bsd\W?v?2|flux|qwen|hunyuan|kolors|\bz\W?image|pixart|aura\W?flow|"
    r"lumina|\bwan\b|\bsvd\b|cog\W?video|cascade|\bltx"
)
_SDXL = r"xl|pony|illustrious|noob|promax"
_SD15 = r"\bsd\W?1\W?5|\bsd\W?v?1\b|\bv1\W?[15]\b|\bv11[a-z]|controlnet\W?1\W?1"
# What makes one of several a better choice, or a worse one.
_LORA, _SMALL = r"lora|\brank\d+", r"\bsmall\b|\bmid\b"
_FAVOURED = (r"\bv11f1", r"\bv11p|xinsir|sdxl 1 0")
_CONTROL_LORA = r"control lora"  # Stability's, for SDXL, whose names do not say so


@dataclass(frozen=True)
class Net:
    """What a name says of a ControlNet.

    Attributes:
        name: as it was given.
        kinds: of condition that it is for; several of a union ControlNet.
        family: `SD15`, `SDXL`, or "" where the name does not say.
        rank: the smaller, the better.
    """

    name: str
    kinds: tuple[str, ...]
    family: str
    rank: tuple[object, ...]


class NetError(Exception):
    """The ControlNets do not suffice, or a named one is not there; the message says which."""


def read_name(name: str) -> Net | None:
    """What a model's name says; None where it is none that a comparison can use."""
    words = _words(name)
    if re.search(_NEVER, words) or re.search(_OTHER_FAMILY, words):
        return None
    union = is_union(name)
    kinds = KINDS if union else tuple(kind for kind in KINDS if re.search(_KIND[kind], words))
    if not kinds or (len(kinds) > 1 and not union):
        return None
    xl, old = bool(re.search(_SDXL, words)), bool(re.search(_SD15, words))
    family = SDXL if xl and not old else SD15 if old and not xl else ""
    if not (xl or old) and re.search(_CONTROL_LORA, words):
        family = SDXL
    favour = [bool(re.search(pattern, words)) for pattern in _FAVOURED]
    rank = (
        union,
        not family,
        bool(re.search(_LORA, words)),
        bool(re.search(_SMALL, words)),
        favour.index(True) if any(favour) else len(favour),
        len(words),
        name,
    )
    return Net(name, kinds, family, rank)


def is_union(name: str) -> bool:
    """Whether the name is a union ControlNet's, which takes many kinds of condition."""
    return re.search(_UNION, _words(name)) is not None


def find(names: Iterable[str], family: str) -> dict[str, str]:
    """The best model for each kind of condition that has one.

    A name that says no family is taken for Stable Diffusion 1.5, where nothing better is there: the
    first ControlNets' names did not say it.
    """
    known = [net for net in map(read_name, names) if net is not None]
    fitting = [net for net in known if (net.family or SD15) == family]
    found = {}
    for kind in KINDS:
        candidates = [net for net in fitting if kind in net.kinds]
        if candidates:
            found[kind] = min(candidates, key=lambda net: net.rank).name
    return found


def named(wanted: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """The listed names of the models that the user has named; raises NetError.

    The hash behind a name may be left out, and small letters are as good as capitals.
    """
    listed = list(names)
    short = {without_hash(name).lower(): name for name in listed}
    found = {}
    for kind, name in wanted.items():
        match = name if name in listed else short.get(without_hash(name).lower())
        if match is None:
            near = difflib.get_close_matches(without_hash(name).lower(), short, n=3, cutoff=0.3)
            hint = f"; did you mean {' or '.join(short[key] for key in near)}?" if near else ""
            raise NetError(f"--controlnet {kind}={name}: there is no such ControlNet{hint}")
        found[kind] = match
    return found


def without_hash(name: str) -> str:
    """A model's name without the hash that a WebUI writes behind it."""
    return re.sub(r"\s*\[[0-9a-fA-F]{4,64}\]\s*$", "", name)


def _words(name: str) -> str:
    """The name's words in small letters with a space between: split at signs and at capitals."""
    text = re.sub(r"\.(?:safetensors|pth|pt|ckpt|bin)$", "", without_hash(name))
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))
