"""CORS: which web pages may call the API."""

from __future__ import annotations

import re

from flask import Flask, request
from flask_cors import CORS

from chatkit.web.errors import OriginNotAllowed

PREFLIGHT_SECONDS = 600


def register(app: Flask, allowed: tuple[re.Pattern[str], ...]) -> None:
    """Answer preflights and add CORS headers for ``allowed`` origins, errors included; refuse pages of any other.

    A missing header would only keep a page from reading the answer, after the session has been minted and paid for. So the
    others are refused before anything happens. Calls without ``Origin`` come from no page (curl, servers) and pass.

    The ``Host`` header never decides. A page whose name resolves to this service's address (DNS rebinding) chooses it.
    """

    @app.before_request
    def refuse_other_origins() -> None:
        origin = request.headers.get("Origin")
        if origin is None or not request.path.startswith("/api/"):
            return
        if not any(pattern.fullmatch(origin) for pattern in allowed):
            raise OriginNotAllowed(f"the page's origin is {origin[:100]!r}; if it is yours, add it to CHATKIT_ALLOWED_ORIGINS")

    CORS(
        app,
        resources=r"/api/.*",
        origins=list(allowed),
        methods=["DELETE", "POST"],
        allow_headers="*",  # ChatKit's component adds headers of its own, and listed origins are trusted with any
        expose_headers=["RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset", "Retry-After", "X-Request-ID"],
        supports_credentials=True,
        max_age=PREFLIGHT_SECONDS,
        always_send=False,
    )
