"""Concurrency limits per user, per address and in total.

Each process counts for itself. With Redis, turns are also limited per user across all processes.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import redis

from chatkit.limits.rate import hashed
from chatkit.web.errors import ServiceBusy, TooManyRequests

RETRY_SECONDS = 5
LEASE_MARGIN_SECONDS = 60  # for the work before and after a turn
MAX_CONCURRENT_PER_USER = {"turns": 5, "requests": 10}  # open tabs with a reply each; requests of a page that loads
MAX_CONCURRENT = {"turns": 1000, "requests": 256}
ADDRESS_DIVISOR = 4  # one address gets at most a quarter of each total

log = logging.getLogger(__name__)

# Adds a lease to a sorted set unless the limit is reached. All processes use Redis's clock.
_ACQUIRE = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZSCORE', KEYS[1], ARGV[3]) then return 1 end
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
"""


class ConcurrencyLimit:
    """A limit on what is held at the same time in this process, in total and per holder.

    Args:
        what: the name of the resource, for the log.
        total: the limit of all holders together; ``None`` for no limit.
        each: the limit of one holder.
    """

    def __init__(self, what: str, total: int | None, each: int) -> None:
        self._what = what
        self._total = total
        self._each = each
        self._by_holder: Counter[str] = Counter()
        self._held = 0
        self._lock = threading.Lock()

    def acquire(self, holder: str, amount: int = 1) -> None:
        """Acquire ``amount`` for ``holder``.

        Raises:
            TooManyRequests: the holder's limit is reached.
            ServiceBusy: the total limit is reached.
        """
        with self._lock:
            if self._by_holder[holder] + amount > self._each:
                raise TooManyRequests(f"more than {self._each} concurrent {self._what}", retry_after=RETRY_SECONDS)
            if self._total is not None and self._held + amount > self._total:
                raise ServiceBusy(f"all {self._total} {self._what} are in use")
            self._by_holder[holder] += amount
            self._held += amount

    def release(self, holder: str, amount: int = 1) -> None:
        with self._lock:
            self._by_holder[holder] -= amount
            self._held -= amount
            if not self._by_holder[holder]:
                del self._by_holder[holder]

    @contextmanager
    def held(self, holder: str) -> Iterator[None]:
        """Acquire one for ``holder`` and release it at the end. Raises as ``acquire`` does."""
        self.acquire(holder)
        try:
            yield
        finally:
            self.release(holder)


class SharedLeases:
    """A concurrency limit per user across all processes, counted in Redis.

    Args:
        client: while it can't reach Redis, nothing is rejected: each process still counts for itself.
        what: the name of the resource, for the log and the keys.
        each: the limit of one user.
        seconds: after which a lease expires, in case the process that held it has died.
    """

    def __init__(self, client: redis.Redis, what: str, *, each: int, seconds: int) -> None:
        self._client = client
        self._what = what
        self._each = each
        self._seconds = seconds
        self._acquire: Any = client.register_script(_ACQUIRE)

    @contextmanager
    def held(self, user: str) -> Iterator[None]:
        """Hold a lease for ``user`` (a ``User.id``).

        Raises:
            TooManyRequests: the user's limit is reached.
        """
        key, lease = f"chatkit:{self._what}:{hashed(user)}", uuid.uuid4().hex
        try:
            acquired = self._acquire(keys=[key], args=[self._each, self._seconds, lease])
        except redis.RedisError as error:
            acquired = True  # perhaps: after a timeout, Redis may still run the script
            log.debug("leases can't be counted in Redis (%s)", type(error).__name__)
        if not acquired:
            raise TooManyRequests(f"more than {self._each} concurrent {self._what}", retry_after=RETRY_SECONDS)
        try:
            yield
        finally:
            try:
                self._client.zrem(key, lease)
            except redis.RedisError as error:
                log.debug("a lease can't be released (%s)", type(error).__name__)


class ChatConcurrency:
    """The concurrency limits of the chat: one for turns, which may take long, and one for all other requests.

    Args:
        client: for the limit per user across all processes; ``None`` without Redis.
        turn_seconds: how long a turn can take.
    """

    def __init__(self, client: redis.Redis | None, turn_seconds: int) -> None:
        self._users = {
            what: ConcurrencyLimit(f"{what} of a user", None, each) for what, each in MAX_CONCURRENT_PER_USER.items()
        }
        self._addresses = {
            what: ConcurrencyLimit(f"{what} of an address", total, total // ADDRESS_DIVISOR)
            for what, total in MAX_CONCURRENT.items()
        }
        self._leases = client and SharedLeases(
            client, "turns", each=MAX_CONCURRENT_PER_USER["turns"], seconds=turn_seconds + LEASE_MARGIN_SECONDS
        )

    @contextmanager
    def held(self, what: Literal["turns", "requests"], user: str, address: str) -> Iterator[None]:
        """Hold one of ``what`` for ``user`` (a ``User.id``) at ``address``.

        Raises:
            TooManyRequests: the limit of the user or the address is reached.
            ServiceBusy: the limit of this process is reached.
        """
        with ExitStack() as stack:
            stack.enter_context(self._users[what].held(user))
            stack.enter_context(self._addresses[what].held(address))
            if what == "turns" and self._leases:
                stack.enter_context(self._leases.held(user))
            yield
