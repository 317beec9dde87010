"""The options of every command here: the demo's, the page's, explain's.

Those of the method are made from `lib_ccn.settings`. Nothing heavy is imported, so that what is
wrong is said at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import fields as attributes
from pathlib import Path
from typing import Any

from lib_ccn.families import FAMILIES
from lib_ccn.settings import Settings, SettingsError, fields
from lib_ccn.showable import showable

from .command_line import (
    GUIDANCE_LIMIT,
    SEED_LIMIT,
    STEP_LIMIT,
    OutputError,
    Parser,
    check_picture_name,
    number,
    picture_size,
    whole,
)
from .setting_options import add_setting, read_json

# The demo is about the method and shows its mask in a column, so these have nothing to say in it.
_WITHOUT_OPTION = ("enabled", "show_mask", "strict")
CONDITIONS = ("foreground", "background")
COLUMNS = (*CONDITIONS, "sum", "mean", "max", "pix", "pix+channel", "layers", "full", "mask")
# What is shown unless said otherwise, of one object and of several.
ONE_OBJECT = tuple(name for name in COLUMNS if name != "layers")
SEVERAL_OBJECTS = (*CONDITIONS, "sum", "pix+channel", "layers", "mask")
BUNDLED_GUIDANCE, GUIDANCE = 3.0, FAMILIES["sd15"].guidance_scale
STEPS = {"sd15": 20, "sdxl": 20, "flux": FAMILIES["flux"].steps}
# The bundled model's latents are half as wide as Stable Diffusion's at 512x512: its maps of 16x16
# tokens are those of half resolution, and they find the object (benchmarks/MASK_STUDY.md).
BUNDLED_MASK_REDUCTION = 2
EXAMPLES = 6
FIRST_PORT, PORTS = 7860, 100

DEMO = """\
Make pictures from two conditions that contradict each other, a foreground object's and a
background's, with the plain sum of the two ControlNets, with the rules of the literature, and
with Cross-ControlNet; and write them side by side as one figure.

Without options: six bundled examples with the bundled demo model, a miniature Stable Diffusion
for drawn pictures of 64x64. It makes what it was trained on: "a red star over a green field"
with the shapes star, ring, cross, heart, triangle, the colours red, yellow, green, cyan, blue,
pink, and the regions sky, hills, field, sand, water.

--family sdxl or flux takes real models of these families, or without --model tiny ones with random
weights, made on the spot: their figure shows that the method runs there, not that it looks good."""
DEMO_EXAMPLES = """\
examples:
  python3 run.py demo
  python3 run.py demo --steps 50 --seed 7 --columns sum,full,mask
  python3 run.py demo --delta 0.5 --mask-source silhouette
  python3 run.py demo --prompt "a knight in a forest" --word knight
      --foreground pose.png --background depth.png --model path/to/stable-diffusion-1.5
      --controlnet path/to/openpose --controlnet path/to/depth --device cuda
  python3 run.py demo --objects 2
  python3 run.py demo --prompt "a red star and a blue ring over sand" --layers "0 star, 1 ring"
      --foreground star.png --foreground ring.png --background map.png
  python3 run.py demo --family flux
  python3 run.py demo --family flux --prompt "a knight in a forest"
      --foreground canny.png --background depth.png --model black-forest-labs/FLUX.1-dev
      --controlnet path/to/flux-canny --controlnet path/to/flux-depth --device cuda"""

PAGE = f"""\
Open a page in the browser to try the method: choose, draw or upload two or three conditions,
and see the plain sum and Cross-ControlNet side by side, with the mask of every step and which
unit won where. The page is served to this machine alone, at 127.0.0.1, from port {FIRST_PORT}
on, and asks nothing of the network."""
PAGE_EXAMPLES = """\
examples:
  python3 run.py playground --open
  python3 run.py playground --model path/to/stable-diffusion-1.5
      --controlnet path/to/openpose --controlnet path/to/depth --device cuda"""


@dataclass(frozen=True)
class DemoOptions:
    """What the demo's command line asked for, checked.

    `family` is a key of `FAMILIES`; `size` is (width, height) or None for the model's own;
    `steps` and `guidance_scale` are resolved; `control_modes` are of union ControlNets.
    `foregrounds` are the images of one object or more, front to back; `objects` is how many the
    bundled examples have.
    """

    family: str

    prompt: str | None
    foregrounds: tuple[Path, ...]
    objects: int
    background: Path | None
    negative_prompt: str
    seed: int
    steps: int
    guidance_scale: float
    settings: Settings
    model: str | None
    controlnets: list[str] | None
    control_modes: list[int] | None
    device: str
    size: tuple[int, int] | None
    columns: tuple[str, ...]
    out: Path

    @property
    def random_weights(self) -> bool:
        """Whether the model is made on the spot."""
        return self.model is None and self.family != "sd15"


@dataclass(frozen=True)
class PageOptions:
    """What the page's command line asked for; `port` None is the first free one."""

    port: int | None
    model: str | None
    controlnets: list[str] | None
    device: str
    presets: Path
    open: bool


def parse_demo(argv: list[str] | None = None) -> DemoOptions:
    """Parse the demo's command line; leaves with status 2 and a message where it is wrong."""
    parser = _demo_parser()
    given = parser.parse_args(argv)
    given.foregrounds = tuple(given.foregrounds or ())
    images = (*(given.foregrounds or [None]), given.background)
    conditions = len(images) if given.prompt else given.objects + 1
    nets, modes = len(given.controlnets or ("foreground", "background")), given.control_modes or []
    if given.prompt is not None and None in images:
        parser.error("--prompt needs --foreground IMAGE and --background IMAGE")
    if given.prompt is None and any(images):
        parser.error("--foreground and --background need a --prompt")
    for path in images:
        if path is not None and not path.is_file():
            parser.error(f"there is no image {path}")
    if given.controlnets and conditions > 2 and len(given.controlnets) != conditions:
        parser.error(f"{conditions} conditions need {conditions} --controlnet, or none")
    if given.columns is None:
        given.columns = ONE_OBJECT if conditions == 2 else SEVERAL_OBJECTS
    if given.controlnets and not given.model and given.family != "sd15":
        parser.error("--controlnet needs the --model that it belongs to")
    if given.family == "flux" and given.negative_prompt:
        parser.error("FLUX is guidance-distilled: it takes no --negative-prompt")
    if modes and given.family != "flux":
        parser.error("--control-mode is for --family flux")
    if len(modes) not in (0, nets):
        values = ", ".join(map(str, modes))
        allowed = f"{nets} values, one per ControlNet, or none"
        parser.error(f"--control-mode {values}: expected {allowed}")
    bundled = given.model is None and given.family == "sd15"
    if given.steps is None:
        given.steps = STEPS[given.family]
    if given.guidance_scale is None:
        family = FAMILIES[given.family]
        given.guidance_scale = BUNDLED_GUIDANCE if bundled else family.guidance_scale
    try:
        given.settings = _read_settings(given, bundled)
        check_picture_name("--out", given.out)
    except (SettingsError, OutputError) as error:
        parser.error(str(error))
    return DemoOptions(
        **{field.name: getattr(given, field.name) for field in attributes(DemoOptions)}
    )


def parse_page(argv: list[str] | None = None) -> PageOptions:
    """Parse the page's command line; leaves with status 2 and a message where it is wrong."""
    parser = _parser("playground", PAGE, PAGE_EXAMPLES)
    port = f"default: the first free one from {FIRST_PORT} on"
    parser.add_argument("--port", type=whole(1024, 65535), help=port)
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    _add_model(
        parser,
        "a Stable Diffusion 1.5 in diffusers' layout (default: the bundled demo model)",
        "give it twice or more, the foreground's first (default: the model's own two)",
    )
    parser.add_argument(
        "--presets",
        type=Path,
        default=data_folder(os.environ, sys.platform) / "playground-presets",
        metavar="DIR",
        help="where presets are saved (default: %(default)s)",
    )
    return PageOptions(**vars(parser.parse_args(argv)))


def parse_explain(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse explain's command line: `out`, `steps` and `example`; leaves where it is wrong."""
    parser = _parser("explain", "Draw the figures of docs/how-it-works.md.")
    out = Path("docs/img")
    parser.add_argument("--out", type=Path, default=out, help=f"folder (default: {out})")
    parser.add_argument(
        "--steps", type=whole(4, STEP_LIMIT), default=20, help="of UniPC (default: 20)"
    )
    which = f"which of the demo's, 0 to {EXAMPLES - 1} (default: 0)"
    parser.add_argument("--example", type=whole(0, EXAMPLES - 1), default=0, help=which)
    return parser.parse_args(argv)


def data_folder(variables: Mapping[str, str], platform: str) -> Path:
    """Where this user's data of ours lies, by the custom of the system."""
    home = Path.home()
    if platform == "win32":
        base = Path(variables.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif platform == "darwin":
        base = home / "Library" / "Application Support"
    else:
        base = Path(variables.get("XDG_DATA_HOME") or home / ".local" / "share")
    return base / "cross-controlnet"


def _parser(command: str, description: str, examples: str = "") -> Parser:
    return Parser(
        prog=f"python3 run.py {command}",
        usage="%(prog)s [options]",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _add_model(group: argparse._ActionsContainer, model: str, controlnets: str) -> None:
    group.add_argument("--model", metavar="DIR|HUBID", help=model)
    group.add_argument(
        "--controlnet",
        action="append",
        dest="controlnets",
        metavar="DIR|HUBID",
        help=controlnets,
    )
    group.add_argument("--device", default="cpu", help="cpu, cuda, mps (default: cpu)")


def _demo_parser() -> Parser:
    parser = _parser("demo", DEMO, DEMO_EXAMPLES)
    own = parser.add_argument_group("your own picture (instead of the bundled examples)")
    own.add_argument("--prompt", help="what to draw; needs the two images")
    own.add_argument(
        "--foreground",
        type=Path,
        action="append",
        dest="foregrounds",
        metavar="IMAGE",
        help="the object's condition; of several objects once for each, front to back",
    )
    own.add_argument("--background", type=Path, metavar="IMAGE", help="the rest's condition")
    own.add_argument(
        "--objects",
        type=whole(1, 2),
        default=1,
        help="how many the bundled examples have, each with an outline of its own (default: 1)",
    )
    own.add_argument("--negative-prompt", default="", metavar="TEXT", help="what not to draw")

    sampling = parser.add_argument_group("sampling (UniPC; FLUX: flow-matching Euler)")
    sampling.add_argument(
        "--seed", type=whole(0, SEED_LIMIT), default=0, help="the first picture's (default: 0)"
    )
    steps = f"default: {STEPS['sd15']}, FLUX {STEPS['flux']}"
    sampling.add_argument("--steps", type=whole(1, STEP_LIMIT), help=steps)
    sampling.add_argument(
        "--guidance-scale",
        type=number(0, GUIDANCE_LIMIT),
        metavar="CFG",
        help=f"default: {BUNDLED_GUIDANCE:g} with the bundled model, otherwise {GUIDANCE:g}; "
        f"FLUX {FAMILIES['flux'].guidance_scale:g}",
    )
    sampling.add_argument(
        "--size",
        type=picture_size,
        metavar="N|WxH",
        help="in pixels, multiples of 8; conditions are cropped to its shape and scaled "
        "(default: the model's own)",
    )

    models = parser.add_argument_group("model")
    models.add_argument(
        "--family",
        choices=tuple(FAMILIES),
        default="sd15",
        help="of the model: " + ", ".join(f"{k} ({f.title})" for k, f in FAMILIES.items()),
    )
    _add_model(
        models,
        "a model of the family in diffusers' layout (default: the bundled one; for sdxl and flux "
        "a tiny one with random weights)",
        "give it for each condition: the foreground's, then the background's",
    )
    models.add_argument(
        "--control-mode",
        action="append",
        dest="control_modes",
        type=whole(0, 99),
        metavar="N",
        help="of a FLUX union ControlNet, once per --controlnet",
    )

    method = parser.add_argument_group("settings of the method")
    method.add_argument(
        "--settings",
        type=read_json,
        default={},
        metavar="FILE|JSON",
        help="a preset; the options below override it",
    )
    for name, setting in fields().items():
        if name not in _WITHOUT_OPTION:
            add_setting(method, name, setting)

    figure = parser.add_argument_group("figure")
    columns = (
        f"of {', '.join(COLUMNS)} (default: all but layers; of several objects "
        f"{', '.join(SEVERAL_OBJECTS)})"
    )
    figure.add_argument("--columns", type=_columns, metavar="A,B,...", help=columns)
    out = Path("out/demo.png")
    figure.add_argument("--out", type=Path, default=out, metavar="FILE", help=f"default: {out}")
    return parser


def _read_settings(given: argparse.Namespace, bundled: bool) -> Settings:
    family = FAMILIES[given.family]
    values: dict[str, Any] = dict(family.defaults)
    if bundled:
        values["mask_reduction"] = BUNDLED_MASK_REDUCTION
    values.update(given.settings)
    values.update({k: v for k in fields() if (v := getattr(given, k, None)) is not None})
    settings = family.settings({**values, "enabled": True}).at_steps(given.steps)
    settings.check_usable()
    return settings


def _columns(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    wrong = [name for name in names if name not in COLUMNS]
    if wrong or not names:
        raise argparse.ArgumentTypeError(
            f"{showable(', '.join(wrong)) or 'nothing'}: choose among {', '.join(COLUMNS)}"
        )
    return names
