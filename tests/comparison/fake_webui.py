"""A WebUI as its API shows it, small enough for a test; what it answers can be changed."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

from lib_ccn.webui.api import schema

CONTROLNETS = [
    *("None", "control_v11p_sd15_openpose [cab727d4]", "control_v11f1p_sd15_depth [cfd03158]"),
    *("control_v11p_sd15_canny [d14c016b]", "t2iadapter_depth_sd15v2 [e1f51eb9]"),
    *("diffusers_xl_depth_full [2f51180b]", "thibaud_xl_openpose [c7b9cadd]"),
]
SYSTEM = {
    "Version": "v1.10.1",
    "Python": "3.10.6",
    "Platform": "Windows-10",
    "Data path": "C:\\Users\\me",
    "Commandline": ["launch.py", "--xformers", "--api-auth", "me:secret", "--ckpt", "/home/me/x"],
    "Torch env info": {"torch_version": "2.1.2+cu121", "nvidia_gpu_models": ["GPU 0: RTX 3060"]},
}


class FakeWebUI(ThreadingHTTPServer):
    """It answers on a port of its own; a context manager.

    Attributes:
        answers: by path, instead of the usual: a value, an HTTP status, (status, text, headers), or
            a function of the request's body that gives one of these.
        asked: every request: path and body.
        headers: of every request.
    """

    daemon_threads = True

    def __init__(self, **answers):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = {f"/{name}": answer for name, answer in answers.items()}
        self.asked, self.headers = [], []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    @property
    def generated(self):
        """The requests for pictures that are kept: those of all their steps."""
        bodies = [body for path, body in self.asked if path == "/sdapi/v1/txt2img"]
        return [body for body in bodies if body["steps"] != 4]

    def handle_error(self, request, client_address):
        """A client that has gone is no news."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply(None)

    def do_POST(self):
        self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def reply(self, body):
        path = self.path.partition("?")[0]
        self.server.asked.append((path, body))
        self.server.headers.append(dict(self.headers))
        answer = self.server.answers.get(path, USUAL.get(path, 404))
        if callable(answer):
            answer = answer(body)
        headers = {}
        if isinstance(answer, int):
            answer = (answer, json.dumps({"detail": "Not Found"}))
        if isinstance(answer, tuple):
            status, text, *more = answer
            headers = more[0] if more else {}
        else:
            status, text = 200, json.dumps(answer)
        with contextlib.suppress(OSError):
            if status == 0:  # it goes without a word
                self.connection.close()
                return
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


def generation(body):
    """A picture that differs with all that is asked for, and what the extension says of it."""
    asked = body["alwayson_scripts"]["Cross-ControlNet"]["args"][0]
    said = {}
    pictures = [picture(body, (body["width"], body["height"]))]
    if asked.get("enabled"):
        said = {"CCN enabled": "True", "CCN done": [f"0: a, 1: b: {asked['fusion']}"]}
        if asked.get("show_mask"):
            pictures.append(picture(body, (3 * body["width"], body["height"])))
    info = {"version": "v1.10.1", "extra_generation_params": {**said, "CCN note": None}}
    return {"images": pictures, "info": json.dumps(info)}


def picture(body, size):
    plain = {name: value for name, value in body.items() if name != "force_task_id"}
    plain |= {name: body[name].strip() for name in ("prompt", "negative_prompt")}
    seed = hash(json.dumps(plain, sort_keys=True)) % 200
    image = Image.linear_gradient("L").resize(size).point(lambda v: v // 2 + seed // 2)
    file = io.BytesIO()
    image.convert("RGB").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


USUAL = {
    "/sdapi/v1/samplers": [{"name": "Euler"}, {"name": "UniPC"}],
    "/sdapi/v1/options": {"sd_model_checkpoint": "v1-5-pruned.safetensors [6ce0161689]"},
    "/sdapi/v1/memory": {"ram": {}, "cuda": {"system": {"total": 12 * 2**30}}},
    "/internal/sysinfo": SYSTEM,
    "/cross-controlnet/v1/schema": schema(),
    "/controlnet/model_list": {"model_list": CONTROLNETS},
    "/controlnet/module_list": {"module_list": ["none", "canny"]},
    "/sdapi/v1/txt2img": generation,
}
