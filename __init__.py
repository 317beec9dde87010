"""ComfyUI's entry: the folder as a pack of nodes. Whatever else imports it finds nothing here."""

import sys

if "comfy_api.latest" in sys.modules:
    from .lib_ccn.comfy.nodes import comfy_entrypoint

    __all__ = ["comfy_entrypoint"]
elif "comfy.controlnet" in sys.modules:
    print("Cross-ControlNet: this ComfyUI is too old for its nodes; those need comfy_api.latest.")
