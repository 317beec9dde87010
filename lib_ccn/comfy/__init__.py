"""ComfyUI: the method as nodes. Only here `comfy` is imported."""
