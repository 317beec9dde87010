"""Cross-ControlNet in the tabs txt2img and img2img of a WebUI."""

from __future__ import annotations

import re
from typing import Any

from modules import script_callbacks, scripts, shared

from lib_ccn.hosts import controlnet_script
from lib_ccn.settings import TITLE
from lib_ccn.webui import api, arguments, options, xyz
from lib_ccn.webui.accordion import Accordion
from lib_ccn.webui.generation import Generations
from lib_ccn.webui.presets import default_store

_MODEL_DROPDOWN = re.compile(
    r"(txt|img)2img_controlnet_ControlNet(-\d+)?_controlnet_model_dropdown"
)


class CrossControlNetScript(scripts.Script):
    """One for each tab: makes its accordion and hands the WebUI's callbacks on."""

    sorting_priority = 10.01  # on the page, directly below ControlNet's 10

    def __init__(self) -> None:
        super().__init__()
        self.generations = Generations()
        self.accordion: Accordion | None = None
        self.models: list[Any] = []

    def title(self) -> str:
        """The name on the page and in the API."""
        return TITLE

    def show(self, is_img2img: bool) -> Any:
        """In every generation."""
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        """Make the accordion; called again by the WebUI's API, which only wants the values."""
        accordion = Accordion(
            "img2img" if is_img2img else "txt2img",
            default_store(),
            options.default_preset(),
            int(shared.opts.data.get("control_net_unit_count", 3)),
        )
        self.accordion = accordion
        self.infotext_fields = accordion.infotext_fields
        self.paste_field_names = accordion.paste_field_names
        return accordion.controls

    def after_component(self, component: Any, **kwargs: Any) -> None:
        """Watch the page being made: take ControlNet's model dropdowns as they come."""
        element_id = kwargs.get("elem_id") or ""
        if _MODEL_DROPDOWN.fullmatch(element_id):
            self.models.append(component)
        elif element_id == "script_list" and self.accordion is not None:
            # It comes after every script's part of the page.
            self._stand_below_controlnet()
            if self.models:
                self.accordion.follow_units(self.models)

    def _stand_below_controlnet(self) -> None:
        """Move the accordion there, where the WebUI knows no priorities.

        The order of the scripts themselves, and of their arguments, stays.
        """
        runner = scripts.scripts_img2img if self.is_img2img else scripts.scripts_txt2img
        found = (
            script
            for script in runner.alwayson_scripts
            if script.title() == controlnet_script.TITLE
        )
        above, own = getattr(next(found, None), "group", None), self.group
        if above is None or own is None or above.parent is not own.parent:
            return
        siblings = own.parent.children
        siblings.remove(own)
        siblings.insert(siblings.index(above) + 1, own)

    def before_process(self, p: Any, *args: Any) -> None:
        """A generation is about to be prepared."""
        self.generations.before_process(p)
        plain = arguments.without_pictures(args)
        if plain is not None:
            everyone = list(p.script_args)
            everyone[self.args_from : self.args_from + len(args)] = plain
            p.script_args = everyone if isinstance(p.script_args, list) else tuple(everyone)

    def process(self, p: Any, *args: Any) -> None:
        """A generation is being prepared."""
        axes = getattr(p, xyz.ATTRIBUTE, None)
        self.generations.process(p, arguments.read(args, axes))

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        """A sampling run is about to begin."""
        self.generations.before_sampling(p, **kwargs)

    def postprocess_image(self, p: Any, pp: Any, *args: Any) -> None:
        """A picture is done."""
        self.generations.postprocess_image(p, pp.image)

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        """The generation is done."""
        self.generations.postprocess(p, processed)


script_callbacks.on_app_started(lambda _, app: api.register(app))
script_callbacks.on_before_ui(xyz.register)
script_callbacks.on_ui_settings(options.register)
# A WebUI without its page asks for neither axes nor options in time.
xyz.register()
options.apply_log_level()
