"""What the page shows at first: its first example, finished beforehand.

`python -m demo.page_first` makes the two pictures anew, where the model or the method
has changed; a test tells when they no longer are what the page would make.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from lib_ccn.settings import Settings

from .demo_model import load_pipeline
from .examples import bundled_examples
from .options import BUNDLED_GUIDANCE, BUNDLED_MASK_REDUCTION
from .page_run import Order, Outcome, Studio, UnitOrder

STEPS = 20
FOLDER = Path(__file__).with_name("first")
NOTE = (
    "The first example, made beforehand. Press Generate to make it here and to look inside, or "
    "click another one."
)


def finished() -> tuple[Image.Image, Image.Image]:
    """The plain sum and Cross-ControlNet's picture of the first example, in the model's size."""
    plain, fused = (Image.open(FOLDER / name).convert("RGB") for name in ("plain.png", "fused.png"))
    return plain, fused


def make() -> Outcome:
    """Make the first example as the page would, with all that it shows at first."""
    example = bundled_examples()[0]
    order = Order(
        prompt=example.prompt,
        negative_prompt="",
        seed=example.seed,
        steps=STEPS,
        guidance_scale=BUNDLED_GUIDANCE,
        units=(UnitOrder(0, 0, example.foreground), UnitOrder(1, 1, example.background)),
        settings=Settings(foreground_word=example.word, mask_reduction=BUNDLED_MASK_REDUCTION),
    )
    return Studio(load_pipeline(), ("outline", "regions")).make(order)


def main() -> None:
    """Write both pictures."""
    outcome = make()
    assert outcome.fused is not None
    FOLDER.mkdir(exist_ok=True)
    outcome.plain.save(FOLDER / "plain.png", optimize=True)
    outcome.fused.save(FOLDER / "fused.png", optimize=True)


if __name__ == "__main__":
    main()
