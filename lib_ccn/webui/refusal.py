"""How a generation is refused where `strict` asks for it."""

from __future__ import annotations

from ..showable import showable

try:
    from fastapi import HTTPException
except ImportError:  # outside a WebUI

    class HTTPException(Exception):  # type: ignore[no-redef]  # noqa: N818
        """As fastapi's, as far as it matters here."""

        def __init__(self, status_code: int, detail: str) -> None:
            super().__init__(detail)
            self.status_code = status_code
            self.detail = detail


class RefusedError(HTTPException):
    """A generation is refused for this reason; the WebUIs' API answers HTTP 422 with it."""

    def __init__(self, reason: str) -> None:
        super().__init__(422, f"Cross-ControlNet: {showable(reason)}")

    def __str__(self) -> str:
        return str(self.detail)
