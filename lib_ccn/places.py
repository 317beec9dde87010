"""Where the units in front have their places: masks for each step, and what is made of them.

A mask comes from a word of the prompt, anew in each step, or once from an image or from what the
unit's condition shows; or it is all ones. Masks stay on the CPU: only there can they be looked at
without waiting for an accelerator. Places are disjoint: the one in front has what two claim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .devices import sent
from .foreground import cut_map, resize_mask, token_grid
from .foreground_word import ForegroundWord
from .layers import Layer
from .masking import WordMaps, WordsOfStep
from .outcome import ToldPlace
from .place import Place
from .prompt import TokenizedPrompt, Word
from .recorder import CrossAttentionRecorder
from .regions import Regions
from .rules import Front
from .settings import Settings
from .silhouette import silhouette
from .units import Call, Unit


class Places:
    """All places of a generation, front to back.

    Args:
        settings: with a start step that is a number.
        fronts: the units in front, each with its layer, front to back.
        recorder: of the backbone's attention to the prompt.
        prompts: one per picture, or one for all, or none where the host does not know them.
        encode: token ids of a text without special tokens.
        images: bool [1 or pictures, H, W] by the text of the setting that they are from.
        note: takes a sentence for the user.
    """

    def __init__(
        self,
        settings: Settings,
        fronts: Sequence[tuple[Layer, Unit | None]],
        recorder: CrossAttentionRecorder,
        prompts: Sequence[TokenizedPrompt],
        encode: Callable[[str], list[int]] | None,
        images: Mapping[str | None, Tensor],
        note: Callable[[str], None],
    ) -> None:
        self.settings = settings
        self._note = note
        self._made: dict[tuple[object, ...], object] = {}
        self.all = _grouped(fronts, images, encode, prompts, note)
        worded = [place for place in self.all if place.word is not None]
        words = {place.word: place for place in reversed(worded) if place.word is not None}
        self.maps = WordMaps(
            settings,
            recorder,
            prompts,
            [
                (word, place.units[0] if place.units else Unit(torch.nn.Module()))
                for word, place in reversed(words.items())
            ],
            note,
            [unit for place in worded for unit in place.rivals],
        )
        if self._reads_words:
            self.maps.attach()

    @property
    def _reads_words(self) -> bool:
        return self.settings.uses_masks and any(place.word is not None for place in self.all)

    @property
    def is_known(self) -> bool:
        """Whether any picture has a mask of use."""
        return any(place.is_known for place in self.all)

    @property
    def seconds(self) -> float:
        """That reading the words' maps took so far."""
        return self.maps.recorder.seconds

    def of(self, unit: Unit) -> Place | None:
        """The place of a unit in front; None of one behind."""
        return next((place for place in self.all if unit in place.units), None)

    def known_to(self, units: Sequence[Unit]) -> list[Place]:
        """The places with a mask of use that one of these units has."""
        return [
            place for place in self.all if place.is_known and any(u in units for u in place.units)
        ]

    def begin_step(self, call: Call) -> None:
        """A step begins with this call: see where everybody's place is in it."""
        if not self.settings.uses_masks:
            return
        found = self.maps.next_maps(call.step) if self._reads_words else None
        numbers = {word: n for n, (word, _unit) in enumerate(self.maps.words)}
        for place in self.all:
            if place.word is not None:
                if found is not None and self._place_word(place, numbers[place.word], found):
                    self._made.clear()
            elif place.mask is None:
                mask = self._lasting_mask(place, call)
                if mask is not None:
                    mask = mask.expand(call.picture_count, -1, -1)
                    place.put(mask, torch.ones(len(mask), dtype=torch.bool))
                    self._made.clear()

    def _place_word(self, place: Place, number: int, found: WordsOfStep) -> bool:
        heat, usable = found.heats[number], found.usable[number]
        if place.rivals:
            heat = heat * _won(place, found, heat)
        mask = cut_map(heat, usable, place.layer.mask_threshold or 0.0)
        return place.put(mask, usable, heat)

    def _lasting_mask(self, place: Place, call: Call) -> Tensor | None:
        """The mask [1 or pictures, H, W] of all steps."""
        source = place.layer.mask_source
        if source == "all":
            return torch.ones(1, 1, 1, dtype=torch.bool)
        if source == "image" and place.image is not None:
            return place.image.cpu()
        unit = next(iter(place.units), None)
        if unit is None or unit.condition is None:
            self._note("no silhouette: the foreground unit's condition image is not known")
            return None
        condition, owners, pictures = unit.condition, list(call.pictures), call.picture_count
        if len(condition) == 1:
            rows = [0]
        elif len(condition) == len(owners) != pictures == len(set(owners)):
            rows = [owners.index(picture) for picture in range(pictures)]
        else:
            rows = [picture % len(condition) for picture in range(pictures)]
        return silhouette(condition.detach().cpu()[rows].float())

    def regions_for(
        self, places: Sequence[Place], call: Call, tokens: int | None, batch: int
    ) -> Regions | None:
        """What a layer with so many image tokens needs of these places.

        See `attention.RegionsFor`. Made once, for as long as the masks stay the same.
        """
        if not places or batch != len(call.pictures):
            return None
        key = ("regions", call.latent_size, tokens, *call.pictures, *map(id, places))
        if key not in self._made:
            self._made[key] = _regions(places, call, tokens)
        made = self._made[key]
        assert made is None or isinstance(made, Regions)
        return made

    def front_for(self, units: Sequence[Unit], call: Call) -> Front | None:
        """Who of the units of a call is in front of whom, and where; None if nobody is yet."""
        places = self.known_to(units)
        if not places:
            return None
        ranks = [
            next((rank for rank, place in enumerate(places) if unit in place.units), None)
            for unit in units
        ]

        def masks(size: tuple[int, int], device: torch.device) -> Tensor:
            key = ("masks", size, device, *call.pictures, *map(id, places))
            if key not in self._made:
                found = _softly(places, size)[:, list(call.pictures), None]
                self._made[key] = sent(found, device)
            made = self._made[key]
            assert isinstance(made, Tensor)
            return made

        return Front(ranks, masks, self.settings.foreground_gain)

    def begin_call(self, call: Call) -> None:
        """Read what this UNet call says of the words, if that is of use for the next step."""
        if not call.whole:
            self.maps.pause()
        elif self._reads_words:
            if call.prompts is not None:
                self.maps.change_prompts(call.prompts)
            # The mask of step t is read at step t - 1: nothing is read before that is of use.
            always = self.settings.show_mask or self.settings.fusion == "layers"
            self.maps.begin_call(call, always or call.step + 1 >= self.settings.injection_start)

    def observe(self, unit: Unit, residuals: Sequence[Tensor], call: Call) -> None:
        """A unit in front has said this in this call: its word is where it says most."""
        if self._reads_words:
            self.maps.observe(unit, residuals, call.pictures)

    def pause(self) -> None:
        """Read nothing until the next `begin_call`."""
        self.maps.pause()

    def close(self) -> None:
        """Remove every hook and let go of every tensor but the last masks and their maps."""
        self.maps.detach()
        self._made.clear()

    def shown(self, picture: int) -> list[tuple[Place, Tensor]]:
        """The places that a picture has in the end, front to back, each with what is its own.

        Masks bool [h, w] of one size that do not overlap: the one in front has what two claim.
        """
        found = [(place, place.of_picture(picture)) for place in self.all]
        known = [(place, mask) for place, mask in found if mask is not None]
        size = [max((mask.shape[side] for _place, mask in known), default=0) for side in (0, 1)]
        shown, taken = [], torch.zeros(size, dtype=torch.bool)
        for place, mask in known:
            own = F.interpolate(mask[None, None].float(), size=size)[0, 0].bool() & ~taken
            taken = taken | own
            shown.append((place, own))
        return shown

    def told(self) -> list[ToldPlace]:
        """What is told of each place."""
        pictures = max((len(one.mask) for one in self.all if one.mask is not None), default=0)
        fronts: dict[Place, list[float]] = {place: [] for place in self.all}
        for picture in range(pictures):
            for place, mask in self.shown(picture):
                fronts[place].append(float(mask.float().mean()))
        return [place.told(fronts[place]) for place in self.all]

    def words(self, pictures: int) -> list[str]:
        """The words that each picture's masks are from, such as "star" or "star (automatic)".

        Those of several places are joined by commas; "" for none.
        """
        several = len(self.maps.prompts) > 1
        found = []
        for picture in range(pictures):
            words = []
            for word, _unit in self.maps.words:
                chosen = word.chosen.get(picture if several else 0)
                words += [chosen + ("" if word.given else " (automatic)")] if chosen else []
            found.append(", ".join(words))
        return found


def _grouped(
    fronts: Sequence[tuple[Layer, Unit | None]],
    images: Mapping[str | None, Tensor],
    encode: Callable[[str], list[int]] | None,
    prompts: Sequence[TokenizedPrompt],
    note: Callable[[str], None],
) -> list[Place]:
    """The places of units in front; two of one word, or of one image, share theirs.

    Where a prompt has that word more than once, it is taken to name them each, and the place is
    told apart by what the units themselves say.
    """
    places: list[Place] = []
    words: dict[str, ForegroundWord] = {}
    for layer, unit in fronts:
        units = [] if unit is None else [unit]
        if layer.mask_source == "image":
            place = Place(layer, units, image=images.get(layer.mask_image))
        elif layer.mask_source == "word":
            known = words.get(layer.word.casefold()) if layer.word else None
            word = known or ForegroundWord(layer.word, encode, note)
            words[layer.word.casefold()] = word
            place = Place(layer, units, word)
        else:
            place = Place(layer, units)
        same = [
            other
            for other in places
            if other.layer.mask_source == layer.mask_source
            and (place.word is not None or place.image is not None)
            and other.word is place.word
            and other.image is place.image
        ]
        if not same:
            places.append(place)
        elif place.word is not None and any(_times(place.word, p) > 1 for p in prompts):
            places.append(place)
            rivals = [unit for one in (*same, place) for unit in one.units]
            for one in (*same, place):
                one.rivals = rivals
            note(
                f"the prompt has '{layer.word}' more than once, so it is not clear whose it is: "
                "each unit has that part of it where it says more than the others"
            )
        else:
            same[0].units += units
    return places


def _times(word: ForegroundWord, prompt: TokenizedPrompt) -> int:
    """How often a prompt has a named word."""
    found = word.named(prompt.parts[word.part(prompt)])
    positions = found.positions if isinstance(found, Word) else ()
    return sum(position - 1 not in positions for position in positions)


def _won(place: Place, found: WordsOfStep, like: Tensor) -> Tensor:
    """Where this place's unit says more than its rivals: [pictures, H, W], 0 or 1."""
    won, grid = torch.ones_like(like), (like.shape[-2], like.shape[-1])
    for picture in range(len(like)):
        said = {unit: found.deviation.get(unit, {}).get(picture) for unit in place.rivals}
        mine = said.get(place.units[0])
        if mine is None:
            continue
        for unit, other in said.items():
            if unit in place.units or other is None:
                continue
            # A tie goes to the one in front.
            first = place.rivals.index(place.units[0]) < place.rivals.index(unit)
            more = mine >= other if first else mine > other
            won[picture] *= F.adaptive_avg_pool2d(more[None].float(), grid)[0] >= 0.5
    return won


def _softly(places: Sequence[Place], size: tuple[int, int]) -> Tensor:
    """The disjoint places at a size, [P, pictures, h, w] in [0, 1]."""
    left, found = None, []
    for place in places:
        own = place.softly(size)
        found.append(own if left is None else own * left)
        left = 1 - own if left is None else left * (1 - own)
    return torch.stack(found)


def _regions(places: Sequence[Place], call: Call, tokens: int | None) -> Regions | None:
    size, rows = call.latent_size, list(call.pictures)
    grid = size if tokens is None else token_grid(size, tokens)
    if grid is None:
        return None
    taken, found, usable = None, [], None
    for place in places:
        assert place.mask is not None
        assert place.usable is not None
        own = resize_mask(place.mask, grid) & place.usable[:, None]
        found.append(own if taken is None else own & ~taken)
        taken = own if taken is None else own | taken
        usable = place.usable if usable is None else usable | place.usable
    assert usable is not None
    return Regions(torch.stack(found)[:, rows], usable[rows])
