"""Pictures from a running WebUI of the AUTOMATIC1111 or Forge family."""

from __future__ import annotations

import base64
import io
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from lib_ccn.settings import TITLE
from lib_ccn.showable import showable

from . import host
from .client import PICTURE_SECONDS, Client, WebUIError
from .made import Job, Made, MakeError, Sampling
from .nets import TITLES, is_union, without_hash
from .pairs import NEGATIVE

# Steps of a short run, whose time is what a picture takes beside its sampling; UniPC needs 3.
SHORT = 4
_TIMED = 12  # steps from which on what is left without those of a short run tells a step's time
# How a union ControlNet is told the kind of a condition.
UNION_KINDS = {"openpose": "OpenPose", "depth": "Depth", "seg": "Segmentation", "canny": "Canny"}
_SHAPES = ("mat1 and mat2", "size mismatch", "shapes cannot be multiplied", "must match the size")


class WebUI:
    """The maker of pictures that asks a WebUI for them.

    Args:
        client: of a WebUI that `host` has looked at.
        nets: the ControlNet for each kind of condition.
        family: `SD15` or `SDXL`.
        sampling: what to sample with; an empty sampler stands for the best that the WebUI has.

    Raises:
        WebUIError: it lacks something, such as the sampler.
    """

    def __init__(
        self, client: Client, nets: Mapping[str, str], family: str, sampling: Sampling
    ) -> None:
        self.client, self.nets, self.family = client, nets, family
        self.sampling = Sampling(
            sampling.size,
            sampling.steps,
            sampling.guidance_scale,
            host.sampler(client, sampling.sampler),
        )
        self._none = host.no_module(client)
        self._overheads: dict[str, float] = {}
        self._task = self._space = ""
        self._checkpoint = host.checkpoint(client)

    def identity(self) -> dict[str, Any]:
        """The checkpoint, which nothing here chooses."""
        return {"checkpoint": self._checkpoint}

    def about(self) -> dict[str, str]:
        """Card, versions and models, as far as the API tells."""
        return {**host.about(self.client), "checkpoint": showable(self._checkpoint, 200)}

    def make(self, job: Job) -> Made:
        """One picture; before the first of a pair come short runs."""
        body = self._body(job)
        overhead = self._overhead(job)
        answer, seconds = self._generate(body, job)
        pictures = answer["images"]
        info = _info(answer)
        parameters = info.get("extra_generation_params")
        parameters = parameters if isinstance(parameters, dict) else {}
        done = parameters.get("CCN done") or []
        timed = seconds > overhead and self.sampling.steps >= _TIMED
        step = (seconds - overhead) / (self.sampling.steps - SHORT) if timed else None
        return Made(
            _picture(pictures[0]),
            _strip(pictures[1:]),
            seconds,
            step,
            [str(line) for line in (done if isinstance(done, list) else [done])],
            self._note(job, parameters),
        )

    def interrupt(self) -> None:
        """End the picture that is being made, if it is still ours; says nothing of failures."""
        try:
            # The page's own progress; that of the API does not say whose picture it is.
            asked = {"id_task": self._task, "live_preview": False}
            if self._task and self.client.call("/internal/progress", asked, 5).get("active"):
                self.client.call("/sdapi/v1/interrupt", {}, seconds=5)
        except (WebUIError, AttributeError):
            pass

    def _note(self, job: Job, parameters: Mapping[str, Any]) -> str:
        note = str(parameters.get("CCN note") or "")
        if job.settings is not None and not note and not parameters.get("CCN enabled"):
            note = "the WebUI's text says nothing of Cross-ControlNet"
        if "ran no ControlNet" in note or "fewer than two" in note:
            note += (
                " (are both models ControlNets, and is the checkpoint "
                f"{self._checkpoint or 'there'} {TITLES[self.family]} as they are?)"
            )
        return note

    def _overhead(self, job: Job) -> float:
        """The seconds of a short run of the pair, once its models and its prompt are loaded."""
        name = job.pair.name
        if name not in self._overheads:
            body = {**self._body(job, plain=True), "steps": SHORT}
            self._generate(body, job)
            self._overheads[name] = self._generate(body, job)[1]
        return self._overheads[name]

    def _generate(self, body: Mapping[str, Any], job: Job) -> tuple[dict[str, Any], float]:
        self._task = f"task(ccn-{uuid.uuid4().hex})"
        # The host keeps the encoded texts of the request before; none shall be spared its own.
        self._space = "" if self._space else " "
        texts = {name: body[name] + self._space for name in ("prompt", "negative_prompt")}
        asked = {**body, **texts, "force_task_id": self._task}
        began = time.monotonic()
        try:
            answer = self.client.call("/sdapi/v1/txt2img", asked, PICTURE_SECONDS)
        except WebUIError as error:
            where = f"{job.pair.name}, {job.method}: "
            raise MakeError(where + str(error) + self._hint(str(error), body)) from error
        seconds = time.monotonic() - began
        self._task = ""
        if not isinstance(answer, dict) or not answer.get("images"):
            raise MakeError(f"{job.pair.name}, {job.method}: the WebUI sent no picture")
        return answer, seconds

    def _hint(self, said: str, body: Mapping[str, Any]) -> str:
        if any(words in said for words in _SHAPES):
            units = body["alwayson_scripts"]["ControlNet"]["args"]
            nets = " and ".join(without_hash(unit["model"]) for unit in units)
            other = "without" if self.family == "sdxl" else "with"
            return (
                f". The shapes do not fit: {self._checkpoint or 'the checkpoint'} may be of "
                f"another family than {nets} ({TITLES[self.family]}); choose another checkpoint in "
                f"the WebUI, or run this {other} --sdxl"
            )
        if "memory" in said.lower():
            return f". Less is asked for with --size {self.sampling.size[0] * 3 // 32 * 8}"
        return ""

    def _body(self, job: Job, plain: bool = False) -> dict[str, Any]:
        settings = None if plain else job.settings
        # Said in words: what the page was left with may be another default.
        asked = {"enabled": False} if settings is None else settings
        units = [
            self._unit(kind, image)
            for kind, image in zip(job.pair.kinds, job.conditions, strict=True)
        ]
        width, height = self.sampling.size
        return {
            "prompt": job.pair.prompt,
            "negative_prompt": NEGATIVE,
            "seed": job.seed,
            "steps": self.sampling.steps,
            "width": width,
            "height": height,
            "cfg_scale": self.sampling.guidance_scale,
            "sampler_name": self.sampling.sampler,
            "scheduler": "Automatic",
            "batch_size": 1,
            "n_iter": 1,
            "save_images": False,
            "alwayson_scripts": {"ControlNet": {"args": units}, TITLE: {"args": [asked]}},
        }

    def _unit(self, kind: str, image: Image.Image) -> dict[str, Any]:
        model = self.nets[kind]
        union: dict[str, Any] = {}
        if is_union(model):  # as sd-webui-controlnet calls it, and as Forge Neo does
            union = dict.fromkeys(("union_control_type", "type_filter"), UNION_KINDS[kind])
        return {
            "enabled": True,
            "module": self._none,
            "model": model,
            "image": _encoded(image),
            "weight": 1.0,
            "resize_mode": "Just Resize",
            "control_mode": "Balanced",
            "pixel_perfect": False,
            "processor_res": min(image.size),
            "guidance_start": 0.0,
            "guidance_end": 1.0,
            "save_detected_map": False,
            **union,
        }


def _info(answer: Mapping[str, Any]) -> dict[str, Any]:
    try:
        info = json.loads(answer["info"])
    except (KeyError, ValueError, TypeError):
        return {}
    return info if isinstance(info, dict) else {}


def _picture(text: str) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(base64.b64decode(str(text).split(",")[-1])))
        return picture.convert("RGB")
    except (ValueError, OSError) as error:
        raise MakeError(f"the WebUI sent a picture that cannot be read: {error}") from error


def _strip(texts: Sequence[str]) -> Image.Image | None:
    """The strip of what was done among further images: its panels stand side by side."""
    for text in reversed(texts):
        picture = _picture(text)
        if picture.width > 1.5 * picture.height:
            return picture
    return None


def _encoded(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
