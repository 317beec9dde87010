"""What FLUX and its ControlNets compute in one call of the transformer."""

from __future__ import annotations

from pathlib import Path

from comfy.ldm.flux import layers, math
from safetensors.torch import save_file
from torch.nn.modules import module as torch_module


class Joint:
    """Writes joint.safetensors.

    NET.LAYER.q, .k, .v and .out: of each joint attention of the ControlNets, in the order in which
    they ran, queries and keys rotated. unit.NET.KEY.N: what a ControlNet says, got.KEY.N: what the
    transformer is given.
    """

    def __init__(self, folder, skip):
        self.folder, self.skip = Path(folder), skip
        self.net, self.layer, self.inside = -1, 0, False
        self.tensors = {}
        self.attention = layers.attention
        layers.attention = self.heard
        self.handles = [
            torch_module.register_module_forward_pre_hook(self.before),
            torch_module.register_module_forward_hook(self.after, with_kwargs=True),
        ]

    def keep(self, name, tensor):
        self.tensors[name] = tensor.detach().double().cpu().clone().contiguous()

    def heard(self, q, k, v, pe, mask=None, **more):
        out = self.attention(q, k, v, pe=pe, mask=mask, **more)
        if self.inside:
            rotated = math.apply_rope(q, k, pe)
            for name, tensor in zip(("q", "k", "v", "out"), (*rotated, v, out), strict=True):
                self.keep(f"{self.net}.{self.layer}.{name}", tensor)
            self.layer += 1
        return out

    def before(self, module, _args):
        if hasattr(module, "controlnet_blocks"):
            self.net, self.layer, self.inside = self.net + 1, 0, True

    def after(self, module, _args, kwargs, output):
        if hasattr(module, "controlnet_blocks"):
            self.inside = False
            self.keep_all(f"unit.{self.net}", output)
        elif hasattr(module, "final_layer"):
            self.keep_all("got", kwargs["control"])
            self.skip -= 1
            if self.skip < 0:
                self.finish()
            self.net, self.tensors = -1, {}

    def keep_all(self, name, control):
        for key, tensors in control.items():
            for number, tensor in enumerate(tensors):
                self.keep(f"{name}.{key}.{number}", tensor)

    def finish(self):
        layers.attention = self.attention
        for handle in self.handles:
            handle.remove()
        self.folder.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors, str(self.folder / "joint.safetensors"))
