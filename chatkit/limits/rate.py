"""Rate limits per user and per address, counted in Redis or in this process."""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any, Literal

import redis
from flask import request
from limits import RateLimitItem, RateLimitItemPerMinute
from limits.errors import StorageError
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import FixedWindowRateLimiter
from redis.backoff import NoBackoff
from redis.retry import Retry

from chatkit.settings import Settings
from chatkit.web.errors import TooManyRequests

Action = Literal["sessions", "endings", "requests", "turns", "polls", "stops"]
TURNS_PER_MINUTE = 30  # of one user, without CHATKIT_MAX_REQUESTS_PER_MINUTE
TURNS_PER_SESSION = 10  # of one address, on average
REQUESTS_PER_TURN = 10  # of the chat, turns included: lists, pages of items, feedback
REDIS_SECONDS = 0.25  # counting is not worth a longer wait
RETRY_SECONDS = 1  # after an error of Redis

log = logging.getLogger(__name__)


class Limits:
    """The rate limits of all endpoints.

    Addresses are limited as well as users, because a caller without a cookie is a new visitor with each request, and an invalid
    token has no user. Without Redis, or while it can't be reached, each process counts for itself.
    """

    def __init__(self, settings: Settings) -> None:
        per_user, per_address = settings.rate_limit
        turns = settings.max_requests_per_minute or TURNS_PER_MINUTE
        per_minute = {
            ("sessions", "user"): per_user,
            ("sessions", "address"): per_address,
            ("endings", "address"): per_address,
            ("turns", "user"): turns,
            ("turns", "address"): per_address * TURNS_PER_SESSION,
        }
        # Of the same size, but apart: a page that follows a response must still be able to stop it, and to send a message.
        actions: tuple[Action, ...] = ("requests", "polls", "stops")
        for action in actions:
            per_minute[action, "user"] = turns * REQUESTS_PER_TURN
            per_minute[action, "address"] = per_address * TURNS_PER_SESSION * REQUESTS_PER_TURN
        self._rules = {rule: RateLimitItemPerMinute(amount) for rule, amount in per_minute.items()}
        self._counter = _Counter(settings.redis_url)

    def count(self, action: Action, user: str | None = None) -> None:
        """Count one ``action`` of ``user`` (a ``User.id``), or of the client address without one.

        Raises:
            TooManyRequests: the limit is reached.
        """
        scope = "user" if user else "address"
        rule = self._rules[action, scope]
        retry_after = self._counter.hit(rule, action, scope, hashed(user) if user else address())
        if retry_after is not None:
            raise TooManyRequests(
                f"more than {rule.amount} {action} per minute of one {scope}", retry_after=retry_after, allowed=rule.amount
            )


class _Counter:
    """Counts in Redis; in this process while Redis is not configured or can't be reached."""

    def __init__(self, redis_url: str | None) -> None:
        self._local = FixedWindowRateLimiter(MemoryStorage())
        self._shared = (
            FixedWindowRateLimiter(RedisStorage(redis_url, wrap_exceptions=True, **_redis_options())) if redis_url else None
        )
        self._redis_down = False
        self._retry_at = 0.0
        self._lock = threading.Lock()

    def hit(self, rule: RateLimitItem, *key: str) -> int | None:
        """Count one. Return ``None``, or the seconds until the next minute if the limit is reached."""
        if self._shared and time.monotonic() >= self._retry_at:
            try:
                seconds = _hit(self._shared, rule, key)
            except StorageError as error:
                self._set_redis_error(error)
            else:
                self._set_redis_error(None)
                return seconds
        return _hit(self._local, rule, key)

    def _set_redis_error(self, error: StorageError | None) -> None:
        """Log a change once, however many requests notice it."""
        down = error is not None
        if down:
            self._retry_at = time.monotonic() + RETRY_SECONDS
        with self._lock:
            changed, self._redis_down = self._redis_down != down, down
        if changed and error:
            kind = type(error.storage_error).__name__
            log.error("REDIS_URL: Redis can't be used (%s); each process counts for itself until it can", kind)
        elif changed:
            log.info("REDIS_URL: Redis can be used again")


def _hit(limiter: FixedWindowRateLimiter, rule: RateLimitItem, key: tuple[str, ...]) -> int | None:
    if limiter.hit(rule, *key):
        return None
    seconds = int(limiter.get_window_stats(rule, *key).reset_time - time.time())
    if seconds > rule.get_expiry():  # the clock was set back
        limiter.clear(rule, *key)
        return _hit(limiter, rule, key)
    return max(1, seconds)


def address() -> str:
    """Return the client address of the current request, for limits."""
    return client_address(request.remote_addr)


@lru_cache(1024)
def client_address(text: str | None) -> str:
    """Normalize a client address, with or without a port. An IPv6 address becomes its /64 network, which one client owns."""
    host = re.sub(r"^\[(.*)\](:\d+)?$|^([\d.]+):\d+$", r"\1\3", text or "")
    try:
        parsed: IPv4Address | IPv6Address = ip_address(host)
    except ValueError:
        return "unknown"  # the same for all, because the text may be made up
    if isinstance(parsed, IPv6Address):
        return str(parsed.ipv4_mapped or IPv6Network((int(parsed), 64), strict=False))
    return str(parsed)


def hashed(user: str) -> str:
    """Return what stands for ``user`` (a ``User.id``) in the keys of Redis."""
    return hashlib.sha256(user.encode()).hexdigest()[:32]


def forget(client: redis.Redis, user: str) -> None:
    """Delete all that Redis has about ``user`` (a ``User.id``).

    Raises:
        redis.RedisError: Redis can't be used.
    """
    for key in client.scan_iter(f"*{hashed(user)}*", count=1000):
        client.delete(key)


def redis_client(settings: Settings) -> redis.Redis | None:
    """Return a client for concurrency limits, or ``None`` without ``REDIS_URL``."""
    if not settings.redis_url:
        return None
    return redis.Redis.from_url(settings.redis_url, **_redis_options())


def _redis_options() -> dict[str, Any]:
    return {
        "socket_connect_timeout": REDIS_SECONDS,
        "socket_timeout": REDIS_SECONDS,
        "retry": Retry(NoBackoff(), 1),  # once, because pooled connections may be stale
    }
