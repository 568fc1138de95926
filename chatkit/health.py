"""Blueprint: alive, and ready to serve."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, request

from chatkit.issuers import Issuer
from chatkit.problems import NotReady
from chatkit.web.asgi import MISSING


def blueprint(issuer: Issuer) -> Blueprint:
    """``GET /healthz`` and ``GET /readyz``, for a platform's checks."""
    bp = Blueprint("health", __name__)

    @bp.get("/healthz")
    def alive() -> dict[str, Any]:
        """Says that the process answers; asks nobody."""
        return {"status": "success", "data": {"alive": True}}

    @bp.get("/readyz")
    def ready() -> dict[str, Any]:
        """Says whether a session could be minted now, else 503 with what is missing, by name."""
        missing = request.environ.get(MISSING)  # has been looked for, where the event loop serves this
        if missing := issuer.missing() if missing is None else missing:
            raise NotReady(missing)
        return {"status": "success", "data": {"ready": True}}

    return bp
