"""Generated images: their limits, the references in stored items, and their URLs.

Models' images arrive as data URLs. Their bytes are stored apart from the items, because an image has some megabytes.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass

from chatkit.backends.selfhosted.chat.data_urls import data_url
from chatkit.backends.selfhosted.chat.signed_urls import SignedUrls
from chatkit.errors import CustomStreamError
from chatkit.web.request_body import IMAGES_PATH

MAX_IMAGE_BYTES = 20 * 1024 * 1024  # models return 1 to 5 MB; a database writes and reads this much within its time limit
MAX_IMAGES = 100  # of a thread; some hundred megabytes, which are exported and deleted in seconds
URL_SECONDS = 12 * 3600  # see ``SignedUrls``; meanwhile browsers can cache the image

_REFERENCE = "chatkit-image:"
_SIGNATURES = {
    "image/png": rb"\x89PNG\r\n\x1a\n",
    "image/jpeg": rb"\xff\xd8\xff",
    "image/webp": rb"RIFF....WEBP",
    "image/gif": rb"GIF8",
}
"""The first bytes of the media types that are stored. SVG is not among them, because it can contain scripts."""
IMAGE_TYPES = frozenset(_SIGNATURES)


class ImageRefusedError(CustomStreamError):
    """An image can't be stored. The message is for the user."""

    def __init__(self, message: str) -> None:
        super().__init__(message, allow_retry=False)


@dataclass(frozen=True)
class Image:
    media_type: str
    data: bytes

    @classmethod
    def from_data_url(cls, url: str) -> Image:
        """Decode a data URL. The media type is that of the first bytes: OpenAI's server package says PNG of all formats.

        Raises:
            ImageRefusedError: it is too large, or not an image of a known type.
        """
        encoded = url.partition(",")[2]
        if len(encoded) // 4 * 3 - encoded[-2:].count("=") > MAX_IMAGE_BYTES:
            raise ImageRefusedError("The image is too large to be kept.")
        try:
            data = base64.b64decode(encoded, validate=True)
        except ValueError:  # binascii.Error is one
            raise ImageRefusedError("The image can't be kept, because it is damaged.") from None
        media_type = image_type(data)
        if media_type is None:
            raise ImageRefusedError("The image can't be kept, because it is of an unknown format.")
        return cls(media_type, data)

    def to_data_url(self) -> str:
        return data_url(self.media_type, self.data)


def reference(image_id: str) -> str:
    """Return what a stored item has in place of a URL."""
    return f"{_REFERENCE}{image_id}"


def referenced(url: str) -> str | None:
    """Return the id of the image in a stored item's ``url``; ``None`` for another URL."""
    return url.removeprefix(_REFERENCE) if url.startswith(_REFERENCE) else None


def image_type(data: bytes) -> str | None:
    """Return the media type of an image by its first bytes; ``None`` if it is not one of ``IMAGE_TYPES``."""
    found = (media_type for media_type, signature in _SIGNATURES.items() if re.match(signature, data, re.DOTALL))
    return next(found, None)


def image_urls(secret_key: str, fallbacks: Sequence[str] = ()) -> SignedUrls:
    """Return the URLs of images, signed with ``secret_key``. Signatures of the keys ``fallbacks`` are accepted."""
    return SignedUrls("chatkit.image", IMAGES_PATH, URL_SECONDS, secret_key, fallbacks)
