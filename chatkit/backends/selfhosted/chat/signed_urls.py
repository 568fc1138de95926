"""URLs that authorize what they are for, because an ``<img>`` and an upload of ChatKit send no session."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

from itsdangerous import BadData, URLSafeSerializer


class SignedUrls:
    """Makes and reads URLs of one kind. A URL is bound to a thing and its user, and expires.

    Args:
        purpose: of the URLs; those of another purpose are not accepted.
        path: of the URLs, before the id of the thing.
        seconds: a URL is valid for ``seconds`` to twice as long, and stays the same for ``seconds``.
        secret_key: signs the URLs.
        fallbacks: former keys, whose signatures are accepted.
    """

    def __init__(self, purpose: str, path: str, seconds: int, secret_key: str, fallbacks: Sequence[str] = ()) -> None:
        self._path = path
        self._seconds = seconds
        self._serializer = URLSafeSerializer(
            [*fallbacks, secret_key], salt=purpose, signer_kwargs={"digest_method": hashlib.sha256}
        )

    def make(self, root: str, id_: str, user: str) -> str:
        """Return the URL of the thing ``id_`` of ``user`` (a ``User.id``) on the service at ``root``."""
        expires = (int(time.time()) // self._seconds + 2) * self._seconds
        # In the query string, because paths are logged. The user as a hash, because proxies log the query string.
        token = self._serializer.dumps([id_, expires, user_hash(user)])
        return f"{root.rstrip('/')}{self._path}{id_}?token={token}"

    def read(self, token: str, id_: str) -> str | None:
        """Return the ``user_hash`` of the user whose thing ``token`` is for; ``None`` if it is not valid for ``id_``."""
        try:
            signed_id, expires, user = self._serializer.loads(token)
        except BadData:
            return None
        return str(user) if signed_id == id_ and expires > time.time() else None

    def find(self, url: str) -> str | None:
        """Return the id of the thing whose URL, possibly an expired one, ``url`` is; ``None`` for a URL from elsewhere."""
        try:
            id_, *_ = self._serializer.loads(url.partition("?token=")[2])
        except BadData:
            return None
        return str(id_)


def user_hash(user: str) -> str:
    return hashlib.sha256(user.encode()).hexdigest()[:32]
