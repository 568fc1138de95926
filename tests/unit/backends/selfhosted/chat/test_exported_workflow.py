"""Code that Agent Builder exported runs unchanged, and its events are streamed."""

from __future__ import annotations

from typing import Any

import pytest
from agents.run import AgentRunner, get_default_agent_runner

from chatkit.backends.selfhosted.chat import exported_workflow
from tests.support.agents_under_test import simple
from tests.support.applications import MakeApp, Start
from tests.support.chat import deltas, errors, on_screen, texts
from tests.support.fake_openai import FakeOpenAI
from tests.support.identity_provider import SECRET
from tests.support.responses_api import asked, calls, refuses, says, streaming


@pytest.mark.parametrize(
    ("category", "tool", "agent_instructions"),
    [("booking", True, "Help the traveller to book"), ("complaint", False, "Apologise")],
)
def test_exported_workflow_with_a_branch_runs_unchanged(
    start: Start, fake_openai: FakeOpenAI, category: str, tool: bool, agent_instructions: str
) -> None:
    caller = start("examples.travel_desk:run_workflow")
    turns = [calls("seats_left", flight="LH1")] if tool else []
    fake_openai.behaviour = streaming(says(f'{{"category":"{category}"}}'), *turns, says("Here is what I can do"))
    thread_id, events = caller.create("I need help")
    assert texts(events) == ["Here is what I can do"], "without the triage's output, and only once"
    assert deltas(events) == ["Here", " is", " what", " I", " can", " do"]
    assert fake_openai.received[1].body["instructions"].startswith(agent_instructions)
    assert [item.type for item in caller.items(thread_id, order="asc").data] == ["user_message", "assistant_message"]


@pytest.mark.parametrize(
    ("agent", "reply"),
    [
        ("returns_nothing", ["Well"]),
        ("returns_parsed", ['{\n  "category": "booking",\n  "sure": true\n}']),
        ("says_without_an_agent", ["You said Hello"]),
    ],
)
def test_workflow_result_becomes_the_reply(start: Start, fake_openai: FakeOpenAI, agent: str, reply: list[str]) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(says("Well"))
    _, events = caller.create("Hello")
    assert texts(events) == reply


@pytest.mark.parametrize(("agent", "warned"), [("run_workflow", True), ("simple", False)])
def test_warning_that_claims_are_no_state(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture, agent: str, warned: bool
) -> None:
    claims = {"AUTH_JWT_SECRET": SECRET, "CHATKIT_STATE_CLAIMS": "plan"}
    make_app(CHATKIT_BACKEND="selfhosted", CHATKIT_AGENT=f"tests.support.agents_under_test:{agent}", **claims)
    assert ("reaches the tools of an exported workflow, and not its state" in caplog.text) is warned


def test_history_is_given_once_to_a_run_that_goes_on_with_an_earlier_result(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("going_on_workflow")
    fake_openai.behaviour = streaming(says("A"), says("B"), says("C"), says("D"))
    thread_id, _ = caller.create("One")
    caller.say(thread_id, "Two")
    assert [text for _role, text in asked(fake_openai.received[3].body)] == ["One", "A", "B", "Two", "C", "Shorter"]


def test_history_is_not_given_to_a_run_that_continues_a_response(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("continuing_workflow")
    fake_openai.behaviour = streaming(says("Well"))
    thread_id, _ = caller.create("Hello")
    caller.say(thread_id, "Again")
    first, *others = [received.body for received in fake_openai.received[-3:]]
    assert len(first["input"]) > 1
    for body in others:
        assert body["previous_response_id"] == "resp_1"
        assert [message["content"] for message in body["input"]] == ["Shorter"]


def test_output_of_an_agent_used_as_a_tool_is_not_shown(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("runs_another_agent_as_tool")
    fake_openai.behaviour = streaming(calls("expert", input="Weather?"), says("secret of the expert"), says("All is well"))
    _, events = caller.create("Hello")
    assert texts(events) == ["All is well"]
    given = fake_openai.received[-1].body["input"]
    assert [item["output"] for item in given if item.get("type") == "function_call_output"] == ["secret of the expert"]


def test_output_of_a_tool_of_a_streamed_run_is_not_shown(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("workflow_that_streams")
    fake_openai.behaviour = streaming(calls("expert", input="Weather?"), says("secret of the expert"), says("All is well"))
    _, events = caller.create("Hello")
    assert texts(events) == ["All is well"]


def test_empty_context_of_the_workflow_is_kept(start: Start, fake_openai: FakeOpenAI) -> None:
    fake_openai.behaviour = streaming(calls("note", text="milk"), says("Noted"))
    _, events = start("workflow_with_its_own_context").create("Hello")
    assert texts(events) == ["Noted", "milk"]


def test_agents_running_in_parallel(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("runs_two_at_once")
    fake_openai.behaviour = streaming(says("one of two", pause=0.05))
    thread_id, events = caller.create("Hello")
    assert texts(events) == ["one of two", "one of two"]
    assert len(caller.items(thread_id).data) == 3


def test_runner_outside_a_chat_is_the_sdks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other uses of the Agents SDK in the process keep its default behaviour."""
    exported_workflow.install_runner()
    received: list[Any] = []
    monkeypatch.setattr(AgentRunner, "run_streamed", lambda _self, *arguments, **named: received.append((arguments, named)))
    get_default_agent_runner().run_streamed(simple, "Hello", max_turns=2)
    assert received == [((simple, "Hello"), {"max_turns": 2})]


def test_widget_of_an_agent_with_an_output_type_is_shown(start: Start, fake_openai: FakeOpenAI) -> None:
    """In an exported workflow the agent's own output goes to the workflow only."""
    caller = start("typed_workflow")
    fake_openai.behaviour = streaming(calls("shows_a_widget"), says('{"word":"a"}'))
    thread_id, _ = caller.create("Hello")
    kinds = [item.type for item in caller.items(thread_id, order="asc").data]
    assert kinds == ["user_message", "widget", "assistant_message"]


@pytest.mark.parametrize(
    ("agent", "first", "second"),
    [
        ("workflow_handing_over_to_typed", [*says("Hello"), *calls("transfer_to_typed")], says('{"word":"a"}')),
        ("typed_workflow_handing_over", [*says('{"word":"a"}'), *calls("transfer_to_simple")], says("Hello")),
    ],
)
def test_output_type_of_the_agent_that_is_handed_over_to(
    start: Start, fake_openai: FakeOpenAI, agent: str, first: Any, second: Any
) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(first, second)
    thread_id, events = caller.create("Hello")
    assert (errors(events), texts(events), deltas(events)) == ([], ["Hello"], ["Hello"])
    assert [item.type for item in caller.items(thread_id).data] == ["assistant_message", "user_message"]


def test_refusal_of_the_agent_that_is_handed_over_to(start: Start, fake_openai: FakeOpenAI) -> None:
    """The user does not see the messages of an agent with an ``output_type``."""
    caller = start("workflow_handing_over_to_typed")
    fake_openai.behaviour = streaming([*says("Hello"), 0.3, *calls("transfer_to_typed")], refuses("No"))
    thread_id, events = caller.create("Hello")
    assert (texts(events), len(errors(events))) == (["Hello"], 1)
    assert caller.items(thread_id).data[0].content[0].text == "Hello"


def test_workflow_that_catches_a_tripped_guardrail(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("catches_the_guardrail")
    fake_openai.behaviour = streaming(says("the secret word"))
    thread_id, events = caller.create("hello")
    assert errors(events) == []
    assert list(on_screen(events).values()) == ["user_message", "assistant_message"]
    kept = caller.items(thread_id, order="asc").data
    assert [item.type for item in kept] == ["user_message", "assistant_message"]
    assert kept[1].content[0].text == "Let us talk of something else."
