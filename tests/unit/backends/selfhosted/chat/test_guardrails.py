"""What a guardrail stops is gone from the screen, from storage and from what the model is given next."""

from __future__ import annotations

import json

import pytest

from tests.support.applications import Start
from tests.support.chat import errors, on_screen, texts
from tests.support.responses_api import Events, calls, says, streaming, thinks
from tests.support.upstream import Upstream

STOPPED = [("custom", "This can't be answered here.", False)]
SHAPES = ["guarded", "guarded_for_user", "guarded_workflow"]
ANSWERS: dict[str, list[Events]] = {
    "text": [says("the secret word")],
    "slow text": [says("the secret word", pause=0.2)],
    "a tool first": [calls("weather", city="Paris"), says("the secret word")],
    "text and a tool first": [[*says("a secret hint"), *calls("weather", city="Paris")], says("the secret word")],
    "a thought and a tool first": [[*thinks("A secret thought"), *calls("weather", city="Paris")], says("the secret word")],
    "a thought and a tool first, slowly": [
        [*thinks("A secret thought"), *calls("weather", city="Paris")],
        [*thinks("Another secret"), *says("the secret word", pause=0.2)],
    ],
}


@pytest.mark.parametrize("agent", SHAPES)
@pytest.mark.parametrize("said", ["forbidden words", "hello"], ids=["input", "output"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_guardrail(start: Start, upstream: Upstream, answer: str, said: str, agent: str) -> None:
    caller = start(agent)
    upstream.behaviour = streaming(*ANSWERS[answer])
    thread_id, events = caller.create(said)
    assert errors(events) == STOPPED
    assert list(on_screen(events).values()) == ["user_message"]
    assert [item.type for item in caller.items(thread_id).data] == ["user_message"]

    asked = len(upstream.received)
    upstream.behaviour = streaming(says("All is well"))
    events = caller.say(thread_id, "something else")
    assert (errors(events), texts(events)) == ([], ["All is well"])
    assert "secret" not in json.dumps(upstream.received[asked].body["input"])


@pytest.mark.parametrize("agent", SHAPES)
def test_a_guardrail_that_lets_pass(start: Start, upstream: Upstream, agent: str) -> None:
    caller = start(agent)
    upstream.behaviour = streaming(*ANSWERS["a thought and a tool first"][:1], says("the weather is fine"))
    thread_id, events = caller.create("hello")
    assert (errors(events), texts(events)) == ([], ["the weather is fine"])
    kinds = ["user_message", "workflow", "assistant_message"]
    assert [item.type for item in caller.items(thread_id, order="asc").data] == kinds


def test_a_workflow_that_goes_on_after_a_guardrail(start: Start, upstream: Upstream) -> None:
    caller = start("catches_the_guardrail")
    upstream.behaviour = streaming(says("the secret word"))
    thread_id, events = caller.create("hello")
    assert errors(events) == []
    assert list(on_screen(events).values()) == ["user_message", "assistant_message"]
    kept = caller.items(thread_id, order="asc").data
    assert [item.type for item in kept] == ["user_message", "assistant_message"]
    assert kept[1].content[0].text == "Let us talk of something else."


def test_a_guardrail_of_a_tool(start: Start, upstream: Upstream) -> None:
    caller = start("guarded_tool")
    upstream.behaviour = streaming(calls("guarded_weather", city="Paris"))
    _, events = caller.create("hello")
    assert errors(events) == STOPPED


def test_a_guardrail_removes_thoughts_that_went_on_after_a_client_tool(start: Start, upstream: Upstream) -> None:
    caller = start("asking_guarded")
    asks = [*thinks("Ask"), *calls("ask_page", question="Colour?")]
    upstream.behaviour = streaming(asks, [*thinks("A secret thought"), *says("the secret word")])
    thread_id, _ = caller.create("Hello")
    events = list(caller.stream("threads.add_client_tool_output", thread_id=thread_id, result={"colour": "blue"}))
    assert errors(events) == STOPPED
    assert "secret" not in caller.items(thread_id).model_dump_json()
