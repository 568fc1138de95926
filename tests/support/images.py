"""Generated images."""

from __future__ import annotations

import base64
from typing import Any

import requests
from chatkit.types import GeneratedImage, GeneratedImageItem

from tests.support.chat import Caller
from tests.support.responses_api import draws, says
from tests.support.store import MOMENT

PNG = b"\x89PNG\r\n\x1a\n"


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def data_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{encoded(data)}"


def drawn(thread_id: str, url: str = data_url(PNG), name: str = "msg_image") -> GeneratedImageItem:
    return GeneratedImageItem(
        id=name, thread_id=thread_id, created_at=MOMENT, image=GeneratedImage(id="ig_of_the_model", url=url)
    )


def url_of(item: Any) -> str:
    url: str = item.image.url
    return url


DRAWING = [*draws(encoded(PNG)), *says("Here it is")]


def image_url(caller: Caller, thread_id: str) -> str:
    (url,) = [url_of(item) for item in caller.items(thread_id).data if item.type == "generated_image"]
    return url


def get(url: str, **headers: str) -> requests.Response:
    return requests.get(url, headers=headers, timeout=30)
