"""Reads request bodies: JSON, files, or nothing."""

from __future__ import annotations

from flask import request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from chatkit.settings import MAX_ATTACHMENT_BYTES
from chatkit.web.errors import InvalidRequestBody, NotJson

CHAT_PATH = "/api/chatkit"
IMAGES_PATH = f"{CHAT_PATH}/images/"
ATTACHMENTS_PATH = f"{CHAT_PATH}/attachments/"
MAX_CHAT_BYTES = 8 * 1024 * 1024  # may contain dictated audio
MAX_UPLOAD_BYTES = MAX_ATTACHMENT_BYTES + 16 * 1024  # may be a form with a file


def read_body(limit: int) -> bytes:
    """Return the body.

    Raises:
        RequestEntityTooLarge: it is longer than ``limit`` bytes.
        InvalidRequestBody: it ended early or can't be read.
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
    return body


def read_json_body(limit: int) -> bytes:
    """Return the body, unparsed.

    Raises:
        NotJson: ``Content-Type`` is not JSON in UTF-8.
        ApiError: as ``read_body``.
    """
    body = read_body(limit)
    if body and not _is_declared_json():
        raise NotJson("Content-Type is not application/json in UTF-8")
    return body


def read_file() -> bytes:
    """Return the body, or the file of a form.

    Raises:
        ApiError: as ``read_body``. ``InvalidRequestBody`` also if a form has no file.
    """
    if request.mimetype != "multipart/form-data":
        return read_body(MAX_UPLOAD_BYTES)
    request.max_content_length = MAX_UPLOAD_BYTES
    for file in request.files.values():
        return bytes(file.read())
    raise InvalidRequestBody("a form without a file")


def _is_declared_json() -> bool:
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    return request.mimetype == "application/json" and charset in ("utf-8", "utf8")
