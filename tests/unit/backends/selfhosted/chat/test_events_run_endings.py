"""Runs that end with something else than a message of the model: with a tool, or with a question for the user."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from agents import RunResultStreaming, StreamEvent

from tests.support.agents_under_test import seen
from tests.support.applications import Start
from tests.support.chat import errors, texts
from tests.support.fake_openai import FakeOpenAI
from tests.support.leaks import Recorder
from tests.support.responses_api import asked, calls, refuses, says, streaming, thinks
from tests.support.waiting import wait_for

SERVERS = "tests.support.servers_under_test"
APPROVING = "tests.support.approving_agents"
AGENTS = ["ending_with_a_tool", "ending_with_a_tool_for_user"]
SUN = calls("weather", city="Paris")


@pytest.mark.parametrize("agent", [*AGENTS, "workflow_ending_with_a_tool"])
def test_the_output_of_a_tool_that_ends_the_run_is_a_message(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming([*thinks("Ask"), *SUN], [*says("Let me see"), *SUN])
    thread_id, events = caller.create("Weather?")
    assert (errors(events), texts(events)) == ([], ["Sun in Paris"])
    assert texts(caller.say(thread_id, "Again?")) == ["Let me see", "Sun in Paris"]
    assert asked(fake_openai.received[1].body)[1:] == [("assistant", "Sun in Paris"), ("user", "Again?")]


@pytest.mark.parametrize(
    ("tool", "shown"),
    [
        ("returns_text", ["Sun"]),
        ("returns_parts", ["Sun\n\nRain"]),
        ("returns_an_image", []),
        ("returns_a_dict", ['{"city":"Paris","sun":true}']),
        ("returns_a_file_of_its_own", ['{"type":"file","name":"a.txt"}']),
        ("returns_an_empty_list", ["[]"]),
        ("returns_a_model", ['{"word":"Sun"}']),
        ("returns_a_list", ['["Sun","Rain"]']),
        ("returns_a_number", ["7"]),
        ("returns_a_table", ['"a table"']),
    ],
)
@pytest.mark.parametrize("agent", AGENTS)
def test_the_output_of_a_tool_is_shown_without_the_syntax_of_python(
    start: Start, fake_openai: FakeOpenAI, agent: str, tool: str, shown: list[str]
) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(calls(tool))
    thread_id, events = caller.create("Go")
    assert (errors(events), texts(events)) == ([], shown)
    messages = [item for item in caller.items(thread_id).data if item.type == "assistant_message"]
    assert [item.content[0].text for item in messages] == shown


@pytest.mark.parametrize("agent", AGENTS)
def test_reasoning_ends_before_that_message(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming([*thinks("Ask"), *SUN])
    thread_id, _ = caller.create("Weather?")
    _, workflow, message = caller.items(thread_id, order="asc").data
    assert (workflow.type, message.type) == ("workflow", "assistant_message")
    assert workflow.workflow.summary is not None


SHOWN: dict[str, tuple[list[Any], list[str]]] = {
    "nothing": (calls("says_nothing"), []),
    "a widget": (calls("shows_a_widget"), []),
    "a message": (calls("reports"), ["Read this"]),
    "a client tool call": (calls("ask_page", question="Colour?"), []),
}


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("shown", SHOWN)
def test_a_tool_that_shows_something_itself_is_not_quoted(
    start: Start, fake_openai: FakeOpenAI, agent: str, shown: str
) -> None:
    output, messages = SHOWN[shown]
    caller = start(agent)
    fake_openai.behaviour = streaming(output)
    _, events = caller.create("Go")
    assert (errors(events), texts(events)) == ([], messages)


def test_a_tool_that_shows_something_before_the_response_is_read(
    start: Start, fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream_events = RunResultStreaming.stream_events

    async def late_events(result: RunResultStreaming) -> AsyncIterator[StreamEvent]:
        await asyncio.sleep(0.5)
        async for event in stream_events(result):
            yield event

    monkeypatch.setattr(RunResultStreaming, "stream_events", late_events)
    caller = start("ending_with_a_tool")
    fake_openai.behaviour = streaming(calls("reports"))
    _, events = caller.create("Go")
    assert (errors(events), texts(events)) == ([], ["Read this"])


def test_only_the_tools_that_end_the_run_count(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("ending_with_the_weather")
    fake_openai.behaviour = streaming(calls("shows_a_widget", "call_2"), SUN)
    thread_id, events = caller.create("Weather?")
    assert (errors(events), texts(events)) == ([], ["Sun in Paris"])
    assert [item.type for item in caller.items(thread_id).data] == ["assistant_message", "widget", "user_message"]


@pytest.mark.parametrize("agent", AGENTS)
def test_a_hidden_item_is_not_shown(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(calls("hides"))
    assert texts(caller.create("Go")[1]) == ["hidden"]


def test_summary_of_a_workflow_is_kept(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("ending_with_a_tool")
    fake_openai.behaviour = streaming(calls("summarizes"))
    thread_id, events = caller.create("Go")
    assert texts(events) == ["summarized"]
    (_, workflow, _) = caller.items(thread_id, order="asc").data
    assert workflow.workflow.summary.title == "All done"


def test_an_own_server_decides_itself(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start(f"{SERVERS}:EndingWithATool")
    fake_openai.behaviour = streaming(SUN)
    _, events = caller.create("Weather?")
    assert (errors(events), texts(events)) == ([], [])


@pytest.mark.parametrize("approved", [True, False])
def test_a_tool_that_was_decided_on_ends_the_run(start: Start, fake_openai: FakeOpenAI, approved: bool) -> None:
    caller = start(f"{APPROVING}:ending_with_a_tool")
    fake_openai.behaviour = streaming(calls("delete_file", path="a.txt"))
    thread_id, events = caller.create("Delete it")
    (widget,) = [event.item for event in events if event.type == "thread.item.done" and event.item.type == "widget"]
    action = {"type": "chatkit.approval", "payload": {"approved": approved}}
    decided = list(caller.stream("threads.custom_action", thread_id=thread_id, item_id=widget.id, action=action))
    assert texts(decided) == (["a.txt is deleted"] if approved else []), "a rejection is told to the model, not to the user"


@pytest.mark.parametrize("approved", [[True, False], [False, True]])
def test_one_of_two_calls_is_rejected(start: Start, fake_openai: FakeOpenAI, approved: list[bool]) -> None:
    """The first call's output is the final one."""
    caller = start(f"{APPROVING}:ending_with_a_tool")
    two = [*calls("delete_file", "call_1", path="a.txt"), *calls("delete_file", "call_2", path="b.txt")]
    fake_openai.behaviour = streaming(two)
    thread_id, events = caller.create("Delete them")
    widgets = [event.item for event in events if event.type == "thread.item.done" and event.item.type == "widget"]
    for widget, one in zip(widgets, approved, strict=True):
        action = {"type": "chatkit.approval", "payload": {"approved": one}}
        decided = list(caller.stream("threads.custom_action", thread_id=thread_id, item_id=widget.id, action=action))
    assert texts(decided) == (["a.txt is deleted"] if approved[0] else [])


@pytest.mark.parametrize(
    ("tool", "shown"), [("returns_a_model", '{"word":"Sun"}'), ("returns_a_dict", '{"city":"Paris","sun":true}')]
)
def test_the_output_of_a_tool_that_ends_the_run_of_a_typed_agent(
    start: Start, fake_openai: FakeOpenAI, tool: str, shown: str
) -> None:
    caller = start("typed_ending_with_a_tool")
    fake_openai.behaviour = streaming(calls(tool))
    thread_id, events = caller.create("Go")
    assert (errors(events), texts(events)) == ([], [shown])
    assert caller.items(thread_id).data[0].content[0].text == shown


@pytest.mark.parametrize("include_in_history", [True, False])
def test_message_of_an_error_handler(start: Start, fake_openai: FakeOpenAI, include_in_history: bool) -> None:
    caller = start(f"{SERVERS}:{'Persistent' if include_in_history else 'Forgetful'}")
    fake_openai.behaviour = streaming(SUN)
    _, events = caller.create("Weather?")
    assert (errors(events), texts(events)) == ([], ["Please ask for less."])


@pytest.mark.parametrize("include_in_history", [True, False])
def test_message_of_an_error_handler_for_refusals(start: Start, fake_openai: FakeOpenAI, include_in_history: bool) -> None:
    caller = start(f"{SERVERS}:{'Persistent' if include_in_history else 'Forgetful'}")
    fake_openai.behaviour = streaming(refuses("No."))
    thread_id, events = caller.create("Weather?")
    assert (errors(events), texts(events)) == ([], ["No.", "Please ask for less."])
    assert [item.content[0].text for item in caller.items(thread_id, order="asc").data] == ["Weather?", *texts(events)]


LOST = "The agent Careful waits for an approval that can't be given"


def test_an_approval_that_an_own_server_forgets_is_logged(start: Start, fake_openai: FakeOpenAI, recorder: Recorder) -> None:
    fake_openai.behaviour = streaming(calls("delete_file", path="a.txt"))
    before = len(recorder.lines)
    start(f"{SERVERS}:WithoutApprovals").create("Delete it")
    wait_for(lambda: any(LOST in line for line in recorder.lines[before:]))


@pytest.mark.parametrize("agent", [f"{SERVERS}:WithItsOwnApprovals", f"{APPROVING}:OwnServer"])
def test_an_approval_that_an_own_server_asks_for_is_no_error(
    start: Start, fake_openai: FakeOpenAI, recorder: Recorder, agent: str
) -> None:
    seen.clear()
    fake_openai.behaviour = streaming(calls("delete_file", path="a.txt"))
    caller, before = start(agent), len(recorder.lines)
    _, events = caller.create("Delete it")
    assert errors(events) == []
    assert len(seen) == (1 if "WithItsOwn" in agent else 0)
    assert not any(LOST in line for line in recorder.lines[before:])
