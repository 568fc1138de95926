"""Agents on models of other providers than OpenAI, in every shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import agents_elsewhere
from tests.support.applications import Start
from tests.support.chat import errors, texts
from tests.support.chat_completions import completing, requests_tool, writes
from tests.support.fake_server import FakeServer

ELSEWHERE = "tests.support.agents_elsewhere"
SHAPES = [
    f"{ELSEWHERE}:elsewhere",
    f"{ELSEWHERE}:for_user",
    f"{ELSEWHERE}:run_workflow",
    "tests.support.servers_under_test:Elsewhere",
]


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    with FakeServer() as running:
        monkeypatch.setattr(agents_elsewhere.provider, "base_url", f"{running.url}/v1")
        yield running


def given(body: dict[str, Any]) -> list[tuple[str, Any]]:
    """Role and text of each message in ``body`` that is not the user's; the tool's name for a call."""
    return [
        (message["role"], message.get("content") or message["tool_calls"][0]["function"]["name"])
        for message in body["messages"]
        if message["role"] in ("assistant", "tool")
    ]


@pytest.mark.parametrize("agent", SHAPES)
def test_a_conversation(start: Start, provider: FakeServer, agent: str) -> None:
    """Of several turns, with messages of the assistant, calls of tools, and one of a client tool."""
    caller = start(agent)
    provider.behaviour = completing(
        writes("Hello Ada"),
        [*writes("Let me see"), *requests_tool("weather", city="Paris")],
        writes("Sunny"),
        requests_tool("ask_page", question="Colour?"),
        writes("Blue"),
        writes("You are Ada"),
    )
    thread_id, events = caller.create("I am Ada")
    assert (errors(events), texts(events)) == ([], ["Hello Ada"])
    events = caller.say(thread_id, "Weather?")
    assert (errors(events), texts(events)) == ([], ["Let me see", "Sunny"])
    assert given(provider.received[-1].body)[-2:] == [("assistant", "Let me see"), ("tool", "Sun in Paris")]
    assert errors(caller.say(thread_id, "Colour?")) == []
    events = list(caller.stream("threads.add_client_tool_output", thread_id=thread_id, result={"colour": "blue"}))
    assert (errors(events), texts(events)) == ([], ["Blue"])
    events = caller.say(thread_id, "Who am I?")
    assert (errors(events), texts(events)) == ([], ["You are Ada"])
    assert given(provider.received[-1].body) == [
        ("assistant", "Hello Ada"),
        ("assistant", "Let me see"),
        ("assistant", "Sunny"),
        ("assistant", "ask_page"),
        ("tool", '{"colour": "blue"}'),
        ("assistant", "Blue"),
    ]
