"""What a guardrail stops is removed from the page and from storage, and never given to the model again."""

from __future__ import annotations

import json

import pytest

from tests.support.applications import Start
from tests.support.chat import errors, on_screen, texts
from tests.support.fake_openai import FakeOpenAI
from tests.support.responses_api import Events, calls, says, streaming, thinks

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


@pytest.mark.parametrize("agent", SHAPES)
@pytest.mark.parametrize("message", ["forbidden words", "hello"], ids=["input", "output"])
@pytest.mark.parametrize("reply", REPLIES)
def test_tripped_guardrail(start: Start, fake_openai: FakeOpenAI, reply: str, message: str, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(*REPLIES[reply])
    thread_id, events = caller.create(message)
    assert errors(events) == STOPPED
    assert list(on_screen(events).values()) == ["user_message"]
    assert [item.type for item in caller.items(thread_id).data] == ["user_message"]

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
    assert "A guardrail refused" in json.dumps(fake_openai.received[before].body["input"])


def test_own_server_is_told_of_a_refused_message(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start(SHAPES[-1])
    fake_openai.behaviour = streaming(says("All is well"))
    thread_id, _ = caller.create("forbidden words")
    before = len(fake_openai.received)
    assert texts(caller.say(thread_id, "something else")) == ["All is well"]
    assert "A guardrail refused" in json.dumps(fake_openai.received[before].body["input"])


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
