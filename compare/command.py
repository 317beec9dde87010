"""The command: looks what there is, has the pictures made, and writes the page."""

from __future__ import annotations

import getpass
import logging
import sys
from pathlib import Path

from demo.command_line import OutputError, prepare_folder, silence_libraries

from . import host
from .client import Client, WebUIError
from .comparison import Comparison
from .made import MakeError, Maker, Sampling
from .nets import WELL_KNOWN, NetError, find, is_union, named
from .options import Options
from .page import page
from .pairs import METHODS, PAIRS, PLAIN, Pair, methods_for
from .report import ratio_text, seconds_text
from .store import Store, write_text
from .webui import WebUI

PAGE = "compare.html"


def run(options: Options) -> int:
    """Make the comparison; returns the exit status."""
    logging.basicConfig(format="%(message)s", level=logging.ERROR)
    try:
        prepare_folder("--out", options.out)
        comparison = _prepared(options)
        _make(comparison, options.out)
    except (WebUIError, MakeError, NetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OutputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for method in comparison.methods:
        ratio = comparison.ratio(method)
        more = "" if ratio is None or method == PLAIN else f", {ratio_text(ratio)} of the plain sum"
        step = seconds_text(comparison.step_seconds(method))
        print(f"{METHODS[method].title}: a step {step}{more}")
    for remark in comparison.remarks():
        print(f"remark: {remark}")
    print(_write(comparison, options.out))
    return 0


def _prepared(options: Options) -> Comparison:
    """What can be compared; says what is found and what is left out."""
    maker, rules = _maker(options)
    for kind, model in maker.nets.items():
        print(f"{kind}: {model}")
    wanted = [PAIRS[name] for name in options.pairs]
    possible = [pair for pair in wanted if all(kind in maker.nets for kind in pair.kinds)]
    known = methods_for(rules)
    notices = _about_nets(options, maker, wanted)
    notices += [
        f"left out: {METHODS[name].title}, as the WebUI's Cross-ControlNet does not know it"
        for name in methods_for()
        if name in options.methods and name not in known
    ]
    for sentence in notices:
        print(sentence)
    if not possible:
        raise NetError(
            "there is nothing to compare: a pair needs two ControlNets. If the names of yours do "
            "not say what they are, name them: --controlnet KIND=NAME ..."
        )
    methods = [name for name in options.methods if name in known]
    seeds = range(options.seed, options.seed + options.seeds)
    return Comparison(possible, methods, seeds, maker, maker.about(), notices)


def _about_nets(options: Options, maker: Maker, wanted: list[Pair]) -> list[str]:
    """What is left out for want of a ControlNet; what union ControlNets are not told."""
    told = []
    for kind in dict.fromkeys(kind for pair in wanted for kind in pair.kinds):
        if kind not in maker.nets:
            names = ", ".join(pair.name for pair in wanted if kind in pair.kinds)
            known = WELL_KNOWN[options.family][kind]
            told.append(f"left out: {names}: there is no ControlNet for {kind}, such as {known}")
    if options.webui is not None and any(map(is_union, maker.nets.values())):
        told.append(
            "a union ControlNet: AUTOMATIC1111 and Forge Neo are told which kind of condition it "
            "gets, other WebUIs cannot be"
        )
    return told


def _make(comparison: Comparison, folder: Path) -> None:
    """Make the pictures; broken off, there is a page of those that are done."""
    try:
        comparison.run(Store(folder))
    except KeyboardInterrupt:
        comparison.maker.interrupt()
        _leave_behind(comparison, folder)
        raise
    except (MakeError, OSError):
        _leave_behind(comparison, folder)
        raise


def _leave_behind(comparison: Comparison, folder: Path) -> None:
    if any(row.pictures for row in comparison.rows):
        print(f"{_write(comparison, folder)}: what is done; the same command goes on from there")


def _write(comparison: Comparison, folder: Path) -> Path:
    path = folder / PAGE
    write_text(path, page(comparison))
    return path


def _maker(options: Options) -> tuple[Maker, list[str] | None]:
    """Who makes the pictures, and the rules of fusion known there; None for those known here."""
    sampling = Sampling(options.size, options.steps, options.guidance_scale, options.sampler)
    if options.webui is None:
        silence_libraries()
        from .local import Local  # imports torch and diffusers, which a WebUI's user may lack

        nets, model = options.controlnets, str(options.model)
        return Local(model, nets, options.family, options.device, sampling), None
    password = options.password
    if options.user is not None and password is None:
        password = getpass.getpass(f"password of {options.user}: ")
    client = Client(options.webui, options.user, password)
    rules = host.known_rules(client)
    names = host.controlnets(client)
    nets = {**find(names, options.family), **named(options.controlnets, names)}
    return WebUI(client, nets, options.family, sampling), rules
