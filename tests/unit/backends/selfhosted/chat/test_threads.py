"""Thread status, and concurrent requests to one thread."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from chatkit.types import ClosedStatus, LockedStatus
from sqlalchemy import create_engine, text

from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.backends.selfhosted.chat.transactions import Transactions
from tests.support.applications import Start
from tests.support.chat import Caller, errors, texts, user_input
from tests.support.fake_openai import FakeOpenAI
from tests.support.leaks import Recorder
from tests.support.responses_api import asked, calls, says, streaming, thinks

ACTION = {"type": "press", "payload": {"button": "red"}}
PENDING_CALL = [*says("Let me see"), *calls("ask_page", question="Colour?")]


def other(caller: Caller) -> Caller:
    """The same user on another connection."""
    same = Caller(caller.url)
    same.secret = caller.secret
    return same


@pytest.mark.parametrize(
    "status", [LockedStatus(reason="Escalated."), ClosedStatus(reason="Resolved.")], ids=lambda it: it.type
)
def test_inactive_thread_accepts_nothing_that_needs_a_reply(
    start: Start, fake_openai: FakeOpenAI, tmp_path: Path, status: Any
) -> None:
    caller = start("with_page")
    fake_openai.behaviour = streaming(PENDING_CALL)
    thread_id, _ = caller.create("Hello")
    message = caller.items(thread_id, order="asc").data[0]
    with create_engine(f"sqlite:///{tmp_path}/chatkit.db").begin() as connection:
        changed = text("UPDATE chat_threads SET data = json_set(data, '$.status', json(:status))")
        connection.execute(changed, {"status": status.model_dump_json()})
    before, calls_made = caller.thread(thread_id), len(fake_openai.received)
    refused: dict[str, dict[str, Any]] = {
        "threads.add_user_message": {"input": user_input("And now?")},
        "threads.add_client_tool_output": {"result": {"colour": "blue"}},
        "threads.add_structured_input": {"item_id": message.id, "input": {"answers": {}}},
        "threads.retry_after_item": {"item_id": message.id},
    }
    for type_, fields in refused.items():
        response = caller.post(type_, thread_id=thread_id, **fields)
        assert (response.status_code, response.json()["code"]) == (403, "thread_not_active"), type_
        assert response.json()["message"] == "This conversation takes no new messages"
    assert caller.thread(thread_id) == before
    assert before.status == status, "with its reason, which the page shows"
    assert len(fake_openai.received) == calls_made
    kept: dict[str, dict[str, Any]] = {
        "items.feedback": {"item_ids": [message.id], "kind": "positive"},
        "threads.update": {"title": "Old"},
        "threads.delete": {},
    }
    for type_, fields in kept.items():
        assert caller.post(type_, thread_id=thread_id, **fields).status_code == 200, type_


@pytest.mark.parametrize("agent", ["locking", "tests.support.servers_under_test:Locking"])
def test_agent_locks_its_thread(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(calls("locks"), says("Support will write to you"))
    thread_id, events = caller.create("Help!")
    assert texts(events) == ["Support will write to you"]
    assert [event.thread.status.type for event in events if event.type == "thread.updated"][-1] == "locked"
    assert caller.thread(thread_id).status == LockedStatus(reason="Escalated to support.")
    assert caller.post("threads.add_user_message", thread_id=thread_id, input=user_input("Hello?")).status_code == 403


def test_rename_during_a_turn_is_kept(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("counting")
    fake_openai.behaviour = streaming(says("Hello"), [2.0, *calls("counts")], says("one two three", pause=0.2))
    thread_id, _ = caller.create("First")
    titles = []
    for event in caller.stream("threads.add_user_message", thread_id=thread_id, input=user_input("Count")):
        if event.type == "thread.item.done" and event.item.type == "user_message":
            assert caller.post("threads.update", thread_id=thread_id, title="Renamed").status_code == 200
        if event.type == "thread.updated":
            titles.append(event.thread.title)
    assert caller.thread(thread_id).title == "Renamed"
    assert set(titles) == {"Renamed"}, "the page never gets the old title"


def test_sync_action_while_a_client_tool_is_pending(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("with_page")
    fake_openai.behaviour = streaming(PENDING_CALL, says("It is blue"))
    thread_id, _ = caller.create("What colour is my page?")
    assert caller.post("threads.sync_custom_action", thread_id=thread_id, action=ACTION).json() == {}
    answered = list(caller.stream("threads.add_client_tool_output", thread_id=thread_id, result={"colour": "blue"}))
    assert (errors(answered), texts(answered)) == ([], ["It is blue"])
    given = fake_openai.received[1].body["input"]
    assert [item.get("type") for item in given[-2:]] == ["function_call", "function_call_output"]
    assert "press with {'button': 'red'}" in str(asked(fake_openai.received[1].body)[-3])


@pytest.mark.parametrize(("size", "status"), [(250 * 1024, 200), (260 * 1024, 413)])
def test_size_limit_of_a_client_tool_output(start: Start, fake_openai: FakeOpenAI, size: int, status: int) -> None:
    caller = start("with_page")
    fake_openai.behaviour = streaming(PENDING_CALL, says("I have read it"))
    thread_id, _ = caller.create("Read my page")
    response = caller.post("threads.add_client_tool_output", thread_id=thread_id, result={"page": "x" * size})
    assert response.status_code == status
    if status == 200:
        roles = [role for role, _ in asked(fake_openai.received[1].body)]
        assert roles == ["user", "function_call", "function_call_output"], (
            "the tool output is given together with its user message"
        )


@pytest.mark.parametrize("shape", ["threads.add_user_message", "items.feedback"])
def test_size_limit_of_other_requests(start: Start, fake_openai: FakeOpenAI, shape: str) -> None:
    caller = start("simple")
    fake_openai.behaviour = streaming(says("Hello"))
    thread_id, _ = caller.create("Hello")
    params: dict[str, Any] = (
        {"input": user_input("x" * 70_000)} if shape.startswith("threads") else {"item_ids": ["x" * 70_000]}
    )
    assert caller.post(shape, thread_id=thread_id, kind="positive", **params).status_code == 413


def test_feedback_skips_unknown_items(start: Start, fake_openai: FakeOpenAI, tmp_path: Path) -> None:
    caller = start("simple")
    fake_openai.behaviour = streaming(says("Hello"))
    thread_id, _ = caller.create("Hello")
    message = caller.items(thread_id).data[0]

    def feedback(*item_ids: str) -> int:
        return caller.post("items.feedback", thread_id=thread_id, item_ids=list(item_ids), kind="positive").status_code

    assert feedback("msg_shown_only", message.id) == 200
    with create_engine(f"sqlite:///{tmp_path}/chatkit.db").connect() as connection:
        kept = connection.execute(text("SELECT id FROM chat_items WHERE feedback = 'positive'")).scalars().all()
    assert kept == [message.id]
    assert feedback("msg_shown_only") == 404


def test_workflow_guardrail_sees_quoted_text(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("guarded_workflow")
    fake_openai.behaviour = streaming(says("Let me explain"))
    input_ = {**user_input("Explain this"), "quoted_text": "how to do something forbidden"}
    assert errors(list(caller.stream("threads.create", input=input_)))


@pytest.mark.parametrize("agent", ["drafting", "drafting_workflow"])
def test_draft_replaced_by_a_tool_is_one_message(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(calls("drafts"), says("Done"))
    thread_id, events = caller.create("Write")
    (draft,) = [event.item for event in events if event.type == "thread.item.added" and event.item.content[:1] != []]
    (final,) = [event.item for event in events if event.type == "thread.item.replaced"]
    assert draft.id == final.id
    kept = caller.items(thread_id, order="asc").data
    assert [item.content[0].text for item in kept] == ["Write", "the final text", "Done"]
    assert kept[1].id == final.id


def test_lock_is_kept_while_the_title_is_saved(start: Start, fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool changes the thread while the title is being written to a slow database."""
    run = Transactions.run

    async def slow(self: Transactions, work: Any, **options: Any) -> Any:
        result = await run(self, work, **options)
        await asyncio.sleep(0.3)
        return result

    caller = start("locking")
    fake_openai.behaviour = streaming([*says("One moment"), 0.45, *calls("locks")], says("Support will write to you"))
    monkeypatch.setattr(Transactions, "run", slow)
    thread_id, _ = caller.create("Help!")
    assert caller.thread(thread_id).status == LockedStatus(reason="Escalated to support.")


def test_rename_is_kept_when_a_tool_loads_the_thread(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("loading")
    fake_openai.behaviour = streaming(says("Hello"), calls("loads_and_notes"), says("Done"))
    thread_id, _ = caller.create("First")
    for event in caller.stream("threads.add_user_message", thread_id=thread_id, input=user_input("Count")):
        if event.type == "thread.item.done" and event.item.type == "user_message":
            assert caller.post("threads.update", thread_id=thread_id, title="Renamed").status_code == 200
    assert caller.thread(thread_id).title == "Renamed"


def test_metadata_of_two_messages_at_once_is_merged(
    start: Start, fake_openai: FakeOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatkit.backends.selfhosted.chat.runs.GRACE_SECONDS", 5)  # the second waits for the end of the first
    caller = start("noting")
    fake_openai.behaviour = streaming(says("Hello"))
    thread_id, _ = caller.create("First")
    fake_openai.behaviour = streaming(calls("notes", key="a"), says("Done"), calls("notes", key="b"), says("Done"))
    same = other(caller)
    second = threading.Thread(target=lambda: same.say(thread_id, "One"))
    second.start()
    caller.say(thread_id, "Two")
    second.join()
    with create_engine(f"sqlite:///{tmp_path}/chatkit.db").connect() as connection:
        stored = json.loads(connection.execute(text("SELECT data FROM chat_threads")).scalar_one())
    assert stored["metadata"] == {"a": True, "b": True}


def test_sync_action_does_not_overwrite_a_client_tool_output(
    start: Start, fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output is saved between the action's read and its write."""
    caller = start("with_page")
    fake_openai.behaviour = streaming([*says("Let me see"), *calls("ask_page", question="Colour?")], says("It is blue"))
    thread_id, _ = caller.create("What colour is my page?")
    same, add_before_call = other(caller), SqlStore.add_before_call

    async def late(self: SqlStore, *args: Any) -> Any:
        output = {"thread_id": thread_id, "result": {"colour": "blue"}}
        await asyncio.to_thread(lambda: list(same.stream("threads.add_client_tool_output", **output)))
        return await add_before_call(self, *args)

    monkeypatch.setattr(SqlStore, "add_before_call", late)
    assert caller.post("threads.sync_custom_action", thread_id=thread_id, action=ACTION).status_code == 200
    kept = caller.items(thread_id, order="asc").data
    assert [item.type for item in kept] == ["user_message", "assistant_message", "client_tool_call", "assistant_message"]
    assert (kept[2].status, kept[2].output) == ("completed", {"colour": "blue"})


def test_reasoning_continues_after_a_sync_action(start: Start, fake_openai: FakeOpenAI) -> None:
    """The SDK continues a workflow item that directly precedes the call."""
    caller = start("with_page")
    fake_openai.behaviour = streaming(
        [*thinks("Ask"), *calls("ask_page", question="Colour?")], [*thinks("I see"), *says("Blue")]
    )
    thread_id, _ = caller.create("What colour is my page?")
    caller.post("threads.sync_custom_action", thread_id=thread_id, action=ACTION)
    list(caller.stream("threads.add_client_tool_output", thread_id=thread_id, result={"colour": "blue"}))
    kinds = [item.type for item in caller.items(thread_id, order="asc").data]
    assert kinds == ["user_message", "workflow", "client_tool_call", "assistant_message"]


def test_action_while_a_client_tool_is_pending(start: Start, fake_openai: FakeOpenAI) -> None:
    """The page may call sendCustomAction() while its tool runs."""
    caller = start("with_page")
    fake_openai.behaviour = streaming(calls("ask_page", question="Colour?"), says("I see"), says("It is blue"))
    thread_id, _ = caller.create("What colour is my page?")
    list(caller.stream("threads.custom_action", thread_id=thread_id, action=ACTION))
    response = caller.post("threads.add_client_tool_output", thread_id=thread_id, result={"colour": "blue"})
    assert response.status_code == 200


def test_title_of_a_message_with_mentions_only(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("simple")
    fake_openai.behaviour = streaming(says("I see"))
    tag = {"type": "input_tag", "id": "art_1", "text": "The future", "data": {}, "interactive": False}
    created, *_ = list(caller.stream("threads.create", input={**user_input(""), "content": [tag]}))
    assert caller.thread(created.thread.id).title == "@The future"


@pytest.mark.parametrize("agent", ["simple", "counting", "run_workflow", "tests.support.servers_under_test:Plain"])
def test_thread_deleted_during_its_turn(start: Start, fake_openai: FakeOpenAI, recorder: Recorder, agent: str) -> None:
    caller = start(agent)
    turn = [[*calls("counts"), 2.0]] if agent == "counting" else []
    fake_openai.behaviour = streaming(says("Hello"), *turn, says("one two three", pause=0.7))
    thread_id, _ = caller.create("First")
    before = len(recorder.lines)
    events = []
    for event in caller.stream("threads.add_user_message", thread_id=thread_id, input=user_input("Count")):
        events.append(event)
        if event.type == "thread.item.done" and event.item.type == "user_message":
            assert caller.post("threads.delete", thread_id=thread_id).status_code == 200
    assert errors(events) == [("stream.error", None, False)]
    lines = recorder.lines[before:]
    assert len([line for line in lines if "no longer exists" in line]) == 1
    assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize("said", ["all", "after"])
def test_thread_deleted_before_its_items_are_loaded(start: Start, recorder: Recorder, said: str) -> None:
    caller, before = start("tests.support.servers_under_test:Deleting"), len(recorder.lines)
    _, events = caller.create(said)
    assert errors(events) == [("stream.error", None, False)]
    lines = recorder.lines[before:]
    assert len([line for line in lines if "no longer exists" in line]) == 1
    assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize("item", ["nowhere", "assistant_message"])
def test_retry_of_anything_but_a_user_message_changes_nothing(start: Start, fake_openai: FakeOpenAI, item: str) -> None:
    caller = start("simple")
    fake_openai.behaviour = streaming(says("Hello"))
    thread_id, _ = caller.create("Hello")
    caller.say(thread_id, "And now?")
    before = caller.items(thread_id)
    ids = {it.type: it.id for it in before.data}
    response = caller.post("threads.retry_after_item", thread_id=thread_id, item_id=ids.get(item, item))
    assert response.status_code == (404 if item == "nowhere" else 400)
    assert caller.items(thread_id) == before


def test_retry_deletes_later_items_in_one_transaction(
    start: Start, fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = start("simple")
    fake_openai.behaviour = streaming(says("Hello"))
    thread_id, _ = caller.create("Hello")
    for _ in range(5):
        caller.say(thread_id, "Again")
    first = caller.items(thread_id, order="asc").data[0]
    runs, run = [], Transactions.run

    async def counting(self: Transactions, work: Any, **options: Any) -> Any:
        runs.append(work)
        return await run(self, work, **options)

    monkeypatch.setattr(Transactions, "run", counting)
    list(caller.stream("threads.retry_after_item", thread_id=thread_id, item_id=first.id))
    of_the_retry = len(runs)
    runs.clear()
    caller.say(thread_id, "Again")
    assert of_the_retry <= len(runs) + 3
    kept = caller.items(thread_id, order="asc").data
    assert [item.type for item in kept] == ["user_message", "assistant_message"] * 2


def test_long_title_is_truncated(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("simple")
    fake_openai.behaviour = streaming(says("Hello"))
    thread_id, _ = caller.create("Hello")
    assert caller.post("threads.update", thread_id=thread_id, title="x" * 60_000).json()["title"] == "x" * 200
    assert caller.thread(thread_id).title == "x" * 200


def test_limit_of_answers_in_structured_input(start: Start) -> None:
    caller = start(OPENAI_API_KEY="")  # the demo
    thread_id, _ = caller.create("question")
    item = caller.items(thread_id).data[0]

    def answer(number: int) -> int:
        answers = {str(key): {"values": ["a"]} for key in range(number)}
        input_ = {"answers": answers}
        return caller.post("threads.add_structured_input", thread_id=thread_id, item_id=item.id, input=input_).status_code

    assert (answer(101), answer(100)) == (400, 200)


def test_pages_are_limited_by_bytes(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("simple")
    fake_openai.behaviour = streaming([*(event for _ in range(6) for event in says("A" * 1_500_000)), *says("Six")])
    thread_id, _ = caller.create("Write")
    for order in ("asc", "desc"):
        pages = [caller.items(thread_id, order=order)]
        while pages[-1].has_more:
            pages.append(caller.items(thread_id, order=order, after=pages[-1].after))
        assert [len(page.data) for page in pages] == [4, 3, 1]
        seen = [item.id for page in pages for item in page.data]
        assert len(set(seen)) == len(seen) == 8
    assert len(caller.thread(thread_id).items.data) == 4
    assert caller.thread(thread_id).items.has_more
