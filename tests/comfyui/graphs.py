"""Graphs in ComfyUI's API format."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
Link = list[Any]

FLUX_TEXT, FLUX_POOLED = 64, 32
PROMPT, WORD, NEGATIVE = "a red star over a green hill", "star", "blurry, dark"
APPLY, REPORT = "CrossControlNetApply", "CrossControlNetReport"
# Injection from the second step on, with a mask of some shape.
METHOD: Json = {"mask_source": "word", "injection_start": 0.3}
SUM: Json = {"fusion": "sum", "injection": False, "record": False}


class Graph:
    """A graph that is being put together.

    Args:
        checkpoint: the model's file.
        size: of the pictures, in pixels.
        batch: how many of them.
    """

    def __init__(
        self,
        checkpoint: str = "ccn-random-sd15.safetensors",
        size: tuple[int, int] = (128, 128),
        batch: int = 1,
    ) -> None:
        self.nodes: Json = {}
        width, height = size
        loaded = self.add("CheckpointLoaderSimple", ckpt_name=checkpoint)
        self.model, self.clip, self.vae = ([loaded, n] for n in range(3))
        self.latent = self.out("EmptyLatentImage", width=width, height=height, batch_size=batch)
        self.word = self.add("CrossControlNetWord", clip=self.clip, text=PROMPT, word=WORD)
        self.positive: Link = [self.word, 0]
        self.negative = self.encode(NEGATIVE)
        self.report: Link | None = None
        self.latents: Link | None = None

    def add(self, kind: str, /, **inputs: Any) -> str:
        """Add a node; its id."""
        name = str(len(self.nodes) + 1)
        self.nodes[name] = {"class_type": kind, "inputs": inputs}
        return name

    def out(self, kind: str, number: int = 0, /, **inputs: Any) -> Link:
        """Add a node; one of its outputs."""
        return [self.add(kind, **inputs), number]

    def encode(self, text: str) -> Link:
        """A prompt's conditioning."""
        return self.out("CLIPTextEncode", clip=self.clip, text=text)

    def image(self, number: int = 0) -> Link:
        """A condition's picture."""
        return self.out("LoadImage", image=f"ccn-condition-{number}.png")

    def mask(self) -> Link:
        """The left half."""
        return self.out("LoadImage", 1, image="ccn-mask.png")

    def control(self, name: str = "a") -> Link:
        """A ControlNet."""
        return self.out("ControlNetLoader", control_net_name=f"ccn-random-{name}.safetensors")

    def unit(self, name: str = "a", image: int = 0, net: Link | None = None, **more: Any) -> None:
        """Apply a ControlNet to both conditionings."""
        given = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, **more}
        made = self.add(
            "ControlNetApplyAdvanced",
            positive=self.positive,
            negative=self.negative,
            control_net=net or self.control(name),
            image=self.image(image),
            **given,
        )
        self.positive, self.negative = [made, 0], [made, 1]

    def two(self, **more: Any) -> Graph:
        """Two ControlNets."""
        self.unit("a", 0, **more)
        self.unit("b", 1, **more)
        return self

    def fuse(self, **given: Any) -> Graph:
        """Put our node behind them."""
        chosen = {"fusion": "pix+channel", "delta": 0.5, "injection": True, **given}
        chosen.setdefault("mask_source", "automatic")
        if chosen["mask_source"] == "word":
            chosen.setdefault("word", [self.word, 1])
        if chosen["mask_source"] == "mask":
            chosen.setdefault("mask", self.mask())
        made = self.add(APPLY, positive=self.positive, negative=self.negative, **chosen)
        self.positive, self.negative, self.report = [made, 0], [made, 1], [made, 2]
        return self

    def layer(self, unit: int, word: str = "", in_front: Link | None = None, **more: Any) -> Link:
        """A ControlNet in front of others, behind those in front of it."""
        given = {"unit": unit, "word": word, **more}
        given |= {} if in_front is None else {"in_front": in_front}
        return self.out("CrossControlNetLayer", **given)

    def sample(self, keep: str = "picture", **more: Any) -> Graph:
        """Sample, and keep the latents as a file `keep`."""
        given: Json = {"seed": 7, "steps": 4, "cfg": 5.0, "denoise": 1.0}
        given |= {"sampler_name": "euler", "scheduler": "normal", "latent_image": self.latent}
        self.latents = self.out(
            "KSampler",
            model=self.model,
            positive=self.positive,
            negative=self.negative,
            **{**given, **more},
        )
        self.add("CCNProbeKeep", samples=self.latents, name=keep)
        return self

    def pictures(self) -> Link:
        """What was sampled, decoded."""
        return self.out("VAEDecode", samples=self.latents, vae=self.vae)

    def show(self, keep: str = "report") -> Graph:
        """Decode, and keep what the report says as files `keep`."""
        made = self.add(REPORT, report=self.report, images=self.pictures())
        self.add("CCNProbeReport", mask=[made, 1], winners=[made, 2], summary=[made, 3], name=keep)
        return self


class FluxGraph(Graph):
    """A graph for FLUX, whose prompts are encoded to random numbers."""

    def __init__(self, size: tuple[int, int] = (128, 128), batch: int = 1) -> None:
        self.nodes: Json = {}
        width, height = size
        name = "ccn-random-flux.safetensors"
        self.model = self.out("UNETLoader", unet_name=name, weight_dtype="default")
        sizes = {"width": width, "height": height, "batch_size": batch}
        self.latent = self.out("EmptySD3LatentImage", **sizes)
        given = {"width": FLUX_TEXT, "pooled": FLUX_POOLED}
        self.clip = self.out("CCNProbeText", **given)
        self.word = self.add("CrossControlNetWord", clip=self.clip, text=PROMPT, word=WORD)
        self.positive = [self.word, 0]
        self.negative = self.out("CCNProbeCondition", seed=2, tokens=256, **given)
        self.report = self.latents = None

    def both(self) -> Graph:
        """Two ControlNets with double and single blocks."""
        self.unit("flux-both-a", 0, strength=0.7)
        self.unit("flux-both-b", 1, strength=0.7)
        return self

    def two(self, **more: Any) -> Graph:
        """Two ControlNets with double blocks only."""
        self.unit("flux-a", 0, **more)
        self.unit("flux-b", 1, **more)
        return self

    def pictures(self) -> Link:
        """In place of the decoded latents: there is no small VAE for this model."""
        return self.out("CCNProbePictures", samples=self.latents)


class XlGraph(FluxGraph):
    """A graph for SDXL, whose prompts are random numbers: its text encoders are large."""

    def __init__(self, size: tuple[int, int] = (128, 128), batch: int = 1) -> None:
        self.nodes: Json = {}
        width, height = size
        name = "ccn-random-sdxl.safetensors"
        self.model = self.out("UNETLoader", unet_name=name, weight_dtype="default")
        sizes = {"width": width, "height": height, "batch_size": batch}
        self.latent = self.out("EmptyLatentImage", **sizes)
        given = {"tokens": 77, "width": 2048, "pooled": 1280}
        self.positive = self.out("CCNProbeCondition", seed=1, **given)
        self.negative = self.out("CCNProbeCondition", seed=2, **given)
        self.report = self.latents = None

    def two(self, **more: Any) -> Graph:
        """Two ControlNets."""
        self.unit("sdxl-a", 0, **more)
        self.unit("sdxl-b", 1, **more)
        return self
