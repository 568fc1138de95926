"""Which web pages may call the API: those of listed origins, and this service's own."""

from __future__ import annotations

import re

from flask import Flask, request
from flask_cors import CORS

from chatkit.problems import OriginNotAllowed

PREFLIGHT_SECONDS = 600


def register(app: Flask, allowed: tuple[re.Pattern[str], ...]) -> None:
    """Answer preflights and add CORS headers for listed origins, errors included; refuse pages of any other.

    A missing header would only keep a page from reading the answer, after the session has been minted and paid for. So the
    others are refused before anything happens. Calls without ``Origin`` come from no page (curl, servers) and pass.
    """

    @app.before_request
    def refuse_other_origins() -> None:
        origin = request.headers.get("Origin")
        if origin is None or not request.path.startswith("/api/"):
            return
        own = request.host_url.rstrip("/")
        if origin != own and not any(pattern.fullmatch(origin) for pattern in allowed):
            raise OriginNotAllowed(f"origin {origin[:100]!r} is not in CHATKIT_ALLOWED_ORIGINS (own origin: {own!r})")

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
