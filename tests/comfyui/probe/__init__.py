"""Test-only nodes and routes for a ComfyUI; never part of the pack.

Nodes keep latents and reports as files. Routes:

GET  /ccn-probe/state    hooks, patches, sessions and memory that are there now; counters
POST /ccn-probe/dump     {"folder", "skip"}: write a UNet call's residuals to residuals.safetensors
POST /ccn-probe/break    {"target": "module:Name.attribute", "after"}: let that raise
POST /ccn-probe/mend     undo every break
POST /ccn-probe/joint    {"folder", "skip"}: write what FLUX and its ControlNets compute in a call
POST /ccn-probe/attentions  {"folder", "skip"}: write what a call's self-attentions get and give
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace

import folder_paths
import numpy as np
import torch
from aiohttp import web
from server import PromptServer

from . import small  # noqa: F401
from .attentions import Attentions
from .ccn_watching import Breaks, Counters, Dump, memory, survey
from .joint import Joint

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


class Condition:
    """A conditioning of random numbers, for a model whose text encoder is too large."""

    CATEGORY, FUNCTION, RETURN_TYPES = "ccn probe", "make", ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        names = ("seed", "tokens", "width", "pooled")
        return {"required": {name: ("INT", {"default": 1}) for name in names}}

    def make(self, seed, tokens, width, pooled):
        generator = torch.Generator().manual_seed(seed)
        embedding = torch.randn(1, tokens, width, generator=generator)
        options = {"pooled_output": torch.randn(1, pooled, generator=generator), "guidance": 3.5}
        return ([[embedding, options]],)


class Pictures:
    """Black pictures in place of decoded latents, for a model without a small VAE."""

    CATEGORY, FUNCTION, RETURN_TYPES = "ccn probe", "make", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"samples": ("LATENT",)}}

    def make(self, samples):
        count, _channels, height, width = samples["samples"].shape
        return (torch.zeros(count, 8 * height, 8 * width, 3),)


class Text:
    """A text encoder of FLUX as far as words are concerned: real tokens, random embeddings."""

    CATEGORY, FUNCTION, RETURN_TYPES = "ccn probe", "make", ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"width": ("INT", {"default": 1}), "pooled": ("INT", {"default": 1})}}

    def make(self, width, pooled):
        from comfy.text_encoders.flux import FluxTokenizer

        clip = SimpleNamespace(tokenizer=FluxTokenizer())
        clip.tokenize = clip.tokenizer.tokenize_with_weights

        def encode(tokens):
            count = len(tokens["t5xxl"][0])
            generator = torch.Generator().manual_seed(count)
            embedding = torch.randn(1, count, width, generator=generator)
            vector = torch.randn(1, pooled, generator=generator)
            return [[embedding, {"pooled_output": vector, "guidance": 3.5}]]

        clip.encode_from_tokens_scheduled = encode
        return (clip,)


NODE_CLASS_MAPPINGS = {
    "CCNProbePictures": Pictures,
    "CCNProbeText": Text,
    "CCNProbeKeep": Keep,
    "CCNProbeReport": KeepReport,
    "CCNProbeCondition": Condition,
}


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

    def start_joint(self, body):
        Joint(body["folder"], int(body.get("skip", 0)))
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
_route("POST", "joint", probe.start_joint)
_route("POST", "break", probe.break_it)
_route("POST", "mend", probe.mend)
