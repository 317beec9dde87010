"""Asks a WebUI for pictures over HTTP. Standard library, NumPy and Pillow only."""

from __future__ import annotations

import base64
import io
import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TITLE = "Cross-ControlNet"
GENERATION_SECONDS = 900

Json = dict[str, Any]
Pixels = NDArray[np.uint8]


class HttpError(Exception):
    """The WebUI refused a request; `status` is HTTP's, `text` the body."""

    def __init__(self, status: int, text: str) -> None:
        self.status, self.text = status, text
        super().__init__(f"HTTP {status}: {text[:2000]}")


@dataclass(frozen=True)
class Reply:
    """What came back for one request.

    Attributes:
        pictures: what was generated.
        info: all that is said about them.
        extras: what scripts have added, such as the maps that ControlNet saw.
    """

    pictures: list[Pixels]
    info: Json
    extras: list[Pixels] = field(default_factory=list)

    @property
    def infotexts(self) -> list[str]:
        """One text per picture, as in its PNG."""
        texts: list[str] = self.info["infotexts"]
        return texts

    @property
    def parameters(self) -> Json:
        """The scripts' own generation parameters by name, less those that say nothing."""
        found: Json = self.info.get("extra_generation_params") or {}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def enabled(self) -> bool:
        """Whether the infotext says that Cross-ControlNet was asked for."""
        return "CCN enabled: True" in self.infotexts[0]

    @property
    def note(self) -> str:
        """Why Cross-ControlNet stood aside, or what else it has to say; empty for nothing."""
        return str(self.parameters.get("CCN note") or "")


class Client:
    """One WebUI's API."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._models: list[str] = []
        self._upscaler = ""

    def call(self, path: str, body: Any = None, seconds: float = GENERATION_SECONDS) -> Any:
        """GET, or POST when there is a body; the JSON answer. Raises HttpError."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=seconds) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise HttpError(error.code, error.read().decode("utf-8", "replace")) from None

    def generate(self, body: Json) -> Reply:
        """Run txt2img, or img2img when the body has init_images."""
        path = "/sdapi/v1/img2img" if "init_images" in body else "/sdapi/v1/txt2img"
        answer = self.call(path, body)
        found = [pixels(text) for text in answer["images"]]
        count = body.get("batch_size", 1) * body.get("n_iter", 1)
        return Reply(found[:count], json.loads(answer["info"]), found[count:])

    def model(self, stem: str) -> str:
        """A ControlNet model's name as the host writes it, with its hash."""
        if not self._models:
            self._models = self.call("/controlnet/model_list")["model_list"]
        return next(name for name in self._models if name.split(" ")[0] == stem)

    def upscaler(self) -> str:
        """What the hires pass begins from: the latents where the host can enlarge those."""
        if not self._upscaler:
            modes = [mode["name"] for mode in self.call("/sdapi/v1/latent-upscale-modes")]
            # "None" enlarges too, by Pillow's own means.
            self._upscaler = "Latent" if "Latent" in modes else "None"
        return self._upscaler

    def pasted(self, infotext: str) -> Json:
        """What the host reads out of a picture's infotext."""
        image = {"image": encoded(Image.new("RGB", (8, 8)), infotext)}
        found: Json = self.call("/sdapi/v1/png-info", image)["parameters"]
        return found


def done(reply: Reply) -> str:
    """What was done, a line for each pass."""
    return "\n".join(reply.parameters["CCN done"])


def pixels(text: str) -> Pixels:
    """Decode a base64 picture into [H, W, 3]."""
    picture = Image.open(io.BytesIO(base64.b64decode(text.split(",")[-1])))
    return np.asarray(picture.convert("RGB"))


def encoded(picture: Image.Image, infotext: str | None = None) -> str:
    """Encode a picture as base64 PNG, with an infotext when given."""
    from PIL.PngImagePlugin import PngInfo

    words = PngInfo()
    if infotext is not None:
        words.add_text("parameters", infotext)
    file = io.BytesIO()
    picture.save(file, "PNG", pnginfo=words)
    return base64.b64encode(file.getvalue()).decode()


def same(first: Reply, second: Reply) -> bool:
    """Whether two replies hold the same pictures, bit by bit."""
    return len(first.pictures) == len(second.pictures) and all(
        np.array_equal(a, b) for a, b in zip(first.pictures, second.pictures, strict=True)
    )


def distance(first: Reply, second: Reply) -> float:
    """The mean absolute difference of the pictures, in grey levels of 0 to 255."""
    return float(
        np.mean(
            [
                np.abs(a.astype(float) - b.astype(float)).mean()
                for a, b in zip(first.pictures, second.pictures, strict=True)
            ]
        )
    )
