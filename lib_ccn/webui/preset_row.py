"""The accordion's row of presets: choose, save, delete."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.context import Context

from ..settings import SettingsError, page_message
from ..showable import shown_value
from .arguments import plain_value
from .infotext import page_value
from .presets import METHOD, SCENE, PresetError, PresetStore

# Answers at once, without the WebUI's queue of generations.
QUICK: dict[str, Any] = {"queue": False, "show_progress": False}


class PresetRow:
    """The row's components, made inside the current gradio block; `connect` makes them work.

    Args:
        element_id: what the components' ids begin with.
        store: the presets.
    """

    def __init__(self, element_id: str, store: PresetStore) -> None:
        self._store = store
        with gr.Row(elem_id=f"{element_id}_presets"):
            self._chosen = gr.Dropdown(
                choices=store.names(),
                value=None,
                label="Preset",
                info="Choosing one fills the controls below.",
                elem_id=f"{element_id}_preset",
            )
            self._name = gr.Textbox(
                value="",
                label="Preset name",
                info="Under which the controls' values are saved.",
                max_lines=1,
                elem_id=f"{element_id}_preset_name",
            )
            with gr.Column(scale=0, min_width=140):
                self._save = gr.Button(
                    "Save preset", size="sm", elem_id=f"{element_id}_preset_save"
                )
                self._delete = gr.Button(
                    "Delete preset", size="sm", elem_id=f"{element_id}_preset_delete"
                )
        self._message = gr.HTML("", elem_id=f"{element_id}_preset_message")
        for component in (self._chosen, self._name, self._save, self._delete):
            # The WebUI shall not keep them as the page's defaults.
            component.do_not_save_to_config = True

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
            keep = [gr.update() for _ in names]
            if not preset:
                return [_said(""), *keep]
            try:
                values = self._store.load(preset)
            except PresetError as error:
                return [_said(error), *keep]
            shown = [
                gr.update(value=page_value(name, values[name])) if name in values else gr.update()
                for name in names
            ]
            return [_said(f"Loaded {shown_value(preset)}."), *shown]

        def save(preset: str | None, name: str | None, *values: Any) -> list[Any]:
            name = (name or "").strip() or preset
            if not name:
                return [_said("Type a name for the preset first."), gr.update(), gr.update()]
            given = {k: plain_value(k, v) for k, v in zip(names, values, strict=True)}
            try:
                saved = self._store.save(name, given)
            except (PresetError, SettingsError) as error:
                return [_said(page_message(error)), gr.update(), gr.update()]
            instead = f" in place of {shown_value(saved.replaced)}" if saved.replaced else ""
            said = _said(f"Saved {shown_value(saved.name)}{instead}.")
            return [said, self._choices(saved.name), gr.update(value="")]

        def delete(preset: str | None) -> list[Any]:
            if not preset:
                return [_said("Choose the preset to delete first."), gr.update()]
            try:
                self._store.delete(preset)
            except PresetError as error:
                return [_said(error), gr.update()]
            return [_said(f"Deleted {shown_value(preset)}."), self._choices(None)]

        def refresh() -> list[Any]:
            return [gr.update(choices=self._store.names()), _said(" ".join(self._store.problems()))]

        self._chosen.input(load, [self._chosen], [self._message, *components], **QUICK)
        self._save.click(
            save,
            [self._chosen, self._name, *components],
            [self._message, self._chosen, self._name],
            **QUICK,
        )
        self._delete.click(delete, [self._chosen], [self._message, self._chosen], **QUICK)
        opened.change(refresh, [], [self._chosen, self._message], **QUICK)
        # What the page is built from is as old as the WebUI's start.
        Context.root_block.load(refresh, [], [self._chosen, self._message], **QUICK)

    def _choices(self, value: str | None) -> Any:
        return gr.update(choices=self._store.names(), value=value)


def _said(text: object) -> Any:
    """The message as text: what a name or a folder holds is no markup."""
    return gr.update(value=html.escape(str(text)))
