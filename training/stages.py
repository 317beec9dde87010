"""Five stages: autoencoder, base model, a ControlNet for both conditions, then each its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from demo.scenes import SIZE, draw
from training.data import ScenePool, tokenize
from training.loop import Schedule, rank, train, wait, world
from training.models import (
    NOISE_SCHEDULE,
    build_controlnet,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
    for_training,
    noise_levels,
)

SCHEDULES = {
    "vae": Schedule(steps=2500, batch=16, rate=2e-3),
    "base": Schedule(steps=5000, batch=32, rate=1.5e-3, warmup=200),
    "shared": Schedule(steps=1200, batch=32, rate=5e-4),
    "outline": Schedule(steps=600, batch=32, rate=1e-4),
    "regions": Schedule(steps=600, batch=32, rate=1e-4),
}
STAGES = tuple(SCHEDULES)
CAPTION_DROPOUT = 0.10


class Workshop:
    """Where a training run lives: its folder of finished parts, device, precision and seed.

    Args:
        folder: finished parts in diffusers' layout, checkpoints beside them.
        device: "cpu" or "cuda".
        bfloat16: autocast to bfloat16.
        seed: of everything random.
        scale: multiplies every stage's steps (for a quick trial).
        pool: how many scenes are kept at a time.
    """

    def __init__(
        self, folder: Path, device: str, bfloat16: bool, seed: int, scale: float, pool: int
    ) -> None:
        self.folder, self.device, self.bfloat16 = folder, device, bfloat16
        self.seed, self.scale, self.pool = seed, scale, pool
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, stage: str) -> None:
        """Run one stage of `STAGES`; what it needs must be finished."""
        torch.manual_seed(self.seed + STAGES.index(stage))
        planned = SCHEDULES[stage]
        schedule = replace(planned, steps=max(1, round(planned.steps * self.scale)))
        history = getattr(self, f"_{stage}")(schedule)
        if rank() == 0:
            report = {"steps": schedule.steps, "batch": schedule.batch, "loss": history}
            (self.folder / f"{stage}.json").write_text(json.dumps(report), "utf-8")

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.bfloat16)

    def _vae(self, schedule: Schedule) -> list[float]:
        vae = build_vae().to(self.device)
        generator = torch.Generator().manual_seed(self.seed + 7919 * rank())
        pictures = torch.cat([draw(64, generator).picture for _ in range(32)])

        def loss_of(batch: int) -> Tensor:
            # A quarter of each picture: the autoencoder is convolutional, and this is four times
            # as fast as whole ones.
            chosen = torch.randint(len(pictures), (batch,))
            top, left = torch.randint(SIZE // 2, (2,)).tolist()
            crop = pictures[chosen, :, top : top + SIZE // 2, left : left + SIZE // 2]
            picture = crop.to(self.device) * 2 - 1
            with self._autocast():
                posterior = vae.encode(picture).latent_dist
                restored = vae.decode(posterior.sample()).sample.float()
            difference = restored - picture
            divergence = posterior.kl().mean() / posterior.mean[0].numel()
            return difference.abs().mean() + difference.square().mean() + 1e-3 * divergence

        history = train("vae", [vae], loss_of, schedule, self.folder)
        with torch.no_grad():
            latents = vae.encode(pictures[:256].to(self.device) * 2 - 1).latent_dist.mode()
        vae.register_to_config(scaling_factor=round(float(1 / latents.std()), 4))
        self._keep(vae, "vae")
        return history

    def _base(self, schedule: Schedule) -> list[float]:
        if rank() == 0:
            build_tokenizer(self.folder / "tokenizer")
        wait()
        tokenizer = CLIPTokenizer.from_pretrained(self.folder / "tokenizer", local_files_only=True)
        encoder = build_text_encoder(tokenizer).to(self.device)
        unet = for_training(build_unet()).to(self.device)
        loss_of = self._denoising(tokenizer, encoder, lambda batch, *a: unet(*a).sample)
        history = train("base", [unet, encoder], loss_of, schedule, self.folder)
        self._keep(unet, "unet")
        self._keep(encoder, "text_encoder")
        self._keep(DDIMScheduler(**NOISE_SCHEDULE), "scheduler")
        return history

    def _shared(self, schedule: Schedule) -> list[float]:
        return self._controlnet("shared", None, schedule)

    def _outline(self, schedule: Schedule) -> list[float]:
        return self._controlnet("outline", "shared", schedule)

    def _regions(self, schedule: Schedule) -> list[float]:
        return self._controlnet("regions", "shared", schedule)

    def _controlnet(self, name: str, start: str | None, schedule: Schedule) -> list[float]:
        tokenizer = CLIPTokenizer.from_pretrained(self.folder / "tokenizer", local_files_only=True)
        encoder = self._finished(CLIPTextModel, "text_encoder")
        unet = for_training(self._finished(UNet2DConditionModel, "unet"))
        if start is None:
            controlnet = build_controlnet(unet)
        else:
            controlnet = self._finished(ControlNetModel, f"controlnet-{start}")
        controlnet = for_training(controlnet.to(self.device).train())
        controlnet.requires_grad_(True)
        # The method compares the keys of one ControlNet with the queries of another: what makes
        # them stays the base model's in both.
        for path, module in controlnet.named_modules():
            if path.endswith("attn1"):
                module.requires_grad_(False)

        def predict(batch: dict[str, Tensor], noisy: Tensor, t: Tensor, text: Tensor) -> Tensor:
            condition = batch["outline" if name == "outline" else "regions"]
            if name == "shared":
                half = len(condition) // 2
                condition = torch.cat([batch["outline"][:half], batch["regions"][half:]])
            condition = condition.to(self.device).float() / 255
            down, mid = controlnet(noisy, t, text, condition, return_dict=False)
            return unet(
                noisy,
                t,
                text,
                down_block_additional_residuals=down,
                mid_block_additional_residual=mid,
            ).sample

        loss_of = self._denoising(tokenizer, encoder, predict)
        history = train(name, [controlnet], loss_of, schedule, self.folder)
        self._keep(controlnet, f"controlnet-{name}")
        return history

    def _keep(self, part: nn.Module | DDIMScheduler, name: str) -> None:
        if rank() == 0:
            part.save_pretrained(self.folder / name)

    def _finished(self, kind: type, name: str) -> nn.Module:
        model = kind.from_pretrained(self.folder / name, local_files_only=True)
        return model.to(self.device).eval().requires_grad_(False)

    def _denoising(
        self,
        tokenizer: CLIPTokenizer,
        encoder: CLIPTextModel,
        predict: Callable[[dict[str, Tensor], Tensor, Tensor, Tensor], Tensor],
    ) -> Callable[[int], Tensor]:
        """The v-prediction loss with min-SNR-5 weights (Hang et al., 2023)."""
        vae = self._finished(AutoencoderKL, "vae")
        pool = ScenePool(self.pool // world(), 4, vae, tokenizer, self.seed + 7919 * rank())
        alphas = noise_levels().to(self.device)
        nothing = tokenize(tokenizer, [""])[0]

        def loss_of(count: int) -> Tensor:
            batch = pool.batch(count)
            clean = batch["latent"].to(self.device)
            tokens = batch["tokens"]
            tokens[torch.rand(count) < CAPTION_DROPOUT] = nothing
            t = torch.randint(1000, (count,), device=self.device)
            noise = torch.randn_like(clean)
            signal = alphas[t].sqrt().view(-1, 1, 1, 1)
            spread = (1 - alphas[t]).sqrt().view(-1, 1, 1, 1)
            noisy = (signal * clean + spread * noise).to(memory_format=torch.channels_last)
            with self._autocast():
                text = encoder(tokens.to(self.device))[0]
                velocity = predict(batch, noisy, t, text).float()
            error = F.mse_loss(velocity, signal * noise - spread * clean, reduction="none")
            snr = alphas[t] / (1 - alphas[t])
            weight = snr.clamp(max=5) / (snr + 1)
            return (weight * error.mean(dim=(1, 2, 3))).mean()

        return loss_of
