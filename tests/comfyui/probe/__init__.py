"""Test-only nodes and routes for a ComfyUI; never part of the pack.

Nodes keep latents and reports as files. Routes:

GET  /ccn-probe/state    hooks, patches, sessions and memory that are there now; counters
POST /ccn-probe/dump     {"folder", "skip"}: write a UNet call's residuals to residuals.safetensors
POST /ccn-probe/break    {"target": "module:Name.attribute", "after"}: let that raise
POST /ccn-probe/mend     undo every break
POST /ccn-probe/attentions  {"folder", "skip"}: write what a call's self-attentions get and give
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import folder_paths
import numpy as np
import torch
from aiohttp import web
from server import PromptServer

from . import small  # noqa: F401
from .attentions import Attentions
from .ccn_watching import Breaks, Counters, Dump, memory, survey

PATCHED = ("ControlNet", "ControlLora", "T2IAdapter", "ModelPatcher", "CoreModelPatcher")


def _file(name):
    return Path(folder_paths.get_output_directory(), name)


class Keep:
    """Writes latents as NAME.npy."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "ccn probe", "keep", (), True

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"samples": ("LATENT",), "name": ("STRING", {"default": "picture"})}}

    @classmethod
    def IS_CHANGED(cls, **_):  # noqa: N802
        return float("nan")

    def keep(self, samples, name):
        np.save(_file(f"{name}.npy"), samples["samples"].detach().cpu().numpy())
        return {"ui": {}}


class KeepReport:
    """Writes what a report says: NAME-mask.npy, NAME-winners.npy, NAME.txt."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "ccn probe", "keep", (), True

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {
            "required": {
                "mask": ("MASK",),
                "winners": ("IMAGE",),
                "summary": ("STRING", {"forceInput": True}),
                "name": ("STRING", {"default": "report"}),
            }
        }

    @classmethod
    def IS_CHANGED(cls, **_):  # noqa: N802
        return float("nan")

    def keep(self, mask, winners, summary, name):
        np.save(_file(f"{name}-mask.npy"), mask.numpy())
        np.save(_file(f"{name}-winners.npy"), winners.numpy())
        _file(f"{name}.txt").write_text(summary, encoding="utf-8")
        return {"ui": {}}


NODE_CLASS_MAPPINGS = {"CCNProbeKeep": Keep, "CCNProbeReport": KeepReport}


class Probe:
    """The routes' state."""

    def __init__(self):
        self.counters = Counters()
        self.dump = None
        self.breaks = Breaks()

    def state(self, _body):
        return {"counts": self.counters.take(), **survey(PATCHED), "memory": memory()}

    def start_dump(self, body):
        if self.dump is not None:
            self.dump.stop()
        self.dump = Dump(body["folder"], int(body.get("skip", 0)))
        return {}

    def start_attentions(self, body):
        Attentions(body["folder"], int(body.get("skip", 0)))
        return {}

    def break_it(self, body):
        self.breaks.add(**body)
        return {}

    def mend(self, _body):
        self.breaks.mend()
        return {}


probe = Probe()


def _route(method, path, handler):
    async def answer(request):
        body = {}
        with contextlib.suppress(ValueError):
            body = await request.json()
        with torch.no_grad():
            return web.json_response(handler(body))

    PromptServer.instance.routes.route(method, f"/ccn-probe/{path}")(answer)


_route("GET", "state", probe.state)
_route("POST", "dump", probe.start_dump)
_route("POST", "attentions", probe.start_attentions)
_route("POST", "break", probe.break_it)
_route("POST", "mend", probe.mend)
