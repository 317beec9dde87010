"""Stages: the autoencoder, the base model, its grounding, and a ControlNet for each condition."""

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
    object_masks,
    outline_condition,
    regions_condition,
    tokenize,
)
from training.grounding import CrossAttentionMaps, grounding_loss, word_places
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
from training.recognition import ShapeHeads

SCHEDULES = {
    "vae": Schedule(steps=2400, batch=64, rate=2e-3),
    "base": Schedule(steps=8800, batch=128, rate=1.5e-3, warmup=300, ema=0.999),
    "grounding": Schedule(steps=1200, batch=32, rate=2e-4, warmup=50, ema=0.99),
    "outline": Schedule(steps=1600, batch=128, rate=6e-4, warmup=200),
    "regions": Schedule(steps=1600, batch=128, rate=6e-4, warmup=200),
}
STAGES = tuple(SCHEDULES)
PARTS = ("vae", "tokenizer", "text_encoder", "unet", "scheduler")  # what ControlNets begin with
CAPTION_DROPOUT = 0.10
# The region map is to be obeyed against the caption too: some captions name an object where
# neither map nor picture has one.
MIXES = {"regions": Mix(object_free=0.20, stranger=0.40)}
# With `Options.grounded`: more scenes of two objects.
GROUNDED_MIXES = {
    "grounding": Mix(two=0.60, overlapping=0.40),
    "outline": Mix(two=0.80, overlapping=0.40),
    "regions": Mix(object_free=0.20, two=0.50, overlapping=0.40, stranger=0.40),
}
# And weights of the further losses beside the denoising loss, which is about 0.02; and of the times
# how many are of the noisiest third: there an outline alone says which word is where, and there
# colours settle.
GROUNDING = {"grounding": 0.02, "outline": 0.05, "regions": 0.02}
RECOGNITION = 0.02
# Of the mean square of the outline unit's residuals: taught by the other losses it would say all it
# can as loudly as it can, in the middle above all, where ChannelFusion hears who is loudest.
LOUDNESS = 1e-3
NOISIEST = {"outline": 0.60}
# There the denoising loss hardly counts, and who learns from the other two alone no longer leaves
# the landscape be: it counts so much at least.
LEAST_WEIGHT = 0.10


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
        grounded: words are taught to look at their own objects, and outlines are recognised, so
            that two objects do not mix; the bundled model was made without.
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
    grounded: bool = False
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
        history = self._learned_base("base", schedule, tokenizer, encoder, unet, Mix())
        self._keep(DDIMScheduler(**NOISE_SCHEDULE), "scheduler")
        return history

    def _grounding(self, schedule: Schedule) -> list[float]:
        """The base model learns on, and its words to look at their own objects."""
        tokenizer = CLIPTokenizer.from_pretrained(self.folder / "tokenizer", local_files_only=True)
        encoder = self._finished(CLIPTextModel, "text_encoder").train().requires_grad_(True)
        unet = for_training(self._finished(UNet2DConditionModel, "unet"), self.device)
        unet.train().requires_grad_(True)
        mix, maps = GROUNDED_MIXES["grounding"], CrossAttentionMaps(unet)
        return self._learned_base("grounding", schedule, tokenizer, encoder, unet, mix, maps)

    def _learned_base(
        self,
        stage: str,
        schedule: Schedule,
        tokenizer: CLIPTokenizer,
        encoder: CLIPTextModel,
        unet: UNet2DConditionModel,
        mix: Mix,
        maps: CrossAttentionMaps | None = None,
    ) -> list[float]:
        """UNet and text encoder learn together, and are kept."""
        pool = self._pool(tokenizer, mix)
        loss_of = self._denoising(
            stage, pool, tokenizer, encoder, lambda batch, *a: unet(*a).sample, maps
        )
        between = self._renewing(pool, schedule.batch)
        history = train(stage, [unet, encoder], loss_of, schedule, self.folder, between)
        self._keep(unet, "unet")
        self._keep(encoder, "text_encoder")
        return history

    def _outline(self, schedule: Schedule) -> list[float]:
        return self._controlnet("outline", schedule, outline_condition)

    def _regions(self, schedule: Schedule) -> list[float]:
        palette = map_palette(self.device)
        return self._controlnet("regions", schedule, lambda b: regions_condition(b, palette))

    def _controlnet(
        self, name: str, schedule: Schedule, condition_of: Callable[[dict[str, Tensor]], Tensor]
    ) -> list[float]:
        tokenizer = CLIPTokenizer.from_pretrained(self.folder / "tokenizer", local_files_only=True)
        encoder = self._finished(CLIPTextModel, "text_encoder")
        unet = for_training(self._finished(UNet2DConditionModel, "unet"), self.device)
        if self.options.start is None:
            controlnet = build_controlnet(unet)
        else:
            started = self.options.start / f"controlnet-{name}"
            controlnet = ControlNetModel.from_pretrained(started, local_files_only=True)
        controlnet = for_training(controlnet.float().train(), self.device)
        controlnet.requires_grad_(True)
        if self.options.frozen_attention:
            for path, module in controlnet.named_modules():
                if path.endswith("attn1"):
                    module.requires_grad_(False)

        def predict(batch: dict[str, Tensor], noisy: Tensor, t: Tensor, text: Tensor) -> Tensor:
            batch["shown"] = condition_of(batch)
            down, mid = controlnet(noisy, t, text, batch["shown"], return_dict=False)
            if heads is not None:
                batch["loudness"] = loudness([*down, mid])
            return unet(
                noisy,
                t,
                text,
                down_block_additional_residuals=down,
                mid_block_additional_residual=mid,
            ).sample

        mixes = GROUNDED_MIXES if self.options.grounded else MIXES
        pool = self._pool(tokenizer, mixes.get(name, Mix()))
        maps, heads = None, None
        if self.options.grounded and name == "outline":
            # An outline says which of the words it is; a landscape's map knows none of them.
            maps, heads = CrossAttentionMaps(unet, controlnet), ShapeHeads(controlnet)
            heads.to(self.device)
        elif self.options.grounded:
            maps = CrossAttentionMaps(unet)
        loss_of = self._denoising(name, pool, tokenizer, encoder, predict, maps, heads)
        between = self._renewing(pool, schedule.batch)
        learning = [controlnet] if heads is None else [controlnet, heads]
        history = train(name, learning, loss_of, schedule, self.folder, between)
        self._keep(controlnet, f"controlnet-{name}")
        return history

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
        stage: str,
        pool: ScenePool,
        tokenizer: CLIPTokenizer,
        encoder: CLIPTextModel,
        predict: Callable[[dict[str, Tensor], Tensor, Tensor, Tensor], Tensor],
        grounded: CrossAttentionMaps | None = None,
        heads: ShapeHeads | None = None,
    ) -> Callable[[int], Tensor]:
        """The v-prediction loss with min-SNR-5 weights, see `min_snr_weight`.

        Args:
            stage: whose weights of the losses and times they are.
            pool: the scenes.
            tokenizer: for the empty caption.
            encoder: of captions.
            predict: v of scenes, noisy latents, times and encoded captions.
            grounded: maps to ground. Where no outline says where objects are, pure noise does not
                either: there that loss fades with the signal in the noisy latents.
            heads: learn the shapes of outlines; `predict` puts what was shown, and how loud the
                answer was, into the scenes.
        """
        alphas = noise_levels().to(self.device)
        nothing = tokenize(tokenizer, [""]).to(self.device)
        layout = layout_for(self.device)
        noisiest = NOISIEST.get(stage, 0.0) if grounded is not None else 0.0

        def loss_of(count: int) -> Tensor:
            batch = pool.batch(count)
            clean = batch["latent"]
            dropped = torch.rand(count, 1, device=self.device) < CAPTION_DROPOUT
            tokens = torch.where(dropped, nothing, batch["tokens"])
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
            least = 0.0 if grounded is None else LEAST_WEIGHT
            losses = min_snr_weight(alphas[t], least) * error.mean(dim=(1, 2, 3))
            if grounded is not None:
                places = word_places(tokens, batch["nouns"])
                words = 1 if noisiest else 2
                beside = grounding_loss(grounded.take(), places, object_masks(batch), words)
                fading = 1.0 if noisiest else alphas[t].sqrt()
                losses = losses + GROUNDING[stage] * fading * beside
            if heads is not None:
                losses = losses + RECOGNITION * heads.loss(batch, batch["shown"])
                losses = losses + LOUDNESS * batch["loudness"]
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


def loudness(residuals: list[Tensor]) -> Tensor:
    """The mean square of residuals [B, C, H, W], each counting as much as another: [B]."""
    return torch.stack([r.float().square().mean((1, 2, 3)) for r in residuals]).mean(0)
