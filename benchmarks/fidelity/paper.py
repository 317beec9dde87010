"""The paper's Table 1, in its own columns, beside what was measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .methods import Method

# Table 1 (Stable Diffusion 1.5, conflicting conditions): CLIP-score, MSE to the background's
# condition (-S of segmentation maps, -D of depth maps), mIoU of the person.
TABLE_1: Mapping[str, Mapping[str, tuple[float, float, float]]] = {
    "pose+seg": {
        "sum": (0.2999, 0.2282, 0.3145),
        "max": (0.2945, 0.2016, 0.3528),
        "pix": (0.2947, 0.2004, 0.3610),
        "pix+channel": (0.2952, 0.2009, 0.3648),
        "full": (0.2978, 0.1983, 0.3719),
    },
    "pose+depth": {
        "sum": (0.2978, 0.0625, 0.3150),
        "max": (0.2870, 0.0498, 0.3555),
        "pix": (0.2887, 0.0495, 0.3583),
        "pix+channel": (0.2865, 0.0476, 0.3618),
        "full": (0.2893, 0.0456, 0.3671),
    },
}
COLUMNS = {
    "pose+seg": {"clip": "CLIP ↑", "seg": "MSE-S ↓", "iou": "mIoU-P ↑"},
    "pose+depth": {"clip": "CLIP ↑", "depth": "MSE-D ↓", "iou": "mIoU-P ↑"},
}


def markdown(
    conditions: str, rows: Sequence[tuple[Method, Mapping[str, float | None]]], pairs: int
) -> list[str]:
    """Lines of the table: of every method the means by measure, the paper's in brackets.

    Args:
        conditions: which the pairs are of, such as "pose+seg"; others have no table in the paper.
        rows: methods and their means by measure, None where one was not measured.
        pairs: how many there are.
    """
    columns = COLUMNS.get(conditions)
    if columns is None:
        return []
    lines = [
        "",
        f"### The paper's columns, {conditions}: {pairs} pairs (in brackets: the paper, Table 1)",
        "",
        "| method | " + " | ".join(columns.values()) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for method, means in rows:
        theirs = TABLE_1[conditions].get(method.key)
        cells = []
        for n, measure in enumerate(columns):
            mean = means.get(measure)
            cell = "not measured" if mean is None else f"{mean:.4f}"
            cells.append(cell + ("" if theirs is None else f" ({theirs[n]:.4f})"))
        lines.append(f"| {method.title} | " + " | ".join(cells) + " |")
    return lines
