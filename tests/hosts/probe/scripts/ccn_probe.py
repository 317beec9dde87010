"""Test-only routes for what cannot be seen over a WebUI's API; never part of the extension.

GET  /ccn-probe/state    hooks, patches, sessions and memory that are there now; counters
POST /ccn-probe/dump     {"folder", "skip"}: write a UNet call's residuals to residuals.safetensors
POST /ccn-probe/break    {"target": "module:Name.attribute", "after"}: let that raise
POST /ccn-probe/mend     undo every break
POST /ccn-probe/faces    let Forge and its kin see a face in every picture, without InsightFace
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from fastapi import Body
from modules import script_callbacks
from safetensors.torch import save_file
from torch.nn.modules import module as torch_module

PACKAGE = "lib_ccn"
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
PATCHED = ("ControlParams", "UnetHook", "UnetPatcher", "ModelPatcher", "ControlNetPatcher")


BODY = Body(...)


class BrokenError(RuntimeError):
    """Raised where a test asked for it."""


def is_ours(thing):
    """Whether a function, method, partial or object comes from the extension."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    thing = getattr(thing, "__func__", thing)
    for place in (getattr(thing, "__module__", None), type(thing).__module__):
        if isinstance(place, str) and (place + ".").startswith(PACKAGE + "."):
            return True
    return False


def survey():
    """Everything of the extension that is attached to the host's objects, and all hooks."""
    gc.collect()
    hooks, ours, linked, sessions = 0, [], 0, 0
    for thing in gc.get_objects():
        kind = type(thing)
        if issubclass(kind, torch.nn.Module):
            for name in HOOKS:
                held = thing.__dict__.get(name) or {}
                hooks += len(held)
                ours += [f"{kind.__name__}.{name}" for hook in held.values() if is_ours(hook)]
        if issubclass(kind, torch.nn.Module) or kind.__name__ in PATCHED:
            for name, value in list(getattr(thing, "__dict__", {}).items()):
                if name == "controlnet_linked_list":
                    # The host itself leaves a generation's ControlNets there up to the next one.
                    linked += value is not None and is_ours(value)
                elif name not in HOOKS and callable(value) and is_ours(value):
                    ours.append(f"{kind.__name__}.{name}")
        if kind.__name__ == "Session" and (kind.__module__ or "").startswith(PACKAGE):
            sessions += 1
    for name in ("_global_forward_hooks", "_global_forward_pre_hooks"):
        ours += [name for hook in getattr(torch_module, name).values() if is_ours(hook)]
    return {"hooks": hooks, "ours": sorted(ours), "linked": linked, "sessions": sessions}


def memory():
    """Resident megabytes of this process, freed memory given back where the C library can."""
    with contextlib.suppress(OSError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        import psutil

        return psutil.Process().memory_info().rss / 2**20
    except ImportError:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Counters:
    """How often the method's own functions were called since they were last asked for."""

    WATCHED = (("session", "fuse_residuals"), ("attention", "inject_keys_values"))

    def __init__(self):
        self.counts = dict.fromkeys((name for _, name in self.WATCHED), 0)

    def attach(self):
        for module, name in self.WATCHED:
            module = sys.modules.get(f"{PACKAGE}.{module}")
            function = getattr(module, name, None)
            if function is not None and not hasattr(function, "ccn_watched"):
                setattr(module, name, self._counting(name, function))

    def _counting(self, name, function):
        @functools.wraps(function)
        def counted(*args, **kwargs):
            self.counts[name] += 1
            return function(*args, **kwargs)

        counted.ccn_watched = True
        return counted

    def take(self):
        self.attach()
        counts, self.counts = self.counts, dict.fromkeys((name for _, name in self.WATCHED), 0)
        return counts


class Dump:
    """Writes what each ControlNet returned in one UNet call, and what the UNet then added.

    Knows no host and no extension: the ControlNets' outputs are seen as they leave the modules;
    what reached the UNet is the difference between a block's output and the next one's input.
    """

    def __init__(self, folder, skip):
        self.folder, self.skip = Path(folder), skip
        self.units, self.blocks, self.inputs = [], {}, {}
        self.outputs, self.unet = {}, None
        self.handles = [
            torch_module.register_module_forward_pre_hook(self.before),
            torch_module.register_module_forward_hook(self.after),
        ]

    def before(self, module, args):
        if hasattr(module, "output_blocks") and hasattr(module, "middle_block"):
            self.unet, self.inputs, self.outputs = module, {}, {}
            self.blocks = {id(block[-1]): i for i, block in enumerate(module.input_blocks)}
            self.blocks[id(module.middle_block[-1])] = len(self.blocks)
            self.entries = {id(block[0]): i for i, block in enumerate(module.output_blocks)}
        elif self.unet is not None and id(module) in self.entries:
            self.inputs[self.entries[id(module)]] = args[0].detach().clone()

    def after(self, module, args, output):
        if hasattr(module, "zero_convs") and isinstance(output, (list, tuple, dict)):
            if isinstance(output, dict):
                output = [*output["output"], *output["middle"]]
            self.units.append([tensor.detach().clone() for tensor in output])
        elif self.unet is not None and id(module) in self.blocks:
            self.outputs[self.blocks[id(module)]] = output.detach().clone()
        elif module is self.unet:
            self.unet = None
            self.skip -= 1
            if self.skip < 0:
                self.finish()
            self.units = []

    def finish(self):
        self.stop()
        middle = len(self.outputs) - 1
        tensors = {}
        for number, unit in enumerate(self.units):
            tensors.update({f"unit.{number}.{i}": t.float() for i, t in enumerate(unit)})
        for i, entered in self.inputs.items():
            skip = self.outputs[middle - 1 - i]
            width = entered.shape[1] - skip.shape[1]
            tensors[f"got.{middle - 1 - i}"] = entered[:, width:].float() - skip.float()
            if i == 0:
                tensors[f"got.{middle}"] = entered[:, :width].float() - self.outputs[middle].float()
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, str(self.folder / "residuals.safetensors"))

    def stop(self):
        for handle in self.handles:
            handle.remove()
        self.handles = []


class Faces:
    """In InsightFace's place: any picture has one face, of 512 numbers made from its pixels."""

    def __init__(self):
        self.det_model = SimpleNamespace()

    def get(self, picture):
        generator = np.random.default_rng(int(picture.sum()))
        return [SimpleNamespace(embedding=generator.standard_normal(512, np.float32))]


class Probe:
    """The routes' state."""

    def __init__(self):
        self.counters = Counters()
        self.dump = None
        self.broken = []

    def state(self):
        loaded = f"{PACKAGE}.session" in sys.modules
        found = {"loaded": loaded, "counts": self.counters.take(), **survey()}
        return {**found, "memory": memory()}

    def start_dump(self, body: dict = BODY):
        if self.dump is not None:
            self.dump.stop()
        self.dump = Dump(body["folder"], int(body.get("skip", 0)))
        return {}

    def break_it(self, body: dict = BODY):
        module, path = body["target"].split(":")
        *parents, name = path.split(".")
        owner = functools.reduce(getattr, parents, importlib.import_module(module))
        original, left = owner.__dict__[name], [int(body.get("after", 0))]

        def raising(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise BrokenError(body.get("message", "broken by a test"))
            return original(*args, **kwargs)

        setattr(owner, name, raising)
        self.broken.append((owner, name, original))
        return {}

    def mend(self, body: dict = BODY):
        while self.broken:
            setattr(*self.broken.pop())
        return {}

    def find_faces(self, body: dict = BODY):
        from modules_forge.shared import supported_preprocessors

        for preprocessor in supported_preprocessors.values():
            if "Instant-ID" in preprocessor.tags and hasattr(preprocessor, "cached_insightface"):
                preprocessor.cached_insightface = Faces()
        return {}


probe = Probe()


def add_routes(_demo, app):
    """Put the routes beside the WebUI's own."""
    app.add_api_route("/ccn-probe/state", probe.state, methods=["GET"])
    app.add_api_route("/ccn-probe/dump", probe.start_dump, methods=["POST"])
    app.add_api_route("/ccn-probe/break", probe.break_it, methods=["POST"])
    app.add_api_route("/ccn-probe/mend", probe.mend, methods=["POST"])
    app.add_api_route("/ccn-probe/faces", probe.find_faces, methods=["POST"])


script_callbacks.on_app_started(add_routes)
