"""What a host hands to its adapter, as far as the adapter looks at it."""

from itertools import pairwise
from types import SimpleNamespace

import torch

from lib_ccn.hosts.sampling import Sampling
from lib_ccn.settings import Settings


def embedding(seed, tokens=8):
    return torch.randn(tokens, 4, generator=torch.Generator().manual_seed(seed))


def conditioning(*pictures):
    """Of each picture its sub-prompts, of each sub-prompt (end_at_step, seed)."""
    return SimpleNamespace(
        batch=[
            [
                SimpleNamespace(
                    schedules=[
                        SimpleNamespace(end_at_step=end, cond=embedding(seed)) for end, seed in part
                    ]
                )
                for part in parts
            ]
            for parts in pictures
        ]
    )


def a_sampling(cond=None, pictures=2, size=(8, 8), step=0):
    denoiser = SimpleNamespace(step=step)
    sampler = SimpleNamespace(model_wrap_cfg=denoiser, config=SimpleNamespace(options={}))
    p = SimpleNamespace(sampler=sampler)
    return Sampling(p, Settings(), size, pictures, cond)


class Control:
    """What a ControlNet of the Forge family is to us: a link of a list."""

    def __init__(self, value, *, adapter=False, scope=None):
        self.value, self.adapter, self.timestep_range = value, adapter, scope
        self.previous_controlnet, self.strength = None, 1.0
        self.cond_hint_original = torch.rand(1, 3, 64, 64)
        self.control_model = torch.nn.Module()
        if not adapter:
            self.control_model.zero_convs = torch.nn.ModuleList()
            self.control_model.middle_block_out = torch.nn.Identity()

        self.cleaned = False

    def cleanup(self):
        if self.previous_controlnet is not None:
            self.previous_controlnet.cleanup()
        self.cleaned = True

    def get_control(self, x, t, cond, count):
        before = None
        if self.previous_controlnet is not None:
            before = self.previous_controlnet.get_control(x, t, cond, count)
        if self.timestep_range and not self.timestep_range[1] <= t[0] <= self.timestep_range[0]:
            return before
        layer = torch.full((len(x), 2, 4, 4), self.value)
        if self.adapter:
            mine = {"input": [None, layer], "middle": [], "output": []}
        else:
            mine = {"input": [], "middle": [layer[..., :1, :1] * 10], "output": [layer]}
        for key, values in (before or {}).items():
            for i, value in enumerate(values):
                if i >= len(mine[key]):
                    mine[key].append(value)
                elif value is not None:
                    own = mine[key][i]
                    mine[key][i] = value if own is None else own + value
        return mine


def chain(*controls):
    for older, newer in pairwise(controls):
        newer.previous_controlnet = older
    return controls[-1]


def walk(head):
    """As hosts and extensions do."""
    while head is not None:
        yield head
        head = head.previous_controlnet


def ask(control, t=0.5):
    return control.get_control(torch.zeros(2, 4, 8, 8), torch.tensor([t, t]), {}, 2)


def a_page(*units, **more):
    """A processing object with these ControlNet units, and a script that has others before."""
    script = SimpleNamespace(title=lambda: "ControlNet", args_from=1, args_to=1 + len(units))
    script.current_params, script.latest_network = {}, None
    scripts = SimpleNamespace(alwayson_scripts=[script])
    return SimpleNamespace(scripts=scripts, script_args=["x", *units], **more)
