"""What a guardrail stops is removed from the page and from storage, and never given to the model again."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from chatkit.backends.selfhosted.sessions import REFUSED
from tests.support.applications import Start
from tests.support.chat import Caller, deltas, errors, on_screen, texts, user_input
from tests.support.fake_openai import FakeOpenAI
from tests.support.fake_server import Handler
from tests.support.responses_api import FAILED, Events, by_model, calls, refuses, says, streaming, thinks
from tests.support.waiting import wait_for

JUDGED_FINE = says('{"response": false}')
STOPPED = [("custom", "This can't be answered here.", False)]
SHAPES = ["guarded", "guarded_for_user", "guarded_workflow", "tests.support.servers_under_test:Guarded"]
REPLIES: dict[str, list[Events]] = {
    "text": [says("the secret word")],
    "slow text": [says("the secret word", pause=0.2)],
    "tool call, then text": [calls("weather", city="Paris"), says("the secret word")],
    "text and tool call, then text": [[*says("a secret hint"), *calls("weather", city="Paris")], says("the secret word")],
    "reasoning and tool call, then text": [
        [*thinks("A secret thought"), *calls("weather", city="Paris")],
        says("the secret word"),
    ],
    "reasoning and tool call, then slow text": [
        [*thinks("A secret thought"), *calls("weather", city="Paris")],
        [*thinks("Another secret"), *says("the secret word", pause=0.2)],
    ],
}


def assert_only_the_message_is_left(caller: Caller, thread_id: str, events: list[Any]) -> None:
    """Check that the page shows, and the database has, only the user's message."""
    assert list(on_screen(events).values()) == ["user_message"]
    assert [item.type for item in caller.items(thread_id).data] == ["user_message"]


@pytest.mark.parametrize("agent", SHAPES)
@pytest.mark.parametrize("message", ["forbidden words", "hello"], ids=["input", "output"])
@pytest.mark.parametrize("reply", REPLIES)
def test_tripped_guardrail(start: Start, fake_openai: FakeOpenAI, reply: str, message: str, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(*REPLIES[reply])
    thread_id, events = caller.create(message)
    assert errors(events) == STOPPED
    assert_only_the_message_is_left(caller, thread_id, events)

    before = len(fake_openai.received)
    fake_openai.behaviour = streaming(says("All is well"))
    events = caller.say(thread_id, "something else")
    assert (errors(events), texts(events)) == ([], ["All is well"])
    assert "secret" not in json.dumps(fake_openai.received[before].body["input"])


STRICT = ["guarded_from_the_start", "workflow_guarded_from_the_start"]


@pytest.mark.parametrize("agent", STRICT)
def test_refused_message_is_not_judged_again(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(says("All is well"))
    thread_id, _ = caller.create("hello")
    for _ in range(2):
        assert errors(caller.say(thread_id, "forbidden words")) == STOPPED
    before = len(fake_openai.received)
    events = caller.say(thread_id, "something else")
    assert (errors(events), texts(events)) == ([], ["All is well"])
    (received,) = fake_openai.received[before:]
    given = [item["content"] for item in received.body["input"]]
    assert [text if isinstance(text, str) else text[0]["text"] for text in given] == ["hello", "All is well", "something else"]
    kinds = ["user_message", "assistant_message", *["user_message"] * 3, "assistant_message"]
    assert [item.type for item in caller.items(thread_id, order="asc").data] == kinds


@pytest.mark.parametrize("agent", STRICT)
def test_retry_of_a_refused_message_is_judged_anew(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(says("All is well"))
    thread_id, _ = caller.create("forbidden words")
    message = caller.items(thread_id).data[0]
    for _ in range(2):
        events = list(caller.stream("threads.retry_after_item", thread_id=thread_id, item_id=message.id))
        assert errors(events) == STOPPED
    assert texts(caller.say(thread_id, "something else")) == ["All is well"]


def test_own_server_that_explains_the_refusal(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("tests.support.servers_under_test:Explaining")
    fake_openai.behaviour = streaming(says("All is well"))
    thread_id, events = caller.create("forbidden words")
    assert errors(events) == [("custom", "We don't talk about that.", False)]
    before = len(fake_openai.received)
    assert texts(caller.say(thread_id, "something else")) == ["All is well"]
    assert "forbidden" not in json.dumps(fake_openai.received[before].body["input"])


@pytest.mark.parametrize("agent", ["catching_workflow", "tests.support.servers_under_test:Blocking"])
def test_tripwire_is_caught(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    """Neither the guardrail nor the model gets the message again."""
    caller = start(agent)
    fake_openai.behaviour = streaming(says("All is well"))
    thread_id, events = caller.create("forbidden words")
    shown = [event.message for event in events if event.type == "error"] or texts(events)
    assert shown == ["We blocked that message for safety."]
    before = len(fake_openai.received)
    assert texts(caller.say(thread_id, "something else")) == ["All is well"]
    (received,) = fake_openai.received[before:]
    assert "forbidden" not in json.dumps(received.body["input"])


FAILURES: dict[str, Events] = {
    "model": [*says("the secret word"), FAILED],
    "tool": [*says("the secret word"), *calls("breaks_down")],
}


@pytest.mark.parametrize("failure", FAILURES)
def test_failure_does_not_hide_a_refusal(start: Start, fake_openai: FakeOpenAI, failure: str) -> None:
    caller = start("guarded_late")
    fake_openai.behaviour = streaming(FAILURES[failure])
    thread_id, events = caller.create("forbidden words")
    assert errors(events) == STOPPED
    assert_only_the_message_is_left(caller, thread_id, events)
    fake_openai.behaviour = streaming(says("All is well"))
    assert texts(caller.say(thread_id, "something else")) == ["All is well"]
    assert "forbidden" not in json.dumps(fake_openai.received[-1].body["input"])


BROKEN = ["failing_late-model", "failing_late-tool", "input_cancelled-text", "output_cancelled-text"]


@pytest.mark.parametrize("case", BROKEN)
def test_broken_guardrail(start: Start, fake_openai: FakeOpenAI, case: str) -> None:
    agent, _, reply = case.partition("-")
    caller = start(agent)
    fake_openai.behaviour = streaming(FAILURES.get(reply, [*says("the secret word"), 0.6]))
    thread_id, events = caller.create("hello")
    assert len(errors(events)) == 1
    assert_only_the_message_is_left(caller, thread_id, events)


def test_refusal_is_remembered_if_the_user_stops_what_follows(
    start: Start, fake_openai: FakeOpenAI, rows: Callable[[str], list[Any]]
) -> None:
    caller = start("workflow_with_a_fallback", CHATKIT_ON_DISCONNECT="stop")
    fake_openai.behaviour = streaming([*says("We can not"), 5.0])
    stream: Any = caller.stream("threads.create", input=user_input("forbidden words"))
    seen: list[Any] = []
    while not deltas(seen):
        seen.append(next(stream))
    stream.close()
    thread_id = seen[0].thread.id
    wait_for(lambda: len(caller.items(thread_id).data) == 2)
    wait_for(lambda: not rows("SELECT * FROM chat_active_runs"))
    assert sum(REFUSED in data for (data,) in rows("SELECT data FROM chat_items")) == 1
    fake_openai.behaviour = streaming(says("All is well"))
    assert texts(caller.say(thread_id, "something else")) == ["All is well"]
    assert "forbidden" not in json.dumps(fake_openai.received[-1].body["input"])


class TestGuardrailOfAModel:
    """The guardrails of OpenAI's documentation ask a model."""

    def given_next(self, caller: Caller, fake_openai: FakeOpenAI, thread_id: str) -> list[str]:
        """Send another message, which is answered, and return what the models got."""
        fake_openai.behaviour = by_model({"gpt-judge": [JUDGED_FINE], "gpt-test": [says("All is well")]})
        before = len(fake_openai.received)
        assert texts(caller.say(thread_id, "something else")) == ["All is well"]
        return [json.dumps(received.body["input"]) for received in fake_openai.received[before:]]

    @pytest.mark.parametrize("agent", ["input_judged", "output_judged"])
    def test_failure_removes_what_was_not_judged(self, start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
        caller = start(agent)
        answer = streaming([*says("the secret word"), 0.5], says("All is well"))

        def without_judge(handler: Handler) -> None:
            if handler.received.body["model"] == "gpt-judge":
                handler.respond(400, {"error": {"message": "inner", "type": "invalid_request_error"}})
            else:
                answer(handler)

        fake_openai.behaviour = without_judge
        thread_id, events = caller.create("hello")
        assert errors(events) == [("stream.error", None, False)]
        assert_only_the_message_is_left(caller, thread_id, events)
        given = self.given_next(caller, fake_openai, thread_id)
        assert not any("secret" in one for one in given)
        assert any("hello" in one for one in given), "the message was not refused"

    @pytest.mark.parametrize("agent", ["input_judged", "judged_before", "output_judged"])
    def test_refusal_of_the_judge_refuses(self, start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
        caller = start(agent)
        answer = [*says("I can't judge this"), 0.5]
        fake_openai.behaviour = by_model({"gpt-judge": [refuses("I can't judge this")], "gpt-test": [answer]})
        thread_id, events = caller.create("unspeakable")
        assert errors(events) == STOPPED
        assert_only_the_message_is_left(caller, thread_id, events)
        given = self.given_next(caller, fake_openai, thread_id)
        assert any("unspeakable" in one for one in given) is (agent == "output_judged")

    def test_refusal_within_a_tool_leaves_the_message_alone(self, start: Start, fake_openai: FakeOpenAI) -> None:
        caller = start("asking_a_judge")
        asks = [*says("I ask the judge"), 0.5, *calls("judge", input="hello")]
        fake_openai.behaviour = by_model({"gpt-judge": [refuses("I can't judge this")], "gpt-test": [asks]})
        thread_id, events = caller.create("hello")
        assert (texts(events), errors(events)) == (["I ask the judge"], STOPPED)
        assert "can't judge" not in caller.items(thread_id).model_dump_json()


@pytest.mark.parametrize("agent", SHAPES)
def test_guardrail_that_passes(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(*REPLIES["reasoning and tool call, then text"][:1], says("the weather is fine"))
    thread_id, events = caller.create("hello")
    assert (errors(events), texts(events)) == ([], ["the weather is fine"])
    kinds = ["user_message", "workflow", "assistant_message"]
    assert [item.type for item in caller.items(thread_id, order="asc").data] == kinds


def test_guardrail_of_a_tool(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("guarded_tool")
    fake_openai.behaviour = streaming(calls("guarded_weather", city="Paris"))
    _, events = caller.create("hello")
    assert errors(events) == STOPPED


def test_guardrail_removes_reasoning_after_a_client_tool(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("asking_guarded")
    asks = [*thinks("Ask"), *calls("ask_page", question="Colour?")]
    fake_openai.behaviour = streaming(asks, [*thinks("A secret thought"), *says("the secret word")])
    thread_id, _ = caller.create("Hello")
    events = list(caller.stream("threads.add_client_tool_output", thread_id=thread_id, result={"colour": "blue"}))
    assert errors(events) == STOPPED
    assert "secret" not in caller.items(thread_id).model_dump_json()
