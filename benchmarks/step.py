"""What the whole method adds to one denoising step with two ControlNets.

A step is two ControlNets and the UNet on a batch of two (both halves of classifier-free guidance),
with random weights: at Stable Diffusion 1.5's full size, and at the demo model's.

    python -m benchmarks.step [--quick] [--device cuda] [--dtype float16]
"""

from __future__ import annotations

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
from benchmarks.timing import interleaved, machine
from lib_ccn.prompt import layout
from lib_ccn.session import Session
from lib_ccn.settings import Settings
from lib_ccn.units import Call, Unit
from training.models import build_controlnet, build_unet

# 7 tokens of a prompt, and a word in it, for a tokenizer that we do not need.
PROMPT = layout([list(range(1, 8))])
SIZE = 512
VARIANTS: dict[str, dict[str, Any] | None] = {
    "plain sum": None,
    "fusion": {"inject": False},
    "whole method (mask from a word)": {"foreground_word": "x", "mask_threshold": 0.6},
}


class Bench:
    """Two ControlNets and a UNet, full-size or the demo model's, with one batch of inputs."""

    def __init__(self, full: bool, latent: int, device: str, dtype: torch.dtype):
        torch.manual_seed(0)
        with torch.device(device):
            self.unet = UNet2DConditionModel(cross_attention_dim=768) if full else build_unet()
            make = ControlNetModel.from_unet if full else build_controlnet
            self.nets = [self._with_effect(make(self.unet.eval())) for _ in range(2)]
            width = self.unet.config["cross_attention_dim"]
            self.sample = torch.randn(2, 4, latent, latent, dtype=dtype)
            self.text = torch.randn(2, 77, width, dtype=dtype)
        for module in (self.unet, *self.nets):
            module.to(device=device, dtype=dtype)
        factor = 2 ** (len(self.nets[0].controlnet_cond_embedding.blocks) // 2)
        size = latent * factor
        self.images = [torch.rand(2, 3, size, size).to(device, dtype) for _ in self.nets]
        self.latent = latent

    @staticmethod
    def _with_effect(net: ControlNetModel) -> ControlNetModel:
        """A new ControlNet's output is zero; this one's is not."""
        for module in (*net.controlnet_down_blocks, net.controlnet_mid_block):
            torch.nn.init.normal_(module.weight, std=0.02)
        return net.eval()

    def controlnet(self, number: int) -> list[Tensor]:
        """One ControlNet's residuals."""
        down, middle = self.nets[number](
            self.sample, 500, self.text, self.images[number], return_dict=False
        )
        return [*down, middle]

    def denoise(self, residuals: list[Tensor]) -> Tensor:
        """The UNet with these residuals."""
        return self.unet(
            self.sample,
            500,
            self.text,
            down_block_additional_residuals=residuals[:-1],
            mid_block_additional_residual=residuals[-1],
            return_dict=False,
        )[0]

    @torch.no_grad()
    def plain(self) -> Tensor:
        """The host's own step: the sum."""
        first, second = self.controlnet(0), self.controlnet(1)
        return self.denoise([a + b for a, b in zip(first, second, strict=True)])

    def variant(self, settings: dict[str, Any]) -> tuple[Callable[[], Tensor], Session]:
        """A step with a session that is past its start step, and has its mask."""
        units = [Unit(net, str(i)) for i, net in enumerate(self.nets)]
        session = Session(
            Settings.from_dict({"start_step": 1, **settings}),
            self.unet,
            units,
            prompts=[PROMPT],
            encode=lambda _: [2, 3],
        )
        number = iter(range(10**9))

        @torch.no_grad()
        def step() -> Tensor:
            call = Call((self.latent, self.latent), next(number), [0, 0], [1])
            session.begin_call(call)
            outputs = {
                unit: session.run(unit, lambda i=i: self.controlnet(i))  # type: ignore[misc]
                for i, unit in enumerate(units)
            }
            result = self.denoise(session.fuse(outputs))
            session.end_call()
            if session.error is not None:
                raise session.error
            return result

        return step, session


def run(quick: bool = False, device: str = "cpu", dtype: str = "float32") -> dict[str, Any]:
    """Seconds and ratios per model size and variant, and the share that was foreground."""
    results: dict[str, Any] = {"machine": machine(device), "dtype": dtype, "models": {}}
    models = {"Demo model, 64x64": (False, 32, 5 if quick else 25)}
    if not quick:
        models[f"Stable Diffusion 1.5, {SIZE}x{SIZE}"] = (True, SIZE // 8, 3)
    for name, (full, latent, count) in models.items():
        bench = Bench(full, latent, device, getattr(torch, dtype))
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
                    float(session.mask.float().mean())
                    if session is not None and session.mask is not None
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
    bench = Bench(True, size // 8, "cpu", torch.float32)
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
