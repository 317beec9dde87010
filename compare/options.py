"""The command line of `run.py compare`. Nothing heavy is imported."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path

from demo.command_line import (
    GUIDANCE_LIMIT,
    SEED_LIMIT,
    STEP_LIMIT,
    Parser,
    number,
    picture_size,
    refusal,
    whole,
)
from lib_ccn.showable import showable

from .nets import KINDS, SD15, SDXL
from .pairs import PAIRS, PLAIN, methods_for

SIZES = {SD15: 512, SDXL: 1024}

TEXT = f"""\
See on your own models what Cross-ControlNet does: pairs of conditions that contradict each other,
drawn here (a skeleton in front of a depth map that knows nobody, ...), with the plain sum of the
two ControlNets, MaxFusion, the whole method and layers, from the same seeds; side by side on one
page with the time of a step.

Either a running WebUI makes the pictures (--webui; start it with --api, and choose the checkpoint
there), or diffusers does (--model and --controlnet). Of a WebUI's ControlNets those for
{", ".join(KINDS)} are found by their names.
Nothing is sent anywhere but to the address that you give.
A broken-off run goes on where it was; pictures that another setting changes are made anew."""
EXAMPLES = """\
examples:
  python3 run.py compare --webui http://127.0.0.1:7860
  python3 run.py compare --webui http://127.0.0.1:7860 --sdxl --seeds 4
  python3 run.py compare --webui 127.0.0.1:7860 --pairs standing-room --controlnet depth=my_depth
  python3 run.py compare --model path/to/stable-diffusion-1.5 --device cuda
      --controlnet openpose=path/to/openpose depth=path/to/depth"""


@dataclass(frozen=True)
class Options:
    """What the command line asked for; exactly one of `webui` and `model` is given.

    `controlnets` are names, folders or hub ids by kind of condition; `seeds` how many, from `seed`
    on; `sampler` is empty for the best there is.
    """

    webui: str | None
    model: str | None
    controlnets: dict[str, str]
    user: str | None
    password: str | None
    sdxl: bool
    device: str
    pairs: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: int
    seed: int
    steps: int
    guidance_scale: float
    sampler: str
    size: tuple[int, int]
    out: Path

    @property
    def family(self) -> str:
        """`SD15` or `SDXL`."""
        return SDXL if self.sdxl else SD15


def parse(argv: list[str] | None = None) -> Options:
    """Parse the command line; leaves with status 2 and a message where it is wrong."""
    parser = _parser()
    given = parser.parse_args(argv)
    given.controlnets = dict(given.controlnets)
    if given.webui is None:
        if len(given.controlnets) < 2:
            parser.error("--model needs two ControlNets, as --controlnet KIND=DIR KIND=DIR")
        if given.user is not None or given.password is not None:
            parser.error("--user and --password are for --webui")
        if given.sampler:
            parser.error("--sampler is for --webui: diffusers samples with UniPC here")
    if given.password is not None and given.user is None:
        parser.error("--password needs a --user")
    if given.seed + given.seeds - 1 > SEED_LIMIT:
        parser.error(f"--seed {given.seed}: the last of {given.seeds} is more than {SEED_LIMIT}")
    if PLAIN not in given.methods:
        given.methods = (PLAIN, *given.methods)
    if given.size is None:
        side = SIZES[SDXL if given.sdxl else SD15]
        given.size = (side, side)
    return Options(**{field.name: getattr(given, field.name) for field in fields(Options)})


def _parser() -> Parser:
    parser = Parser(
        prog="python3 run.py compare",
        usage="%(prog)s (--webui URL | --model DIR) [options]",
        description=TEXT,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--webui", metavar="URL", help="a running AUTOMATIC1111, Forge or kin")
    who.add_argument("--model", metavar="DIR|HUBID", help="a model in diffusers' layout")
    parser.add_argument(
        "--controlnet",
        dest="controlnets",
        action="extend",
        nargs="+",
        default=[],
        type=_net,
        metavar="KIND=NAME",
        help=f"KIND is one of {', '.join(KINDS)}; with --webui the name of a model there, in place "
        "of the one that is found; with --model a folder or a hub id",
    )
    parser.add_argument("--sdxl", action="store_true", help="SDXL instead of Stable Diffusion 1.5")
    parser.add_argument("--user", metavar="NAME", help="of the WebUI's --api-auth")
    parser.add_argument(
        "--password", metavar="WORD", help="to --user; without it you are asked for it"
    )
    parser.add_argument("--device", default="cpu", help="with --model: cpu (default), cuda, mps")

    what = parser.add_argument_group("what is compared")
    names = tuple(PAIRS)
    what.add_argument(
        "--pairs",
        type=_chosen(names),
        default=names,
        metavar="A,B,...",
        help=f"of {', '.join(names)} (default: all)",
    )
    methods = tuple(methods_for())
    what.add_argument(
        "--methods",
        type=_chosen(methods),
        default=methods,
        metavar="A,B,...",
        help=f"of {', '.join(methods)} (default: all known there); {PLAIN} is always among them",
    )
    what.add_argument(
        "--seeds", type=whole(1, 1000), default=2, metavar="N", help="of each pair (default: 2)"
    )
    what.add_argument(
        "--seed", type=whole(0, SEED_LIMIT), default=1, help="the first one (default: 1)"
    )

    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--steps", type=whole(1, STEP_LIMIT), default=20, help="default: 20")
    sampling.add_argument(
        "--guidance-scale",
        type=number(0, GUIDANCE_LIMIT),
        default=7.0,
        metavar="CFG",
        help="default: 7",
    )
    sampling.add_argument(
        "--sampler", default="", metavar="NAME", help="of the WebUI (default: UniPC, if it has it)"
    )
    sampling.add_argument(
        "--size",
        type=picture_size,
        metavar="N|WxH",
        help="multiples of 8 (default: 512, with --sdxl 1024)",
    )
    out = Path("out/compare")
    parser.add_argument(
        "--out", type=Path, default=out, metavar="DIR", help=f"folder (default: {out})"
    )
    return parser


def _net(text: str) -> tuple[str, str]:
    kind, equals, name = text.partition("=")
    kind = kind.strip().lower()
    if not equals or not name.strip() or kind not in KINDS:
        allowed = f"KIND=NAME with a KIND of {', '.join(KINDS)}"
        raise refusal(text, "names no ControlNet", allowed)
    return kind, name.strip()


class _chosen:  # noqa: N801 (argparse names an option's reader in no message)
    """The reader of an option that lists some of these names."""

    def __init__(self, known: tuple[str, ...]) -> None:
        self.known = known

    def __call__(self, text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
        wrong = [name for name in names if name not in self.known]
        if wrong or not names:
            shown = showable(", ".join(wrong)) or "nothing"
            raise argparse.ArgumentTypeError(f"{shown}: choose among {', '.join(self.known)}")
        return tuple(name for name in self.known if name in names)
