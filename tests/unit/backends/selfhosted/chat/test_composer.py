"""The composer's models and tools: the list for the frontend, the validation of requests, and runs with the choice."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests
from agents import MultiProvider
from chatkit.types import InferenceOptions, ToolChoice

from tests.support.agents_under_test import seen
from tests.support.applications import Start
from tests.support.chat import Caller, errors, texts, user_input
from tests.support.fake_openai import FakeOpenAI
from tests.support.identity_provider import SECRET, shared
from tests.support.leaks import Recorder
from tests.support.responses_api import calls, says, streaming
from tests.support.waiting import wait_for

COMPOSER = {
    "models": [
        {"id": "gpt-fast", "label": "Fast", "default": True, "description": "Answers at once"},
        {"id": "gpt-best", "label": "Best"},
        {"id": "gpt-later", "label": "Soon", "disabled": True},
    ],
    "tools": [
        {
            "id": "weather",
            "label": "Weather",
            "icon": "globe",
            "shortLabel": "W",
            "placeholderOverride": "City",
            "pinned": True,
        },
        {"id": "search", "label": "Search", "icon": "search", "persistent": True},
    ],
}
LISTED = {"CHATKIT_COMPOSER": json.dumps(COMPOSER)}
SERVERS = "tests.support.servers_under_test"
WEATHER = {"id": "weather"}
FORCED = {"type": "function", "name": "weather"}


def ask(caller: Caller, text: str, **options: Any) -> tuple[str, list[Any]]:
    events = list(caller.stream("threads.create", input=user_input(text, **options)))
    return events[0].thread.id, events


def used(fake_openai: FakeOpenAI) -> list[tuple[str, Any]]:
    """The model and the forced tool of each call."""
    return [(received.body["model"], received.body.get("tool_choice")) for received in fake_openai.received]


@pytest.mark.parametrize("agent", ["simple", "run_workflow"])
def test_connections_of_a_chosen_model_are_closed(
    start: Start, fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch, agent: str
) -> None:
    """The SDK closes a provider, which may have a WebSocket, unless it was given one."""
    closed: list[MultiProvider] = []

    async def close(self: MultiProvider) -> None:
        closed.append(self)

    monkeypatch.setattr(MultiProvider, "aclose", close)
    fake_openai.behaviour = streaming(says("Hello"))
    caller = start(agent, **LISTED)
    ask(caller, "Hello", model="gpt-best")
    assert used(fake_openai) == [("gpt-best", None)]
    wait_for(lambda: len(closed) == 1)


@pytest.mark.parametrize("listed", [COMPOSER, {"models": COMPOSER["models"]}, {}])
def test_endpoint_returns_the_list(start: Start, listed: dict[str, Any]) -> None:
    caller = start("", OPENAI_API_KEY="", CHATKIT_COMPOSER=json.dumps(listed))
    answer = requests.get(f"{caller.url}/api/chatkit/composer", timeout=10)
    assert answer.json() == {"status": "success", "data": listed}


@pytest.mark.parametrize(
    "options",
    [{"model": "gpt-best-of-all"}, {"model": "gpt-later"}, {"model": ""}, {"tool_choice": {"id": "delete_all"}}],
    ids=str,
)
@pytest.mark.parametrize("agent", ["with_tool", "run_workflow", f"{SERVERS}:Knowing", ""])
def test_unlisted_choice_is_refused(start: Start, fake_openai: FakeOpenAI, agent: str, options: dict[str, Any]) -> None:
    caller = start(agent, **LISTED)
    fake_openai.behaviour = streaming(says("Hello"))
    thread_id, _ = caller.create("Hello")
    asked = len(fake_openai.received)
    for type_, params in {"threads.create": {}, "threads.add_user_message": {"thread_id": thread_id}}.items():
        answer = caller.post(type_, input=user_input("Hello", **options), **params)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request_body")
    assert len(fake_openai.received) == asked
    assert len(caller.items(thread_id).data) == 2


def test_frontend_offers_dictation_with_a_key(start: Start) -> None:
    caller = start("", CHATKIT_COMPOSER=json.dumps({"models": COMPOSER["models"]}))
    answer = requests.get(f"{caller.url}/api/chatkit/composer", timeout=10)
    assert answer.json()["data"] == {"models": COMPOSER["models"], "dictation": {"enabled": True}}


def test_any_choice_is_refused_without_a_list(start: Start) -> None:
    caller = start("", OPENAI_API_KEY="")
    assert caller.post("threads.create", input=user_input("Hello", model="gpt-fast")).status_code == 400
    assert caller.post("threads.create", input=user_input("Hello", tool_choice=WEATHER)).status_code == 400


@pytest.mark.parametrize("agent", ["with_tool", "with_tool_for_user", "tool_workflow"])
def test_agent_runs_with_the_choice(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent, **LISTED)
    fake_openai.behaviour = streaming(calls("weather", city="Paris"), says("Sunny"), says("Hello"))
    thread_id, events = ask(caller, "Weather?", model="gpt-best", tool_choice=WEATHER)
    assert texts(events) == ["Sunny"]
    assert used(fake_openai) == [("gpt-best", FORCED), ("gpt-best", None)], "the tool is forced once"
    caller.say(thread_id, "Hello")
    assert used(fake_openai)[2:] == [("gpt-test", None)], "the next message chooses anew"


def test_choice_and_handoffs(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("handing_over", **LISTED)
    fake_openai.behaviour = streaming(calls("transfer_to_simple"), says("Hello"))
    _, events = ask(caller, "Hello", model="gpt-best", tool_choice=WEATHER)
    assert texts(events) == ["Hello"]
    assert used(fake_openai) == [("gpt-best", FORCED), ("gpt-best", None)]


def test_choice_in_a_workflow_of_several_agents(start: Start, fake_openai: FakeOpenAI) -> None:
    """The model is for what the user reads, the tool for the first agent that has it."""
    caller = start("sorting_workflow", **LISTED)
    answers = [says('{"word":"a"}'), calls("weather", city="Paris"), says("Sunny"), says("Bye")]
    fake_openai.behaviour = streaming(*answers)
    ask(caller, "Weather?", model="gpt-best", tool_choice=WEATHER)
    assert used(fake_openai) == [("gpt-test", None), ("gpt-best", FORCED), ("gpt-best", None), ("gpt-best", None)]


@pytest.mark.parametrize("agent", ["with_tool", "with_tool_for_user"])
def test_agent_without_the_chosen_tool(start: Start, fake_openai: FakeOpenAI, recorder: Recorder, agent: str) -> None:
    caller = start(agent, **LISTED)
    _, events = ask(caller, "Search", tool_choice={"id": "search"})
    assert errors(events) == [("custom", "This tool can't be used here.", False)]
    assert fake_openai.received == []
    assert any("lists the tool search, which the agent With a tool does not have" in line for line in recorder.lines)


def test_tool_in_a_namespace(start: Start, fake_openai: FakeOpenAI) -> None:
    listed = {"models": [], "tools": [{"id": name, "label": "Weather", "icon": "bolt"} for name in ("crm.weather", "weather")]}
    caller = start("with_namespace", CHATKIT_COMPOSER=json.dumps(listed))
    fake_openai.behaviour = streaming(says("Hello"))
    _, events = ask(caller, "Weather?", tool_choice={"id": "crm.weather"})
    assert (errors(events), texts(events)) == ([], ["Hello"])
    assert used(fake_openai)[0][1] is not None
    _, events = ask(caller, "Weather?", tool_choice={"id": "weather"})
    assert errors(events) == [("custom", "This tool can't be used here.", False)]


SEARCH = {"id": "search"}


@pytest.mark.parametrize("agent", ["searching", "searching_for_user", "never_searching", "without_search"])
def test_the_chosen_tool_is_not_enabled(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    _, events = ask(start(agent, **LISTED), "Search", tool_choice=SEARCH)
    assert errors(events) == [("custom", "This tool can't be used here.", False)]
    assert fake_openai.received == []


@pytest.mark.parametrize("agent", ["searching", "searching_for_user", "searching_workflow"])
def test_the_chosen_tool_is_enabled_for_some_users(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent, AUTH_JWT_SECRET=SECRET, **LISTED)
    fake_openai.behaviour = streaming(calls("search"), says("Found"))
    _, events = ask(Caller(caller.url, shared(sub="ada")), "Search", tool_choice=SEARCH)
    assert texts(events) == ["Found"]
    assert used(fake_openai)[0] == ("gpt-test", {"type": "function", "name": "search"})


def test_a_workflow_does_not_have_the_chosen_tool_enabled(start: Start, fake_openai: FakeOpenAI, recorder: Recorder) -> None:
    caller, before = start("searching_workflow", **LISTED), len(recorder.lines)
    fake_openai.behaviour = streaming(says("Hello"))
    _, events = ask(caller, "Search", tool_choice=SEARCH)
    assert texts(events) == ["Hello"]
    assert used(fake_openai) == [("gpt-test", None)]
    assert any("which no agent of the workflow has or enables" in line for line in recorder.lines[before:])


def test_workflow_without_the_chosen_tool(start: Start, fake_openai: FakeOpenAI, recorder: Recorder) -> None:
    caller = start("tool_workflow", **LISTED)
    fake_openai.behaviour = streaming(says("Hello"))
    _, events = ask(caller, "Search", tool_choice={"id": "search"})
    assert texts(events) == ["Hello"]
    assert any("lists the tool search, which no agent of the workflow has" in line for line in recorder.lines)


def test_settings_of_the_chosen_model_with_a_tool(start: Start, fake_openai: FakeOpenAI) -> None:
    """Those of the agent's own model may be none that the chosen one knows."""
    caller = start("reasoning_with_tool", **LISTED)
    fake_openai.behaviour = streaming(calls("weather", city="Paris"), says("Sunny"))
    ask(caller, "Weather?", tool_choice=WEATHER)
    ask(caller, "Weather?", model="gpt-best", tool_choice=WEATHER)
    own, chosen = (received.body for received in fake_openai.received[::2])
    assert (own["model"], own["reasoning"]["effort"], own["tool_choice"]) == ("gpt-5.2", "none", FORCED)
    assert (chosen["model"], chosen.get("reasoning"), chosen["tool_choice"]) == ("gpt-best", None, FORCED)


def test_tool_is_forced_once_whatever_the_agent_says(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("keeping_its_tool", **LISTED)
    fake_openai.behaviour = streaming(calls("weather", city="Paris"), says("Sunny"))
    ask(caller, "Weather?", tool_choice=WEATHER)
    assert used(fake_openai) == [("gpt-test", FORCED), ("gpt-test", None)]


def test_choice_in_a_workflow_with_a_dict_as_its_run_config(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("dict_workflow", **LISTED)
    fake_openai.behaviour = streaming(calls("weather", city="Paris"), says("Sunny"))
    _, events = ask(caller, "Weather?", model="gpt-best", tool_choice=WEATHER)
    assert texts(events) == ["Sunny"]
    assert used(fake_openai) == [("gpt-best", FORCED), ("gpt-best", None)]


@pytest.mark.parametrize("agent", ["with_page", "page_workflow"])
def test_turn_after_a_client_tool_keeps_the_model(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent, **LISTED)
    fake_openai.behaviour = streaming(calls("ask_page", question="Colour?"), says("Blue"))
    thread_id, _ = ask(caller, "Colour?", model="gpt-best")
    list(caller.stream("threads.add_client_tool_output", thread_id=thread_id, result={"colour": "blue"}))
    assert [model for model, _ in used(fake_openai)] == ["gpt-best", "gpt-best"]


@pytest.mark.parametrize(
    ("agent", "choices"),
    [
        ("forcing_the_page", ["required", None]),
        ("always_forcing_the_page", ["required", "required"]),
        ("workflow_forcing_the_page", [FORCED, "required", FORCED, None]),
    ],
)
def test_tool_is_not_forced_again_after_a_client_tool(
    start: Start, fake_openai: FakeOpenAI, agent: str, choices: list[Any]
) -> None:
    """The page sends the output without the user, so calls and outputs would be an infinite loop."""
    caller = start(agent)
    asks = calls("ask_page", question="Colour?")
    first = [calls("weather", city="Paris")] if "workflow" in agent else []
    fake_openai.behaviour = streaming(*first, asks, *first, says("Blue"))
    thread_id, _ = caller.create("Colour?")
    events = list(caller.stream("threads.add_client_tool_output", thread_id=thread_id, result={"colour": "blue"}))
    assert texts(events)[-1] == "Blue"
    assert [choice for _, choice in used(fake_openai)] == choices


@pytest.mark.parametrize("agent", ["with_tool", "tool_workflow"])
def test_retry_with_a_choice_that_is_no_longer_listed(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    fake_openai.behaviour = streaming(says("Hello"))
    earlier = start(agent, **LISTED)
    thread_id, _ = ask(earlier, "Weather?", model="gpt-best", tool_choice=WEATHER)
    caller = start(agent)
    caller.secret = earlier.secret
    message = caller.items(thread_id, order="asc").data[0]
    list(caller.stream("threads.retry_after_item", thread_id=thread_id, item_id=message.id))
    assert used(fake_openai) == [("gpt-best", FORCED), ("gpt-test", None)]


def test_turn_after_a_client_tool_with_a_model_that_is_no_longer_listed(start: Start, fake_openai: FakeOpenAI) -> None:
    fake_openai.behaviour = streaming(calls("ask_page", question="Colour?"), says("Blue"))
    earlier = start("with_page", **LISTED)
    thread_id, _ = ask(earlier, "Colour?", model="gpt-best")
    caller = start("with_page")
    caller.secret = earlier.secret
    list(caller.stream("threads.add_client_tool_output", thread_id=thread_id, result={"colour": "blue"}))
    assert [model for model, _ in used(fake_openai)] == ["gpt-best", "gpt-test"]


def test_retry_keeps_the_choice(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("with_tool", **LISTED)
    fake_openai.behaviour = streaming(says("Hello"))
    thread_id, _ = ask(caller, "Weather?", model="gpt-best", tool_choice=WEATHER)
    message = caller.items(thread_id, order="asc").data[0]
    list(caller.stream("threads.retry_after_item", thread_id=thread_id, item_id=message.id))
    assert used(fake_openai) == [("gpt-best", FORCED), ("gpt-best", FORCED)]


def test_own_server_receives_the_choice(start: Start) -> None:
    seen.clear()
    caller = start(f"{SERVERS}:Knowing", **LISTED)
    ask(caller, "Hello", model="gpt-best", tool_choice={"id": "search"})
    ((_, message),) = seen
    assert message.inference_options == InferenceOptions(model="gpt-best", tool_choice=ToolChoice(id="search"))
