"""Agents on models of other providers than OpenAI, in every shape."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
from agents import RunConfig
from chatkit.errors import CustomStreamError

from chatkit.backends.selfhosted.chat import composer
from chatkit.backends.selfhosted.chat.composer import with_model
from tests.support import agents_elsewhere
from tests.support.applications import Start
from tests.support.chat import errors, texts, user_input
from tests.support.chat_completions import completing, requests_tool, thinks, writes
from tests.support.fake_openai import FakeOpenAI
from tests.support.fake_server import FakeServer
from tests.support.leaks import Recorder
from tests.support.responses_api import calls, says, streaming

ELSEWHERE = "tests.support.agents_elsewhere"
SHAPES = [
    f"{ELSEWHERE}:elsewhere",
    f"{ELSEWHERE}:for_user",
    f"{ELSEWHERE}:run_workflow",
    "tests.support.servers_under_test:Elsewhere",
]


def test_providers_are_imported_at_the_start(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the first message, the import would block the event loop for seconds."""
    imported: list[str] = []

    def import_one(name: str) -> None:
        assert find_spec(name), "the Agents SDK has such a module"
        imported.append(name)
        raise ImportError  # what it needs is not installed

    monkeypatch.setattr(composer, "import_module", import_one)
    start("simple")
    assert [name.rpartition(".")[2] for name in imported] == ["litellm_provider", "any_llm_provider"]


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


LISTED = {"CHATKIT_COMPOSER": json.dumps({"models": [{"id": "best", "label": "Best"}]})}


def models(server: FakeServer) -> list[str]:
    return [received.body["model"] for received in server.received]


def ask(start: Start, agent: str) -> list[Any]:
    caller = start(agent if ":" in agent else f"{ELSEWHERE}:{agent}", **LISTED)
    return list(caller.stream("threads.create", input=user_input("Weather?", model="best")))


@pytest.mark.parametrize("agent", ["elsewhere", "for_user", "run_workflow", "configured_workflow", "handing_back"])
def test_the_chosen_model_is_one_of_the_same_provider(
    start: Start, fake_openai: FakeOpenAI, provider: FakeServer, agent: str
) -> None:
    provider.behaviour = completing(writes("Hello"))
    assert texts(ask(start, agent)) == ["Hello"]
    assert (models(provider), models(fake_openai)) == (["best"], [])
    assert agents_elsewhere.elsewhere.model.model == "llama"  # type: ignore[union-attr]


def test_the_chosen_model_with_the_responses_api(start: Start, fake_openai: FakeOpenAI, provider: FakeServer) -> None:
    provider.behaviour = streaming(says("Hello"))
    assert texts(ask(start, "with_responses")) == ["Hello"]
    assert (models(provider), models(fake_openai)) == (["best"], [])


def test_each_agent_keeps_its_provider_in_a_handoff(start: Start, fake_openai: FakeOpenAI, provider: FakeServer) -> None:
    fake_openai.behaviour = streaming(calls("transfer_to_elsewhere"))
    provider.behaviour = completing(writes("Hello"))
    assert texts(ask(start, "handing_over")) == ["Hello"]
    assert (models(fake_openai), models(provider)) == (["best"], ["best"])
    fake_openai.received.clear()
    provider.received.clear()
    provider.behaviour = completing(requests_tool("transfer_to_simple"))
    fake_openai.behaviour = streaming(says("Hello from OpenAI"))
    assert texts(ask(start, "handing_back")) == ["Hello from OpenAI"]
    assert (models(provider), models(fake_openai)) == (["best"], ["best"])


SCRIPTED, PREFIXED = "ScriptedModel", "model with the prefix litellm/"


@pytest.mark.parametrize(
    ("agent", "asked", "kind"),
    [
        ("unknown", [], SCRIPTED),
        ("unknown_workflow", [], SCRIPTED),
        ("handing_over", ["best"], SCRIPTED),
        ("prefixed", [], PREFIXED),
        ("handing_over_to_prefixed", ["best"], PREFIXED),
    ],
)
def test_the_choice_is_refused_for_a_model_of_another_kind(
    start: Start, fake_openai: FakeOpenAI, recorder: Recorder, agent: str, asked: list[str], kind: str
) -> None:
    fake_openai.behaviour = streaming(calls("transfer_to_prefixed" if kind is PREFIXED else "transfer_to_unknown"))
    before = len(recorder.lines)
    assert errors(ask(start, agent)) == [("custom", "This model can't be used here.", False)]
    assert models(fake_openai) == asked
    assert any(f"the model best, which a {kind} can't be changed to" in line for line in recorder.lines[before:])


def test_the_choice_with_a_prefix_of_the_same_provider() -> None:
    for chosen in ("litellm/b", "litellm/anthropic/c"):
        changed = with_model(RunConfig(model="litellm/anthropic/a"), chosen)
        assert isinstance(changed, RunConfig)
        assert changed.model == chosen
    with pytest.raises(CustomStreamError):
        with_model(RunConfig(model="litellm/anthropic/a"), "any-llm/b")


def test_thoughts_before_and_after_a_tool(start: Start, provider: FakeServer) -> None:
    caller = start(SHAPES[0])
    provider.behaviour = completing(
        [*thinks("Look ", "it up"), *requests_tool("weather", city="Paris")], [*thinks("Now I ", "know"), *writes("Sunny")]
    )
    thread_id, events = caller.create("Weather?")
    assert texts(events) == ["Sunny"]
    thoughts = [
        task.content for item in caller.items(thread_id).data if item.type == "workflow" for task in item.workflow.tasks
    ]
    assert thoughts == ["Look it up", "Now I know"]


LIMITED = {"CHATKIT_TOKENS_PER_DAY": "2"}
NOT_LIMITED = "CHATKIT_TOKENS_PER_DAY does not limit the agents "


@pytest.mark.parametrize("agent", SHAPES)
def test_a_limit_that_does_not_apply_is_logged_once(start: Start, provider: FakeServer, recorder: Recorder, agent: str) -> None:
    """The Agents SDK asks only OpenAI for the usage of a stream."""
    caller, before = start(agent, **LIMITED), len(recorder.lines)
    provider.behaviour = completing(writes("Hello"))
    thread_id, _ = caller.create("Hello")
    assert texts(caller.say(thread_id, "Hello")) == ["Hello"]
    (line,) = [line for line in recorder.lines[before:] if NOT_LIMITED in line]
    assert f"{NOT_LIMITED}Elsewhere" in line


def test_usage_that_is_asked_for_is_limited(start: Start, provider: FakeServer, recorder: Recorder) -> None:
    caller, before = start(f"{ELSEWHERE}:with_usage", **LIMITED), len(recorder.lines)
    provider.behaviour = completing(writes("Hello"))
    thread_id, events = caller.create("Hello")
    assert errors(events) == []
    answer = caller.post("threads.add_user_message", thread_id=thread_id, input=user_input("Hello"))
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_requests")
    assert not any(NOT_LIMITED in line for line in recorder.lines[before:])


def test_usage_that_nothing_limits_is_not_missed(start: Start, provider: FakeServer, recorder: Recorder) -> None:
    caller, before = start(SHAPES[0]), len(recorder.lines)
    provider.behaviour = completing(writes("Hello"))
    caller.create("Hello")
    assert not any(NOT_LIMITED in line for line in recorder.lines[before:])
