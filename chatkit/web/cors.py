"""CORS: the web pages that may call the API."""

from __future__ import annotations

import re

from flask import Flask, request
from flask_cors import CORS

from chatkit.web.errors import OriginNotAllowed
from chatkit.web.request_body import ATTACHMENTS_PATH, IMAGES_PATH

PREFLIGHT_SECONDS = 600


def register(app: Flask, allowed: tuple[re.Pattern[str], ...]) -> None:
    """Answer preflights and add CORS headers for ``allowed`` origins, also to errors; reject requests from other origins.

    Without its CORS headers a page can't read the response, but the session has been issued and paid for. So requests from
    other origins are rejected first. Requests without ``Origin`` (curl, servers) don't come from a web page and pass.

    The ``Host`` header is not considered: in a DNS rebinding attack the page chooses it.
    """

    @app.before_request
    def reject_other_origins() -> None:
        origin = request.headers.get("Origin")
        if origin is None or not request.path.startswith("/api/"):
            return
        # ChatKit's frame, of OpenAI's origin, shows images and may upload. Both have signed URLs.
        if request.path.startswith((IMAGES_PATH, ATTACHMENTS_PATH)):
            return
        if not any(pattern.fullmatch(origin) for pattern in allowed):
            raise OriginNotAllowed(f"the page's origin is {origin[:100]!r}; if it is yours, add it to CHATKIT_ALLOWED_ORIGINS")

    CORS(
        app,
        resources={
            rf"{ATTACHMENTS_PATH}.*": {"origins": "*", "methods": ["PUT"]},
            r"/api/.*": {"origins": list(allowed), "methods": ["DELETE", "POST"]},
        },
        allow_headers="*",  # ChatKit's component adds headers of its own, and listed origins are trusted
        expose_headers=[
            "ChatKit-Run",
            "RateLimit-Limit",
            "RateLimit-Remaining",
            "RateLimit-Reset",
            "Retry-After",
            "X-Request-ID",
        ],
        supports_credentials=True,
        max_age=PREFLIGHT_SECONDS,
        always_send=False,
    )
