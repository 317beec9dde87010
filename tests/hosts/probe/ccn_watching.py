"""What cannot be seen over a host's API: knows no host, and of the extension only its name."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.modules import module as torch_module

PACKAGE = "lib_ccn"
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class BrokenError(RuntimeError):
    """Raised where a test asked for it."""


def of_package(name):
    """Whether a module's name is one of the extension's, wherever a host has put it."""
    return isinstance(name, str) and PACKAGE in name.split(".")


def is_named(name, module):
    """Whether this is the extension's `module`."""
    wanted = f"{PACKAGE}.{module}"
    return name == wanted or name.endswith(f".{wanted}")


def imported(name):
    """A module of the extension as the host has it, or another one."""
    if not of_package(name):
        return importlib.import_module(name)
    module = name.removeprefix(f"{PACKAGE}.")
    return next(m for n, m in list(sys.modules.items()) if is_named(n, module))


def is_ours(thing):
    """Whether a function, method, partial or object comes from the extension."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    thing = getattr(thing, "__func__", thing)
    places = (getattr(thing, "__module__", None), type(thing).__module__)
    return any(of_package(place) for place in places)


def survey(patched):
    """Everything of the extension that is attached to the host's objects, and all hooks.

    `patched` are names of the host's classes whose methods the extension may stand in front of.
    """
    gc.collect()
    hooks, ours, linked, sessions = 0, [], 0, 0
    for thing in gc.get_objects():
        kind = type(thing)
        if issubclass(kind, torch.nn.Module):
            for name in HOOKS:
                held = thing.__dict__.get(name) or {}
                hooks += len(held)
                ours += [f"{kind.__name__}.{name}" for hook in held.values() if is_ours(hook)]
        if issubclass(kind, torch.nn.Module) or kind.__name__ in patched:
            for name, value in list(getattr(thing, "__dict__", {}).items()):
                if name == "controlnet_linked_list":
                    # The host itself leaves a generation's ControlNets there up to the next one.
                    linked += value is not None and is_ours(value)
                elif name not in HOOKS and callable(value) and is_ours(value):
                    ours.append(f"{kind.__name__}.{name}")
        if kind.__name__ == "Session" and of_package(kind.__module__):
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

    WATCHED = (("session", "fuse_residuals"), ("unet_attention", "inject_keys_values"))

    def __init__(self):
        self.counts = dict.fromkeys((name for _, name in self.WATCHED), 0)
        self.listener = None  # is told the arguments of every call

    def attach(self):
        for module, name in self.WATCHED:
            module = next((m for n, m in list(sys.modules.items()) if is_named(n, module)), None)
            function = getattr(module, name, None)
            if function is not None and not hasattr(function, "ccn_watched"):
                setattr(module, name, self._counting(name, function))

    def _counting(self, name, function):
        @functools.wraps(function)
        def counted(*args, **kwargs):
            self.counts[name] += 1
            if self.listener is not None:
                self.listener(name, *args, **kwargs)
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
    Beside these: who was in front where, as the extension has said it (`called`), if it has.
    """

    def __init__(self, folder, skip):
        self.folder, self.skip = Path(folder), skip
        self.units, self.blocks, self.inputs = [], {}, {}
        self.outputs, self.unet = {}, None
        self.front = {}
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
            self.units, self.front = [], {}

    def called(self, name, *args, **kwargs):
        """One of the method's functions was called: keep who is in front where."""
        front = kwargs.get("front") or next((a for a in args if hasattr(a, "ranks")), None)
        if not self.handles or name != "fuse_residuals":
            return
        self.front = {}
        if front is not None:
            ranks = [-1 if rank is None else rank for rank in front.ranks]
            self.front = {"front.ranks": torch.tensor(ranks)}
            self.front["front.gain"] = torch.tensor(float(front.gain))
            for i, tensor in enumerate(args[0][0]):
                places = front.masks((tensor.shape[-2], tensor.shape[-1]), tensor.device)
                self.front[f"front.places.{i}"] = places[:, :, 0].detach().clone()

    def finish(self):
        self.stop()
        middle = len(self.outputs) - 1
        tensors = dict(self.front)
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


class Breaks:
    """Functions that raise, until they are mended."""

    def __init__(self):
        self.broken = []

    def add(self, target, after=0, message="broken by a test"):
        """Let "module:Name.attribute" raise, after it was called so often."""
        module, path = target.split(":")
        *parents, name = path.split(".")
        owner = functools.reduce(getattr, parents, imported(module))
        original, left = owner.__dict__[name], [int(after)]

        def raising(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise BrokenError(message)
            return original(*args, **kwargs)

        setattr(owner, name, raising)
        self.broken.append((owner, name, original))

    def mend(self):
        """Undo every break."""
        while self.broken:
            setattr(*self.broken.pop())
