"""What the self-attentions of ControlNets get and give, in one call of the UNet."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.modules import module as torch_module

PARTS = ("to_q", "to_k", "to_v")


class Attentions:
    """Writes them to attentions.safetensors: NET.LAYER.NAME.

    NET counts the ControlNets in the order in which they ran; NAME is `x`, `out`, a projection's
    weight, or `bias` of the last one.
    """

    def __init__(self, folder, skip):
        self.folder, self.skip = Path(folder), skip
        self.net, self.layer, self.tensors, self.heads = -1, 0, {}, 0
        self.inside = False
        self.handles = [
            torch_module.register_module_forward_pre_hook(self.before),
            torch_module.register_module_forward_hook(self.after, with_kwargs=True),
        ]

    def before(self, module, _args):
        if hasattr(module, "zero_convs"):
            self.net, self.layer, self.inside = self.net + 1, 0, True

    def after(self, module, args, kwargs, output):
        if hasattr(module, "output_blocks"):
            self.skip -= 1
            if self.skip < 0:
                self.finish()
            self.net, self.tensors = -1, {}
        elif hasattr(module, "zero_convs"):
            self.inside = False
        elif self.inside and hasattr(module, "to_q") and kwargs.get("context") is None:
            name = f"{self.net}.{self.layer}"
            self.layer += 1
            found = {"x": args[0], "out": output, "bias": module.to_out[0].bias}
            found |= {part: getattr(module, part).weight for part in PARTS}
            found["to_out"] = module.to_out[0].weight
            found["heads"] = torch.tensor([module.heads])
            for key, tensor in found.items():
                self.tensors[f"{name}.{key}"] = tensor.detach().double().cpu().clone().contiguous()

    def finish(self):
        for handle in self.handles:
            handle.remove()
        self.folder.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors, str(self.folder / "attentions.safetensors"))
