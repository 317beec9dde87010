"""Stages: the autoencoder, the base model, and a ControlNet for each condition."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from training.data import (
    Mix,
    PicturePool,
    ScenePool,
    map_palette,
    outline_condition,
    regions_condition,
    tokenize,
)
from training.lessons import LEAST_WEIGHT, Lessons
from training.loop import Schedule, rank, train, wait, world
from training.models import (
    NOISE_SCHEDULE,
    build_controlnet,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
    for_training,
    layout_for,
    noise_levels,
)

SCHEDULES = {
    "vae": Schedule(steps=2400, batch=64, rate=2e-3),
    "base": Schedule(steps=8800, batch=128, rate=1.5e-3, warmup=300, ema=0.999),
    "outline": Schedule(steps=1600, batch=128, rate=6e-4, warmup=200),
    "regions": Schedule(steps=1600, batch=128, rate=6e-4, warmup=200),
    "outlines": Schedule(steps=3900, batch=128, rate=6e-4, warmup=200),
}
STAGES = tuple(SCHEDULES)
PARTS = ("vae", "tokenizer", "text_encoder", "unet", "scheduler")  # what ControlNets begin with
CAPTION_DROPOUT = 0.10
MIXES = {
    # The region map is to be obeyed against the caption too: some captions name an object where
    # neither map nor picture has one.
    "regions": Mix(object_free=0.20, stranger=0.40),
    "outlines": Mix(two=0.50, overlapping=0.40),
}


@dataclass(frozen=True)
class Options:
    """How a run is made.

    Attributes:
        device: "cpu" or "cuda".
        bfloat16: autocast to bfloat16.
        seed: of everything random.
        scale: multiplies every stage's steps (for a quick trial).
        seconds: by stage, instead of its steps.
        pool: how many scenes are kept at a time.
        chunk: how many of them are drawn at a time.
        reuse: how often a scene is used on average before it is replaced.
        frozen_attention: leave the ControlNets' self-attention as the base model's.
        start: a model's folder, whose parts are gone on from.
        batch: instead of every stage's.
        rate: instead of every stage's.
    """

    device: str = "cpu"
    bfloat16: bool = False
    seed: int = 0
    scale: float = 1.0
    seconds: dict[str, float] | None = None
    pool: int = 16384
    chunk: int = 64
    reuse: int = 8
    frozen_attention: bool = False
    start: Path | None = None
    batch: int | None = None
    rate: float | None = None


class Workshop:
    """Where a training run lives: its folder of finished parts, checkpoints beside them."""

    def __init__(self, folder: Path, options: Options) -> None:
        self.folder, self.options, self.device = folder, options, options.device
        folder.mkdir(parents=True, exist_ok=True)
        for part in PARTS:
            if options.start is not None and rank() == 0 and not (folder / part).exists():
                shutil.copytree(options.start / part, folder / part)
        wait()

    def run(self, stage: str) -> None:
        """Run one stage of `STAGES`; what it needs must be finished."""
        torch.manual_seed(self.options.seed + STAGES.index(stage))
        planned = SCHEDULES[stage]
        steps = max(1, round(planned.steps * self.options.scale))
        schedule = replace(
            planned,
            steps=steps,
            batch=self.options.batch or planned.batch,
            rate=self.options.rate or planned.rate,
            seconds=(self.options.seconds or {}).get(stage),
        )
        history = getattr(self, f"_{stage}")(schedule)
        if rank() == 0:
            saved = torch.load(self.folder / f"{stage}.pt", weights_only=True, mmap=True)
            report = {
                "steps": schedule.steps,
                "batch": schedule.batch,
                "rate": schedule.rate,
                "seconds": saved["seconds"],
                "loss": history,
            }
            (self.folder / f"{stage}.json").write_text(json.dumps(report), "utf-8")

    def _autocast(self) -> torch.autocast:
        # Without its cache, which a CUDA graph must not rely on; every weight is used once anyway.
        return torch.autocast(
            self.device, dtype=torch.bfloat16, enabled=self.options.bfloat16, cache_enabled=False
        )

    def _renewing(self, pool: ScenePool | PicturePool, batch: int) -> Callable[[int], None]:
        """Renews the pool so that a scene is used `reuse` times on average."""
        every = max(1, pool.chunk * self.options.reuse * world() // batch)

        def between(step: int) -> None:
            if step % every == 0:
                pool.renew()

        return between

    def _vae(self, schedule: Schedule) -> list[float]:
        vae = build_vae().to(self.device)
        options = self.options
        size = max(options.chunk, options.pool // world() // 4)
        pool = PicturePool(size, options.chunk, self.device, options.seed + 7919 * rank())

        def loss_of(batch: int) -> Tensor:
            picture = pool.batch(batch) * 2 - 1
            posterior = vae.encode(picture).latent_dist
            restored = vae.decode(posterior.sample()).sample
            difference = restored - picture
            divergence = posterior.kl().mean() / posterior.mean[0].numel()
            return difference.abs().mean() + difference.square().mean() + 1e-3 * divergence

        between = self._renewing(pool, schedule.batch)
        history = train("vae", [vae], loss_of, schedule, self.folder, between)
        with torch.no_grad():
            latents = vae.encode(pool.whole(256) * 2 - 1).latent_dist.mode()
        vae.register_to_config(scaling_factor=round(float(1 / latents.std()), 4))
        self._keep(vae, "vae")
        return history

    def _base(self, schedule: Schedule) -> list[float]:
        if rank() == 0 and not (self.folder / "tokenizer").is_dir():
            build_tokenizer(self.folder / "tokenizer")
        wait()
        tokenizer = CLIPTokenizer.from_pretrained(self.folder / "tokenizer", local_files_only=True)
        encoder = build_text_encoder(tokenizer).to(self.device)
        unet = for_training(build_unet(), self.device)
        pool = self._pool(tokenizer, Mix())
        loss_of = self._denoising(pool, tokenizer, encoder, lambda _batch, *a: unet(*a).sample)
        between = self._renewing(pool, schedule.batch)
        history = train("base", [unet, encoder], loss_of, schedule, self.folder, between)
        self._keep(unet, "unet")
        self._keep(encoder, "text_encoder")
        self._keep(DDIMScheduler(**NOISE_SCHEDULE), "scheduler")
        return history

    def _outline(self, schedule: Schedule) -> list[float]:
        return self._controlnet("outline", schedule, outline_condition)

    def _regions(self, schedule: Schedule) -> list[float]:
        palette = map_palette(self.device)
        return self._controlnet("regions", schedule, lambda b: regions_condition(b, palette))

    def _outlines(self, schedule: Schedule) -> list[float]:
        """For several objects: goes on from the outline unit, and learns whose each outline is."""
        return self._controlnet("outlines", schedule, outline_condition, Lessons)

    def _controlnet(
        self,
        name: str,
        schedule: Schedule,
        condition_of: Callable[[dict[str, Tensor]], Tensor],
        taught: type[Lessons] | None = None,
    ) -> list[float]:
        tokenizer = CLIPTokenizer.from_pretrained(self.folder / "tokenizer", local_files_only=True)
        encoder = self._finished(CLIPTextModel, "text_encoder")
        unet = for_training(self._finished(UNet2DConditionModel, "unet"), self.device)
        controlnet = for_training(self._begun(name, unet).float().train(), self.device)
        controlnet.requires_grad_(True)
        if self.options.frozen_attention:
            for path, module in controlnet.named_modules():
                if path.endswith("attn1"):
                    module.requires_grad_(False)
        lessons = None if taught is None else taught(unet, controlnet).to(self.device)

        def predict(batch: dict[str, Tensor], noisy: Tensor, t: Tensor, text: Tensor) -> Tensor:
            shown = condition_of(batch)
            down, mid = controlnet(noisy, t, text, shown, return_dict=False)
            if lessons is not None:
                lessons.hear(shown, [*down, mid])
            return unet(
                noisy,
                t,
                text,
                down_block_additional_residuals=down,
                mid_block_additional_residual=mid,
            ).sample

        pool = self._pool(tokenizer, MIXES.get(name, Mix()))
        loss_of = self._denoising(pool, tokenizer, encoder, predict, lessons)
        between = self._renewing(pool, schedule.batch)
        if lessons is not None:
            between = lessons.before(schedule, between)
        learning = [controlnet] if lessons is None else [controlnet, lessons]
        history = train(name, learning, loss_of, schedule, self.folder, between)
        self._keep(controlnet, f"controlnet-{name}")
        return history

    def _begun(self, name: str, unet: UNet2DConditionModel) -> ControlNetModel:
        """What a ControlNet goes on from: itself, the outline unit, or the UNet's encoder.

        That for several objects goes on from the one for one where the start has none.
        """
        start = self.options.start
        homes = [] if start is None else [start / f"controlnet-{name}"]
        if name == "outlines":
            homes += [home / "controlnet-outline" for home in (self.folder, start) if home]
        if not homes:
            return build_controlnet(unet)
        home = next(filter(Path.is_dir, homes), homes[0])
        return ControlNetModel.from_pretrained(home, local_files_only=True)

    def _keep(self, part: nn.Module | DDIMScheduler, name: str) -> None:
        if rank() == 0:
            part.save_pretrained(self.folder / name)

    def _finished(self, kind: type, name: str) -> nn.Module:
        model = kind.from_pretrained(self.folder / name, local_files_only=True)
        return model.float().to(self.device).eval().requires_grad_(False)

    def _pool(self, tokenizer: CLIPTokenizer, mix: Mix) -> ScenePool:
        vae = self._finished(AutoencoderKL, "vae")
        options = self.options
        size = max(options.chunk, options.pool // world())
        return ScenePool(size, options.chunk, vae, tokenizer, options.seed + 7919 * rank(), mix)

    def _denoising(
        self,
        pool: ScenePool,
        tokenizer: CLIPTokenizer,
        encoder: CLIPTextModel,
        predict: Callable[[dict[str, Tensor], Tensor, Tensor, Tensor], Tensor],
        lessons: Lessons | None = None,
    ) -> Callable[[int], Tensor]:
        """The v-prediction loss with min-SNR-5 weights, see `min_snr_weight`.

        Args:
            pool: the scenes.
            tokenizer: for the empty caption.
            encoder: of captions.
            predict: v of scenes, noisy latents, times and encoded captions.
            lessons: what is to be learned beside it; `predict` lets them hear.
        """
        alphas = noise_levels().to(self.device)
        nothing = tokenize(tokenizer, [""]).to(self.device)
        layout = layout_for(self.device)
        least = 0.0 if lessons is None else LEAST_WEIGHT

        def loss_of(count: int) -> Tensor:
            batch = pool.batch(count)
            clean = batch["latent"]
            dropped = torch.rand(count, 1, device=self.device) < CAPTION_DROPOUT
            tokens = torch.where(dropped, nothing, batch["tokens"])
            noisiest = 0.0 if lessons is None else lessons.noisiest
            first = 667 * (torch.rand(count, device=self.device) < noisiest)
            t = first + (torch.rand(count, device=self.device) * (1000 - first)).long()
            noise = torch.randn_like(clean)
            signal = alphas[t].sqrt().view(-1, 1, 1, 1)
            spread = (1 - alphas[t]).sqrt().view(-1, 1, 1, 1)
            noisy = (signal * clean + spread * noise).contiguous(memory_format=layout)
            with self._autocast():
                text = encoder(tokens)[0]
                velocity = predict(batch, noisy, t, text).float()
            error = F.mse_loss(velocity, signal * noise - spread * clean, reduction="none")
            losses = min_snr_weight(alphas[t], least) * error.mean(dim=(1, 2, 3))
            if lessons is not None:
                losses = losses + lessons.losses(batch, tokens)
            return losses.mean()

        return loss_of


def min_snr_weight(alpha: Tensor, least: float = 0.0) -> Tensor:
    """The min-SNR-5 weight of a v-prediction's error (Hang et al., 2023), not below `least`.

    Args:
        alpha: cumulative alphas of the noise levels.
        least: what the noisiest levels, whose weight goes to 0, count at least.
    """
    snr = alpha / (1 - alpha)
    return (snr.clamp(max=5) / (snr + 1)).clamp_min(least)
