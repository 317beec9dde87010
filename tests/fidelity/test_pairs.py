"""Which pairs there are, drawn or in a folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.fidelity.folder import FolderPairs, PairsError, read_pairs
from benchmarks.fidelity.pairs import (
    CHUNK,
    COMPLEMENTARY,
    CONFLICT,
    HIDDEN_PIXELS,
    OVERLAPPING,
    SEVERAL,
    TWO,
    DrawnPairs,
    split,
)


def test_the_first_pairs_do_not_depend_on_how_many_are_asked_for():
    source = DrawnPairs()
    few, many = (
        {n: source.load(p) for p in source.plans(CONFLICT, c, 24) for n in p.numbers}
        for c in (5, CHUNK + 3)
    )
    assert set(few) == set(range(5))
    assert set(many) == set(range(CHUNK + 3))
    for number, batch in few.items():
        other = many[number]
        i, j = batch.plan.numbers.index(number), other.plan.numbers.index(number)
        assert batch.prompts[i] == other.prompts[j]
        assert torch.equal(batch.conditions[1][i], other.conditions[1][j])


def test_a_batch_has_one_word_that_every_prompt_names():
    for plan in DrawnPairs().plans(CONFLICT, 40, 4):
        assert len(plan.numbers) <= 4
        batch = DrawnPairs().load(plan)
        assert all(
            plan.word in prompt.split() for prompt in (p.replace(",", "") for p in batch.prompts)
        )


def test_both_cases_share_prompt_noise_and_foreground():
    source = DrawnPairs()
    plans = [source.plans(case, 6, 24) for case in (CONFLICT, COMPLEMENTARY)]
    assert [p.numbers for p in plans[0]] == [p.numbers for p in plans[1]]
    a, b = (source.load(group[0]) for group in plans)
    assert (a.prompts, a.seeds) == (b.prompts, b.seeds)
    assert torch.equal(a.conditions[0], b.conditions[0])
    differ = (a.conditions[1] != b.conditions[1]).any(1)
    assert torch.equal(differ, a.object_mask)


@pytest.mark.parametrize("case", SEVERAL)
def test_pairs_of_two_objects_have_a_word_an_outline_and_a_net_for_each(case):
    source = DrawnPairs()
    plans = source.plans(case, 12, 24)
    assert sorted(n for plan in plans for n in plan.numbers) == list(range(12))
    for plan in plans:
        batch = source.load(plan)
        assert batch.nets == (2, 2, 1)
        assert len(batch.conditions) == 3
        assert [(batch.plan.word, *batch.more_words)] * len(batch.prompts) == batch.details.shapes
        if case == OVERLAPPING:
            assert batch.details.hidden.flatten(1).sum(1).min() >= HIDDEN_PIXELS
        for row in source.score(batch, batch.details.picture):
            assert row["own worse"] > 0.75
            assert row.get("front", 1) > 0.75
            assert ("iou" in row) == (case == TWO)
        swapped = batch.details.picture.flip(1)  # red is blue and the other way round
        assert any(row["own worse"] < 0.5 for row in source.score(batch, swapped))


def test_parts_are_of_nearly_equal_length():
    assert [len(part) for part in split(range(25), 24)] == [12, 13]
    assert split([], 3) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "no JSON"),
        ("[]", "at least one"),
        ('[{"prompt": "a"}]', r"pair 0: no \['background', 'foreground'\]"),
        ('[{"prompt": "a", "foreground": "f", "background": "b", "mask": "m"}]', "unknown"),
        ('[{"prompt": "a", "foreground": "f", "background": "b", "case": "x"}]', "allowed"),
        *(
            (
                f'[{{"prompt": "a", "foreground": "f", "background": "b", "conditions": {kinds}}}]',
                "is",
            )
            for kinds in ('"pose"', '"pose+"', "3")
        ),
        *(
            (f'[{{"prompt": "a", "foreground": "f", "background": "b", "seed": {seed}}}]', "seed")
            for seed in ("-1", "18446744073709551616", "1.5", "true", '"7"')
        ),
    ],
)
def test_a_folder_with_wrong_pairs_is_refused(tmp_path, content, says):
    (tmp_path / "pairs.json").write_text(content)
    with pytest.raises(PairsError, match=says):
        read_pairs(tmp_path)


def test_a_folder_without_pairs_is_refused(tmp_path):
    with pytest.raises(PairsError, match=r"pairs\.json cannot be read"):
        read_pairs(tmp_path)


@pytest.fixture
def one_pair(tmp_path):
    """A 16-bit ramp as the condition; a mask that is painted on nothing."""
    ramp = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    mask = Image.new("RGBA", (16, 16))
    mask.paste((0, 0, 0, 255), (0, 0, 8, 16))
    mask.save(tmp_path / "mask.png")
    pair = {"prompt": "a", "foreground": "deep.png", "background": "deep.png"}
    (tmp_path / "pairs.json").write_text(json.dumps([pair | {"object_mask": "mask.png"}]))
    return FolderPairs(tmp_path, (16, 16), None)


def test_a_folders_pictures_are_read_as_all_others_are(one_pair):
    batch = one_pair.load(one_pair.plans(CONFLICT, 1, 1)[0])
    ramp = torch.linspace(0, 1, 256).reshape(16, 16)
    assert (batch.conditions[0][0] - ramp).abs().max() < 1 / 255
    assert batch.object_mask[0, :, :8].all()
    assert not batch.object_mask[0, :, 8:].any()


@pytest.mark.parametrize("name", ["deep.png", "mask.png"])
def test_a_truncated_picture_names_its_file(one_pair, name):
    path = one_pair.folder / name
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(PairsError, match=f"{name} cannot be read"):
        one_pair.load(one_pair.plans(CONFLICT, 1, 1)[0])
