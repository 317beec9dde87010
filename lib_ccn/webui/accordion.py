"""The accordion on the page: one `Accordion` for each tab."""

from __future__ import annotations

import html
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ..settings import TITLE, Setting, fields
from .arguments import PAGE, named_choice, plain_value, unit_choices
from .gradio_versions import file_url, folded, input_accordion, mask_editor
from .infotext import PASTED, PasteKey, page_value
from .preset_row import QUICK, PresetRow
from .presets import PresetError, PresetStore

log = logging.getLogger(__name__)

# What the page's script fills: the state in words, and a row for each enabled ControlNet unit. It
# is also told what the page's names of choices mean.
_HEAD = """\
<p class="ccn-purpose">Two or more ControlNets in one picture, without one drowning the other.</p>
<p class="ccn-state" role="status" aria-live="polite"></p>
<div class="ccn-units" data-titles="{titles}">\
Which unit is in front, and its word: under Advanced.</div>
"""
# Under which labels the WebUI has kept defaults of earlier versions.
_FORMER_LABELS = {"show_mask": "Show mask"}
_SAVED = "customscript/cross_controlnet.py/{tab}/{label}/value"

_README = Path(__file__).resolve().parents[2] / "README.md"
# One line for each paragraph: gradio 3.41 shows the line ends of a Markdown text as they are.
_ABOUT = (
    "Lets several ControlNets work on one picture without one drowning the other. Enable two or "
    "more ControlNet units: the strongest wins in each place (PixFusion, ChannelFusion), and the "
    "background units learn where the foreground object is (KV-Injection).",
    "The method: Liu et al., [Cross-ControlNet: Training-Free Fusion of Multiple Conditions for "
    "Text-to-Image Generation](https://openreview.net/forum?id=89j1hUxOiF), ICLR 2026. How to use "
    f"it: [README]({file_url(_README)}).",
)


class Accordion:
    """The controls of one tab, made inside the current gradio block.

    Args:
        tab: "txt2img" or "img2img".
        presets: the presets offered.
        preset: the name of the one shown at first; "" shows the settings' defaults.
        unit_count: how many ControlNet units the page has.

    Attributes:
        controls: the controls in the order of `PAGE`, and in Forge the strokes on the mask image.
        infotext_fields: what pasting sets, as the WebUI wants it.
        paste_field_names: what is sent from one tab to another.
    """

    def __init__(self, tab: str, presets: PresetStore, preset: str, unit_count: int) -> None:
        self._id = f"{tab}_cross_controlnet"
        self._initial = {**_loaded(presets, preset), **_saved(tab)}
        self._units = unit_choices([None] * unit_count)
        self._page: dict[str, Any] = {}
        self._strokes: list[Any] = []
        self._page["enabled"], inside = input_accordion(TITLE, self._id)
        with inside:
            gr.HTML(_HEAD.format(titles=html.escape(_titles())), elem_id=f"{self._id}_head")
            row = PresetRow(self._id, presets)
            self._add_row("show_mask")
            with folded("Advanced", f"{self._id}_advanced"):
                self._build_advanced()
        row.connect(self._page, self._page["enabled"])
        self.controls = [*(self._page[name] for name in PAGE), *self._strokes]
        self.infotext_fields = [(self._page[name], PasteKey(name)) for name in PASTED]
        self.paste_field_names = [fields()[name].infotext for name in PASTED]

    def follow_units(self, models: Sequence[Any]) -> None:
        """Show the units' models in the unit dropdowns from now on.

        Args:
            models: ControlNet's own model dropdowns in the order of its units.
        """
        ours = [self._page["foreground_unit"], self._page["background_unit"]]
        inputs = [*models, *ours]

        def name_values(*values: Any) -> list[Any]:
            choices = unit_choices(values[: len(models)])
            return [_renamed(value, choices) for value in values[len(models) :]]

        def name_all(*values: Any) -> list[Any]:
            choices = unit_choices(values[: len(models)])
            return [_renamed(value, choices, choices=choices) for value in values[len(models) :]]

        for component in models:
            component.change(name_all, inputs, ours, **QUICK)
        # ControlNet's own defaults may be there without a change.
        self._page["enabled"].change(name_all, inputs, ours, **QUICK)
        # Pasting and presets give a number without a name. The choices stay: in gradio 4 new ones
        # count as a change, and there would be no end of them.
        for component in ours:
            component.change(name_values, inputs, ours, **QUICK)

    def _build_advanced(self) -> None:
        self._add_group("Fusion", "fusion", "delta", "foreground_gain", "outside_places")
        self._add_group("Injection", "inject", "start_step", "start_layer")
        self._add_group("Mask", "mask_source", "mask_threshold", "mask_reduction")
        with gr.Column(visible=self._initial.get("mask_source") == "image") as image_column:
            image = fields()["mask_image"]
            gr.Markdown(f"**{image.label}**: paint over the foreground, or upload a mask as it is.")
            self._page["mask_image"], *self._strokes = mask_editor(
                image.label, f"{self._id}_mask_image"
            )
        self._add_group("Units", "foreground_unit", "background_unit", "foreground_word")
        self._add_row("layers")
        with gr.Accordion("About Cross-ControlNet", open=False, elem_id=f"{self._id}_about"):
            gr.Markdown(_about())
        self._page["mask_source"].change(
            lambda source: gr.update(visible=plain_value("mask_source", source) == "image"),
            [self._page["mask_source"]],
            [image_column],
            **QUICK,
        )

    def _add_group(self, title: str, *names: str) -> None:
        gr.HTML(f'<div class="ccn-group">{title}</div>')
        self._add_row(*names)

    def _add_row(self, *names: str) -> None:
        with gr.Row():
            for name in names:
                self._page[name] = self._control(name, fields()[name])

    def _control(self, name: str, setting: Setting) -> Any:
        common = {"label": setting.label, "elem_id": f"{self._id}_{name}"}
        common.update(value=self._value(name), info=_short_help(setting))
        if setting.kind == "flag":
            return gr.Checkbox(**common)
        if setting.kind == "choice":
            return gr.Dropdown(choices=list(setting.titles), **common)
        if setting.kind == "unit":
            # Any text goes, since a unit's model may have changed under a saved or pasted value.
            return gr.Dropdown(choices=self._units, allow_custom_value=True, **common)
        if setting.kind == "step":
            steps = ["auto", *map(str, range(11))]
            return gr.Dropdown(choices=steps, allow_custom_value=True, **common)
        if setting.kind in ("text", "layers"):
            return gr.Textbox(max_lines=1, **common)
        return gr.Slider(setting.minimum, setting.maximum, step=setting.step, **common)

    def _value(self, name: str) -> Any:
        return page_value(name, self._initial.get(name, fields()[name].default))


def _short_help(setting: Setting) -> str:
    """The first sentence; the page's "about" has the rest."""
    return setting.help.partition(". ")[0].rstrip(".")


def _about() -> str:
    settings = [f"- **{fields()[name].label}**: {fields()[name].help}" for name in PAGE[1:]]
    return "\n\n".join([*_ABOUT, "\n".join(settings)])


def _titles() -> str:
    """What the page's names of choices mean, by setting: JSON of objects from title to choice."""
    named = {name: setting for name, setting in fields().items() if setting.titles}
    pairs = {name: dict(zip(s.titles, s.choices, strict=True)) for name, s in named.items()}
    return json.dumps(pairs)


def _saved(tab: str) -> dict[str, Any]:
    """The defaults that were saved for the page in an earlier version, by setting name.

    The WebUI restores a value only under the control's label and where it is one of its choices;
    what it has under an earlier label or as an earlier choice is read here.
    """
    try:
        from modules.shared_cmd_options import cmd_opts

        kept = json.loads(Path(cmd_opts.ui_config_file).read_text("utf-8"))
        found = {
            name: kept.get(_SAVED.format(tab=tab, label=_FORMER_LABELS.get(name, setting.label)))
            for name, setting in fields().items()
            if setting.titles or name in _FORMER_LABELS
        }
        return {k: fields()[k].accept(k, v) for k, v in found.items() if v in _former_values(k)}
    except (ImportError, AttributeError, OSError, ValueError):
        return {}


def _former_values(name: str) -> Sequence[Any]:
    return fields()[name].choices or (True, False)


def _loaded(presets: PresetStore, preset: str) -> dict[str, Any]:
    try:
        return presets.load(preset) if preset else {}
    except PresetError as error:
        log.warning("the default preset: %s", error)
        return {}


def _renamed(value: Any, known: Sequence[str], **more: Any) -> Any:
    named = named_choice(value, known)
    # The value goes along only where it changes, so that it cannot undo what the user just chose.
    return gr.update(**more) if named == value else gr.update(value=named, **more)
