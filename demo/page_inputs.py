"""What the page's controls hold, turned into an order; and conditions turned into what is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from lib_ccn.images import ImageError, eight_bit, to_condition
from lib_ccn.webui import arguments

from .figure import enlarged, to_image
from .page_run import Order, OrderError, UnitOrder

SEED_LIMIT = 2**32 - 1
STEP_LIMIT = 100
GUIDANCE_LIMIT = 30.0
# An editor's canvas, a whole multiple of the demo model's 64 pixels, so that nothing is blurred.
CANVAS = 512


def read_order(
    basics: Sequence[Any],
    units: Sequence[Sequence[Any]],
    method: Sequence[Any],
    names: Sequence[str],
    side: int,
) -> Order:
    """Build the order of one click.

    Args:
        basics: prompt, negative prompt, seed, steps, guidance scale.
        units: for each, whether it is on, its ControlNet's name, and its editor's value.
        method: the accordion's controls.
        names: of the ControlNets.
        side: of the pictures, in pixels.

    Raises:
        OrderError: a control holds what cannot be used; the message names it.
    """
    prompt, negative, seed, steps, guidance = basics
    request = arguments.read(method)
    if request.problem is not None:
        raise OrderError(request.problem)
    orders = []
    for number, (is_on, name, value) in enumerate(units):
        if not is_on:
            continue
        try:
            condition = read_condition(value, side)
        except ImageError as error:
            raise OrderError(f"Condition {number} cannot be used: {error}") from error
        if condition is None:
            raise OrderError(f"Condition {number} is empty: draw or upload it, or switch it off.")
        if name not in names:
            raise OrderError(f"Condition {number}: there is no ControlNet {name!r}.")
        orders.append(UnitOrder(number, names.index(name), condition))
    return Order(
        prompt=str(prompt or ""),
        negative_prompt=str(negative or ""),
        seed=whole("Seed", seed, 0, SEED_LIMIT),
        steps=whole("Steps", steps, 1, STEP_LIMIT),
        guidance_scale=_number("Guidance", guidance, 1, GUIDANCE_LIMIT),
        units=tuple(orders),
        settings=request.settings if request.settings.enabled else None,
    )


def read_condition(value: Any, side: int) -> Tensor | None:
    """The picture of an editor as [3, side, side] in [0, 1]; None where nothing is there.

    Raises ImageError.
    """
    picture = value.get("composite") if isinstance(value, Mapping) else value
    if picture is None:
        return None
    picture = eight_bit(picture, (side, side))
    if picture.mode == "RGBA" and picture.getchannel("A").getextrema()[1] == 0:
        return None
    # A box is exact for whole factors, which the editors' own pictures are reduced by.
    whole = min(picture.size) % side == 0
    resample = Image.Resampling.BOX if whole else Image.Resampling.LANCZOS
    return to_condition(picture, (side, side), resample)


def shown_condition(condition: Tensor) -> Image.Image:
    """A condition [3, H, W] as an editor shows it."""
    return enlarged(to_image(condition), CANVAS)


def editor_value(picture: Image.Image | None) -> dict[str, Any] | None:
    """A picture as an editor's value."""
    if picture is None:
        return None
    return {"background": picture, "layers": [], "composite": picture}


def received(components: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    """Decode what a browser sent for gradio's components: pictures only.

    All other values stay as they are, for `read_order` to refuse in words.

    Raises:
        OrderError: a picture is no picture.
    """
    return [_decoded(*pair) for pair in zip(components, values, strict=True)]


def _decoded(component: Any, value: Any) -> Any:
    model = getattr(component, "data_model", None)
    if model is None or value is None:
        return value
    try:
        return component.preprocess(model(**value))
    except Exception as error:  # whatever Pillow and gradio raise
        raise OrderError(f"{component.label} cannot be used: it is no picture.") from error


def whole(label: str, value: Any, low: int, high: int) -> int:
    """A control's value as a whole number from `low` to `high`; raises OrderError."""
    number = _number(label, value, low, high)
    if number != int(number):
        raise OrderError(f"{label}: {value} is no whole number.")
    return int(number)


def _number(label: str, value: Any, low: float, high: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise OrderError(f"{label}: {value!r} is no number.") from None
    if not low <= number <= high:
        raise OrderError(f"{label}: {value} is not {low:.10g} to {high:.10g}.")
    return number
