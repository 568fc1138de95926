"""How much at once: for one user, for one address, and in one process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Literal

import pytest
import redis as redis_package

from chatkit.limits.concurrency import ChatConcurrency, ConcurrencyLimit, SharedLeases
from chatkit.limits.rate import hashed, redis_client
from chatkit.settings import Settings
from chatkit.web.errors import ApiError, ServiceBusy, TooManyRequests
from tests.support.hosted import COMPLETE
from tests.support.redis_server import Redis
from tests.support.service import free_port

What = Literal["turns", "requests"]


@pytest.fixture
def held() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def refusal(concurrency: ChatConcurrency, what: What, user: str, address: str) -> ApiError | None:
    try:
        with concurrency.held(what, user, address):
            return None
    except ApiError as error:
        return error


@pytest.mark.parametrize(("what", "most"), [("turns", 5), ("requests", 10)])
def test_limits_of_a_user(held: ExitStack, what: What, most: int) -> None:
    concurrency = ChatConcurrency(None, turn_seconds=90)
    for number in range(most):
        held.enter_context(concurrency.held(what, "user:ada", f"10.0.0.{number}"))
    refused = refusal(concurrency, what, "user:ada", "10.0.1.1")
    assert isinstance(refused, TooManyRequests)
    assert refused.retry_after == 5
    assert refusal(concurrency, what, "user:bob", "10.0.0.1") is None
    held.close()
    assert refusal(concurrency, what, "user:ada", "10.0.1.1") is None


@pytest.mark.parametrize(("what", "of_an_address"), [("turns", 250), ("requests", 64)])
def test_limits_of_an_address_and_of_all(held: ExitStack, what: What, of_an_address: int) -> None:
    concurrency = ChatConcurrency(None, turn_seconds=90)
    for address in range(4):
        for number in range(of_an_address):
            held.enter_context(concurrency.held(what, f"user:{address}-{number}", f"10.0.0.{address}"))
        if address < 3:
            assert isinstance(refusal(concurrency, what, "user:ada", f"10.0.0.{address}"), TooManyRequests)
    assert isinstance(refusal(concurrency, what, "user:ada", "10.0.0.9"), ServiceBusy)
    held.close()
    assert refusal(concurrency, what, "user:ada", "10.0.0.9") is None


def test_refused_request_holds_nothing(held: ExitStack) -> None:
    concurrency = ChatConcurrency(None, turn_seconds=90)
    for number in range(250):
        held.enter_context(concurrency.held("turns", f"user:{number}", "10.0.0.1"))
    for _ in range(6):
        assert refusal(concurrency, "turns", "user:ada", "10.0.0.1")
    for number in range(5):
        held.enter_context(concurrency.held("turns", "user:ada", f"10.0.0.{2 + number}"))


def test_released_place_can_be_held_once_again(held: ExitStack) -> None:
    concurrency = ChatConcurrency(None, turn_seconds=90)
    for number in range(4):
        held.enter_context(concurrency.held("turns", "user:ada", f"10.0.0.{number}"))
    for _ in range(3):
        assert refusal(concurrency, "turns", "user:ada", "10.0.1.1") is None
    held.enter_context(concurrency.held("turns", "user:ada", "10.0.1.1"))
    assert refusal(concurrency, "turns", "user:ada", "10.0.1.1")


def test_nothing_is_kept_of_holders_that_hold_nothing() -> None:
    limit = ConcurrencyLimit("bodies", 10, 5)
    for number in range(3):
        limit.acquire(f"10.0.0.{number}", 2)
        limit.release(f"10.0.0.{number}", 2)
    assert not limit._by_holder, "it would grow with each address"


def test_turns_and_requests_are_counted_apart(held: ExitStack) -> None:
    concurrency = ChatConcurrency(None, turn_seconds=90)
    for _ in range(5):
        held.enter_context(concurrency.held("turns", "user:ada", "10.0.0.1"))
    assert refusal(concurrency, "requests", "user:ada", "10.0.0.1") is None


@pytest.fixture(scope="module")
def redis() -> Iterator[redis_package.Redis]:
    with Redis() as server, redis_package.Redis.from_url(server.url) as client:
        yield client


def test_turn_holds_a_lease_for_a_minute_longer_than_it_can_last(redis: Any) -> None:
    concurrency = ChatConcurrency(redis, turn_seconds=90)
    with concurrency.held("requests", "user:ada", "10.0.0.1"):
        assert redis.keys() == []
    before = redis.time()[0]
    with concurrency.held("turns", "user:ada", "10.0.0.1"):
        [key] = redis.keys()
        assert 140 <= redis.ttl(key) <= 150
        [(_, expires_at)] = redis.zrange(key, 0, -1, withscores=True)
        assert before + 150 <= expires_at <= redis.time()[0] + 150
    assert redis.keys() == []


def test_without_redis_each_process_counts_for_itself(held: ExitStack) -> None:
    nowhere = redis_client(Settings.load({**COMPLETE, "REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}))
    processes = [ChatConcurrency(nowhere, turn_seconds=90) for _ in range(2)]
    for process in processes:
        for _ in range(5):
            held.enter_context(process.held("turns", "user:ada", "10.0.0.1"))
        assert refusal(process, "turns", "user:ada", "10.0.0.1")
    held.close()
    assert refusal(processes[0], "turns", "user:ada", "10.0.0.1") is None


def test_refused_turn_leaves_no_lease(redis: redis_package.Redis, held: ExitStack) -> None:
    first, second = (ChatConcurrency(redis, turn_seconds=90) for _ in range(2))
    leases = [ExitStack() for _ in range(5)]
    for lease in leases:
        lease.enter_context(first.held("turns", "user:ada", "10.0.0.1"))
    for _ in range(3):
        assert refusal(second, "turns", "user:ada", "10.0.0.1")
    leases[0].close()
    assert refusal(second, "turns", "user:ada", "10.0.0.1") is None
    for lease in leases:
        lease.close()
    assert redis.keys() == []


def test_lease_is_released_after_a_timeout_of_redis(redis: redis_package.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis may have run the script."""
    leases = SharedLeases(redis, "turns", each=5, seconds=150)
    acquire = leases._acquire

    def late(**options: Any) -> None:
        acquire(**options)
        raise redis_package.TimeoutError

    monkeypatch.setattr(leases, "_acquire", late)
    with leases.held("user:ada"):
        assert redis.keys() != []
    assert redis.keys() == []


def test_expired_leases_do_not_count(redis: Any, held: ExitStack) -> None:
    """Their processes have died. Later turns keep the key, so it does not expire with them."""
    key = f"chatkit:turns:{hashed('user:ada')}"
    redis.zadd(key, {f"dead-{number}": redis.time()[0] - 2 for number in range(5)})
    held.enter_context(ChatConcurrency(redis, turn_seconds=90).held("turns", "user:ada", "10.0.0.1"))
    assert redis.zcard(key) == 1


def test_lease_is_counted_once_if_redis_is_asked_twice(redis: redis_package.Redis) -> None:
    """The client asks again if it has lost the first response."""
    leases = SharedLeases(redis, "turns", each=1, seconds=150)
    assert [leases._acquire(keys=["leases"], args=[1, 150, lease]) for lease in ("one", "one", "two")] == [1, 1, 0]
    redis.delete("leases")


def test_hanging_redis_costs_a_turn_little_time() -> None:
    with Redis() as server:
        client = redis_client(Settings.load({**COMPLETE, "REDIS_URL": server.url}))
        assert client
        assert client.ping()
        server.hang()
        started = time.monotonic()
        with ChatConcurrency(client, turn_seconds=90).held("turns", "user:ada", "10.0.0.1"):
            pass
        assert time.monotonic() - started < 3, "a quarter of a second, twice at each end"
        server.go_on()


def test_limit_of_a_user_holds_for_all_processes(redis: redis_package.Redis, held: ExitStack) -> None:
    processes = [ChatConcurrency(redis, turn_seconds=90) for _ in range(2)]
    for number in range(5):
        held.enter_context(processes[number % 2].held("turns", "user:ada", "10.0.0.1"))
    for process in processes:
        refused = refusal(process, "turns", "user:ada", "10.0.0.1")
        assert isinstance(refused, TooManyRequests)
        assert refused.retry_after == 5
        assert refusal(process, "turns", "user:bob", "10.0.0.1") is None
