"""Reads a request's body, JSON or none."""

from __future__ import annotations

from flask import request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from chatkit.web.errors import InvalidRequestBody, NotJson

CHAT_PATH = "/api/chatkit"
MAX_CHAT_BYTES = 8 * 1024 * 1024  # of a body to CHAT_PATH: it may hold dictated audio


def read_json_body(limit: int) -> bytes:
    """The body, at most ``limit`` bytes, unparsed; empty where there is none.

    Raises:
        RequestEntityTooLarge: it is longer.
        InvalidRequestBody: it ended early or could not be read.
        NotJson: it is not declared as JSON in UTF-8.
    """
    # Werkzeug cuts a body of unknown length silently at the limit, so one byte more tells that there was more.
    request.max_content_length = limit + 1
    try:
        body = request.get_data()
    except HTTPException:
        raise  # too large
    except Exception as error:  # the server's own, one for each way in which a body can be broken
        raise InvalidRequestBody("the body could not be read") from error
    if len(body) > limit:
        raise RequestEntityTooLarge
    if request.content_length not in (None, len(body)):
        raise InvalidRequestBody("the body ended early")
    if body and not _says_json():
        raise NotJson("a body that is not declared as JSON")
    return body


def _says_json() -> bool:
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    return request.mimetype == "application/json" and charset in ("utf-8", "utf8")
