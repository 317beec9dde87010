"""What the whole method adds to one denoising step with two ControlNets.

A step is two ControlNets and the UNet on a batch of two (both halves of classifier-free guidance),
with random weights: at Stable Diffusion 1.5's full size, and at the demo model's.

    python -m benchmarks.step [--quick] [--device cuda] [--dtype float16]
"""

from __future__ import annotations

import functools
import itertools
import operator
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import psutil
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor

from benchmarks.command import main
from benchmarks.shapes import SD15, SDXL
from benchmarks.timing import interleaved, machine
from lib_ccn.prompt import layout
from lib_ccn.session import Session
from lib_ccn.settings import Settings
from lib_ccn.units import Call, Unit
from training.models import build_controlnet, build_unet

# 7 tokens of a prompt, and a word in it, for a tokenizer that we do not need.
PROMPT = layout([list(range(1, 8))])
SIZE = 512
SHAPES = {"sd15": SD15, "sdxl": SDXL}
VARIANTS: dict[str, dict[str, Any] | None] = {
    "plain sum": None,
    "fusion": {"inject": False},
    "whole method (mask from a word)": {"foreground_word": "x", "mask_threshold": 0.6},
}


class Bench:
    """Some ControlNets and a UNet with one batch of inputs, both halves of guidance.

    Args:
        model: "demo", "sd15" or "sdxl", the last two at their full size.
        latent: the latents' side.
        device, dtype: of all tensors; the device "meta" is for counting.
        units: how many ControlNets.
        pictures: how many pictures.
    """

    def __init__(
        self,
        model: str,
        latent: int,
        device: str,
        dtype: torch.dtype,
        units: int = 2,
        pictures: int = 1,
    ):
        torch.manual_seed(0)
        self.latent, self.pictures = latent, pictures
        rows = 2 * pictures
        with torch.device(device):
            demo = model == "demo"
            self.unet = build_unet() if demo else UNet2DConditionModel(**SHAPES[model])
            make = build_controlnet if demo else ControlNetModel.from_unet
            self.nets = [self._with_effect(make(self.unet.eval())) for _ in range(units)]
            width = self.unet.config["cross_attention_dim"]
            self.sample = torch.randn(rows, 4, latent, latent, dtype=dtype)
            self.text = torch.randn(rows, 77, width, dtype=dtype)
            self.time = torch.full((1,), 500)
            self.more: dict[str, Any] = {}
            if model == "sdxl":
                pooled = torch.randn(rows, 1280, dtype=dtype)
                sizes = torch.zeros(rows, 6, dtype=dtype)
                self.more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
        for module in (self.unet, *self.nets):
            module.to(device=device, dtype=dtype)
        factor = 2 ** (len(self.nets[0].controlnet_cond_embedding.blocks) // 2)
        size = latent * factor
        self.images = [torch.rand(rows, 3, size, size).to(device, dtype) for _ in self.nets]

    @staticmethod
    def _with_effect(net: ControlNetModel) -> ControlNetModel:
        """A new ControlNet's output is zero; this one's is not."""
        for module in (*net.controlnet_down_blocks, net.controlnet_mid_block):
            torch.nn.init.normal_(module.weight, std=0.02)
        return net.eval()

    def controlnet(self, number: int) -> list[Tensor]:
        """One ControlNet's residuals."""
        down, middle = self.nets[number](
            self.sample, self.time, self.text, self.images[number], return_dict=False, **self.more
        )
        return [*down, middle]

    def denoise(self, residuals: list[Tensor]) -> Tensor:
        """The UNet with these residuals."""
        return self.unet(
            self.sample,
            self.time,
            self.text,
            down_block_additional_residuals=residuals[:-1],
            mid_block_additional_residual=residuals[-1],
            return_dict=False,
            **self.more,
        )[0]

    @torch.no_grad()
    def plain(self) -> Tensor:
        """The host's own step: the sum."""
        outputs = [self.controlnet(number) for number in range(len(self.nets))]
        return self.denoise(
            [functools.reduce(operator.add, of) for of in zip(*outputs, strict=True)]
        )

    def variant(
        self, settings: dict[str, Any], first: int = 0
    ) -> tuple[Callable[[], Tensor], Session]:
        """Step after step from the `first` on, and their session; injection starts at 1."""
        units = [Unit(net, str(i)) for i, net in enumerate(self.nets)]
        session = Session(
            Settings.from_dict({"start_step": 1, **settings}),
            self.unet,
            units,
            prompts=[PROMPT],
            encode=lambda _: [2, 3],
        )
        number = itertools.count(first)
        pictures = self.pictures

        @torch.no_grad()
        def step() -> Tensor:
            call = Call(
                (self.latent, self.latent),
                next(number),
                [*range(pictures)] * 2,
                range(pictures, 2 * pictures),
            )
            session.begin_call(call)
            outputs = {
                unit: session.run(unit, lambda i=i: self.controlnet(i))  # type: ignore[misc]
                for i, unit in enumerate(units)
            }
            result = self.denoise(session.fuse(outputs))
            session.end_call()
            return result

        return step, session


def run(quick: bool = False, device: str = "cpu", dtype: str = "float32") -> dict[str, Any]:
    """Seconds and ratios per model size and variant, and the share that was foreground."""
    results: dict[str, Any] = {"machine": machine(device), "dtype": dtype, "models": {}}
    models = {"Demo model, 64x64": ("demo", 32, 5 if quick else 25)}
    if not quick:
        models[f"Stable Diffusion 1.5, {SIZE}x{SIZE}"] = ("sd15", SIZE // 8, 3)
    for name, (model, latent, count) in models.items():
        bench = Bench(model, latent, device, getattr(torch, dtype))
        sessions, functions = {}, {"plain sum": bench.plain}
        for variant, settings in VARIANTS.items():
            if settings is not None:
                functions[variant], sessions[variant] = bench.variant(settings)
        seconds = interleaved(functions, rounds=count, warmup=1)
        rows = {}
        for variant, times in seconds.items():
            session = sessions.get(variant)
            rows[variant] = {
                "seconds": statistics.median(times),
                "ratio": statistics.median(
                    [a / b for a, b in zip(times, seconds["plain sum"], strict=True)]
                ),
                "injected layers": session.injected // count if session else 0,
                "foreground": (
                    float(session.place.mask.float().mean())
                    if session is not None and session.place.mask is not None
                    else None
                ),
            }
        results["models"][name] = rows
        del bench, functions, sessions
    if not quick and device == "cpu":
        results["peak memory, GiB"] = {
            name: _peak_memory(name, SIZE) for name in ("plain sum", *list(VARIANTS)[-1:])
        }
    return results


def _peak_memory(variant: str, size: int) -> float:
    """Peak resident memory of two steps in a process of its own, GiB."""
    command = [sys.executable, "-m", "benchmarks.step", "--peak", variant, str(size)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(answer.split()[-1])


def _two_steps(variant: str, size: int) -> None:
    bench = Bench("sd15", size // 8, "cpu", torch.float32)
    settings = VARIANTS[variant]
    step = bench.plain if settings is None else bench.variant(settings)[0]
    for _ in range(2):  # the first has no mask yet
        step()
    usage = psutil.Process().memory_info()
    peak = getattr(usage, "peak_wset", 0)
    if not peak:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(peak / 2**30)


def markdown(results: dict[str, Any]) -> str:
    """The results as Markdown tables."""
    lines = []
    for model, rows in results["models"].items():
        lines += ["", f"{model}, batch 2:", "", "| step with | ratio | seconds | foreground |"]
        lines += ["|---|---|---|---|"]
        for variant, row in rows.items():
            share = "" if row["foreground"] is None else f"{row['foreground']:.0%}"
            lines.append(f"| {variant} | {row['ratio']:.3f} | {row['seconds']:.3f} | {share} |")
    for variant, peak in results.get("peak memory, GiB", {}).items():
        lines += ["", f"Peak memory of the process, {variant}: {peak:.2f} GiB."]
    return "\n".join(lines).strip()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        _two_steps(sys.argv[2], int(sys.argv[3]))
    else:
        main(run, markdown, __doc__)
