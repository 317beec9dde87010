"""What is compared: pairs of conditions that contradict each other, and ways to fuse them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lib_ccn.settings import Settings, fields

if TYPE_CHECKING:  # a command line's help needs no package
    from PIL import Image

NEGATIVE = "blurry, deformed, extra limbs, extra people, text, watermark"


@dataclass(frozen=True)
class Pair:
    """Two conditions, of which the second knows nothing of the first's object.

    Attributes:
        name: for file names and `--pairs`.
        prompt: what both should give together.
        word: of the prompt, for the object in front.
        front, back: each a kind of condition and the name of a drawing of that kind.
    """

    name: str
    prompt: str
    word: str
    front: tuple[str, str]
    back: tuple[str, str]

    @property
    def kinds(self) -> tuple[str, str]:
        """The kinds of the conditions, the one in front first."""
        return self.front[0], self.back[0]

    @property
    def ends(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """Kind and name of both drawings, the one in front first."""
        return self.front, self.back

    def conditions(self, size: tuple[int, int]) -> list[Image.Image]:
        """Both as RGB pictures of that (width, height), the one in front first."""
        from .drawing import DRAWN

        return [DRAWN[kind](name, size) for kind, name in self.ends]


_DAY = "natural light, detailed photograph"
PAIRS = {
    pair.name: pair
    for pair in (
        Pair(
            "standing-room",
            f"a woman in a red coat standing in a living room, sofa, rug, window, {_DAY}",
            "woman",
            ("openpose", "standing"),
            ("depth", "room"),
        ),
        Pair(
            "waving-street",
            f"a man in a yellow raincoat waving in a street, old houses, parked car, {_DAY}",
            "man",
            ("openpose", "waving"),
            ("depth", "street"),
        ),
        Pair(
            "sitting-hills",
            f"a girl with a blue hat sitting on a stool in a meadow, hills, lake, tree, {_DAY}",
            "girl",
            ("openpose", "sitting"),
            ("depth", "hills"),
        ),
        Pair(
            "waving-hills",
            f"a man in an orange jacket waving in a meadow, hills, lake, tree, path, {_DAY}",
            "man",
            ("openpose", "waving"),
            ("seg", "hills"),
        ),
        Pair(
            "standing-street",
            f"a woman in a green dress standing in a street, brick houses, tree, {_DAY}",
            "woman",
            ("openpose", "standing"),
            ("seg", "street"),
        ),
        Pair(
            "balloon-hills",
            f"a red and white balloon flying over hills, meadow, lake, mountains, {_DAY}",
            "balloon",
            ("canny", "balloon"),
            ("depth", "hills"),
        ),
        Pair(
            "vase-room",
            f"a large blue vase on the rug of a living room, sofa, plant, {_DAY}",
            "vase",
            ("canny", "vase"),
            ("seg", "room"),
        ),
    )
}


@dataclass(frozen=True)
class Method:
    """A way to fuse the units.

    Attributes:
        title: for the page.
        settings: of `lib_ccn.settings`, beside the pair's word; None leaves the method off.
        told: in a sentence.
    """

    title: str
    told: str
    settings: Mapping[str, Any] | None = None

    def asked(self, pair: Pair) -> dict[str, Any] | None:
        """Its settings for a pair; None where it is off."""
        if self.settings is None:
            return None
        shown = self.settings.get("inject", True)  # where the object is matters for the picture
        word = {"foreground_word": pair.word} if shown else {}
        return {"enabled": True, "show_mask": shown, **self.settings, **word}


PLAIN = "sum"
METHODS = {
    PLAIN: Method("Plain sum", "what the host makes without this project"),
    "max": Method(
        "MaxFusion", "the output rule of Nair et al., 2024", {"fusion": "max", "inject": False}
    ),
    "full": Method(
        "Cross-ControlNet",
        "PixFusion, ChannelFusion and KV-Injection, as in the paper",
        {"fusion": "pix+channel", "inject": True},
    ),
    "layers": Method(
        "Layers", "this project's own rule: one unit in front of the other", {"fusion": "layers"}
    ),
}


def methods_for(rules: list[str] | None = None) -> dict[str, Method]:
    """The methods that can be asked for where these rules of fusion are known.

    Args:
        rules: choices of the setting `fusion`; None for those of this project as it is here.
    """
    known = fields()["fusion"].choices if rules is None else rules
    return {
        name: method
        for name, method in METHODS.items()
        if method.settings is None or method.settings["fusion"] in known
    }


def full_settings(asked: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a method, defaults included, as they are written on the page."""
    left_out = ("version", "enabled", "show_mask", "strict", "mask_image")
    values = Settings.from_dict(asked).to_dict()
    return {name: value for name, value in values.items() if name not in left_out}
