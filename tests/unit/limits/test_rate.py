"""How often: each limit at its number, the limits that follow from a setting, and a Redis that fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import pytest
from flask import Flask

from chatkit.limits import rate
from chatkit.limits.rate import Action, Limits, client_address
from chatkit.settings import Settings
from chatkit.web.errors import TooManyRequests
from tests.support.hosted import COMPLETE
from tests.support.redis_server import Redis
from tests.support.service import free_port


def limits(**variables: str) -> Limits:
    return Limits(Settings.load({**COMPLETE, **variables}))


@pytest.fixture(autouse=True)
def request_of_an_address(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Within one minute of the clock, whenever the tests run.
    now = 60 * (time.time() // 60) + 1
    monkeypatch.setattr("limits.storage.memory.time.time", lambda: now)
    with Flask(__name__).test_request_context(environ_base={"REMOTE_ADDR": "10.0.0.1"}):
        yield


LIMITS: list[tuple[Action, str | None, dict[str, str], int]] = [
    ("sessions", "user:ada", {"RATE_LIMIT": "7,50"}, 7),
    ("sessions", None, {"RATE_LIMIT": "7,50"}, 50),
    ("endings", None, {"RATE_LIMIT": "7,50"}, 50),
    ("turns", "user:ada", {}, 30),
    ("turns", "user:ada", {"CHATKIT_MAX_REQUESTS_PER_MINUTE": "4"}, 4),
    ("turns", None, {"RATE_LIMIT": "7,50"}, 500),
    ("requests", "user:ada", {}, 300),
    ("requests", "user:ada", {"CHATKIT_MAX_REQUESTS_PER_MINUTE": "4"}, 40),
    ("requests", None, {"RATE_LIMIT": "7,50"}, 5000),
    ("polls", "user:ada", {"CHATKIT_MAX_REQUESTS_PER_MINUTE": "4"}, 40),
    ("polls", None, {"RATE_LIMIT": "7,50"}, 5000),
    ("stops", "user:ada", {"CHATKIT_MAX_REQUESTS_PER_MINUTE": "4"}, 40),
    ("stops", None, {"RATE_LIMIT": "7,50"}, 5000),
]


@pytest.mark.parametrize(("action", "user", "variables", "most"), LIMITS)
def test_limit(action: Action, user: str | None, variables: dict[str, str], most: int) -> None:
    counted = limits(**variables)
    for _ in range(most):
        counted.count(action, user)
    with pytest.raises(TooManyRequests) as refused:
        counted.count(action, user)
    assert refused.value.allowed == most
    assert refused.value.retry_after is not None
    assert 1 <= refused.value.retry_after <= 60
    if user:
        counted.count(action, "user:bob")


def test_nobody_is_locked_out_after_the_clock_was_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    counted, now = limits(CHATKIT_MAX_REQUESTS_PER_MINUTE="1"), 60 * (time.time() // 60) + 1
    monkeypatch.setattr("time.time", lambda: now)
    counted.count("turns", "user:ada")
    monkeypatch.setattr("time.time", lambda: now - 3 * 3600)
    counted.count("turns", "user:ada")
    with pytest.raises(TooManyRequests) as refused:
        counted.count("turns", "user:ada")
    assert refused.value.retry_after == 60


@pytest.mark.parametrize(("passed", "retry_after"), [(0, 60), (20, 40), (59.5, 1)])
def test_retry_after_is_the_rest_of_the_minute_and_at_least_a_second(
    monkeypatch: pytest.MonkeyPatch, passed: float, retry_after: int
) -> None:
    counted = limits(CHATKIT_MAX_REQUESTS_PER_MINUTE="1")
    now = time.time()
    counted.count("turns", "user:ada")
    monkeypatch.setattr("time.time", lambda: now + passed)
    with pytest.raises(TooManyRequests) as refused:
        counted.count("turns", "user:ada")
    assert refused.value.retry_after == retry_after


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("10.0.0.1:4711", "10.0.0.1"),
        ("[2001:db8:1:2:3:4:5:6]:4711", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2::1]", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:1:1:2:3:4:5:6", "2001:1:1:2::/64"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("", "unknown"),
        (None, "unknown"),
        ("10.0.0.1:", "unknown"),
        ("[2001:db8:1:2::1]:", "unknown"),
        ("2001:db8[::1]", "unknown"),
        ("made up", "unknown"),
    ],
)
def test_address(text: str | None, address: str) -> None:
    assert client_address(text) == address


def test_two_processes_count_in_one_redis_and_each_for_itself_without(caplog: pytest.LogCaptureFixture) -> None:
    def counts(process: Limits) -> bool:
        try:
            process.count("sessions", "user:ada")
        except TooManyRequests:
            return False
        return True

    with Redis() as redis, caplog.at_level(logging.INFO, "chatkit.limits.rate"):
        processes = [limits(RATE_LIMIT="2", REDIS_URL=redis.url) for _ in range(2)]
        assert [counts(processes[number % 2]) for number in range(3)] == [True, True, False]
        redis.kill()
        assert [counts(processes[number % 2]) for number in range(6)] == [True] * 4 + [False] * 2
        assert caplog.text.count("Redis can't be used") == 2, "once for each process"
        redis.start()
        time.sleep(1.1)
        assert [counts(processes[number % 2]) for number in range(3)] == [True, True, False]
        assert caplog.text.count("Redis can be used again") == 2


def test_redis_that_fails_is_asked_again_after_a_second(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counted = limits(REDIS_URL=f"redis://127.0.0.1:{free_port()}/0")
    asked: list[float] = []
    hit, clock = rate._hit, [1000.0]
    monkeypatch.setattr("chatkit.limits.rate.time.monotonic", lambda: clock[0])

    def noting(limiter: object, *args: object) -> object:
        if limiter is counted._counter._shared:
            asked.append(clock[0])
        return hit(limiter, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(rate, "_hit", noting)
    for clock[0] in (1000.0, 1000.5, 1000.9, 1001.0, 1001.9, 1002.1):
        counted.count("sessions", "user:ada")
    assert asked == [1000.0, 1001.0, 1002.1]
    assert caplog.text.count("Redis can't be used") == 1
