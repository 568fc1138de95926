"""An operator's own ``ChatKitServer``: what it overrides is called, with this service's limits around it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from chatkit.backends.selfhosted.chat import drafts, server
from chatkit.settings import SettingsError
from chatkit.web.buffer import Buffer
from tests.support.agents_under_test import seen, spoken
from tests.support.applications import MakeApp, Start
from tests.support.chat import Caller, errors, texts, user_input
from tests.support.fake_openai import FakeOpenAI, failing
from tests.support.fake_server import Handler
from tests.support.identity_provider import SECRET, shared
from tests.support.leaks import Recorder
from tests.support.responses_api import asked, calls, says, streaming, streaming_until_cancelled
from tests.support.waiting import wait_for

SERVERS = "tests.support.servers_under_test"
ACTION = {"type": "press", "payload": {"button": "red"}}


def test_server_by_claim(start: Start, fake_openai: FakeOpenAI) -> None:
    agents = {"CHATKIT_AGENT_CLAIM": "plan", "CHATKIT_AGENTS": f"pro={SERVERS}:Knowing"}
    url = start("simple", AUTH_JWT_SECRET=SECRET, **agents).url
    fake_openai.behaviour = streaming(says("I am the agent"))
    assert texts(Caller(url, shared(plan="pro")).create("Hello")[1]) == ["accept-language: None"]
    assert texts(Caller(url, shared()).create("Hello")[1]) == ["I am the agent"]


def test_overrides_are_called(start: Start) -> None:
    caller = start(f"{SERVERS}:Overriding")
    thread_id, events = caller.create("Hello")
    assert [event.stream_options.allow_cancel for event in events if event.type == "stream_options"] == [False]
    assert [event.thread.title for event in events if event.type == "thread.created"] == ["overridden"]
    assert caller.items(thread_id, order="asc").data[0].quoted_text == "added on the way in"
    answered = list(caller.stream("threads.custom_action", thread_id=thread_id, action=ACTION))
    assert texts(answered) == ["press with {'button': 'red'}"]
    updated = caller.post("threads.sync_custom_action", thread_id=thread_id, action=ACTION).json()["updated_item"]
    assert (updated["id"], updated["content"][0]["text"], updated["created_at"][-1]) == ("msg_sync", "press", "Z")
    dictated = caller.post("input.transcribe", audio_base64="aGVsbG8=", mime_type="audio/webm;codecs=opus")
    assert dictated.json() == {"text": "audio/webm of 5 bytes"}
    assert caller.post("items.feedback", thread_id=thread_id, item_ids=["b", "a", "b"], kind="positive").json() == {}
    ((feedback_on, items, kind, user),) = seen
    assert (feedback_on, items, kind) == (thread_id, ["a", "b"], "positive")
    assert user.startswith("anonymous:")


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # as in production, where they are no errors
@pytest.mark.parametrize("wrong", ["title", "status", "item", "widget"])
def test_invalid_data_is_not_stored(start: Start, wrong: str) -> None:
    """Else the user could no longer open the thread, nor list all others."""
    caller = start(f"{SERVERS}:Untidy")
    thread_id, events = caller.create("fine")
    assert texts(events) == ["Fine"]
    assert errors(caller.say(thread_id, wrong)) == [("stream.error", None, True)]
    assert caller.post("threads.list").status_code == 200
    assert caller.thread(thread_id).title is None
    assert texts(caller.say(thread_id, "fine")) == ["Fine"]


def test_none_in_place_of_an_event_is_an_error(start: Start) -> None:
    """The events that follow must not be lost silently."""
    _, events = start(f"{SERVERS}:Untidy").create("no event")
    assert errors(events) == [("stream.error", None, True)]


def test_message_of_an_error_beside_the_response_is_shown(start: Start) -> None:
    _, events = start(f"{SERVERS}:WithoutOptions").create("Hello")
    assert errors(events) == [("custom", "No options today", False)]


@pytest.mark.parametrize("type_", ["threads.custom_action", "threads.sync_custom_action"])
@pytest.mark.parametrize("action", [{}, {"type": None}, {"payload": {}}])
def test_action_without_a_type_is_refused(start: Start, type_: str, action: dict[str, Any]) -> None:
    """OpenAI's package gives it a type that is not a text."""
    caller = start(f"{SERVERS}:Overriding")
    thread_id, _ = caller.create("Hello")
    refused = caller.post(type_, thread_id=thread_id, action=action)
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request_body")


def test_feedback_on_no_items_changes_nothing(start: Start) -> None:
    caller = start()
    thread_id, _ = caller.create("progress")
    feedback = {"thread_id": thread_id, "item_ids": [], "kind": "positive"}
    assert caller.post("items.feedback", **feedback).json() == {}
    assert Caller(caller.url).post("items.feedback", **feedback).status_code == 404


def test_feedback_is_limited_to_100_items_of_own_threads(start: Start) -> None:
    caller = start(f"{SERVERS}:Overriding")
    thread_id, _ = caller.create("Hello")

    def status(someone: Caller, items: int) -> int:
        item_ids = [f"msg_{number}" for number in range(items)]
        return someone.post("items.feedback", thread_id=thread_id, item_ids=item_ids, kind="negative").status_code

    assert status(caller, 101) == 400
    assert status(Caller(caller.url), 1) == 404
    assert seen == []
    assert status(caller, 100) == 200


def test_hidden_items_are_not_sent(start: Start) -> None:
    caller = start(f"{SERVERS}:Hidden")
    thread_id, events = caller.create("Hello")
    assert texts(events) == ["Noted"]
    assert "a note" not in str(events)
    assert [item.type for item in caller.items(thread_id).data] == ["assistant_message", "user_message"]
    assert caller.post("threads.sync_custom_action", thread_id=thread_id, action=ACTION).json() == {}


LATE = [("custom", "The response took too long. Please try again.", True)]


def test_time_limit_of_each_method(start: Start) -> None:
    caller = start(f"{SERVERS}:Hanging", CHATKIT_TURN_SECONDS="1")
    started = time.monotonic()
    thread_id, events = caller.create("Hello")
    assert errors(events) == LATE
    events = list(caller.stream("threads.custom_action", thread_id=thread_id, action=ACTION))
    assert errors(events) == [(*LATE[0][:2], False)], "a retry would repeat the message"
    others: dict[str, dict[str, Any]] = {
        "threads.sync_custom_action": {"thread_id": thread_id, "action": ACTION},
        "items.feedback": {"thread_id": thread_id, "item_ids": ["msg_1"], "kind": "positive"},
        "input.transcribe": {"audio_base64": "aGVsbG8=", "mime_type": "audio/webm"},
    }
    for type_, params in others.items():
        answer = caller.post(type_, **params)
        assert (answer.status_code, answer.json()["code"]) == (503, "service_busy"), type_
    assert 5 < time.monotonic() - started < 10


@pytest.mark.parametrize("how", ["error", "exit"])
def test_exceptions_end_only_their_request(start: Start, recorder: Recorder, how: str) -> None:
    """asyncio lets SystemExit out of the loop, and with it goes every other stream."""
    caller = start(f"{SERVERS}:Failing")
    thread_id, events = caller.create("fine")
    assert errors(events) == []
    before = len(recorder.lines)
    action = {"type": how, "payload": {}}
    responses = [
        caller.say(thread_id, how),
        list(caller.stream("threads.custom_action", thread_id=thread_id, action=action)),
    ]
    for events, is_repeatable in zip(responses, (True, False), strict=True):
        assert errors(events) == [("stream.error", None, is_repeatable)]
    assert len([line for line in recorder.lines[before:] if "an internal detail" in line]) == 2
    answer = caller.post("threads.sync_custom_action", thread_id=thread_id, action=action)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_server_error")
    assert "internal detail" not in f"{responses}{answer.text}"
    assert caller.post("threads.list").status_code == 200


def call_methods(caller: Caller, **metadata: str) -> dict[str, Any]:
    """Call the methods without a stream, and return the responses."""
    thread_id, _ = caller.create("Hello")
    methods: dict[str, dict[str, Any]] = {
        "threads.sync_custom_action": {"thread_id": thread_id, "action": ACTION},
        "items.feedback": {"thread_id": thread_id, "item_ids": ["msg_1"], "kind": "positive"},
        "input.transcribe": {"audio_base64": "aGVsbG8=", "mime_type": "audio/webm"},
    }
    return {type_: caller.send({"type": type_, "params": params, "metadata": metadata}) for type_, params in methods.items()}


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        (failing(401, "quoted-7"), (401, "openai_authentication_failed")),
        (failing(429, "quoted-7"), (429, "openai_rate_limited")),
        (failing(400, "quoted-7"), (503, "openai_unavailable")),
        (Handler.hang_up, (503, "openai_unavailable")),
    ],
    ids=["401", "429", "400", "connection closed"],
)
def test_errors_of_openai_outside_of_streams(
    start: Start, fake_openai: FakeOpenAI, recorder: Recorder, behaviour: Any, expected: tuple[int, str]
) -> None:
    fake_openai.behaviour = behaviour
    before = len(recorder.lines)
    for type_, answer in call_methods(start(f"{SERVERS}:AsksOpenAI")).items():
        assert (answer.status_code, answer.json()["code"]) == expected, type_
    logged = "".join(recorder.lines[before:])
    assert "quoted-7" not in logged
    assert logged.count("a method of the server failed") == 3


NO_REFUSAL = (500, "internal_server_error", "Internal server error")


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("a message", (400, "request_refused", "This is too long.")),
        ("HTTPException", (403, "request_refused", "This is another user's.")),
        ("HTTPException without a text", (422, "request_refused", "This request can't be served")),
        ("HTTPException 500", NO_REFUSAL),
        ("of an HTTP client", NO_REFUSAL),
    ],
)
def test_refusals_outside_of_streams(start: Start, how: str, expected: tuple[int, str, str]) -> None:
    for type_, answer in call_methods(start(f"{SERVERS}:Refusing"), how=how).items():
        envelope = answer.json()
        assert (answer.status_code, envelope["code"], envelope["message"]) == expected, type_
        assert envelope["status"] == "error"


def read_words(caller: Caller, said: str, words: int) -> tuple[str, Any]:
    """The id of a new thread, and its stream after some words of the response."""
    stream = caller.stream("threads.create", input=user_input(said))
    thread_id = next(stream).thread.id
    while words:
        words -= next(stream).type == "thread.item.updated"
    return thread_id, stream


def test_unfinished_message_is_saved(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts, "SAVE_INTERVAL_SECONDS", 0.2)
    caller = start(f"{SERVERS}:Speaking")
    thread_id, stream = read_words(caller, "Hello", 20)
    same = Caller(caller.url)
    same.secret = caller.secret
    wait_for(lambda: len(same.items(thread_id).data) == 2)
    stream.close()


def test_message_that_a_server_discards_is_not_kept(start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(drafts, "SAVE_INTERVAL_SECONDS", 0.2)
    caller = start(f"{SERVERS}:Discarding")
    thread_id, stream = read_words(caller, "Hello", 5)
    wait_for(lambda: count(tmp_path, "chat_items") == 2)
    stream.close()
    wait_for(lambda: "discarded" in seen)
    wait_for(lambda: count(tmp_path, "chat_items WHERE data NOT LIKE '%hidden%'") == 1)
    assert [item.type for item in caller.items(thread_id).data] == ["user_message"]


def test_message_that_a_server_gives_up_is_not_kept(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts, "SAVE_INTERVAL_SECONDS", 0.2)
    caller = start(f"{SERVERS}:GivingUp")
    thread_id, events = caller.create("Hello")
    assert (errors(events), texts(events)) == ([], ["Something else"])
    assert [item.id for item in caller.items(thread_id).data][:-1] == ["msg_own"]


def test_context_that_serves_two_runs(start: Start, fake_openai: FakeOpenAI) -> None:
    fake_openai.behaviour = streaming(says("Hello"), says("Hello again"))
    _, events = start(f"{SERVERS}:RunningTwice").create("Hi")
    assert texts(events) == ["Hello", "Hello again"]
    assert [event for event in events if event.type == "progress_update"] == []


def test_converter_that_adds_to_the_assistants_messages(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start(f"{SERVERS}:Noting")
    fake_openai.behaviour = streaming(says("Hello"))
    thread_id, _ = caller.create("Hi")
    assert errors(caller.say(thread_id, "And again")) == []
    assert asked(fake_openai.received[1].body) == [("user", "Hi"), ("assistant", "Hello (noted)"), ("user", "And again")]


def test_action_opens_a_thread_again(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start(f"{SERVERS}:Reopening")
    fake_openai.behaviour = streaming(calls("locks"), says("Support will write to you"), says("Yes?"))
    thread_id, _ = caller.create("Help!")
    assert caller.post("threads.add_user_message", thread_id=thread_id, input=user_input("Hello?")).status_code == 403
    assert texts(list(caller.stream("threads.custom_action", thread_id=thread_id, action=ACTION))) == ["Open again"]
    assert texts(caller.say(thread_id, "Hello?")) == ["Yes?"]


@pytest.mark.parametrize(("limit", "rows"), [(99, 99), (100, 100), (101, 100), (10**30, 100), (None, None)])
@pytest.mark.parametrize("type_", ["items.list", "threads.list"])
def test_page_of_a_request_has_a_hundred_rows_at_most(type_: str, limit: int | None, rows: int | None) -> None:
    params = {"thread_id": "thr_1", "limit": limit, "order": "asc", "after": None}
    assert server.read_request(json.dumps({"type": type_, "params": params}).encode()).params.limit == rows


def test_disconnect_cancels_the_response(start: Start) -> None:
    caller = start(f"{SERVERS}:Speaking")
    thread_id, stream = read_words(caller, "Hello", 5)
    stream.close()
    wait_for(lambda: seen == ["closed", ["msg_own"]])
    wait_for(lambda: len(caller.items(thread_id).data) == 2)
    said = caller.items(thread_id).data[0].content[0].text
    assert 5 <= len(said) < 500


@pytest.mark.parametrize(("by_shutdown", "hidden"), [(False, 1), (True, 0)])
def test_model_is_told_that_the_user_cancelled_only_if_they_did(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, by_shutdown: bool, hidden: int
) -> None:
    monkeypatch.setattr(Buffer, "interrupted", by_shutdown)
    caller = start(f"{SERVERS}:Speaking")
    thread_id, stream = read_words(caller, "Hello", 5)
    stream.close()
    wait_for(lambda: seen == ["closed", ["msg_own"]])
    wait_for(lambda: len(caller.items(thread_id).data) == 2)
    wait_for(lambda: not count(tmp_path, "chat_active_runs WHERE heartbeat > 0"))
    assert count(tmp_path, "chat_items WHERE data LIKE '%The user cancelled the stream%'") == hidden


def count(tmp_path: Path, rows: str) -> int:
    with create_engine(f"sqlite:///{tmp_path}/chatkit.db").connect() as connection:
        return int(connection.execute(text(f"SELECT count(*) FROM {rows}")).scalar_one())


@pytest.mark.parametrize("agent", ["simple", "for_user", "run_workflow", f"{SERVERS}:Plain"])
def test_disconnect_cancels_the_model_call(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    ended: list[float] = []
    fake_openai.behaviour = streaming_until_cancelled(ended)
    _, stream = read_words(caller, "Hello", 5)
    left = time.monotonic()
    stream.close()
    wait_for(lambda: ended)
    assert ended[0] - left < 4


def test_time_limit_of_handle_stream_cancelled(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CLOSING_SECONDS", 0.5)
    caller = start(f"{SERVERS}:Hanging")
    stream = caller.stream("threads.create", input=user_input("Hello"))
    while next(stream).type != "thread.item.added":
        pass
    stream.close()  # type: ignore[attr-defined]
    wait_for(lambda: seen == ["cancelled", "given up"])


def test_time_limit_of_cleaning_up(start: Start, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CLOSING_SECONDS", 0.5)
    before = len(recorder.lines)
    _, events = start(f"{SERVERS}:Lingering").create("Hello")
    ((_, message, _),) = errors(events)
    assert message is not None
    assert "image" in message
    assert any("failed to clean up" in line for line in recorder.lines[before:])


def test_backpressure(start: Start) -> None:
    caller = start(f"{SERVERS}:Speaking")
    with caller.send({"type": "threads.create", "params": {"input": user_input("long")}}, stream=True):
        time.sleep(3)
        said = len(spoken)
        time.sleep(1)
        assert len(spoken) == said < 140
    wait_for(lambda: seen == ["closed", ["msg_own"]])  # also where the disconnect meets a response that waits for its reader


def test_retry_deletes_later_items(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start(f"{SERVERS}:Plain")
    fake_openai.behaviour = streaming(says("one"), says("two"), says("again"))
    thread_id, _ = caller.create("first")
    caller.say(thread_id, "second")
    message = caller.items(thread_id, order="asc").data[0]
    assert texts(list(caller.stream("threads.retry_after_item", thread_id=thread_id, item_id=message.id))) == ["again"]
    assert [item.content[0].text for item in caller.items(thread_id, order="asc").data] == ["first", "again"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("WithItsOwnStore", "WithItsOwnStore has to pass the store that it is given to super().__init__()."),
        ("WithoutBase", "WithoutBase has to pass the store that it is given to super().__init__()."),
        ("NeedsMore", "NeedsMore can't be created with the store as its only argument (TypeError"),
        ("Incomplete", "Incomplete can't be created with the store as its only argument (TypeError"),
    ],
)
def test_unusable_server(make_app: MakeApp, name: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make_app(CHATKIT_BACKEND="selfhosted", CHATKIT_AGENT=f"{SERVERS}:{name}")
    assert f"CHATKIT_AGENT: {words}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_constructor_with_an_attachment_store(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start(f"{SERVERS}:WithStores")
    fake_openai.behaviour = streaming(says("Hello"))
    assert texts(caller.create("Hello")[1]) == ["Hello"]
