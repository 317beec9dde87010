"""The demo model's parts: a miniature Stable Diffusion for 64x64 pictures, built from scratch.

Its layout is Stable Diffusion's own (AutoencoderKL, CLIP text encoder and tokenizer, UNet with
cross-attention, ControlNets with zero convolutions), so that the stock diffusers pipelines load it.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from demo.scenes import COLOURS, REGION_PHRASES, SHAPES

TEXT_WIDTH = 96
_SMALL_WORDS = "a an the over in front of and with on under behind only near , ."
BOS, EOS = "<|startoftext|>", "<|endoftext|>"

NOISE_SCHEDULE = {
    # A larger end than Stable Diffusion's 0.012: on 32x32 latents that one would leave the last
    # step a visible trace of the picture, and sampling from pure noise would never see it.
    "beta_start": 0.00085,
    "beta_end": 0.02,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """A byte-level CLIP BPE in which every word of the captions is one token; saved to `folder`."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        special_tokens=[],
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = sorted(
        {w for pair in REGION_PHRASES.values() for phrase in pair for w in phrase.split()}
        | set(COLOURS)
        | set(SHAPES)
        | {*_SMALL_WORDS.split()}
    )
    tokenizer.train_from_iterator(itertools.repeat(" ".join(words), 20), trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    vocabulary: dict[str, int] = {}
    for piece in [
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        *(f"{byte}</w>" for byte in sorted(pre_tokenizers.ByteLevel.alphabet())),
        *sorted(learned["vocab"], key=learned["vocab"].__getitem__),
        BOS,
        EOS,
    ]:
        vocabulary.setdefault(piece, len(vocabulary))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    merges = [m if isinstance(m, str) else " ".join(m) for m in learned["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
    clip = CLIPTokenizer.from_pretrained(folder, model_max_length=77, local_files_only=True)
    clip.save_pretrained(folder)
    for word in words:
        if len(clip(word, add_special_tokens=False).input_ids) != 1:
            raise RuntimeError(f"the word {word!r} is not one token of the demo's tokenizer")
    return clip


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two layers, 96 wide, trained together with the UNet."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=TEXT_WIDTH,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_vae() -> AutoencoderKL:
    """64x64 pictures to 32x32 latents of four channels."""
    return AutoencoderKL(
        sample_size=64,
        latent_channels=4,
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
    )


def build_unet() -> UNet2DConditionModel:
    """Attention at half and quarter resolution (256 and 64 tokens) and in the middle."""
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def build_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet that starts as the UNet's encoder, for conditions of the picture's size."""
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32))


def for_training(module: torch.nn.Module, device: str) -> torch.nn.Module:
    """The module on the device, with the attention and layout that train fastest there.

    On a CPU that is plain attention and channels-last, on CUDA what diffusers chooses.
    """
    if device == "cpu" and hasattr(module, "set_attn_processor"):
        module.set_attn_processor(AttnProcessor())
    return module.to(device, memory_format=layout_for(device))


def layout_for(device: str) -> torch.memory_format:
    """The layout of feature maps that trains fastest on the device."""
    return torch.channels_last if device == "cpu" else torch.contiguous_format


def noise_levels() -> Tensor:
    """Cumulative alphas [1000] of the demo's noise schedule."""
    return DDIMScheduler(**NOISE_SCHEDULE).alphas_cumprod
