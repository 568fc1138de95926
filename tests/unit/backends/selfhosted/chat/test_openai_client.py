"""What is added to each call of a model: a hash of the user."""

from __future__ import annotations

import hashlib

import pytest
from agents.models import _openai_shared

from chatkit.backends.selfhosted.chat.openai_client import safety_identifier
from tests.support.applications import Start
from tests.support.chat import Caller, errors, texts
from tests.support.fake_openai import FakeOpenAI
from tests.support.identity_provider import SECRET, shared
from tests.support.responses_api import calls, says, streaming

SERVERS = "tests.support.servers_under_test"
SIGNED_IN = {"AUTH_JWT_SECRET": SECRET}


def identifiers(fake_openai: FakeOpenAI) -> list[str | None]:
    return [received.body.get("safety_identifier") for received in fake_openai.received]


@pytest.mark.parametrize(
    "agent", ["", "with_tool", "with_tool_for_user", "tool_workflow", f"{SERVERS}:WithTool", "chat_completions"]
)
def test_each_call_names_the_user_by_a_hash(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent, **SIGNED_IN)
    ada = Caller(caller.url, shared(sub="ada@example.com"))
    fake_openai.behaviour = streaming(*([calls("weather", city="Paris")] if "ool" in agent else []), says("Sun"))
    ada.create("Hello")
    expected = hashlib.sha256(b"user:ada@example.com").hexdigest()
    assert set(identifiers(fake_openai)) == {expected}
    assert len(identifiers(fake_openai)) == (2 if "ool" in agent else 1)
    assert len(expected) == 64, "OpenAI's maximum"
    assert "ada" not in str([received.body for received in fake_openai.received])

    caller.create("Hello")
    (visitors,) = set(identifiers(fake_openai)) - {expected}
    assert visitors


def test_agent_that_is_a_tool_names_the_user(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("runs_another_agent_as_tool", **SIGNED_IN)
    fake_openai.behaviour = streaming(calls("expert", input="The weather?"), says("Sun"), says("It is sunny"))
    Caller(caller.url, shared(sub="ada")).create("Hello")
    assert identifiers(fake_openai) == [safety_identifier("user:ada")] * 3


def test_default_key_of_the_agents_sdk(start: Start, fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_openai_shared, "_default_openai_key", "sk-of-another-project")
    caller = start("simple")
    fake_openai.behaviour = streaming(says("Hello"))
    caller.create("Hello")
    (received,) = fake_openai.received
    assert received.headers["authorization"] == "Bearer sk-of-another-project"
    assert identifiers(fake_openai) != [None]


def test_connection_to_openai_is_kept(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("simple")
    fake_openai.behaviour = streaming(says("Hello"))
    caller.create("Hello")
    before = fake_openai.connections
    for _ in range(3):
        caller.create("Hello")
    assert fake_openai.connections == before


def test_tools_with_event_loops_of_their_own(start: Start, fake_openai: FakeOpenAI) -> None:
    """``Runner.run_sync`` reuses the loop of its thread, and ``asyncio.run`` has a new one each time."""
    caller = start("with_blocking_tool")
    for new_loop in (False, True, False, True):
        fake_openai.behaviour = streaming(calls("ask_expert", new_loop=new_loop), says("Sun"), says("It is sunny"))
        _, events = caller.create("The weather?")
        assert (errors(events), texts(events)) == ([], ["It is sunny"])
        (output,) = [item["output"] for item in fake_openai.received[-1].body["input"] if "output" in item]
        assert output == "Sun"


def test_new_secret_key_changes_no_safety_identifier(start: Start, fake_openai: FakeOpenAI) -> None:
    fake_openai.behaviour = streaming(says("Hello"))
    for key in ("a-first-key-of-this-test-and-no-other", "a-second-key-of-this-test-and-no-other"):
        Caller(start("simple", SECRET_KEY=key, **SIGNED_IN).url, shared(sub="ada")).create("Hello")
    assert identifiers(fake_openai) == [safety_identifier("user:ada")] * 2


@pytest.mark.parametrize("agent", ["identified", "identified_in_the_body", "identified_workflow"])
def test_own_safety_identifier_is_kept(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    fake_openai.behaviour = streaming(says("Hello"))
    start(agent).create("Hello")
    assert identifiers(fake_openai) == ["the operator's"]
