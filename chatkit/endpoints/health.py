"""Blueprint: alive, and ready to serve."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, request

from chatkit.backends.interface import Backend
from chatkit.web.asgi import MISSING
from chatkit.web.errors import NotReady


def blueprint(backend: Backend) -> Blueprint:
    """``GET /healthz`` and ``GET /readyz``, for a platform's checks."""
    bp = Blueprint("health", __name__)

    @bp.get("/healthz")
    def alive() -> dict[str, Any]:
        """Say that the process answers; nothing else is asked."""
        return {"status": "success", "data": {"alive": True}}

    @bp.get("/readyz")
    def ready() -> dict[str, Any]:
        """Say whether a session could be issued now, else 503 with what is missing, by name."""
        missing = request.environ.get(MISSING)  # has been looked for, where the event loop serves this
        if missing := backend.missing() if missing is None else missing:
            raise NotReady(missing)
        return {"status": "success", "data": {"ready": True}}

    return bp
