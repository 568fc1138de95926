"""The public keys of an identity provider, as it publishes them (JWKS, RFC 7517): fetched, kept, and fetched again in time."""

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
FRESH_SECONDS = 300  # then the keys are fetched again
USABLE_SECONDS = 3600  # while they can't be fetched; about as long as the tokens last that were issued before
FETCHES_A_MINUTE = 3  # at most: a token with a made-up key id asks for a fetch, and anybody can make one up
FETCH_SECONDS = 3
MAX_BYTES = 256 * 1024


@dataclass(frozen=True)
class _Fetched:
    keys: dict[str | None, jwt.PyJWK] = field(default_factory=dict)
    at: float = float("-inf")
    """On the monotonic clock."""

    def age(self) -> float:
        return time.monotonic() - self.at


class PublishedKeys:
    """The keys at ``url``. Nothing is fetched before the first token comes, so after gunicorn has forked."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._http = bounded_session(1)
        self._fetched = _Fetched()
        self._attempts: deque[float] = deque(maxlen=FETCHES_A_MINUTE)
        self._finished = 0
        self._failing = False
        self._fetching = threading.Lock()

    def find(self, key_id: str | None) -> jwt.PyJWK:
        """The key that a token names by its ``kid``; of one that names none, the only key there is.

        What is known is answered at once, but for one caller in ``FRESH_SECONDS``, who fetches the keys anew. A ``key_id`` that
        is not known may be a new one: its callers wait for a fetch, as far as there may be another.

        Raises:
            InvalidToken: no such key is published.
            SignInUnavailable: nobody can tell, because the keys can't be fetched.
        """
        if self._fetched.age() > FRESH_SECONDS:
            self._fetch_again(wait=False)
        key = self._known(key_id)
        if key is None:
            self._fetch_again(wait=True)
            key = self._known(key_id)
        if key is not None:
            return key
        if self._failing:
            raise errors.SignInUnavailable("AUTH_JWKS_URL: the keys can't be fetched")
        raise errors.InvalidToken("AUTH_JWKS_URL has no key with the token's key id")

    def _known(self, key_id: str | None) -> jwt.PyJWK | None:
        fetched = self._fetched
        if fetched.age() > USABLE_SECONDS:
            return None
        if key_id is None and len(fetched.keys) == 1:
            return next(iter(fetched.keys.values()))
        return fetched.keys.get(key_id)

    def _fetch_again(self, *, wait: bool) -> None:
        """Fetch the keys, unless another thread is at it, or has just been, or the minute's fetches are used up."""
        before = self._finished
        if not self._fetching.acquire(blocking=wait):
            return
        try:
            now = time.monotonic()
            used_up = len(self._attempts) == FETCHES_A_MINUTE and now - self._attempts[0] < 60
            if used_up or self._finished != before:
                return
            self._attempts.append(now)
            self._try_to_fetch()
            self._finished += 1
        finally:
            self._fetching.release()

    def _try_to_fetch(self) -> None:
        try:
            keys = _read(self._get())
        except (CallFailed, requests.RequestException, ValueError) as error:
            if not self._failing:
                kept = f"; those of {self._fetched.age():.0f} s ago are used for now" if self._fetched.keys else ""
                log.warning("AUTH_JWKS_URL: the keys can't be fetched (%s)%s", _in_words(error), kept)
            self._failing = True
        else:
            if self._failing:
                log.info("AUTH_JWKS_URL: the keys can be fetched again")
            self._fetched, self._failing = _Fetched(keys, time.monotonic()), False

    def _get(self) -> bytes:
        request = self._http.prepare_request(requests.Request("GET", self._url))
        status, _, body = call(self._http, request, seconds=FETCH_SECONDS, max_bytes=MAX_BYTES)
        if status != 200:
            raise ValueError(f"the answer was {status}")
        if len(body) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        return body


def _read(body: bytes) -> dict[str | None, jwt.PyJWK]:
    """The keys of a JWK Set that signatures may be checked with, by their ids."""
    try:
        published = json.loads(body)["keys"]
        usable = [key for key in map(_key, published) if key is not None]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError("it is not a JWK Set") from None
    if not usable:
        raise ValueError(f"no key for {', '.join(sorted(ALGORITHMS))}")
    return {key.key_id: key for key in usable}


def _key(published: Any) -> jwt.PyJWK | None:
    """One key, unless it is for something else. What it may be used for is said by the key itself, never by a token."""
    if not isinstance(published, dict) or published.get("use", "sig") != "sig" or "d" in published:
        return None
    operations = published.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    if not isinstance(published.get("kid"), str | None):
        return None
    try:
        key = jwt.PyJWK(published)
    except Exception:  # noqa: BLE001  PyJWT raises many kinds, and one bad key must not take the others away
        return None
    return key if key.algorithm_name in ALGORITHMS else None


def _in_words(error: Exception) -> str:
    """Its text where it is ours; that of a library may quote anything."""
    return str(error) if type(error) is ValueError else type(error.__cause__ or error).__name__
