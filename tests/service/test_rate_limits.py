"""Rate and concurrency limits: per user, per address, over three services with one Redis, and with a failing Redis."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis as redis_package
import requests
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from chatkit.backends.selfhosted.chat.blueprint import MAX_MESSAGE_BYTES
from chatkit.limits.concurrency import MAX_CONCURRENT_PER_USER, ConcurrencyLimit, SharedLeases
from chatkit.limits.rate import TURNS_PER_MINUTE, TURNS_PER_SESSION
from chatkit.web.errors import ServiceBusy, TooManyRequests
from tests.support.applications import MakeApp
from tests.support.chat import Caller, user_input
from tests.support.endpoint import ENDPOINT, error_of
from tests.support.fake_openai import FakeOpenAI
from tests.support.hosted import COMPLETE
from tests.support.identity_provider import SECRET, shared
from tests.support.redis_server import Redis
from tests.support.service import Service

TOO_MANY = (429, "too_many_requests", "Too many requests. Please try again in a moment.")
PAGE = {"Origin": "http://localhost:3000"}


@pytest.fixture
def redis() -> Iterator[Redis]:
    with Redis() as running:
        yield running


def client_of(running: Redis) -> redis_package.Redis:
    return redis_package.Redis.from_url(running.url)


def statuses(client: FlaskClient, number: int, **headers: str) -> list[int]:
    """The statuses of requests without a cookie."""
    client = client.application.test_client(use_cookies=False)
    return [client.post(ENDPOINT, headers=headers).status_code for _ in range(number)]


def bearer(subject: str) -> str:
    return f"Bearer {shared(sub=subject)}"


# One process


def test_limit_without_a_cookie(make_app: MakeApp, fake_openai: FakeOpenAI) -> None:
    client = make_app(RATE_LIMIT="5").test_client()
    assert statuses(client, 8) == [200] * 5 + [429] * 3
    assert len(fake_openai.received) == 5
    response = client.post(ENDPOINT, headers=PAGE)
    assert error_of(response) == TOO_MANY
    assert 1 <= int(response.headers["Retry-After"]) <= 60
    assert response.headers["RateLimit-Limit"] == "5"
    assert response.headers["RateLimit-Remaining"] == "0"
    assert response.headers["RateLimit-Reset"] == response.headers["Retry-After"]
    assert response.headers["Access-Control-Allow-Origin"] == PAGE["Origin"]
    assert {"Retry-After", "RateLimit-Reset"} <= set(response.headers["Access-Control-Expose-Headers"].split(", "))
    assert "Set-Cookie" not in response.headers


def test_user_limit_spans_addresses(make_app: MakeApp) -> None:
    client = make_app(RATE_LIMIT="3,1000", AUTH_JWT_SECRET=SECRET).test_client()

    def calls(subject: str, number: int) -> list[int]:
        all_headers = [{"Authorization": bearer(subject), "X-Forwarded-For": f"10.0.{number}.{n}"} for n in range(5)]
        return [client.post(ENDPOINT, headers=headers).status_code for headers in all_headers]

    assert calls("ada", 1) == [200] * 3 + [429] * 2
    assert calls("bob", 1) == [200] * 3 + [429] * 2
    visitor = [client.post(ENDPOINT, headers={"X-Forwarded-For": f"10.1.0.{n}"}).status_code for n in range(5)]
    assert visitor == [200] * 4 + [429], "a new visitor's first request counts for the address only"


@pytest.mark.parametrize("headers", [{"Authorization": "Bearer e30.e30.x"}, {"Authorization": "Basic eDp5"}, {}])
def test_failed_sign_ins_are_counted(make_app: MakeApp, headers: dict[str, str]) -> None:
    client = make_app(RATE_LIMIT="4", AUTH_JWT_SECRET=SECRET, AUTH_REQUIRED="true").test_client()
    assert statuses(client, 6, **headers) == [401] * 4 + [429] * 2
    assert statuses(client, 1, Authorization=bearer("ada")) == [429]
    assert statuses(client, 1, Authorization=bearer("ada"), **{"X-Forwarded-For": "10.9.9.9"}) == [200]


def test_requests_with_their_own_limit_or_none(make_app: MakeApp) -> None:
    client = make_app(RATE_LIMIT="2").test_client()
    session_id = client.post(ENDPOINT).get_json()["data"]["session_id"]
    assert statuses(client, 2) == [200, 429]
    for _ in range(5):
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 200
        assert client.options(ENDPOINT, headers={**PAGE, "Access-Control-Request-Method": "POST"}).status_code == 200
    ended = [client.delete(f"{ENDPOINT}/{session_id}").status_code for _ in range(3)]
    assert ended == [200, 200, 429], "counted apart, so that one can log out, but not guess ids"


def test_limit_is_reset_after_a_minute(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    now, moved = time.time, [0.0]
    client = make_app(RATE_LIMIT="2").test_client()
    monkeypatch.setattr(time, "time", lambda: now() + moved[0])
    assert statuses(client, 3) == [200, 200, 429]
    moved[0] = 61
    assert statuses(client, 3) == [200, 200, 429]


def limited_together(make_app: MakeApp, first: dict[str, str], second: dict[str, str], **variables: str) -> bool:
    """Whether two callers are counted as one address."""
    client = make_app(RATE_LIMIT="1", **variables).test_client()
    assert statuses(client, 1, **first) == [200]
    return statuses(client, 1, **second) == [429]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("203.0.113.7", "203.0.113.7", True),
        ("203.0.113.7", "203.0.113.8", False),
        ("203.0.113.7", "203.0.113.7:51823", True),
        ("203.0.113.7", "::ffff:203.0.113.7", True),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::2", True),
        ("2001:db8:1:2::1", "[2001:db8:1:2:1:1:1:1]:443", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("203.0.113.7", "made up, 203.0.113.7", True),
        ("198.51.100.1, 203.0.113.7", "198.51.100.2, 203.0.113.7", True),
        ("made up", "made up otherwise", True),
        ("x" * 5000, "<script>", True),
    ],
)
def test_address_of_the_caller(make_app: MakeApp, first: str, second: str, same: bool) -> None:
    """Behind one proxy. It adds the last entry; the caller controls those before."""
    assert limited_together(make_app, {"X-Forwarded-For": first}, {"X-Forwarded-For": second}) is same


@pytest.mark.parametrize(
    ("hops", "first", "second", "same"),
    [
        ("0", "203.0.113.7", "203.0.113.8", True),
        ("2", "198.51.100.1, 203.0.113.7, 10.0.0.1", "198.51.100.2, 203.0.113.7, 10.0.0.2", True),
        ("2", "203.0.113.7, 10.0.0.1", "203.0.113.8, 10.0.0.1", False),
    ],
)
def test_proxy_hops(make_app: MakeApp, hops: str, first: str, second: str, same: bool) -> None:
    forwarded = {"X-Forwarded-For": first}, {"X-Forwarded-For": second}
    assert limited_together(make_app, *forwarded, PROXY_HOPS=hops) is same


@pytest.mark.parametrize(
    "header", ["X-Real-IP", "Forwarded", "X-Client-IP", "CF-Connecting-IP", "True-Client-IP", "X-Forwarded"]
)
def test_other_forwarding_headers_are_ignored(make_app: MakeApp, header: str) -> None:
    assert limited_together(make_app, {header: "203.0.113.7"}, {header: "for=203.0.113.8"})


def test_default_limit(make_app: MakeApp) -> None:
    client = make_app(RATE_LIMIT="").test_client()
    assert {client.post(ENDPOINT).status_code for _ in range(60)} == {200}
    assert client.post(ENDPOINT).status_code == 429


# Several processes, and Redis


def services(number: int, fake_openai: FakeOpenAI, **variables: str) -> Iterator[Service]:
    for _ in range(number):
        yield Service(**COMPLETE, CHATKIT_API_BASE=fake_openai.url, WEB_CONCURRENCY="1", **variables)


def test_services_share_the_limit_through_redis(redis: Redis, fake_openai: FakeOpenAI) -> None:
    seen: Counter[int] = Counter()
    with ExitStack() as running:
        urls = [
            running.enter_context(service).url for service in services(3, fake_openai, RATE_LIMIT="30,30", REDIS_URL=redis.url)
        ]

        def call(url: str) -> None:
            for _ in range(10):
                seen[requests.post(f"{url}{ENDPOINT}", timeout=10).status_code] += 1

        callers = [threading.Thread(target=call, args=(url,)) for url in urls * 3]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert seen == {200: 30, 429: 60}
    assert len(fake_openai.received) == 30


@pytest.mark.slow
def test_redis_outages_under_load(redis: Redis, fake_openai: FakeOpenAI) -> None:
    seen: Counter[int] = Counter()
    longest = [0.0]
    over = threading.Event()
    with ExitStack() as running:
        first, second = (
            running.enter_context(service)
            for service in services(2, fake_openai, RATE_LIMIT="1000000", AUTH_JWT_SECRET=SECRET, REDIS_URL=redis.url)
        )

        def call(url: str) -> None:
            with requests.Session() as session:
                while not over.is_set():
                    started = time.monotonic()
                    response = session.post(f"{url}{ENDPOINT}", timeout=10, headers={"Authorization": bearer("ada")})
                    longest[0] = max(longest[0], time.monotonic() - started)
                    seen[response.status_code] += 1
                    time.sleep(0.2)

        callers = [threading.Thread(target=call, args=(service.url,)) for service in (first, second) * 4]
        for caller in callers:
            caller.start()
        for _ in range(2):
            time.sleep(1)
            redis.kill()
            time.sleep(2)
            redis.start()
            time.sleep(3)
        redis.hang()
        time.sleep(2)
        redis.go_on()
        time.sleep(1)
        over.set()
        for caller in callers:
            caller.join()
    assert seen.keys() == {200}
    assert seen[200] > 200
    assert longest[0] < 5
    for service in (first, second):
        messages = [json.loads(line)["message"] for line in service.log.splitlines() if "REDIS_URL" in line]
        # The two kills may be noticed as one, and on a busy machine Redis may time out at other times as well.
        assert len(messages) >= 2
        for number, message in enumerate(messages):
            assert ("Redis can be used again" if number % 2 else "Redis can't be used") in message, "one per change"
        assert Redis.PASSWORD not in service.log
        assert "Traceback" not in service.log


def test_start_without_redis(fake_openai: FakeOpenAI) -> None:
    redis = Redis()
    (service,) = services(1, fake_openai, RATE_LIMIT="3", REDIS_URL=redis.url)
    with service:
        started = time.monotonic()
        assert [service.create_session().status_code for _ in range(5)] == [200] * 3 + [429] * 2
        assert time.monotonic() - started < 2
    assert service.log.count("Redis can't be used") == 1
    assert Redis.PASSWORD not in service.log


def test_hanging_redis_costs_little_time(redis: Redis, make_app: MakeApp) -> None:
    client = make_app(RATE_LIMIT="3", REDIS_URL=redis.url).test_client()
    assert client.post(ENDPOINT).status_code == 200
    redis.hang()
    started = time.monotonic()
    assert client.post(ENDPOINT).status_code == 200
    assert time.monotonic() - started < 1.5, "a quarter of a second, twice, and some time for the rest"
    redis.go_on()


# The chat


@pytest.fixture
def chat(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Service]:
    """With a parameter, that application in place of the deployed one."""
    address = f"sqlite:///{tmp_path}/chatkit.db"
    variables = {"CHATKIT_MAX_REQUESTS_PER_MINUTE": "", "AUTH_JWT_SECRET": SECRET, "WEB_CONCURRENCY": "1"}
    app = getattr(request, "param", "")
    with Service(app, CHATKIT_BACKEND="selfhosted", DATABASE_URL=address, **variables) as running:
        yield running


def refused(response: requests.Response | TestResponse) -> bool:
    if response.status_code != 429:
        return False
    body: Any = response.json() if isinstance(response, requests.Response) else response.get_json()
    assert body == {"status": "error", "message": TOO_MANY[2], "code": TOO_MANY[1]}
    assert 1 <= int(response.headers["Retry-After"]) <= 60
    return True


@pytest.mark.parametrize("chat", ["tests.support.quick_demo:app"], indirect=True)
def test_turns_per_user(chat: Service) -> None:
    caller = Caller(chat.url, shared())
    thread_id, _ = caller.create("progress")
    again = {"thread_id": thread_id, "input": user_input("progress")}
    for number in range(TURNS_PER_MINUTE - 1):
        if number % 10 == 0:
            caller.refresh()  # another session of the same user
        assert caller.post("threads.add_user_message", **again).status_code == 200
    response = caller.send({"type": "threads.add_user_message", "params": again}, Origin=PAGE["Origin"])
    assert refused(response)
    assert response.headers["RateLimit-Limit"] == str(TURNS_PER_MINUTE)
    assert response.headers["Access-Control-Allow-Origin"] == PAGE["Origin"]
    assert refused(caller.post("input.transcribe", audio_base64="aGVsbG8=", mime_type="audio/webm"))
    action = {"type": "press", "payload": {}}
    assert refused(caller.post("threads.sync_custom_action", thread_id=thread_id, action=action))
    assert len(caller.items(thread_id, limit=100).data) == 2 * TURNS_PER_MINUTE, "reading is not counted"
    assert Caller(chat.url, shared(sub="bob")).post("threads.create", input=user_input("progress")).status_code == 200


def test_turns_setting(make_app: MakeApp) -> None:
    app = make_app(CHATKIT_BACKEND="selfhosted", CHATKIT_MAX_REQUESTS_PER_MINUTE="2")
    client = app.test_client()
    assert [turn(client) for _ in range(3)] == [200, 200, 429]


def turn(client: FlaskClient) -> int:
    """Run a turn of a new visitor and return its status."""
    secret = client.post(ENDPOINT).get_json()["data"]["client_secret"]
    body = {"type": "threads.create", "params": {"input": user_input("progress")}}
    response = client.post("/api/chatkit", json=body, headers={"Authorization": f"Bearer {secret}"}, buffered=True)
    return response.status_code


def test_new_visitors_of_one_address_share_its_turns(make_app: MakeApp) -> None:
    app = make_app(CHATKIT_BACKEND="selfhosted", RATE_LIMIT="2", CHATKIT_MAX_REQUESTS_PER_MINUTE="1000")
    secrets = [app.test_client().post(ENDPOINT).get_json()["data"]["client_secret"] for _ in range(2)]
    seen = []
    for number in range(2 * TURNS_PER_SESSION + 2):
        headers = {"Authorization": f"Bearer {secrets[number % 2]}"}
        action = {
            "type": "threads.sync_custom_action",
            "params": {"thread_id": "thr_none", "action": {"type": "x", "payload": {}}},
        }
        seen.append(app.test_client().post("/api/chatkit", json=action, headers=headers).status_code)
    assert seen == [404] * 2 * TURNS_PER_SESSION + [429] * 2


def test_concurrent_turns_per_user(chat: Service) -> None:
    caller = Caller(chat.url, shared())
    body = {"type": "threads.create", "params": {"input": user_input("Hello")}}
    streams = [caller.send(body, stream=True) for _ in range(MAX_CONCURRENT_PER_USER["turns"])]
    assert [stream.status_code for stream in streams] == [200] * MAX_CONCURRENT_PER_USER["turns"]
    caller.refresh()
    assert refused(caller.send(body)), "another session of the same user"
    assert caller.post("threads.list").status_code == 200
    assert Caller(chat.url, shared(sub="bob")).send(body, stream=True).status_code == 200
    streams[0].close()  # the reader disconnects
    assert b"thread.item.done" in streams[1].content  # this one is read to its end
    deadline = time.monotonic() + 15
    while (again := caller.send(body, stream=True)).status_code == 429:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert again.status_code == 200
    for stream in [*streams, again]:
        stream.close()


def test_concurrency_limit_is_released() -> None:
    limit = ConcurrencyLimit("streams", total=8, each=5)
    for _ in range(3):
        with ExitStack() as held:
            for _ in range(5):
                held.enter_context(limit.held("ada"))
            with pytest.raises(TooManyRequests):
                held.enter_context(limit.held("ada"))
            for _ in range(3):
                held.enter_context(limit.held("bob"))
            with pytest.raises(ServiceBusy):
                held.enter_context(limit.held("carl"))
    assert limit._by_holder == {}


def test_concurrency_limit_with_amounts() -> None:
    limit = ConcurrencyLimit("bytes", total=100, each=60)
    limit.acquire("ada", 60)
    with pytest.raises(TooManyRequests):
        limit.acquire("ada", 1)
    with pytest.raises(ServiceBusy):
        limit.acquire("bob", 41)
    limit.release("ada", 30)
    limit.acquire("bob", 60)


@pytest.mark.slow
def test_concurrent_turns_are_counted_over_all_processes(redis: Redis, tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path}/chatkit.db"
    variables = {"AUTH_JWT_SECRET": SECRET, "DATABASE_URL": address, "REDIS_URL": redis.url, "CHATKIT_BACKEND": "selfhosted"}
    slow = "tests.support.slow_demo:app"
    with Service(slow, **variables) as first, Service(slow, **variables) as second:
        body = {"type": "threads.create", "params": {"input": user_input("Hello")}}
        most = MAX_CONCURRENT_PER_USER["turns"]
        callers = [Caller(service.url, shared()) for service in (first, second)]
        streams = [callers[number % 2].send(body, stream=True) for number in range(most)]
        assert [stream.status_code for stream in streams] == [200] * most
        assert [refused(caller.send(body)) for caller in callers] == [True, True]
        assert Caller(first.url, shared(sub="bob")).send(body, stream=True).status_code == 200
        for stream in streams:
            assert b"thread.item.done" in stream.content
        time.sleep(0.5)
        assert [caller.send(body).status_code for caller in callers] == [200, 200]
        redis.kill()
        assert callers[0].send(body).status_code == 200, "without Redis, each process counts on its own"


def test_lease_of_a_dead_process_expires(redis: Redis) -> None:
    leases = SharedLeases(client_of(redis), "turns", each=1, seconds=3)
    held = leases.held("ada")
    held.__enter__()
    with pytest.raises(TooManyRequests), leases.held("ada"):
        pass
    time.sleep(4.1)
    with leases.held("ada"):
        pass


def test_failed_request_releases_its_slot(make_app: MakeApp) -> None:
    client = make_app(CHATKIT_BACKEND="selfhosted").test_client()
    secret = client.post(ENDPOINT).get_json()["data"]["client_secret"]
    body = {"type": "threads.add_user_message", "params": {"thread_id": "thr_none", "input": user_input("Hello")}}
    for _ in range(3 * MAX_CONCURRENT_PER_USER["turns"]):
        response = client.post("/api/chatkit", json=body, headers={"Authorization": f"Bearer {secret}"})
        assert response.status_code == 404


@pytest.mark.parametrize(("extra", "status"), [(-100, 200), (1_000, 413), (1_000_000, 413)])
def test_message_size_limit(make_app: MakeApp, extra: int, status: int) -> None:
    client = make_app(CHATKIT_BACKEND="selfhosted").test_client()
    secret = client.post(ENDPOINT).get_json()["data"]["client_secret"]
    shortest = len(json.dumps({"type": "threads.create", "params": {"input": user_input("progress")}}, separators=(",", ":")))
    text = "progress" + " " * (MAX_MESSAGE_BYTES - shortest + extra)
    body = {"type": "threads.create", "params": {"input": user_input(text)}}
    response = client.post("/api/chatkit", json=body, headers={"Authorization": f"Bearer {secret}"}, buffered=True)
    assert response.status_code == status
    if status == 413:
        assert error_of(response) == (413, "request_entity_too_large", "Request entity too large")
