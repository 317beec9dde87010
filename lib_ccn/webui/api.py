"""Two routes that tell a client what it may send: the settings' JSON schema, and the presets.

    GET /cross-controlnet/v1/schema
    GET /cross-controlnet/v1/presets

They are there when the WebUI's own API is, and ask for the same password (`--api-auth`).
"""

from __future__ import annotations

import secrets
from typing import Any

from ..settings import json_schema
from .presets import NAME_LIMIT, PresetStore, default_store

PREFIX = "/cross-controlnet/v1"


def schema() -> dict[str, Any]:
    """Return the JSON schema of the dict that a generation's request takes.

    It is that of the settings, and "preset". "enabled" is true unless said otherwise, because a
    client that sends settings wants them used.
    """
    result = json_schema()
    properties = result["properties"]
    properties["enabled"]["default"] = True
    properties["preset"] = {
        "type": "string",
        "maxLength": NAME_LIMIT,
        "title": "Preset",
        "description": "Name of a preset, whose values stand where the request gives none.",
    }
    return result


def presets(store: PresetStore) -> dict[str, Any]:
    """Return every preset with its settings, and what of the folder could not be read."""
    listed = [
        {
            "name": preset.name,
            "built_in": preset.built_in,
            "description": preset.description,
            "settings": dict(preset.settings),
        }
        for preset in store.all()
    ]
    return {"presets": listed, "problems": store.problems()}


def register(app: Any) -> None:
    """Add the routes to the WebUI's FastAPI app; for the callback `on_app_started`."""
    from modules.shared_cmd_options import cmd_opts

    if getattr(cmd_opts, "api", False) or getattr(cmd_opts, "nowebui", False):
        add_routes(app, default_store, getattr(cmd_opts, "api_auth", None))


def add_routes(app: Any, store: Any, api_auth: str | None) -> None:
    """Add the routes, once.

    `store()` gives the preset store; `api_auth` is the value of `--api-auth`, "user:password"
    with commas between several, or None for open routes.
    """
    from fastapi import Depends

    def get_schema() -> dict[str, Any]:
        """JSON schema of the settings of Cross-ControlNet."""
        return schema()

    def get_presets() -> dict[str, Any]:
        """Presets of Cross-ControlNet."""
        return presets(store())

    present = {getattr(route, "path", None) for route in app.routes}
    guard = [Depends(_guard(api_auth))] if api_auth else []
    for name, endpoint in (("schema", get_schema), ("presets", get_presets)):
        path = f"{PREFIX}/{name}"
        if path not in present:
            app.add_api_route(path, endpoint, methods=["GET"], dependencies=guard)


def _guard(api_auth: str) -> Any:
    """Return the dependency that lets those in whom the WebUI's own API would."""
    from fastapi import Depends, HTTPException
    from fastapi.security import HTTPBasic

    passwords = dict(entry.split(":", 1) for entry in api_auth.split(",") if ":" in entry)
    basic = Depends(HTTPBasic())

    def check(credentials=basic) -> None:  # type: ignore[no-untyped-def]
        expected = passwords.get(credentials.username)
        given = credentials.password.encode()
        if expected is None or not secrets.compare_digest(given, expected.encode()):
            raise HTTPException(
                401, "Incorrect username or password", {"WWW-Authenticate": "Basic"}
            )

    return check
