"""Reads request bodies, which are JSON or empty."""

from __future__ import annotations

from flask import request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from chatkit.web.errors import InvalidRequestBody, NotJson

CHAT_PATH = "/api/chatkit"
IMAGES_PATH = f"{CHAT_PATH}/images/"
MAX_CHAT_BYTES = 8 * 1024 * 1024  # may contain dictated audio


def read_json_body(limit: int) -> bytes:
    """Return the body, unparsed.

    Raises:
        RequestEntityTooLarge: it is longer than ``limit`` bytes.
        InvalidRequestBody: it ended early or can't be read.
        NotJson: ``Content-Type`` is not JSON in UTF-8.
    """
    # Werkzeug silently cuts a body of unknown length at the limit; one more byte shows that there was more.
    request.max_content_length = limit + 1
    try:
        body = request.get_data()
    except HTTPException:
        raise  # too large
    except Exception as error:  # the server raises a different exception for each kind of malformed body
        raise InvalidRequestBody("the body can't be read") from error
    if len(body) > limit:
        raise RequestEntityTooLarge
    if request.content_length not in (None, len(body)):
        raise InvalidRequestBody("the body ended early")
    if body and not _is_declared_json():
        raise NotJson("Content-Type is not application/json in UTF-8")
    return body


def _is_declared_json() -> bool:
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    return request.mimetype == "application/json" and charset in ("utf-8", "utf8")
