"""What a thread's state decides, and what several requests do to one thread at the same time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chatkit.types import ClosedStatus, LockedStatus
from sqlalchemy import create_engine, text

from tests.chat import errors, texts, user_input
from tests.conftest import Start
from tests.responses_api import asked, calls, draws, says, streaming
from tests.upstream import Upstream

ACTION = {"type": "press", "payload": {"button": "red"}}
PENDING_CALL = [*says("Let me see"), *calls("ask_page", question="Colour?")]


@pytest.mark.parametrize(
    "status", [LockedStatus(reason="Escalated."), ClosedStatus(reason="Resolved.")], ids=lambda it: it.type
)
def test_a_thread_that_is_not_active_takes_nothing_that_is_answered(
    start: Start, upstream: Upstream, tmp_path: Path, status: Any
) -> None:
    caller = start("with_page")
    upstream.behaviour = streaming(PENDING_CALL)
    thread_id, _ = caller.create("Hello")
    message = caller.items(thread_id, order="asc").data[0]
    with create_engine(f"sqlite:///{tmp_path}/chatkit.db").begin() as connection:
        changed = text("UPDATE chat_threads SET data = json_set(data, '$.status', json(:status))")
        connection.execute(changed, {"status": status.model_dump_json()})
    before, calls_made = caller.thread(thread_id), len(upstream.received)
    refused: dict[str, dict[str, Any]] = {
        "threads.add_user_message": {"input": user_input("And now?")},
        "threads.add_client_tool_output": {"result": {"colour": "blue"}},
        "threads.add_structured_input": {"item_id": message.id, "input": {"answers": {}}},
        "threads.retry_after_item": {"item_id": message.id},
        "threads.custom_action": {"action": ACTION},
        "threads.sync_custom_action": {"action": ACTION},
    }
    for type_, fields in refused.items():
        answer = caller.post(type_, thread_id=thread_id, **fields)
        assert (answer.status_code, answer.json()["code"]) == (403, "thread_not_active"), type_
        assert answer.json()["message"] == "This conversation takes no new messages"
    assert caller.thread(thread_id) == before
    assert before.status == status, "the page says why"
    assert len(upstream.received) == calls_made
    kept: dict[str, dict[str, Any]] = {
        "items.feedback": {"item_ids": [message.id], "kind": "positive"},
        "threads.update": {"title": "Old"},
        "threads.delete": {},
    }
    for type_, fields in kept.items():
        assert caller.post(type_, thread_id=thread_id, **fields).status_code == 200, type_


def test_an_agent_that_locks_its_thread(start: Start, upstream: Upstream) -> None:
    caller = start("locking")
    upstream.behaviour = streaming(calls("locks"), says("Support will write to you"))
    thread_id, events = caller.create("Help!")
    assert texts(events) == ["Support will write to you"]
    assert [event.thread.status.type for event in events if event.type == "thread.updated"][-1] == "locked"
    assert caller.thread(thread_id).status == LockedStatus(reason="Escalated to support.")
    assert caller.post("threads.add_user_message", thread_id=thread_id, input=user_input("Hello?")).status_code == 403


def test_a_rename_during_a_turn_survives_it(start: Start, upstream: Upstream) -> None:
    caller = start("counting")
    upstream.behaviour = streaming(says("Hello"), [0.5, *calls("counts")], says("one two three", pause=0.2))
    thread_id, _ = caller.create("First")
    titles = []
    for event in caller.stream("threads.add_user_message", thread_id=thread_id, input=user_input("Count")):
        if event.type == "thread.item.done" and event.item.type == "user_message":
            assert caller.post("threads.update", thread_id=thread_id, title="Renamed").status_code == 200
        if event.type == "thread.updated":
            titles.append(event.thread.title)
    assert caller.thread(thread_id).title == "Renamed"
    assert set(titles) == {"Renamed"}, "the page is not told the old one"


def test_a_sync_action_while_a_client_tool_is_pending(start: Start, upstream: Upstream) -> None:
    caller = start("with_page")
    upstream.behaviour = streaming(PENDING_CALL, says("It is blue"))
    thread_id, _ = caller.create("What colour is my page?")
    assert caller.post("threads.sync_custom_action", thread_id=thread_id, action=ACTION).json() == {}
    answered = list(caller.stream("threads.add_client_tool_output", thread_id=thread_id, result={"colour": "blue"}))
    assert (errors(answered), texts(answered)) == ([], ["It is blue"])
    given = upstream.received[1].body["input"]
    assert [item.get("type") for item in given[-2:]] == ["function_call", "function_call_output"]
    assert "press with {'button': 'red'}" in str(asked(upstream.received[1].body)[-3])


@pytest.mark.parametrize(("size", "status"), [(250 * 1024, 200), (260 * 1024, 413)])
def test_how_large_a_client_tools_output_may_be(start: Start, upstream: Upstream, size: int, status: int) -> None:
    caller = start("with_page")
    upstream.behaviour = streaming(PENDING_CALL, says("I have read it"))
    thread_id, _ = caller.create("Read my page")
    answer = caller.post("threads.add_client_tool_output", thread_id=thread_id, result={"page": "x" * size})
    assert answer.status_code == status
    if status == 200:
        roles = [role for role, _ in asked(upstream.received[1].body)]
        assert roles == ["user", "function_call", "function_call_output"], "the question comes along with what answers it"


@pytest.mark.parametrize("shape", ["threads.add_user_message", "items.feedback"])
def test_no_other_request_may_be_as_large(start: Start, upstream: Upstream, shape: str) -> None:
    caller = start("simple")
    upstream.behaviour = streaming(says("Hello"))
    thread_id, _ = caller.create("Hello")
    params: dict[str, Any] = (
        {"input": user_input("x" * 70_000)} if shape.startswith("threads") else {"item_ids": ["x" * 70_000]}
    )
    assert caller.post(shape, thread_id=thread_id, kind="positive", **params).status_code == 413


def test_feedback_for_what_was_never_stored_is_kept_for_the_rest(start: Start, upstream: Upstream, tmp_path: Path) -> None:
    caller = start("simple")
    upstream.behaviour = streaming(says("Hello"))
    thread_id, _ = caller.create("Hello")
    message = caller.items(thread_id).data[0]

    def feedback(*item_ids: str) -> int:
        return caller.post("items.feedback", thread_id=thread_id, item_ids=list(item_ids), kind="positive").status_code

    assert feedback("msg_shown_only", message.id) == 200
    with create_engine(f"sqlite:///{tmp_path}/chatkit.db").connect() as connection:
        kept = connection.execute(text("SELECT id FROM chat_items WHERE feedback = 'positive'")).scalars().all()
    assert kept == [message.id]
    assert feedback("msg_shown_only") == 404


def quoting(text_: str) -> dict[str, Any]:
    tag = {"type": "input_tag", "id": "art_1", "text": "The future", "data": {"kind": "article"}, "interactive": False}
    content = [{"type": "input_text", "text": f"{text_} "}, tag]
    return {**user_input(""), "content": content, "quoted_text": "a sentence above"}


@pytest.mark.parametrize("agent", ["simple", "run_workflow", "guarded_workflow"])
def test_mentions_and_quoted_text_reach_the_model(start: Start, upstream: Upstream, agent: str) -> None:
    caller = start(agent)
    upstream.behaviour = streaming(says("I see"))
    list(caller.stream("threads.create", input=quoting("What about")))
    given = " ".join(words for _, words in asked(upstream.received[0].body))
    for part in ("What about @The future", "a sentence above", "@The future stands for art_1", "'kind': 'article'"):
        assert given.count(part) == 1, part


def test_a_guardrail_of_a_workflow_sees_what_is_quoted(start: Start, upstream: Upstream) -> None:
    caller = start("guarded_workflow")
    upstream.behaviour = streaming(says("Let me explain"))
    input_ = {**user_input("Explain this"), "quoted_text": "how to do something forbidden"}
    assert errors(list(caller.stream("threads.create", input=input_)))


@pytest.mark.parametrize("agent", ["drafting", "drafting_workflow"])
def test_a_draft_that_a_tool_replaces_is_one_message(start: Start, upstream: Upstream, agent: str) -> None:
    caller = start(agent)
    upstream.behaviour = streaming(calls("drafts"), says("Done"))
    thread_id, events = caller.create("Write")
    (draft,) = [event.item for event in events if event.type == "thread.item.added" and event.item.content[:1] != []]
    (final,) = [event.item for event in events if event.type == "thread.item.replaced"]
    assert draft.id == final.id
    kept = caller.items(thread_id, order="asc").data
    assert [item.content[0].text for item in kept] == ["Write", "the final text", "Done"]
    assert kept[1].id == final.id


def test_an_image_leaves_the_model_its_memory(start: Start, upstream: Upstream) -> None:
    caller = start("simple")
    image = "A" * 200 * 1024
    upstream.behaviour = streaming([*draws(image), *says("Here it is")], says("You are Ada"))
    thread_id, events = caller.create("I am Ada. Draw me.")
    assert errors(events) == []
    caller.say(thread_id, "Who am I?")
    given = upstream.received[-1].body["input"]
    words = [text_ for _, text_ in asked(upstream.received[-1].body)]
    assert words == ["I am Ada. Draw me.", "The following image was generated by the agent.", "Here it is", "Who am I?"]
    assert given[1]["content"][1]["image_url"] == f"data:image/png;base64,{image}"
