"""What a WebUI tells of itself: versions, card, ControlNets, samplers."""

from __future__ import annotations

from typing import Any

from lib_ccn.showable import showable

from .client import Client, NotThereError, WebUIError

# The first that a WebUI has is taken where the user names none; the paper's comes first.
SAMPLERS = ("UniPC", "DPM++ 2M", "Euler")
# Switches that matter for pictures or time. Others may hold paths, names or passwords.
_TOLD_FLAGS = [
    "--xformers",
    "--opt-sdp-attention",
    "--opt-sdp-no-mem-attention",
    "--opt-split-attention",
    "--opt-sub-quad-attention",
    "--lowvram",
    "--medvram",
    "--medvram-sdxl",
    "--no-half",
    "--upcast-sampling",
    "--always-cpu",
    "--cpu",
    "--all-in-fp32",
    "--all-in-fp16",
    "--unet-in-bf16",
    "--bf16-unet",
    "--always-low-vram",
    "--always-no-vram",
    "--always-high-vram",
    "--always-gpu",
    "--cuda-malloc",
    "--attention-pytorch",
    "--attention-split",
    "--use-pytorch-cross-attention",
    "--cuda-stream",
]


def known_rules(client: Client) -> list[str]:
    """The rules of fusion that the WebUI's Cross-ControlNet knows; raises WebUIError.

    On the way it is looked whether there is an API, and this extension in it.
    """
    try:
        client.call("/sdapi/v1/samplers")
    except NotThereError:
        raise WebUIError(
            f"{client.url} has no API: is it a WebUI, and was it started with --api? (add it to "
            "COMMANDLINE_ARGS in webui-user)"
        ) from None
    try:
        schema = client.call("/cross-controlnet/v1/schema")
    except NotThereError:
        raise WebUIError(
            f"the WebUI at {client.url} has no Cross-ControlNet: install it under Extensions > "
            "Install from URL, and restart"
        ) from None
    try:
        return [str(rule) for rule in schema["properties"]["fusion"]["enum"]]
    except (KeyError, TypeError):
        raise WebUIError(
            f"the Cross-ControlNet at {client.url} is another version: its schema has no fusion"
        ) from None


def controlnets(client: Client) -> list[str]:
    """The names of the WebUI's ControlNet models; raises WebUIError."""
    try:
        listed = client.call("/controlnet/model_list")["model_list"]
    except NotThereError:
        raise WebUIError(
            f"the WebUI at {client.url} has no ControlNet: AUTOMATIC1111 needs the extension "
            "sd-webui-controlnet; Forge has it built in, if it is not switched off"
        ) from None
    except (KeyError, TypeError):
        raise WebUIError(f"the list of ControlNets at {client.url} cannot be read") from None
    return [str(name) for name in listed if name != "None"]


def sampler(client: Client, wanted: str) -> str:
    """The sampler's name as the WebUI writes it; "" wants the best there is. Raises WebUIError."""
    listed = client.call("/sdapi/v1/samplers")
    names = [str(entry.get("name")) for entry in listed if isinstance(entry, dict)]
    for name in [wanted] if wanted else SAMPLERS:
        found = next((one for one in names if one.lower() == name.lower()), None)
        if found is not None:
            return found
    wish = wanted or " or ".join(SAMPLERS)
    raise WebUIError(
        f"--sampler {showable(wish, 60)}: the WebUI has {showable(', '.join(names), 400)}"
    )


def no_module(client: Client) -> str:
    """What the WebUI calls no preprocessor: "None" or "none"."""
    modules = _read(client, "/controlnet/module_list").get("module_list")
    names = [str(name) for name in modules] if isinstance(modules, list) else []
    return next((name for name in names if name.lower() == "none"), "None")


def checkpoint(client: Client) -> str:
    """The checkpoint that is chosen there, with its hash if it has one."""
    return str(_read(client, "/sdapi/v1/options").get("sd_model_checkpoint") or "")


def about(client: Client) -> dict[str, str]:
    """Card and versions, as far as the API tells; nothing of its paths, names or passwords."""
    system = _read(client, "/internal/sysinfo")
    torch = system.get("Torch env info")
    torch = torch if isinstance(torch, dict) else {}
    memory = _read(client, "/sdapi/v1/memory").get("cuda")
    video = memory.get("system", {}).get("total") if isinstance(memory, dict) else None
    # Not /sdapi/v1/cmd-flags: where --port is given, Forge's fails, and says so on its console.
    words = system.get("Commandline")
    given = {str(word) for word in words} if isinstance(words, list) else set()
    told = {
        "made by": "a WebUI, through its API",
        "WebUI": str(system.get("Version") or ""),
        "card": _first(torch.get("nvidia_gpu_models")) or ("" if video else "none: a CPU"),
        "its memory": f"{video / 2**30:.1f} GiB" if isinstance(video, (int, float)) else "",
        "PyTorch": str(torch.get("torch_version") or ""),
        "Python": str(system.get("Python") or ""),
        "system": str(system.get("Platform") or ""),
        "switches": " ".join(flag for flag in _TOLD_FLAGS if flag in given),
    }
    return {name: showable(text, 200) for name, text in told.items() if text}


def _read(client: Client, path: str) -> dict[str, Any]:
    """What is good to know; empty where the WebUI does not tell."""
    try:
        found = client.call(path)
    except WebUIError:
        return {}
    return found if isinstance(found, dict) else {}


def _first(value: Any) -> str:
    """The first line of what PyTorch tells about cards: "GPU 0: NVIDIA ..."."""
    lines = value if isinstance(value, list) else str(value or "").splitlines()
    return str(lines[0]) if lines and lines[0] not in (None, "None") else ""
