"""Reading the conversations that OpenAI stores, over real HTTP; OpenAI's own SDK is the judge of requests and shapes."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from chatkit.backends.hosted import threads_api
from chatkit.backends.hosted.threads_api import AccessDenied, ReadFailed, ThreadsApi, Unavailable
from chatkit.settings import Settings
from tests.support.fake_openai import API_KEY, FakeOpenAI, failing
from tests.support.fake_server import Handler, responding, sending
from tests.support.hosted import COMPLETE
from tests.support.service import free_port
from tests.support.threads_api import DESCRIBED, Project, answers, asks

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.fixture
def project(fake_openai: FakeOpenAI) -> Project:
    fake_openai.behaviour = project = Project()
    return project


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def api(fake_openai: FakeOpenAI, waits: list[float]) -> ThreadsApi:
    return ThreadsApi(Settings.load({**COMPLETE, "CHATKIT_API_BASE": fake_openai.url}), waits.append)


def test_requests_are_those_that_openais_sdk_sends(fake_openai: FakeOpenAI, project: Project, api: ThreadsApi) -> None:
    thread = project.add("user:a b&c", *DESCRIBED)
    list(api.threads("user:a b&c"))
    list(api.items(thread))
    with openai.OpenAI(api_key=API_KEY, base_url=f"{fake_openai.url}/v1", max_retries=0) as sdk:
        threads = list(sdk.beta.chatkit.threads.list(user="user:a b&c", limit=100, order="asc"))
        items = list(sdk.beta.chatkit.threads.list_items(thread, limit=100, order="asc"))
    ours, theirs = fake_openai.received[:2], fake_openai.received[2:]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.method == "GET"
        assert sorted(mine.path.partition("?")[2].split("&")) == sorted(other.path.partition("?")[2].split("&"))
        assert mine.path.partition("?")[0] == other.path.partition("?")[0]
        for name in ("authorization", "openai-beta", "accept"):
            assert mine.headers[name] == other.headers[name]
    assert [thread.id for thread in threads] == [thread["id"] for thread in project.threads]
    assert [item.type for item in items] == [item["type"] for item in DESCRIBED], "the fake has the SDK's shapes"


def test_pages_are_read_one_after_the_other_in_order(project: Project, api: ThreadsApi) -> None:
    for number in range(250):
        project.add(f"user:{number % 2}")
    long = project.add("user:long", *(asks(str(number)) for number in range(230)))
    assert [thread["id"] for thread in api.threads()] == [thread["id"] for thread in project.threads]
    assert len(project.requests) == 3
    assert [item["content"][0]["text"] for item in api.items(long)] == [str(number) for number in range(230)]
    assert len(project.requests) == 6
    assert {thread["user"] for thread in api.threads("user:1")} == {"user:1"}


def test_empty_user_is_not_all_users(project: Project, api: ThreadsApi) -> None:
    project.add("user:a")
    assert list(api.threads("")) == []


def test_next_page_is_requested_only_when_it_is_needed(project: Project, api: ThreadsApi) -> None:
    for _ in range(300):
        project.add("user:a")
    threads = api.threads()
    for _ in range(100):
        next(threads)
    assert len(project.requests) == 1


BROKEN = {
    "busy": failing(429, "rate_limit_exceeded"),
    "server error": failing(500, "server_error"),
    "bad gateway": responding(502, b"<html>"),
    "timeout": responding(408),
    "hangs up": Handler.hang_up,
    "cut in the middle": sending(HEAD + b'Content-Length: 5000\r\n\r\n{"object":"list","data":['),
    "no JSON": responding(200, b'{"data":['),
    "no list": responding(200, {"object": "list", "data": None, "has_more": False}),
    "no word on more": responding(200, {"object": "list", "data": []}),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_response_is_requested_again(project: Project, api: ThreadsApi, waits: list[float], fault: str) -> None:
    project.largest_page = 1
    thread = project.add("user:a", asks("1"), answers("2"), asks("3"))
    first = 2  # the HTTP client itself repeats once after a broken connection
    project.faults = dict.fromkeys(range(first, first + 3), BROKEN[fault])
    assert [item["content"][0]["text"] for item in api.items(thread)] == ["1", "2", "3"]
    assert waits[:1] == [2]
    assert waits == sorted(waits)


def test_waits_as_long_as_openai_asks(project: Project, api: ThreadsApi, waits: list[float], caplog: Any) -> None:
    project.add("user:a")
    asked = ["20", "1.5", "999999", "Wed, 21 Oct 2026 07:28:00 GMT", "-1", ""]
    project.faults = {
        number: failing(429, "rate_limit_exceeded", Retry_After=value, x_request_id="req_1")
        for number, value in enumerate(asked, start=1)
    }
    assert len(list(api.threads())) == 1
    assert waits == [20, 1.5, 600, 16, 32, 60]
    assert "OpenAI answered 429 (request req_1, rate_limit_exceeded); trying again in 20 s" in caplog.messages


def test_gives_up_in_the_end(project: Project, api: ThreadsApi, waits: list[float]) -> None:
    project.faults = dict.fromkeys(range(1, 100), failing(503, "overloaded"))
    with pytest.raises(ReadFailed, match=r"OpenAI answered 503 \(overloaded\), 8 times in a row"):
        list(api.threads())
    assert len(project.requests) == 8
    assert 120 < sum(waits) < 240


@pytest.mark.parametrize(("fault", "expected"), [("no list", ReadFailed), ("server error", Unavailable)])
def test_list_that_is_always_broken_is_not_reported_as_openai_being_unavailable(
    project: Project, api: ThreadsApi, fault: str, expected: type[ReadFailed]
) -> None:
    project.faults = dict.fromkeys(range(1, 9), BROKEN[fault])
    with pytest.raises(ReadFailed) as caught:
        list(api.threads())
    assert type(caught.value) is expected


def test_limits_of_a_call(api: ThreadsApi, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[dict[str, Any]] = []

    def call(_session: Any, _request: Any, **given: Any) -> Any:
        limits.append(given)
        return 200, {}, b'{"data": [], "has_more": false}'

    monkeypatch.setattr(threads_api, "call", call)
    assert list(api.threads()) == []
    assert limits == [{"seconds": 60, "max_bytes": 64 * 1024 * 1024}]


def test_connection_refused(waits: list[float]) -> None:
    settings = Settings.load({**COMPLETE, "CHATKIT_API_BASE": f"http://127.0.0.1:{free_port()}"})
    with pytest.raises(ReadFailed, match="OpenAI does not answer, 8 times in a row"):
        list(ThreadsApi(settings, waits.append).threads())


@pytest.mark.parametrize("status", [401, 403])
def test_key_that_is_not_accepted(project: Project, api: ThreadsApi, waits: list[float], status: int) -> None:
    project.faults = {1: failing(status, "invalid_api_key")}
    with pytest.raises(AccessDenied, match="OPENAI_API_KEY") as caught:
        list(api.threads())
    assert API_KEY not in str(caught.value)
    assert waits == []


@pytest.mark.parametrize("status", [302, 400, 404, 410])
def test_other_responses_are_not_requested_again(project: Project, api: ThreadsApi, waits: list[float], status: int) -> None:
    project.faults = {1: failing(status, "gone", Location="/v1/chatkit/threads")}
    with pytest.raises(ReadFailed, match=f"OpenAI answered {status}"):
        list(api.threads())
    assert len(project.requests) == 1
    assert waits == []


@pytest.mark.parametrize("status", [404, 410])
def test_api_that_has_ended(project: Project, api: ThreadsApi, status: int) -> None:
    project.faults = {1: failing(status, "not_found"), 2: failing(status, "not_found")}
    with pytest.raises(ReadFailed, match=f"OpenAI answered {status}.*: it may no longer serve the conversations"):
        list(api.threads())
    with pytest.raises(ReadFailed, match=rf"OpenAI answered {status} \(not_found\)$"):
        list(api.items("cthr_1"))


@pytest.mark.parametrize("last_id", [None, 1, "cthr_1"])
@pytest.mark.parametrize("data", [[], [{"id": "cthr_1"}], [{"id": None}], ["x"]])
def test_list_without_end_is_not_read_for_ever(fake_openai: FakeOpenAI, api: ThreadsApi, data: list[Any], last_id: Any) -> None:
    fake_openai.behaviour = responding(200, {"object": "list", "data": data, "has_more": True, "last_id": last_id})
    with pytest.raises(ReadFailed, match="does not say after which element"):
        list(api.threads())
    assert len(fake_openai.received) <= 2


def test_page_that_is_too_long(monkeypatch: pytest.MonkeyPatch, project: Project, api: ThreadsApi) -> None:
    monkeypatch.setattr(threads_api, "MAX_PAGE_BYTES", 100_000)
    thread = project.add("user:a", asks("x" * 200_000))
    with pytest.raises(ReadFailed, match="more than 100000 bytes"):
        list(api.items(thread))


def test_lone_surrogates_are_replaced(fake_openai: FakeOpenAI, api: ThreadsApi) -> None:
    body = b'{"object": "list", "has_more": false, "data": [{"id": "cthr_1", "title": "\\uD800 \\ud83d\\ude00 \\u0000"}]}'
    fake_openai.behaviour = responding(200, body)
    (thread,) = api.threads()
    assert thread["title"] == "? \U0001f600 \0"
    json.dumps(thread, ensure_ascii=False).encode()
