"""A WebUI's API over HTTP, with the standard library alone; every refusal is one sentence.

Nothing is asked of any other address: redirections are refused, and no proxy is used.
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from lib_ccn.showable import showable

ASKING_SECONDS = 60.0
# A picture may wait behind others, and on a CPU takes minutes; Ctrl-C ends the wait.
PICTURE_SECONDS = 6 * 3600.0
_TOLD = 300  # characters of what a WebUI says of an error


class WebUIError(Exception):
    """The WebUI cannot be used, or has refused; the message says why and what to do."""


class NotThereError(WebUIError):
    """The WebUI answers, but has no such address."""


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Client:
    """One WebUI's API.

    Args:
        url: where its page is, such as "http://127.0.0.1:7860". Raises WebUIError if it is none.
        user, password: of its `--api-auth`, if it has one.
    """

    def __init__(self, url: str, user: str | None = None, password: str | None = None) -> None:
        try:
            parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            allowed = "an address such as http://127.0.0.1:7860"
            raise WebUIError(f"--webui {showable(url, _TOLD)}: expected {allowed}")
        place = parts.netloc.rpartition("@")[2]
        self.url = f"{parts.scheme}://{place}{parts.path.rstrip('/')}"
        user = urllib.parse.unquote(parts.username) if user is None and parts.username else user
        if password is None and parts.password:
            password = urllib.parse.unquote(parts.password)
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        self.has_password = user is not None
        if user is not None:
            both = base64.b64encode(f"{user}:{password or ''}".encode()).decode()
            self._headers["Authorization"] = f"Basic {both}"
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), _NoRedirection()
        )

    def call(self, path: str, body: Any = None, seconds: float = ASKING_SECONDS) -> Any:
        """GET, or POST when there is a body; the JSON answer. Raises WebUIError."""
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(self.url + path, data, self._headers)
            with self._opener.open(request, timeout=seconds) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise self._refused(error, path) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._unreachable(error) from None
        try:
            return json.loads(text)
        except ValueError:
            raise WebUIError(
                f"{self.url} answers, but not as a WebUI's API does: is this its address?"
            ) from None

    def _refused(self, error: urllib.error.HTTPError, path: str) -> WebUIError:
        if error.code in (401, 403):
            if self.has_password:
                return WebUIError(f"{self.url} does not accept that --user and --password")
            return WebUIError(
                f"{self.url} asks for a user and a password: give its --api-auth as --user NAME "
                "--password WORD"
            )
        if 300 <= error.code < 400:
            place = showable(error.headers.get("Location", "elsewhere"), _TOLD)
            return WebUIError(f"{self.url} sends us to {place}: give the address that it leads to")
        if error.code in (404, 405):
            return NotThereError(f"{self.url} has no {path}")
        return WebUIError(f"the WebUI answered HTTP {error.code}: {_reason(error)}")

    def _unreachable(self, error: Exception) -> WebUIError:
        reason = getattr(error, "reason", error)
        if isinstance(reason, (socket.timeout, TimeoutError)):
            return WebUIError(f"{self.url} does not answer in time")
        if isinstance(reason, (ConnectionResetError, BrokenPipeError, http.client.HTTPException)):
            return WebUIError(f"{self.url} has stopped answering: has the WebUI ended?")
        said = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        return WebUIError(
            f"no WebUI answers at {self.url} ({showable(said, _TOLD)}): is it running, and is this "
            "its address?"
        )


def _reason(error: urllib.error.HTTPError) -> str:
    """What the WebUI says of an error, in a line."""
    try:
        text = error.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        text = ""
    try:
        said = json.loads(text)
    except ValueError:
        return showable(" ".join(text.split()), _TOLD) or "nothing else"
    if isinstance(said, dict):
        # FastAPI's own, and what the WebUI makes of an exception.
        found = [said.get(key) for key in ("error", "errors", "detail")]
        said = ": ".join(str(value) for value in found if value) or said
    return showable(" ".join(str(said).split()), _TOLD)
