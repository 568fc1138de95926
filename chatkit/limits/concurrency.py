"""How much of what lasts one caller, one address and all together may hold at the same time.

Each process counts for itself. With Redis, what one user may hold is counted for all processes together, too.
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

from chatkit.web.errors import ServiceBusy, TooManyRequests

RETRY_SECONDS = 5
LEASE_MARGIN_SECONDS = 60  # for what is around a turn
MAX_CONCURRENT_PER_USER = {"turns": 5, "requests": 10}  # tabs that are answered at the same time; what a page loads at once
MAX_CONCURRENT = {"turns": 1000, "requests": 256}
PART = 4  # one address gets this part of them: a quarter

log = logging.getLogger(__name__)

# Takes a place in a sorted set of leases unless all are taken. Its clock is Redis's own.
_TAKE = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZSCORE', KEYS[1], ARGV[3]) then return 1 end
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
"""


class Shares:
    """A bounded amount of something, of which no single holder gets more than a part.

    Args:
        what: what it is, for the log.
        total: how much there is in this process; ``None`` where only holders are limited.
        each: how much of it one holder gets.
    """

    def __init__(self, what: str, total: int | None, each: int) -> None:
        self._what = what
        self._total = total
        self._each = each
        self._held: Counter[str] = Counter()
        self._all = 0
        self._lock = threading.Lock()

    def take(self, holder: str, amount: int = 1) -> None:
        """Let ``holder`` have ``amount``; ``give_back`` ends that.

        Raises:
            TooManyRequests: it is more than the holder's part.
            ServiceBusy: there is not so much left.
        """
        with self._lock:
            if self._held[holder] + amount > self._each:
                raise TooManyRequests(f"more than {self._each} {self._what} at once", retry_after=RETRY_SECONDS)
            if self._total is not None and self._all + amount > self._total:
                raise ServiceBusy(f"all {self._total} {self._what} are taken")
            self._held[holder] += amount
            self._all += amount

    def give_back(self, holder: str, amount: int = 1) -> None:
        """End what ``take`` began."""
        with self._lock:
            self._held[holder] -= amount
            self._all -= amount
            if not self._held[holder]:
                del self._held[holder]

    @contextmanager
    def taken(self, holder: str, amount: int = 1) -> Iterator[None]:
        """Hold ``amount`` for ``holder``. Raises what ``take`` does."""
        self.take(holder, amount)
        try:
            yield
        finally:
            self.give_back(holder, amount)


class SharedLeases:
    """What one user may hold at once in all processes together, counted in Redis.

    Args:
        client: the way to Redis. Where it can't be reached, nothing is refused: each process still counts for itself.
        what: what it is, for the log and the keys.
        each: how many one user may hold.
        seconds: after which a lease ends by itself, because the process that held it has died.
    """

    def __init__(self, client: redis.Redis, what: str, *, each: int, seconds: int) -> None:
        self._client = client
        self._what = what
        self._each = each
        self._seconds = seconds
        self._take: Any = client.register_script(_TAKE)

    @contextmanager
    def taken(self, user: str) -> Iterator[None]:
        """Hold a lease for ``user`` (a ``User.id``).

        Raises:
            TooManyRequests: the user holds as many as there may be.
        """
        key, lease = f"chatkit:{self._what}:{user}", uuid.uuid4().hex
        taken = True  # also where Redis does not say: it may carry out later what we have given up
        try:
            taken = bool(self._take(keys=[key], args=[self._each, self._seconds, lease]))
        except redis.RedisError as error:
            log.debug("leases can't be counted in Redis (%s)", type(error).__name__)
        else:
            if not taken:
                raise TooManyRequests(f"more than {self._each} {self._what} at once", retry_after=RETRY_SECONDS)
        try:
            yield
        finally:
            if taken:
                try:
                    self._client.zrem(key, lease)
                except redis.RedisError as error:
                    log.debug("a lease can't be given back (%s)", type(error).__name__)


class ChatConcurrency:
    """Bounds what the chat does at once: turns, which may last, and all other requests.

    Args:
        client: the way to Redis, where turns of one user are counted for all processes together; ``None`` without Redis.
        turn_seconds: how long a turn can last.
    """

    def __init__(self, client: redis.Redis | None, turn_seconds: int) -> None:
        self._users = {what: Shares(f"{what} of a user", None, each) for what, each in MAX_CONCURRENT_PER_USER.items()}
        self._addresses = {
            what: Shares(f"{what} of an address", total, total // PART) for what, total in MAX_CONCURRENT.items()
        }
        self._leases = client and SharedLeases(
            client, "turns", each=MAX_CONCURRENT_PER_USER["turns"], seconds=turn_seconds + LEASE_MARGIN_SECONDS
        )

    @contextmanager
    def held(self, what: Literal["turns", "requests"], user: str, address: str) -> Iterator[None]:
        """Hold a place for one of ``what``, of ``user`` (a ``User.id``) at ``address``.

        Raises:
            TooManyRequests: the user or the address holds as many as one may.
            ServiceBusy: this process does as many as it can.
        """
        with ExitStack() as places:
            places.enter_context(self._users[what].taken(user))
            places.enter_context(self._addresses[what].taken(address))
            if what == "turns" and self._leases:
                places.enter_context(self._leases.taken(user))
            yield
