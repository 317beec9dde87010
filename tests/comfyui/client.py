"""Runs graphs in a ComfyUI over HTTP and its websocket."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from comfyui.graphs import Graph, Json

SECONDS = 600


class RefusedError(Exception):
    """A graph was not taken; `answer` is what ComfyUI says of it."""

    def __init__(self, answer: Json) -> None:
        self.answer = answer
        super().__init__(json.dumps(answer)[:2000])

    @property
    def details(self) -> str:
        """Everything that is said about its nodes."""
        found = self.answer.get("node_errors", {})
        parts = [one for node in found.values() for one in node["errors"]]
        return "; ".join(f"{one['message']}: {one['details']}" for one in parts)


@dataclass
class Done:
    """What came of a graph.

    Attributes:
        status: "success" or "error".
        messages: ComfyUI's own, of how it went.
        outputs: by node, what each shows.
        folder: where kept files lie.
    """

    status: str
    messages: list[Any]
    outputs: Json
    folder: Path = field(default_factory=Path)

    @property
    def error(self) -> str:
        """What ComfyUI says went wrong, "" for nothing."""
        return next(
            (one["exception_message"] for kind, one in self.messages if kind == "execution_error"),
            "",
        )

    @property
    def interrupted(self) -> bool:
        """Whether it was interrupted."""
        return any(kind == "execution_interrupted" for kind, _ in self.messages)

    def kept(self, name: str = "picture") -> Any:
        """A kept array."""
        return np.load(self.folder / f"{name}.npy")

    @property
    def summary(self) -> str:
        """What the report says."""
        return (self.folder / "report.txt").read_text(encoding="utf-8")


class Client:
    """One ComfyUI."""

    def __init__(self, url: str, output: Path) -> None:
        self.url, self.output = url, output
        self.name = uuid.uuid4().hex

    def call(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """GET, or POST where there is a body; the JSON answer. Raises RefusedError."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            told = error.read().decode("utf-8", "replace")
            try:
                raise RefusedError(json.loads(told)) from None
            except ValueError:
                raise RefusedError({"error": told}) from None
        return json.loads(text) if text else None

    def queue(self, graph: Graph | Json) -> str:
        """Queue a graph; its id."""
        nodes = graph.nodes if isinstance(graph, Graph) else graph
        return str(self.call("/prompt", {"prompt": nodes, "client_id": self.name})["prompt_id"])

    def wait(self, prompt: str) -> Done:
        """Wait until a graph is done."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            found = self.call(f"/history/{prompt}").get(prompt)
            if found is not None:
                status = found["status"]
                return Done(status["status_str"], status["messages"], found["outputs"], self.output)
            time.sleep(0.05)
        raise TimeoutError(f"{prompt} is not done after {SECONDS} s")

    def run(self, graph: Graph | Json, fails: bool = False) -> Done:
        """Run a graph; unless it `fails`, it must succeed."""
        done = self.wait(self.queue(graph))
        assert fails or done.status == "success", done.error
        return done

    @contextmanager
    def events(self) -> Iterator[Iterator[Json]]:
        """What ComfyUI tells of this client's graphs while they run."""
        import websocket

        socket = websocket.WebSocket()
        socket.connect(
            f"ws{self.url.removeprefix('http')}/ws?clientId={self.name}", timeout=SECONDS
        )

        def heard() -> Iterator[Json]:
            while True:
                text = socket.recv()
                if isinstance(text, str) and text:
                    yield json.loads(text)

        try:
            yield heard()
        finally:
            socket.close()
