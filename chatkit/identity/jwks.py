"""Fetches and caches the public keys of an identity provider (JWKS, RFC 7517)."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import jwt
import requests

from chatkit.web import errors
from chatkit.web.http_client import CallFailed, bounded_session, call

log = logging.getLogger(__name__)

ALGORITHMS = frozenset({"RS256", "ES256", "EdDSA"})
FRESH_SECONDS = 300  # until the keys are fetched again
USABLE_SECONDS = 3600  # while fetching fails; about the lifetime of the tokens issued before
FETCHES_PER_MINUTE = 3  # tokens with an unknown key id cause fetches, and anyone can send them
FETCH_SECONDS = 3
MAX_BYTES = 256 * 1024


@dataclass(frozen=True)
class _KeySet:
    keys: dict[str | None, jwt.PyJWK] = field(default_factory=dict)
    fetched_at: float = float("-inf")  # on the monotonic clock

    def age(self) -> float:
        return time.monotonic() - self.fetched_at


class JwksClient:
    """Caches the keys at ``url``. The first token triggers the first fetch, so it happens after gunicorn has forked."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._http = bounded_session(1)
        self._key_set = _KeySet()
        self._attempts: deque[float] = deque(maxlen=FETCHES_PER_MINUTE)
        self._fetches = 0
        self._failing = False
        self._lock = threading.Lock()

    def find(self, key_id: str | None) -> jwt.PyJWK:
        """Return the key with the ``kid`` of a token; for a token without ``kid``, the only key of the set.

        Known keys are returned without waiting, except that every ``FRESH_SECONDS`` one caller fetches them again. An unknown
        ``key_id`` may belong to a new key, so its callers wait for a fetch, unless ``FETCHES_PER_MINUTE`` is reached.

        Raises:
            InvalidToken: there is no such key.
            SignInUnavailable: the key is unknown, and the JWKS can't be fetched.
        """
        if self._key_set.age() > FRESH_SECONDS:
            self._refresh(wait=False)
        key = self._lookup(key_id)
        if key is None:
            self._refresh(wait=True)
            key = self._lookup(key_id)
        if key is not None:
            return key
        if self._failing:
            raise errors.SignInUnavailable("AUTH_JWKS_URL: the keys can't be fetched")
        raise errors.InvalidToken("AUTH_JWKS_URL has no key with the token's key id")

    def _lookup(self, key_id: str | None) -> jwt.PyJWK | None:
        key_set = self._key_set
        if key_set.age() > USABLE_SECONDS:
            return None
        if key_id is None and len(key_set.keys) == 1:
            return next(iter(key_set.keys.values()))
        return key_set.keys.get(key_id)

    def _refresh(self, *, wait: bool) -> None:
        """Fetch the keys, unless another thread is doing so or just did, or ``FETCHES_PER_MINUTE`` is reached."""
        fetches = self._fetches
        if not self._lock.acquire(blocking=wait):
            return
        try:
            now = time.monotonic()
            limited = len(self._attempts) == FETCHES_PER_MINUTE and now - self._attempts[0] < 60
            if limited or self._fetches != fetches:
                return
            self._attempts.append(now)
            self._fetch()
            self._fetches += 1
        finally:
            self._lock.release()

    def _fetch(self) -> None:
        try:
            keys = _parse(self._download())
        except (CallFailed, requests.RequestException, ValueError) as error:
            if not self._failing:
                kept = f"; using those fetched {self._key_set.age():.0f} s ago" if self._key_set.keys else ""
                log.warning("AUTH_JWKS_URL: the keys can't be fetched (%s)%s", _describe(error), kept)
            self._failing = True
        else:
            if self._failing:
                log.info("AUTH_JWKS_URL: the keys can be fetched again")
            self._key_set, self._failing = _KeySet(keys, time.monotonic()), False

    def _download(self) -> bytes:
        request = self._http.prepare_request(requests.Request("GET", self._url))
        status, _, body = call(self._http, request, seconds=FETCH_SECONDS, max_bytes=MAX_BYTES)
        if status != 200:
            raise ValueError(f"status {status}")
        if len(body) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        return body


def _parse(body: bytes) -> dict[str | None, jwt.PyJWK]:
    """Return the keys of a JWK Set that can verify signatures, by their ids."""
    try:
        usable = [key for key in map(_usable_key, json.loads(body)["keys"]) if key is not None]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError("not a JWK Set") from None
    if not usable:
        raise ValueError(f"no key for {', '.join(sorted(ALGORITHMS))}")
    return {key.key_id: key for key in usable}


def _usable_key(jwk: Any) -> jwt.PyJWK | None:
    """Return the key if it can verify signatures. Its own members decide, never the token."""
    if not isinstance(jwk, dict) or jwk.get("use", "sig") != "sig" or "d" in jwk:
        return None
    operations = jwk.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    if not isinstance(jwk.get("kid"), str | None):
        return None
    try:
        key = jwt.PyJWK(jwk)
    except Exception:  # noqa: BLE001  PyJWT raises many types, and an invalid key must not invalidate the others
        return None
    return key if key.algorithm_name in ALGORITHMS else None


def _describe(error: Exception) -> str:
    """Return our own messages; those of libraries may quote anything."""
    return str(error) if type(error) is ValueError else type(error.__cause__ or error).__name__
