"""Blueprint of the health checks."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, request

from chatkit.backends.interface import Backend
from chatkit.web.asgi import MISSING
from chatkit.web.errors import NotReady


def blueprint(backend: Backend) -> Blueprint:
    """Serve ``GET /healthz`` and ``GET /readyz``."""
    bp = Blueprint("health", __name__)

    @bp.get("/healthz")
    def alive() -> dict[str, Any]:
        """Respond whenever the process does."""
        return {"status": "success", "data": {"alive": True}}

    @bp.get("/readyz")
    def ready() -> dict[str, Any]:
        """Check whether a session can be issued now; otherwise respond with 503 and the reason."""
        missing = request.environ.get(MISSING)  # set by web/asgi, which has already checked
        if missing := backend.missing() if missing is None else missing:
            raise NotReady(f"Missing: {', '.join(missing)}")
        return {"status": "success", "data": {"ready": True}}

    return bp
