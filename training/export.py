"""Put a finished run together as a model: `python -m training.export --run runs/demo`."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextModel

from demo.command_line import silence_libraries
from demo.demo_model import (
    CONTROLNETS,
    OUTLINES,
    ModelError,
    generate,
    load_pipeline,
    native_size,
    save_pipeline_index,
    without_controlnets,
)

LIMIT = 25_000_000
NETWORKS: dict[str, Any] = {
    "vae": AutoencoderKL,
    "unet": UNet2DConditionModel,
    "text_encoder": CLIPTextModel,
    **dict.fromkeys((*CONTROLNETS, OUTLINES), ControlNetModel),
}


def export(run: Path, to: Path) -> int:
    """Write the model of the finished parts in `run` to the folder `to`; return its bytes.

    Weights are cast to float16. Other files in `to`, such as a model card, stay.

    Raises:
        ModelError: a part is missing, a weight does not fit float16, or the whole is over 25 MB.
    """
    missing = [n for n in (*NETWORKS, "tokenizer", "scheduler") if not (run / n).is_dir()]
    if missing:
        raise ModelError(f"{run} has no {', '.join(missing)}: is the training finished?")
    to.mkdir(parents=True, exist_ok=True)
    for name in (*NETWORKS, "tokenizer", "scheduler"):
        shutil.rmtree(to / name, ignore_errors=True)
    for name, kind in NETWORKS.items():
        network = kind.from_pretrained(run / name, local_files_only=True).half()
        broken = [key for key, value in network.state_dict().items() if not value.isfinite().all()]
        if broken:
            raise ModelError(f"{name} has weights that float16 cannot hold: {', '.join(broken)}")
        network.save_pretrained(to / name)
        _settle_config(to / name / "config.json")
    for name in ("tokenizer", "scheduler"):
        shutil.copytree(run / name, to / name)
    save_pipeline_index(to)
    total = sum(f.stat().st_size for f in to.rglob("*") if f.is_file())
    if total > LIMIT:
        raise ModelError(f"{to} has {total / 1e6:.1f} MB; allowed: {LIMIT / 1e6:.0f} MB")
    return total


def check(folder: Path, steps: int = 2) -> None:
    """Load the model back without a network and make a picture; raises ModelError."""
    pipe = load_pipeline(folder)
    size = (native_size(pipe),) * 2
    plain = generate(without_controlnets(pipe), ["a red star"], [0], steps=steps, size=size)
    black = torch.zeros(1, 3, *size)
    steered = generate(pipe, ["a red star"], [0], [black, black], steps=steps)
    for picture in (plain, steered):
        if picture.shape != (1, 3, *size) or not picture.isfinite().all():
            raise ModelError(f"{folder} makes pictures of shape {tuple(picture.shape)}, or NaN")


def _settle_config(path: Path) -> None:
    """Leave out where a part was loaded from, and let every part load in the same dtype.

    transformers loads in the dtype that the config names, diffusers in float32 whatever the file's.
    """
    config = json.loads(path.read_text("utf-8"))
    config.pop("_name_or_path", None)
    if "dtype" in config:
        config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    silence_libraries()
    parser = argparse.ArgumentParser(prog="python -m training.export", description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="a finished run")
    parser.add_argument("--to", type=Path, default=Path("models/demo"), help="the model's folder")
    arguments = parser.parse_args(argv)
    try:
        total = export(arguments.run, arguments.to)
        check(arguments.to)
    except ModelError as error:
        parser.exit(1, f"error: {error}\n")
    print(f"{arguments.to}: {total / 1e6:.1f} MB, loads back and makes pictures")


if __name__ == "__main__":
    main()
