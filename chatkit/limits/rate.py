"""How often: what one user and one address may do in a minute, counted by Flask-Limiter, in Redis or in this process."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any, Literal

import redis
from flask import Flask, g, request
from flask_limiter import Limiter, RateLimitExceeded
from limits.errors import StorageError
from redis.backoff import NoBackoff
from redis.retry import Retry

from chatkit.settings import Settings
from chatkit.web.errors import TooManyRequests

What = Literal["sessions", "endings", "requests", "turns"]
TURNS_A_MINUTE = 30  # of one user, where CHATKIT_MAX_REQUESTS_PER_MINUTE does not say
TURNS_A_SESSION = 10  # that an address may have, on average
REQUESTS_A_TURN = 10  # of the chat, turns included: lists, pages of items, feedback
REDIS_SECONDS = 0.25  # a count is not worth a longer wait


class Limits:
    """Counts what the senders of requests do, and refuses what is too much.

    An address is limited besides the user, because whoever drops the cookie is a new visitor, and who guesses tokens is nobody.
    Without Redis, or while it can't be reached, each process counts for itself.
    """

    def __init__(self, app: Flask, settings: Settings) -> None:
        self._limiter = Limiter(
            lambda: str(g.counted),
            app=app,
            storage_uri=settings.redis_url or "memory://",
            storage_options=_redis_options() if settings.redis_url else {},
            strategy="fixed-window",
            in_memory_fallback_enabled=bool(settings.redis_url),
            swallow_errors=True,
        )
        self._limiter.request_filter(lambda: "counted" not in g)  # it would look for limits before each view; ours are in them
        of_user, of_address = settings.rate_limit
        turns = settings.max_requests_per_minute or TURNS_A_MINUTE
        self._rules = {
            ("sessions", "user"): self._rule("sessions of a user", of_user),
            ("sessions", "address"): self._rule("sessions of an address", of_address),
            ("endings", "address"): self._rule("endings of an address", of_address),
            ("turns", "user"): self._rule("turns of a user", turns),
            ("turns", "address"): self._rule("turns of an address", of_address * TURNS_A_SESSION),
            ("requests", "user"): self._rule("chat requests of a user", turns * REQUESTS_A_TURN),
            ("requests", "address"): self._rule("chat requests of an address", of_address * TURNS_A_SESSION * REQUESTS_A_TURN),
        }

    def count(self, what: What, user: str | None = None) -> None:
        """Count one of ``what`` for ``user`` (a ``User.id``), or for the address that the current request comes from.

        Raises:
            TooManyRequests: it is more than the minute's share.
        """
        g.counted, whose = (user, "user") if user else (address(), "address")
        try:
            self._rules[what, whose]()
        except RateLimitExceeded as exceeded:
            allowed = exceeded.limit.limit.amount
            raise TooManyRequests(
                f"more than {allowed} {what} a minute of one {whose}",
                retry_after=self._seconds_left(),
                allowed=allowed,
            ) from None

    def _rule(self, name: str, a_minute: int) -> Callable[[], None]:
        def rule() -> None:
            """Flask-Limiter counts its calls."""

        rule.__qualname__ = name  # by which it tells one from the other
        return self._limiter.shared_limit(f"{a_minute}/minute", scope=name)(rule)

    def _seconds_left(self) -> int:
        """Until the minute of the limit that was just hit is over."""
        limit = self._limiter.current_limit
        try:
            return max(1, int(limit.reset_at - time.time())) if limit else 60
        except StorageError:
            return 60


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
    """The way to Redis for what Flask-Limiter does not count; none without ``REDIS_URL``."""
    if not settings.redis_url:
        return None
    options = _redis_options()
    del options["wrap_exceptions"]  # Flask-Limiter's own
    return redis.Redis.from_url(settings.redis_url, **options)


def _redis_options() -> dict[str, Any]:
    return {
        "socket_connect_timeout": REDIS_SECONDS,
        "socket_timeout": REDIS_SECONDS,
        "retry": Retry(NoBackoff(), 1),  # once, because a connection that was kept may be one of before a restart
        "wrap_exceptions": True,
    }


_CHANGES = {
    "Rate limit storage unreachable": "REDIS_URL: Redis can't be used (is it up?); each process counts for itself until it can",
    "Rate limit storage recovered": "REDIS_URL: Redis can be used again, and counts",
}


class _Changes(logging.Filter):
    """Of what Flask-Limiter logs, the two changes, in our words and once each.

    The rest holds users and addresses, or is said again for each request that was on its way when Redis went.
    """

    _said = ""

    def filter(self, record: logging.LogRecord) -> bool:
        words = next((words for beginning, words in _CHANGES.items() if record.msg.startswith(beginning)), self._said)
        if words == self._said:
            return False
        record.msg = self._said = words
        return True


logging.getLogger("flask-limiter").addFilter(_Changes())
