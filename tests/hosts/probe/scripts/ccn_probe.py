"""Test-only routes for what cannot be seen over a WebUI's API; never part of the extension.

GET  /ccn-probe/state    hooks, patches, sessions and memory that are there now; counters
POST /ccn-probe/dump     {"folder", "skip"}: write a UNet call's residuals to residuals.safetensors
POST /ccn-probe/break    {"target": "module:Name.attribute", "after"}: let that raise
POST /ccn-probe/mend     undo every break
POST /ccn-probe/faces    let Forge and its kin see a face in every picture, without InsightFace
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
from ccn_watching import PACKAGE, Breaks, Counters, Dump, memory, survey
from fastapi import Body
from modules import script_callbacks

PATCHED = ("ControlParams", "UnetHook", "UnetPatcher", "ModelPatcher", "ControlNetPatcher")


BODY = Body(...)


class Faces:
    """In InsightFace's place: any picture has one face, of 512 numbers made from its pixels."""

    def __init__(self):
        self.det_model = SimpleNamespace()

    def get(self, picture):
        generator = np.random.default_rng(int(picture.sum()))
        return [SimpleNamespace(embedding=generator.standard_normal(512, np.float32))]


class Probe:
    """The routes' state."""

    def __init__(self):
        self.counters = Counters()
        self.dump = None
        self.breaks = Breaks()

    def state(self):
        loaded = f"{PACKAGE}.session" in sys.modules
        found = {"loaded": loaded, "counts": self.counters.take(), **survey(PATCHED)}
        return {**found, "memory": memory()}

    def start_dump(self, body: dict = BODY):
        if self.dump is not None:
            self.dump.stop()
        self.dump = Dump(body["folder"], int(body.get("skip", 0)))
        self.counters.attach()
        self.counters.listener = self.dump.called
        return {}

    def break_it(self, body: dict = BODY):
        self.breaks.add(**body)
        return {}

    def mend(self, body: dict = BODY):
        self.breaks.mend()
        return {}

    def find_faces(self, body: dict = BODY):
        from modules_forge.shared import supported_preprocessors

        for preprocessor in supported_preprocessors.values():
            if "Instant-ID" in preprocessor.tags and hasattr(preprocessor, "cached_insightface"):
                preprocessor.cached_insightface = Faces()
        return {}


probe = Probe()


def add_routes(_demo, app):
    """Put the routes beside the WebUI's own."""
    app.add_api_route("/ccn-probe/state", probe.state, methods=["GET"])
    app.add_api_route("/ccn-probe/dump", probe.start_dump, methods=["POST"])
    app.add_api_route("/ccn-probe/break", probe.break_it, methods=["POST"])
    app.add_api_route("/ccn-probe/mend", probe.mend, methods=["POST"])
    app.add_api_route("/ccn-probe/faces", probe.find_faces, methods=["POST"])


script_callbacks.on_app_started(add_routes)
