"""Captions as token ids, B at a time on any device: what the tokenizer makes of `write_caption`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from demo.drawing import Things
from demo.world import COLOURS, REGION_NAMES, REGION_PHRASES, SHAPES

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

LENGTH = 77
_ABSENT = -1
_PHRASE = 3  # words of the longest phrase


class CaptionTokens:
    """The words' ids as tables on a device.

    Args:
        tokenizer: one in which every word of the captions is one token.
        device: where the tables lie.
    """

    def __init__(self, tokenizer: CLIPTokenizer, device: str | torch.device) -> None:
        def ids(text: str, width: int) -> list[int]:
            found = tokenizer(text, add_special_tokens=False).input_ids
            return found + [_ABSENT] * (width - len(found))

        def table(rows: list[list[int]]) -> Tensor:
            return torch.tensor(rows, device=device)

        self.start, self.end = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.padding = tokenizer.pad_token_id
        self.colours = table([ids(word, 1) for word in COLOURS])
        self.shapes = table([ids(word, 1) for word in SHAPES])
        self.words = {word: ids(word, 1)[0] for word in ("a", "and", ",")}
        self.forms = table([ids(words, 3) for words in ("over", ",", "in front of")])
        phrases = [ids(p, _PHRASE) for name in REGION_NAMES for p in REGION_PHRASES[name]]
        self.phrases = table(phrases).view(len(REGION_NAMES), 2, _PHRASE)

    def write(
        self, things: tuple[Things, ...], present: Tensor, layout: Tensor, dice: Tensor
    ) -> Tensor:
        """Token ids long [B, 77].

        Args:
            things: the objects that the caption names, one or two.
            present: bool [len(things), B], which of them it names; the second one never alone.
            layout: long [B, 3] of the landscape.
            dice: [B, 3], as in `demo.scenes.write_caption`.
        """
        count = len(layout)
        dice = dice.double()
        named = present[0]

        def word(text: str, where: Tensor) -> Tensor:
            return torch.where(where, self.words[text], _ABSENT)[:, None]

        parts = [torch.full((count, 1), self.start, device=layout.device)]
        for number, thing in enumerate(things):
            there = present[number]
            if number:
                parts.append(word("and", there))
            parts.append(word("a", there))
            for table, kind in ((self.colours, thing.colours), (self.shapes, thing.shapes)):
                parts.append(torch.where(there[:, None], table[kind], _ABSENT))
        form = (dice[:, 2] >= 0.6).long() + (dice[:, 2] >= 0.8).long()
        parts.append(torch.where(named[:, None], self.forms[form], _ABSENT))

        few = named & (dice[:, 0] <= 0.15)  # only the last region is named
        three = layout[:, 1] != layout[:, 2]
        regions = torch.where(few[:, None], layout[:, 2:], layout)
        several = ~few
        phrases = []
        for i in range(3):
            way = ((dice[:, 1] * (i + 3)) % 1 > 0.5).long()
            phrases.append(self.phrases[regions[:, i], way])
        parts.append(phrases[0])
        parts += [word(",", several & three), word("and", several & ~three)]
        parts.append(torch.where(several[:, None], phrases[1], _ABSENT))
        parts.append(word("and", several & three))
        parts.append(torch.where((several & three)[:, None], phrases[2], _ABSENT))
        parts.append(torch.full((count, 1), self.end, device=layout.device))
        ids = torch.cat(parts, 1)
        ids = ids.gather(1, (ids == _ABSENT).long().argsort(dim=1, stable=True))
        ids = torch.where(ids == _ABSENT, self.padding, ids)
        return torch.nn.functional.pad(ids, (0, LENGTH - ids.shape[1]), value=self.padding)
