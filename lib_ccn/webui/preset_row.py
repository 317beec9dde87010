"""The accordion's row of presets: choose, save, delete."""

from __future__ import annotations

import functools
import html
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr
from gradio.context import Context

from ..layers import said_otherwise
from ..settings import SettingsError, fields, page_message
from ..showable import shown_value
from .arguments import plain_value
from .infotext import page_value
from .presets import METHOD, SCENE, PresetError, PresetStore

log = logging.getLogger(__name__)

# Answers at once, without the WebUI's queue of generations. Values come as the browser sends them:
# gradio would refuse some with an error box of its own.
QUICK: dict[str, Any] = {"queue": False, "show_progress": False, "preprocess": False}


class PresetRow:
    """The row's components, made inside the current gradio block; `connect` makes them work.

    Args:
        element_id: what the components' ids begin with.
        store: the presets.
    """

    def __init__(self, element_id: str, store: PresetStore) -> None:
        self._store = store
        bare = {"show_label": False, "container": False, "min_width": 130}
        with gr.Row(elem_id=f"{element_id}_presets", elem_classes="ccn-presets"):
            gr.HTML("Preset")
            self._chosen = gr.Dropdown(
                choices=store.names(),
                value=None,
                label="Preset",
                elem_id=f"{element_id}_preset",
                scale=3,
                **bare,
            )
            self._changed = gr.HTML("", elem_id=f"{element_id}_preset_changed")
            self._name = gr.Textbox(
                value="",
                label="Preset name",
                placeholder="save as",
                max_lines=1,
                elem_id=f"{element_id}_preset_name",
                scale=2,
                **bare,
            )
            self._save = self._button("Save", f"{element_id}_preset_save")
            self._delete = self._button("Delete", f"{element_id}_preset_delete")
        self._message = gr.HTML(
            "", elem_id=f"{element_id}_preset_message", elem_classes="ccn-preset-message"
        )
        for component in (self._chosen, self._name, self._save, self._delete):
            # The WebUI shall not keep them as the page's defaults.
            component.do_not_save_to_config = True

    def _button(self, label: str, element_id: str) -> Any:
        return gr.Button(label, size="sm", scale=0, min_width=70, elem_id=element_id)

    def connect(self, page: Mapping[str, Any], opened: Any) -> None:
        """Make the row work.

        Args:
            page: the page's controls by setting name.
            opened: the component that changes when the accordion is opened; the choice of presets
                is brought up to date then, because it may have changed in another tab.
        """
        controls = {name: page[name] for name in (*METHOD, *SCENE)}
        names, components = list(controls), list(controls.values())

        def load(preset: str | None) -> list[Any]:
            if not preset:
                return [_said(""), *(gr.update() for _ in names)]
            values = self._store.load(preset)
            # What it says of who is in front takes back what the page says in the other way.
            taken_back = {name: fields()[name].default for name in said_otherwise(values)}
            values = {**taken_back, **values}
            shown = [
                gr.update(value=page_value(name, values[name])) if name in values else gr.update()
                for name in names
            ]
            return [_said(f"Loaded {shown_value(preset)}. {self._described(preset)}"), *shown]

        def save(preset: str | None, name: str | None, *values: Any) -> list[Any]:
            name = (name or "").strip() or preset
            if not name:
                return [_said("Type a name for the preset first."), gr.update(), gr.update()]
            given = {k: plain_value(k, v) for k, v in zip(names, values, strict=True)}
            saved = self._store.save(name, given)
            instead = f" in place of {shown_value(saved.replaced)}" if saved.replaced else ""
            said = _said(f"Saved {shown_value(saved.name)}{instead}.")
            return [said, self._choices(saved.name), gr.update(value="")]

        def delete(preset: str | None, message: str | None) -> list[Any]:
            if not preset:
                return [_said("Choose the preset to delete first."), gr.update()]
            question = _said(f"Click Delete again to delete {shown_value(preset)} for good.")
            # What stands on the page is what was asked: any other message takes it back.
            if self._is_saved(preset) and message != question["value"]:
                return [question, gr.update()]
            self._store.delete(preset)
            return [_said(f"Deleted {shown_value(preset)}."), self._choices(None)]

        def refresh(preset: str | None) -> list[Any]:
            return [self._at_rest(preset), gr.update(choices=self._store.names())]

        def begin(*values: Any) -> list[Any]:
            every = self._store.all()
            fitting = next((one.name for one in every if fits(one.settings, values)), None)
            return [self._at_rest(fitting), self._choices(fitting)]

        def compare(preset: str | None, *values: Any) -> list[Any]:
            try:
                changed = bool(preset) and not fits(self._store.load(str(preset)), values)
            except PresetError:
                changed = False
            return [_said("changed" if changed else "")]

        def fits(settings: Mapping[str, Any], values: Sequence[Any]) -> bool:
            shown = dict(zip(names, values, strict=True))
            return all(_setting(name, shown[name]) == settings[name] for name in settings)

        said, chosen = self._message, self._chosen
        _on(chosen.input, load, [chosen], [said, *components])
        _on(self._save.click, save, [chosen, self._name, *components], [said, chosen, self._name])
        _on(self._delete.click, delete, [chosen, said], [said, chosen])
        _on(opened.change, refresh, [chosen], [said, chosen])
        # What the page is built from is as old as the WebUI's start.
        _on(Context.root_block.load, begin, components, [said, chosen])
        for component in (chosen, *components):
            _on(component.change, compare, [chosen, *components], [self._changed])

    def _at_rest(self, preset: str | None) -> Any:
        """What stands below the row unasked: what is wrong in the folder, or what the preset is."""
        return _said(" ".join(self._store.problems()) or self._described(preset))

    def _described(self, preset: str | None) -> str:
        return next((one.description for one in self._store.all() if one.name == preset), "")

    def _is_saved(self, preset: str) -> bool:
        return any(one.name == preset and not one.built_in for one in self._store.all())

    def _choices(self, value: str | None) -> Any:
        return gr.update(choices=self._store.names(), value=value)


def _setting(name: str, value: Any) -> Any:
    """The setting's value that a control holds; None where it cannot be one."""
    try:
        return fields()[name].accept(name, plain_value(name, value))
    except SettingsError:
        return None


def _said(text: object) -> Any:
    """The message as text: what a name or a folder holds is no markup."""
    return gr.update(value=html.escape(str(text)))


def _on(
    listen: Callable[..., Any],
    answer: Callable[..., list[Any]],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
) -> None:
    """Let `answer` answer an event; where it fails, the first output says so and the rest stays."""
    kept = [gr.update() for _ in outputs[1:]]

    @functools.wraps(answer)
    def told(*values: Any) -> Any:
        try:
            answers = answer(*values)
        except (PresetError, SettingsError) as error:
            answers = [_said(page_message(error)), *kept]
        except Exception as error:
            log.exception("the presets failed")
            text = f"This failed ({type(error).__name__}); the console says more."
            answers = [_said(text), *kept]
        return answers if len(outputs) > 1 else answers[0]

    listen(told, inputs, outputs, **QUICK)
