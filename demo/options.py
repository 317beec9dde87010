"""The demo's options; those of the method are made from `lib_ccn.settings`."""

from __future__ import annotations

import argparse
import base64
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib_ccn.families import FAMILIES
from lib_ccn.settings import VERSION, Setting, Settings, SettingsError, fields
from lib_ccn.showable import showable

from .command_line import (
    GUIDANCE_LIMIT,
    SEED_LIMIT,
    STEP_LIMIT,
    OutputError,
    Parser,
    check_picture_name,
    number,
    refusal,
    whole,
)

# The demo is about the method and shows its mask in a column, so these have nothing to say in it.
_WITHOUT_OPTION = ("enabled", "show_mask", "strict")
SIDE_LIMIT = 8192
COLUMNS = ("foreground", "background", "sum", "mean", "max", "pix", "pix+channel", "full", "mask")
BUNDLED_GUIDANCE, GUIDANCE = 3.0, FAMILIES["sd15"].guidance_scale
STEPS = {"sd15": 20, "sdxl": 20, "flux": FAMILIES["flux"].steps}
# The bundled model's latents are half as wide as Stable Diffusion's at 512x512: its maps of 16x16
# tokens are those of half resolution, and they find the object (benchmarks/MASK_STUDY.md).
BUNDLED_MASK_REDUCTION = 2

DESCRIPTION = """\
Make pictures from two conditions that contradict each other, a foreground object's and a
background's, with the plain sum of the two ControlNets, with the rules of the literature, and
with Cross-ControlNet; and write them side by side as one figure.

Without options: six bundled examples with the bundled demo model, a miniature Stable Diffusion
for drawn pictures of 64x64. It makes what it was trained on: "a red star over a green field"
with the shapes star, ring, cross, heart, triangle, the colours red, yellow, green, cyan, blue,
pink, and the regions sky, hills, field, sand, water.

--family sdxl or flux takes real models of these families, or without --model tiny ones with random
weights, made on the spot: their figure shows that the method runs there, not that it looks good."""
EPILOG = """\
examples:
  python3 run.py demo
  python3 run.py demo --steps 50 --seed 7 --columns sum,full,mask
  python3 run.py demo --delta 0.5 --mask-source silhouette
  python3 run.py demo --prompt "a knight in a forest" --word knight
      --foreground pose.png --background depth.png --model path/to/stable-diffusion-1.5
      --controlnet path/to/openpose --controlnet path/to/depth --device cuda
  python3 run.py demo --family flux
  python3 run.py demo --family flux --prompt "a knight in a forest"
      --foreground canny.png --background depth.png --model black-forest-labs/FLUX.1-dev
      --controlnet path/to/flux-canny --controlnet path/to/flux-depth --device cuda"""


@dataclass(frozen=True)
class Options:
    """What the command line asked for, checked.

    `family` is a key of `FAMILIES`; `size` is (width, height) or None for the model's own;
    `steps` and `guidance_scale` are resolved; `control_modes` are of union ControlNets.
    """

    family: str

    prompt: str | None
    foreground: Path | None
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


def parse(argv: list[str] | None = None) -> Options:
    """Parse the command line; leaves with status 2 and a message where it is wrong."""
    parser = build_parser()
    given = parser.parse_args(argv)
    images = (given.foreground, given.background)
    if given.prompt is not None and None in images:
        parser.exit(2, "error: --prompt needs --foreground IMAGE and --background IMAGE\n")
    if given.prompt is None and any(images):
        parser.exit(2, "error: --foreground and --background need a --prompt\n")
    for path in images:
        if path is not None and not path.is_file():
            parser.exit(2, f"error: there is no image {path}\n")
    if given.controlnet and not given.model and given.family != "sd15":
        parser.exit(2, "error: --controlnet needs the --model that it belongs to\n")
    if given.family == "flux" and given.negative_prompt:
        parser.exit(2, "error: FLUX is guidance-distilled: it takes no --negative-prompt\n")
    if given.control_mode and given.family != "flux":
        parser.exit(2, "error: --control-mode is for --family flux\n")
    modes = given.control_mode or []
    nets = len(given.controlnet or ("foreground", "background"))
    if len(modes) not in (0, nets):
        values = ", ".join(map(str, modes))
        allowed = f"{nets} values, one per ControlNet, or none"
        parser.exit(2, f"error: --control-mode {values}: expected {allowed}\n")
    if given.steps is None:
        given.steps = STEPS[given.family]
    try:
        settings = _read_settings(given)
        check_picture_name("--out", given.out)
    except (SettingsError, OutputError, _UnreadableError) as error:
        parser.exit(2, f"error: {error}\n")
    bundled = given.model is None and given.family == "sd15"
    default_guidance = BUNDLED_GUIDANCE if bundled else FAMILIES[given.family].guidance_scale
    return Options(
        family=given.family,
        prompt=given.prompt,
        foreground=given.foreground,
        background=given.background,
        negative_prompt=given.negative_prompt,
        seed=given.seed,
        steps=given.steps,
        guidance_scale=default_guidance if given.guidance_scale is None else given.guidance_scale,
        settings=settings,
        model=given.model,
        controlnets=given.controlnet,
        control_modes=given.control_mode,
        device=given.device,
        size=given.size,
        columns=given.columns,
        out=given.out,
    )


def build_parser() -> argparse.ArgumentParser:
    """Build the parser, with an option for every setting."""
    parser = Parser(
        prog="python3 run.py demo",
        usage="%(prog)s [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    own = parser.add_argument_group("your own picture (instead of the bundled examples)")
    own.add_argument("--prompt", help="what to draw; needs the two images")
    own.add_argument("--foreground", type=Path, metavar="IMAGE", help="the object's condition")
    own.add_argument("--background", type=Path, metavar="IMAGE", help="the rest's condition")
    own.add_argument("--negative-prompt", default="", metavar="TEXT", help="what not to draw")

    sampling = parser.add_argument_group("sampling (UniPC; FLUX: flow-matching Euler)")
    sampling.add_argument(
        "--seed", type=whole(0, SEED_LIMIT), default=0, help="the first picture's (default: 0)"
    )
    sampling.add_argument(
        "--steps",
        type=whole(1, STEP_LIMIT),
        help=f"default: {STEPS['sd15']}, FLUX {STEPS['flux']}",
    )
    sampling.add_argument(
        "--guidance-scale",
        type=number(0, GUIDANCE_LIMIT),
        metavar="CFG",
        help=f"default: {BUNDLED_GUIDANCE:g} with the bundled model, otherwise {GUIDANCE:g}; "
        f"FLUX {FAMILIES['flux'].guidance_scale:g}",
    )
    sampling.add_argument(
        "--size",
        type=_size,
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
    models.add_argument(
        "--model",
        metavar="DIR|HUBID",
        help="a model of the family in diffusers' layout (default: the bundled one; for sdxl and "
        "flux a tiny one with random weights)",
    )
    models.add_argument(
        "--controlnet",
        action="append",
        metavar="DIR|HUBID",
        help="give it twice: the foreground's, then the background's",
    )
    models.add_argument(
        "--control-mode",
        action="append",
        type=whole(0, 99),
        metavar="N",
        help="of a FLUX union ControlNet, once per --controlnet",
    )
    models.add_argument("--device", default="cpu", help="cpu, cuda, mps (default: cpu)")

    method = parser.add_argument_group("settings of the method")
    method.add_argument(
        "--settings", metavar="FILE|JSON", help="a preset; the options below override it"
    )
    for name, setting in fields().items():
        if name not in _WITHOUT_OPTION:
            _add_setting(method, name, setting)

    figure = parser.add_argument_group("figure")
    figure.add_argument(
        "--columns",
        type=_columns,
        default=COLUMNS,
        metavar="A,B,...",
        help=f"of {', '.join(COLUMNS)} (default: all)",
    )
    figure.add_argument(
        "--out",
        type=Path,
        default=Path("out/demo.png"),
        metavar="FILE",
        help="default: out/demo.png",
    )
    return parser


class _UnreadableError(Exception):
    """The settings cannot be read."""


def _add_setting(group: argparse._ArgumentGroup, name: str, setting: Setting) -> None:
    default = repr(setting.default)
    flux = FAMILIES["flux"].defaults.get(name)
    more = default if flux is None else f"{default}, FLUX {flux!r}"
    options = [f"--{name.replace('_', '-')}"]
    if name == "foreground_word":
        options.append("--word")
        more = "the bundled examples' own nouns; for your prompt, found automatically"
    if setting.kind == "image":
        more = "none"
    help_text = f"{setting.help} (default: {more})".replace("%", "%%")
    if setting.kind == "flag":
        group.add_argument(
            *options, dest=name, action=argparse.BooleanOptionalAction, help=help_text
        )
        return
    metavar = {
        "choice": "|".join(setting.choices),
        "image": "FILE",
        "text": "WORD",
        "step": "N",
        "unit": "N",
    }
    group.add_argument(*options, dest=name, metavar=metavar.get(setting.kind, "X"), help=help_text)


def _read_settings(given: argparse.Namespace) -> Settings:
    family = FAMILIES[given.family]
    values: dict[str, Any] = dict(family.defaults)
    if given.model is None and given.family == "sd15":
        values["mask_reduction"] = BUNDLED_MASK_REDUCTION
    if given.settings is not None:
        values.update(_read_json(given.settings))
    for name, setting in fields().items():
        value = getattr(given, name, None)
        if value is not None:
            values[name] = _value(setting, value)
    values["enabled"] = True
    settings = family.settings(values).at_steps(given.steps)
    settings.check_usable()
    return settings


def _value(setting: Setting, value: Any) -> Any:
    """The plain value of an option's text; what is no number stays text, for the error."""
    if setting.kind == "image":
        return _read_mask(Path(value))
    if setting.kind in ("number", "integer", "step", "unit"):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _read_mask(path: Path) -> str:
    """The file as base64; it is decoded here too, since only here its name is known."""
    from lib_ccn.images import ImageError, read_picture  # imports torch, which takes seconds

    try:
        read_picture(path)
        return base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise _UnreadableError(f"the image {path} cannot be read: {error.strerror}") from error
    except ImageError as error:
        raise _UnreadableError(f"the image {path} cannot be read: {error}") from error


def _read_json(text: str) -> dict[str, Any]:
    """Settings by name: of JSON, of a file of it, or of a preset's file as the page saves it."""
    try:
        is_json = text.lstrip().startswith("{")
        values = json.loads(text if is_json else Path(text).read_text("utf-8-sig"))
    except OSError as error:
        raise _UnreadableError(f"the settings {text} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise _UnreadableError(f"the settings are no JSON: {error}") from error
    version = {}
    if isinstance(values, dict) and {"name", "settings"} <= values.keys():
        version = {"version": values.get("version", VERSION)}
        values = values["settings"]
    if not isinstance(values, dict):
        raise _UnreadableError("the settings must be a JSON object of names and values")
    return {**values, **version}


def _size(text: str) -> tuple[int, int]:
    allowed = f"multiples of 8 from 8 to {SIDE_LIMIT}"
    match = re.fullmatch(r"([0-9]{1,9})(?:x([0-9]{1,9}))?", text.strip().lower())
    if match is None:
        raise refusal(text, "is neither N nor WxH", allowed)
    width, height = int(match[1]), int(match[2] or match[1])
    if not all(8 <= side <= SIDE_LIMIT and side % 8 == 0 for side in (width, height)):
        raise refusal(text, "cannot be made", allowed)
    return width, height


def _columns(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    wrong = [name for name in names if name not in COLUMNS]
    if wrong or not names:
        raise argparse.ArgumentTypeError(
            f"{showable(', '.join(wrong)) or 'nothing'}: choose among {', '.join(COLUMNS)}"
        )
    return names
