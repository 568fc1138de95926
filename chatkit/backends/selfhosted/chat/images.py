"""Generated images: their limits, the references in stored items, and the signed URLs that the page gets.

Models' images arrive as data URLs. Their bytes are stored apart from the items, because an image has some megabytes.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from itsdangerous import BadData, URLSafeSerializer

from chatkit.errors import CustomStreamError
from chatkit.web.request_body import IMAGES_PATH

MAX_IMAGE_BYTES = 20 * 1024 * 1024  # models return 1 to 5 MB; a database writes and reads this much within its time limit
MAX_IMAGES = 100  # of a thread; some hundred megabytes, which are exported and deleted in seconds
URL_SECONDS = 12 * 3600  # a URL is valid for 12 to 24 hours, and stays the same for 12, so that browsers can cache the image

_REFERENCE = "chatkit-image:"
_SIGNATURES = {
    "image/png": rb"\x89PNG\r\n\x1a\n",
    "image/jpeg": rb"\xff\xd8\xff",
    "image/webp": rb"RIFF....WEBP",
    "image/gif": rb"GIF8",
}
"""The first bytes of the media types that are stored. SVG is not among them, because it can contain scripts."""


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
        declared, _, encoded = url.removeprefix("data:").partition(",")
        if len(encoded) // 4 * 3 - encoded[-2:].count("=") > MAX_IMAGE_BYTES:
            raise ImageRefusedError("The image is too large to be kept.")
        try:
            data = base64.b64decode(encoded, validate=True)
        except ValueError:  # binascii.Error is one
            raise ImageRefusedError("The image can't be kept, because it is damaged.") from None
        found = (media_type for media_type, signature in _SIGNATURES.items() if re.match(signature, data, re.DOTALL))
        media_type = next(found, declared.partition(";")[0])
        if media_type not in _SIGNATURES:
            raise ImageRefusedError("The image can't be kept, because it is of an unknown format.")
        return cls(media_type, data)

    def to_data_url(self) -> str:
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode()}"


def reference(image_id: str) -> str:
    """Return what a stored item has in place of a URL."""
    return f"{_REFERENCE}{image_id}"


def referenced(url: str) -> str | None:
    """Return the id of the image in a stored item's ``url``; ``None`` for another URL."""
    return url.removeprefix(_REFERENCE) if url.startswith(_REFERENCE) else None


class ImageUrls:
    """Makes and reads the URLs of images. A URL is bound to the image and its user, and expires.

    Args:
        secret_key: signs the URLs.
        fallbacks: former keys, whose signatures are accepted.
    """

    def __init__(self, secret_key: str, fallbacks: Sequence[str] = ()) -> None:
        self._serializer = URLSafeSerializer(
            [*fallbacks, secret_key], salt="chatkit.image", signer_kwargs={"digest_method": hashlib.sha256}
        )

    def make(self, root: str, image_id: str, user: str) -> str:
        """Return the URL of an image of ``user`` (a ``User.id``) on the service at ``root``."""
        expires = (int(time.time()) // URL_SECONDS + 2) * URL_SECONDS
        # In the query string, because paths are logged. The user as a hash, because proxies log the query string.
        token = self._serializer.dumps([image_id, expires, user_hash(user)])
        return f"{root.rstrip('/')}{IMAGES_PATH}{image_id}?token={token}"

    def read(self, token: str, image_id: str) -> str | None:
        """Return the ``user_hash`` of the user whose image ``token`` is for; ``None`` if it is not valid for this image."""
        try:
            signed_id, expires, user = self._serializer.loads(token)
        except BadData:
            return None
        return str(user) if signed_id == image_id and expires > time.time() else None

    def find(self, url: str) -> str | None:
        """Return the id of the image whose URL, possibly an expired one, ``url`` is; ``None`` for a URL from elsewhere."""
        try:
            image_id, *_ = self._serializer.loads(url.partition("?token=")[2])
        except BadData:
            return None
        return str(image_id)


def user_hash(user: str) -> str:
    return hashlib.sha256(user.encode()).hexdigest()[:32]
