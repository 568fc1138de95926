"""The request id is passed on to OpenAI."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.support.chat import Caller, user_input
from tests.support.fake_openai import API_KEY, WORKFLOW_ID, FakeOpenAI, failing, issue_session
from tests.support.fake_server import Behaviour, Handler, responding
from tests.support.responses_api import calls, says, streaming
from tests.support.service import Service

SESSIONS = "/api/chatkit/sessions"


@pytest.fixture(autouse=True)
def reset(shared_openai: FakeOpenAI) -> None:
    shared_openai.received.clear()
    shared_openai.behaviour = issue_session


@pytest.fixture(scope="module")
def hosted(shared_openai: FakeOpenAI) -> Iterator[Service]:
    with Service(
        OPENAI_API_KEY=API_KEY, CHATKIT_WORKFLOW_ID=WORKFLOW_ID, CHATKIT_API_BASE=shared_openai.url, WEB_CONCURRENCY="1"
    ) as running:
        yield running


@pytest.fixture(scope="module")
def agent(shared_openai: FakeOpenAI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The self-hosted chat with an agent that calls a tool."""
    with Service(
        CHATKIT_BACKEND="selfhosted",
        CHATKIT_AGENT="tests.support.agents_under_test:with_tool",
        OPENAI_API_KEY=API_KEY,
        CHATKIT_API_BASE=shared_openai.url,
        DATABASE_URL=f"sqlite:///{tmp_path_factory.mktemp('db')}/chatkit.db",
        WEB_CONCURRENCY="1",
    ) as running:
        yield running


@pytest.fixture
def caller(agent: Service) -> Caller:
    return Caller(agent.url)


def received(shared_openai: FakeOpenAI) -> list[str | None]:
    return [call.headers.get("x-client-request-id") for call in shared_openai.received]


def in_turn(*behaviours: Behaviour) -> Behaviour:
    left = list(behaviours)

    def behave(handler: Handler) -> None:
        left.pop(0)(handler)

    return behave


def say(caller: Caller, text: str, request_id: str) -> str:
    """Send a message and return the whole stream."""
    body = {"type": "threads.create", "params": {"input": user_input(text)}}
    with caller.send(body, stream=True, **{"X-Request-ID": request_id}) as response:
        return response.text


def test_issuing_and_ending_a_session(hosted: Service, shared_openai: FakeOpenAI) -> None:
    browser = requests.Session()
    created = browser.post(hosted.url + SESSIONS, headers={"X-Request-ID": "id-of-the-page"}, timeout=10)
    session_id = created.json()["data"]["session_id"]
    ended = browser.delete(f"{hosted.url}{SESSIONS}/{session_id}", headers={"X-Request-ID": "another.id:2"}, timeout=10)
    assert (created.status_code, ended.status_code) == (200, 200)
    assert received(shared_openai) == ["id-of-the-page", "another.id:2"]


@pytest.mark.parametrize("given", [None, "not an id", "x" * 129])
def test_generated_id_without_a_valid_one(hosted: Service, shared_openai: FakeOpenAI, given: str | None) -> None:
    response = hosted.create_session(headers={"X-Request-ID": given} if given else {})
    assert received(shared_openai) == [response.headers["X-Request-ID"]]
    assert response.headers["X-Request-ID"] != given


def test_retry_after_a_broken_connection(hosted: Service, shared_openai: FakeOpenAI) -> None:
    shared_openai.behaviour = in_turn(Handler.hang_up, issue_session)
    assert hosted.create_session(headers={"X-Request-ID": "twice"}).status_code == 200
    assert received(shared_openai) == ["twice", "twice"]


def test_every_model_call_of_a_turn(caller: Caller, shared_openai: FakeOpenAI) -> None:
    shared_openai.behaviour = streaming(calls("weather", city="Oslo"), says("Sun in Oslo"))
    assert "Sun in Oslo" in say(caller, "Weather?", "of-the-turn")
    assert received(shared_openai) == ["of-the-turn", "of-the-turn"]


def test_retried_model_call(caller: Caller, shared_openai: FakeOpenAI) -> None:
    shared_openai.behaviour = in_turn(failing(500, "server_error"), streaming(says("Here I am")))
    assert "Here I am" in say(caller, "Hello", "of-both-tries")
    assert received(shared_openai) == ["of-both-tries", "of-both-tries"]


def test_concurrent_turns(agent: Service, shared_openai: FakeOpenAI) -> None:
    shared_openai.behaviour = streaming(says("one two three", pause=0.1))
    callers = [Caller(agent.url) for _ in range(4)]
    names = [f"turn-{number}" for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(say, callers, names, names))
    ids = {
        call.body["input"][-1]["content"][0]["text"]: call.headers.get("x-client-request-id") for call in shared_openai.received
    }
    assert ids == {name: name for name in names}


def test_dictation(caller: Caller, shared_openai: FakeOpenAI) -> None:
    shared_openai.behaviour = responding(200, {"text": "Hello there"})
    body = {"type": "input.transcribe", "params": {"audio_base64": "aGVsbG8=", "mime_type": "audio/webm"}}
    assert caller.send(body, stream=False, **{"X-Request-ID": "spoken"}).json() == {"text": "Hello there"}
    assert received(shared_openai) == ["spoken"]
