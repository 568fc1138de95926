"""The ChatKit protocol over real HTTP through gunicorn, with the demo, read with OpenAI's own models."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from chatkit.types import SyncCustomActionResponse
from sqlalchemy import create_engine, text

from chatkit.backends.selfhosted.chat import demo
from tests.support.chat import Caller, deltas, errors, texts, user_input
from tests.support.protocol import ACTION, REQUEST_TYPES
from tests.support.service import Service

ORIGIN = {"Origin": "http://localhost:3000"}


@pytest.fixture(scope="module")
def service(shared_database: str) -> Iterator[Service]:
    """Two processes on one database."""
    variables = {"CHATKIT_BACKEND": "selfhosted", "DATABASE_URL": shared_database, "WEB_CONCURRENCY": "2"}
    with Service("tests.support.quick_demo:app", **variables) as running:
        yield running


@pytest.fixture
def caller(service: Service) -> Caller:
    return Caller(service.url)


def done(events: list[Any], type_: str) -> Any:
    (item,) = [event.item for event in events if event.type == "thread.item.done" and event.item.type == type_]
    return item


# Request types


def create(caller: Caller) -> None:
    started = time.monotonic()
    events = []
    first = 0.0
    for event in caller.stream("threads.create", input=user_input("Hello, are you there?")):
        first = first or time.monotonic() - started
        events.append(event)
    assert first < 10
    assert [event.type for event in events[:3]] == ["thread.created", "thread.item.done", "stream_options"]
    assert "demo assistant" in texts(events)[0]
    assert "".join(deltas(events)) == texts(events)[0]
    assert len(deltas(events)) > 20
    assert [event.thread.title for event in events if event.type == "thread.updated"] == ["Hello, are you there?"]


def add_user_message(caller: Caller) -> None:
    thread_id, _ = caller.create("Hello")
    caller.say(thread_id, "And again")
    kept = caller.items(thread_id, order="asc").data
    assert [item.type for item in kept] == ["user_message", "assistant_message"] * 2


def add_client_tool_output(caller: Caller) -> None:
    thread_id, events = caller.create("call a tool")
    assert done(events, "client_tool_call").name == "demo_tool"
    answered = list(caller.stream("threads.add_client_tool_output", thread_id=thread_id, result={"time": "noon"}))
    assert texts(answered) == ["Your page answered the call of demo_tool with: {'time': 'noon'}"]
    assert caller.post("threads.add_client_tool_output", thread_id=thread_id, result=1).status_code == 400


def add_structured_input(caller: Caller) -> None:
    thread_id, events = caller.create("ask me a question")
    item = done(events, "structured_input")
    answers = {"answers": {"drink": {"values": ["Tea"]}, "why": {"skipped": True}}}
    answered = list(caller.stream("threads.add_structured_input", thread_id=thread_id, item_id=item.id, input=answers))
    assert texts(answered) == ["Thank you. Tea or coffee? Tea Why? (skipped)"]
    again = caller.post("threads.add_structured_input", thread_id=thread_id, item_id=item.id, input=answers)
    assert again.status_code == 400


def retry_after_item(caller: Caller) -> None:
    thread_id, events = caller.create("an error please")
    assert errors(events) == [("custom", "An error of the demo. Please try again.", True)]
    message = caller.items(thread_id, order="asc").data[0]
    again = list(caller.stream("threads.retry_after_item", thread_id=thread_id, item_id=message.id))
    assert errors(again)
    assert caller.items(thread_id, order="asc").data[0] == message


def custom_action(caller: Caller) -> None:
    thread_id, events = caller.create("show a widget")
    widget = done(events, "widget")
    action = {"type": "demo.press", "payload": {"pressed": 1}}
    answered = list(caller.stream("threads.custom_action", thread_id=thread_id, item_id=widget.id, action=action))
    assert texts(answered) == ["Your page sent the action demo.press with {'pressed': 1}."]


def sync_custom_action(caller: Caller) -> None:
    thread_id, events = caller.create("show a widget")
    widget = done(events, "widget")
    action = {"type": "demo.press", "payload": {"pressed": 7}}
    response = caller.post("threads.sync_custom_action", thread_id=thread_id, item_id=widget.id, action=action)
    updated = SyncCustomActionResponse.model_validate_json(response.content).updated_item
    assert "Pressed 7 times" in repr(updated)
    assert caller.items(thread_id).data[0] == updated
    payloads: list[Any] = [{"pressed": []}, {"pressed": None}, {"pressed": "x"}, {"pressed": {}}, {}, [], "x", None, 1]
    for payload in payloads:
        nonsense = {"type": "demo.press", "payload": payload}
        response = caller.post("threads.sync_custom_action", thread_id=thread_id, item_id=widget.id, action=nonsense)
        assert response.status_code == 200, payload


def get_by_id(caller: Caller) -> None:
    thread_id, _ = caller.create("Hello")
    thread = caller.thread(thread_id)
    assert (thread.title, [item.type for item in thread.items.data]) == ("Hello", ["user_message", "assistant_message"])


def list_threads(caller: Caller) -> None:
    ids = [caller.create("progress")[0] for _ in range(3)]
    response = caller.post("threads.list", limit=2).json()
    assert [thread["id"] for thread in response["data"]] == ids[:0:-1]
    rest = caller.post("threads.list", limit=2, after=response["after"]).json()
    assert [thread["id"] for thread in rest["data"]] == ids[:1]


def list_items(caller: Caller) -> None:
    thread_id, _ = caller.create("Hello")
    page = caller.items(thread_id, limit=1)
    assert (len(page.data), page.has_more) == (1, True)
    assert caller.items(thread_id, limit=1, after=page.after).data[0].type == "user_message"


def feedback(caller: Caller) -> None:
    thread_id, events = caller.create("Hello")
    item_id = done(events, "assistant_message").id
    response = caller.post("items.feedback", thread_id=thread_id, item_ids=[item_id], kind="positive")
    assert (response.status_code, response.json()) == (200, {})


def update(caller: Caller) -> None:
    thread_id, _ = caller.create("Hello")
    assert caller.post("threads.update", thread_id=thread_id, title="Renamed").json()["title"] == "Renamed"
    caller.say(thread_id, "more")
    assert caller.thread(thread_id).title == "Renamed"


def delete(caller: Caller) -> None:
    thread_id, _ = caller.create("Hello")
    assert caller.post("threads.delete", thread_id=thread_id).status_code == 200
    assert caller.post("threads.get_by_id", thread_id=thread_id).status_code == 404


def attachments_create(caller: Caller) -> None:
    response = caller.post("attachments.create", name="a.txt", size=1, mime_type="text/plain")
    assert (response.status_code, response.json()["code"]) == (403, "attachments_off")


def attachments_delete(caller: Caller) -> None:
    response = caller.post("attachments.delete", attachment_id="atc_1")
    assert (response.status_code, response.json()["code"]) == (403, "attachments_off")


def transcribe(caller: Caller) -> None:
    """Without an API key. test_defaults.py covers dictation with one."""
    response = caller.post("input.transcribe", audio_base64="aGVsbG8=", mime_type="audio/webm")
    assert (response.status_code, response.json()["code"]) == (500, "openai_api_key_missing")
    assert caller.post("input.transcribe", audio_base64="?", mime_type="audio/webm").status_code in (400, 500)


EXERCISED: dict[str, Callable[[Caller], None]] = {
    "threads.create": create,
    "threads.add_user_message": add_user_message,
    "threads.add_client_tool_output": add_client_tool_output,
    "threads.add_structured_input": add_structured_input,
    "threads.retry_after_item": retry_after_item,
    "threads.custom_action": custom_action,
    "threads.sync_custom_action": sync_custom_action,
    "threads.get_by_id": get_by_id,
    "threads.list": list_threads,
    "threads.update": update,
    "threads.delete": delete,
    "items.list": list_items,
    "items.feedback": feedback,
    "attachments.create": attachments_create,
    "attachments.delete": attachments_delete,
    "input.transcribe": transcribe,
}


def test_tables_cover_every_request_type() -> None:
    assert EXERCISED.keys() == REQUEST_TYPES
    assert OTHERS.keys() == REQUEST_TYPES - {"threads.create", "attachments.create", "input.transcribe"}


@pytest.mark.parametrize("type_", EXERCISED)
def test_request_type(caller: Caller, type_: str) -> None:
    EXERCISED[type_](caller)


# Tenant isolation: the placeholders of another user's identifiers in every field

OTHERS: dict[str, list[dict[str, Any]]] = {
    "threads.get_by_id": [{"thread_id": "T"}],
    "threads.list": [{"after": "T"}],
    "threads.update": [{"thread_id": "T", "title": "mine"}],
    "threads.delete": [{"thread_id": "T"}],
    "threads.add_user_message": [
        {"thread_id": "T", "input": user_input("hi")},
        {"thread_id": "M", "input": {**user_input("hi"), "attachments": ["A"]}},
    ],
    "threads.add_client_tool_output": [{"thread_id": "T", "result": 1}],
    "threads.add_structured_input": [
        {"thread_id": "T", "item_id": "I", "input": {}},
        {"thread_id": "M", "item_id": "I", "input": {}},
    ],
    "threads.retry_after_item": [{"thread_id": "T", "item_id": "I"}, {"thread_id": "M", "item_id": "I"}],
    "threads.custom_action": [
        {"thread_id": "T", "action": ACTION},
        {"thread_id": "T", "item_id": "I", "action": ACTION},
        {"thread_id": "M", "item_id": "I", "action": ACTION},
    ],
    "threads.sync_custom_action": [
        {"thread_id": "T", "action": ACTION},
        {"thread_id": "T", "item_id": "I", "action": ACTION},
        {"thread_id": "M", "item_id": "I", "action": ACTION},
    ],
    "items.list": [{"thread_id": "T"}, {"thread_id": "M", "after": "I"}],
    "items.feedback": [
        {"thread_id": "T", "item_ids": ["I"], "kind": "negative"},
        {"thread_id": "M", "item_ids": ["I"], "kind": "negative"},
    ],
    "attachments.delete": [{"attachment_id": "A"}],
}


@pytest.mark.parametrize("type_", OTHERS)
def test_items_of_another_user_are_not_found(service: Service, type_: str) -> None:
    owner, other = Caller(service.url), Caller(service.url)
    theirs, events = owner.create("progress")
    mine, _ = other.create("progress")
    before = owner.thread(theirs)
    names = {"T": theirs, "M": mine, "I": done(events, "assistant_message").id, "A": "atc_theirs"}

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: named(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [named(inner) for inner in value]
        return names.get(value, value) if isinstance(value, str) else value

    for params in OTHERS[type_]:
        response = other.post(type_, **named(params))
        if type_ == "attachments.delete" or params.get("input", {}).get("attachments"):
            assert response.status_code == 403  # attachments are off for everybody
        else:
            assert (response.status_code, response.json()["code"]) == (404, "not_found"), params
        assert theirs not in response.text
    assert owner.thread(theirs) == before


# The client secret


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        (None, "client_secret_missing"),
        ("Bearer cs_" + "a" * 43, "client_secret_unknown"),
    ],
)
def test_missing_or_unknown_secret(service: Service, authorization: str | None, code: str) -> None:
    headers = {**ORIGIN, **({"Authorization": authorization} if authorization is not None else {})}
    response = requests.post(
        f"{service.url}/api/chatkit", json={"type": "threads.list", "params": {}}, headers=headers, timeout=10
    )
    assert (response.status_code, response.json()["code"]) == (401, code)
    assert response.headers["WWW-Authenticate"].startswith("Bearer")
    assert response.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"


def test_expired_session_and_the_next_one(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path}/chatkit.db"
    with Service(CHATKIT_BACKEND="selfhosted", DATABASE_URL=address, CHATKIT_SESSION_TTL="4") as service:
        caller = Caller(service.url)
        thread_id, _ = caller.create("progress")
        time.sleep(4.5)
        response = caller.post("threads.get_by_id", thread_id=thread_id)
        assert (response.status_code, response.json()["code"]) == (401, "client_secret_expired")
        caller.refresh()
        assert caller.thread(thread_id).id == thread_id


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b'{"type": "threads.nothing"}', 400),
        (b"[" * 100_000, 400),
        (b" " * 9_000_000, 413),
    ],
)
def test_malformed_requests(caller: Caller, body: bytes, status: int) -> None:
    headers = {"Authorization": f"Bearer {caller.secret}", "Content-Type": "application/json", **ORIGIN}
    response = requests.post(f"{caller.url}/api/chatkit", data=body, headers=headers, timeout=30)
    assert response.status_code == status
    assert response.json()["status"] == "error"
    assert response.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"


def test_headers_of_a_stream(caller: Caller) -> None:
    with caller.send({"type": "threads.create", "params": {"input": user_input("hi")}}, stream=True, **ORIGIN) as response:
        assert response.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
        assert response.headers["X-Accel-Buffering"] == "no"
        assert response.headers["Cache-Control"] == "no-store, no-transform"
        assert "Content-Length" not in response.headers


# Disconnects and shutdown


def raw_stream(caller: Caller, text_: str) -> socket.socket:
    """Start a new thread and return the connection that streams the reply."""
    body = json.dumps({"type": "threads.create", "params": {"input": user_input(text_)}})
    sock = socket.create_connection(("127.0.0.1", int(caller.url.rpartition(":")[2])), timeout=30)
    head = (
        f"POST /api/chatkit HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {caller.secret}\r\nContent-Type: application/json\r\n"
    )
    sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    return sock


def test_reply_is_kept_if_the_reader_disconnects(database: str) -> None:
    variables = {"CHATKIT_BACKEND": "selfhosted", "DATABASE_URL": database, "WEB_CONCURRENCY": "2"}
    with Service("tests.support.slow_demo:app", **variables) as service:
        disconnect_and_retry(Caller(service.url))


def disconnect_and_retry(caller: Caller) -> None:
    sock = raw_stream(caller, "hello")
    received = b""
    while received.count(b"text_delta") < 8:
        received += sock.recv(4096)
    sock.close()
    thread_id = re.search(rb"thr_[0-9a-f]{32}", received)[0].decode()  # type: ignore[index]
    deadline = time.monotonic() + 30
    while len(kept := caller.items(thread_id, order="asc").data) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    text_kept = kept[1].content[0].text
    assert text_kept.startswith("I am the demo assistant")
    assert not text_kept.endswith("CHATKIT_AGENT.")
    message = kept[0]
    again = list(caller.stream("threads.retry_after_item", thread_id=thread_id, item_id=message.id))
    assert texts(again)[0].endswith("CHATKIT_AGENT.")
    assert [item.type for item in caller.items(thread_id, order="asc").data] == ["user_message", "assistant_message"]


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_reply_is_kept_on_shutdown(tmp_path: Path, sign: signal.Signals) -> None:
    """A shutdown that can't wait for the reply: on SIGINT, or on SIGTERM after ``CHATKIT_STOP_SECONDS``."""
    address = f"sqlite:///{tmp_path}/chatkit.db"
    variables = {"CHATKIT_BACKEND": "selfhosted", "DATABASE_URL": address, "CHATKIT_STOP_SECONDS": "3"}
    with Service("tests.support.slow_demo:app", **variables) as service:
        caller = Caller(service.url)
        sock = raw_stream(caller, "hello")
        received = b""
        while received.count(b"text_delta") < 8:
            received += sock.recv(4096)
        service.stop(sign)
        assert service.process.returncode == 0
        assert "Traceback" not in service.log
    with create_engine(address).connect() as connection:
        kept = connection.execute(text("SELECT data FROM chat_items ORDER BY position")).scalars().all()
    assert "I am the demo assistant" in kept[1]
    assert "CHATKIT_AGENT." not in kept[1]


def test_reply_is_kept_if_the_process_is_killed(tmp_path: Path) -> None:
    variables = {"CHATKIT_BACKEND": "selfhosted", "DATABASE_URL": f"sqlite:///{tmp_path}/chatkit.db"}
    with Service("tests.support.slow_demo:app", **variables) as service:
        caller = Caller(service.url)
        sock = raw_stream(caller, "hello")
        received, shown = b"", ""
        history: list[tuple[float, str]] = []
        until = time.monotonic() + 5.5
        while time.monotonic() < until:
            received += sock.recv(4096)
            shown = "".join(
                json.loads(f'"{piece.decode()}"') for piece in re.findall(rb'"delta":"((?:[^"\\\\]|\\\\.)*)"', received)
            )
            history.append((time.monotonic(), shown))
        killed = time.monotonic()
        for process in [psutil.Process(service.process.pid), *psutil.Process(service.process.pid).children()]:
            process.send_signal(signal.SIGKILL)
        service.process.wait(10)
    thread_id = re.search(rb"thr_[0-9a-f]{32}", received)[0].decode()  # type: ignore[index]
    must_be_kept = [text for at, text in history if killed - at > 2.5][-1]
    with Service(**variables, PORT=str(service.port)):
        kept: Any = caller.thread(thread_id)
        assert [item.type for item in kept.items.data] == ["user_message", "assistant_message"]
        text_kept: str = kept.items.data[1].content[0].text
        assert text_kept.startswith(must_be_kept)
        assert demo.INTRODUCTION.format(said="hello").startswith(text_kept)  # the last word may not have been sent
        again = list(caller.stream("threads.retry_after_item", thread_id=thread_id, item_id=kept.items.data[0].id))
        assert texts(again)[0].endswith("CHATKIT_AGENT.")
        assert texts(caller.say(thread_id, "and on"))
        assert [item.type for item in caller.thread(thread_id).items.data] == ["user_message", "assistant_message"] * 2


def test_threads_are_shared_by_processes(service: Service) -> None:
    caller = Caller(service.url)
    thread_id, _ = caller.create("progress")
    results: list[int] = []

    def ask() -> None:
        alone = Caller(service.url)
        alone.http.cookies.update(caller.http.cookies)
        alone.secret = caller.secret
        results.append(len(alone.items(thread_id).data))

    readers = [threading.Thread(target=ask) for _ in range(10)]  # as many as a user may have at once
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert results == [2] * 10


def test_feedback_is_stored(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path}/chatkit.db"
    with Service(CHATKIT_BACKEND="selfhosted", DATABASE_URL=address) as service:
        feedback(Caller(service.url))
    with create_engine(address).connect() as connection:
        kept = connection.execute(text("SELECT feedback FROM chat_items WHERE feedback IS NOT NULL")).scalars().all()
    assert kept == ["positive"]
