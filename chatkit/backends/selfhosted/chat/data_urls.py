"""Data URLs of images and files. Without imports of OpenAI's packages, because the operator's commands use it."""

from __future__ import annotations

import base64


def data_url(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
