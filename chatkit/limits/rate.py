"""How often: what one user and one address may do per minute, counted in Redis or in this process."""

from __future__ import annotations

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

What = Literal["sessions", "endings", "requests", "turns"]
TURNS_PER_MINUTE = 30  # of one user, where CHATKIT_MAX_REQUESTS_PER_MINUTE does not say
TURNS_PER_SESSION = 10  # that an address may have, on average
REQUESTS_PER_TURN = 10  # of the chat, turns included: lists, pages of items, feedback
REDIS_SECONDS = 0.25  # a count is not worth a longer wait
RETRY_SECONDS = 1  # after Redis could not be reached

log = logging.getLogger(__name__)


class Limits:
    """Counts requests, and refuses what is too much.

    An address is limited besides the user, because a caller without a cookie is a new visitor each time, and one who guesses
    tokens is no user. Without Redis, or while it can't be reached, each process counts for itself.
    """

    def __init__(self, settings: Settings) -> None:
        of_user, of_address = settings.rate_limit
        turns = settings.max_requests_per_minute or TURNS_PER_MINUTE
        per_minute = {
            ("sessions", "user"): of_user,
            ("sessions", "address"): of_address,
            ("endings", "address"): of_address,
            ("turns", "user"): turns,
            ("turns", "address"): of_address * TURNS_PER_SESSION,
            ("requests", "user"): turns * REQUESTS_PER_TURN,
            ("requests", "address"): of_address * TURNS_PER_SESSION * REQUESTS_PER_TURN,
        }
        self._rules = {rule: RateLimitItemPerMinute(amount) for rule, amount in per_minute.items()}
        self._counter = _Counter(settings.redis_url)

    def count(self, what: What, user: str | None = None) -> None:
        """Count one of ``what`` for ``user`` (a ``User.id``), or for the address that the current request comes from.

        Raises:
            TooManyRequests: it is more than the minute's share.
        """
        whose = "user" if user else "address"
        rule = self._rules[what, whose]
        retry_after = self._counter.hit(rule, what, whose, user or address())
        if retry_after is not None:
            raise TooManyRequests(
                f"more than {rule.amount} {what} per minute of one {whose}", retry_after=retry_after, allowed=rule.amount
            )


class _Counter:
    """Counts in Redis, and in this process without one or while it can't be reached."""

    def __init__(self, redis_url: str | None) -> None:
        self._own = FixedWindowRateLimiter(MemoryStorage())
        self._shared = FixedWindowRateLimiter(RedisStorage(redis_url, **_redis_options())) if redis_url else None
        self._lost = False
        self._try_again_at = 0.0
        self._changing = threading.Lock()

    def hit(self, rule: RateLimitItem, *key: str) -> int | None:
        """Count one; ``None``, or where it is too much the seconds until the minute is over."""
        if self._shared and time.monotonic() >= self._try_again_at:
            try:
                seconds = _hit(self._shared, rule, key)
            except StorageError:
                self._note(lost=True)
            else:
                self._note(lost=False)
                return seconds
        return _hit(self._own, rule, key)

    def _note(self, *, lost: bool) -> None:
        """Log a change once, whatever number of requests notices it."""
        if lost:
            self._try_again_at = time.monotonic() + RETRY_SECONDS
        with self._changing:
            changed, self._lost = self._lost != lost, lost
        if changed and lost:
            log.error("REDIS_URL: Redis can't be used (is it up?); each process counts for itself until it can")
        elif changed:
            log.info("REDIS_URL: Redis can be used again, and counts")


def _hit(limiter: FixedWindowRateLimiter, rule: RateLimitItem, key: tuple[str, ...]) -> int | None:
    if limiter.hit(rule, *key):
        return None
    return max(1, int(limiter.get_window_stats(rule, *key).reset_time - time.time()))


def address() -> str:
    """Where the current request comes from, as far as that tells one client from another.

    Of an IPv6 address it is the first 64 bits: whoever has one has all that begin like it. Some proxies add the port.
    """
    return client_address(request.remote_addr)


@lru_cache(1024)
def client_address(text: str | None) -> str:
    """``text`` as ``address`` has it."""
    host = re.sub(r"^\[(.*)\](:\d+)?$|^([\d.]+):\d+$", r"\1\3", text or "")
    try:
        found: IPv4Address | IPv6Address = ip_address(host)
    except ValueError:
        return "unknown"  # one for all: what is no address may have been made up
    if isinstance(found, IPv6Address):
        return str(found.ipv4_mapped or IPv6Network((int(found), 64), strict=False))
    return str(found)


def redis_client(settings: Settings) -> redis.Redis | None:
    """The way to Redis for what is not counted per minute; none without ``REDIS_URL``."""
    if not settings.redis_url:
        return None
    options = _redis_options()
    del options["wrap_exceptions"]  # the storage's own
    return redis.Redis.from_url(settings.redis_url, **options)


def _redis_options() -> dict[str, Any]:
    return {
        "socket_connect_timeout": REDIS_SECONDS,
        "socket_timeout": REDIS_SECONDS,
        "retry": Retry(NoBackoff(), 1),  # once, because a connection that was kept may be one of before a restart
        "wrap_exceptions": True,
    }
