"""All kinds of ``CHATKIT_AGENT``, over real HTTP, with a fake of OpenAI's Responses API."""

from __future__ import annotations

import gc
import itertools
import os
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from chatkit.web import asgi
from tests.support.agents_under_test import blocked, release
from tests.support.applications import Start
from tests.support.chat import Caller, deltas, errors, texts, user_input
from tests.support.fake_openai import API_KEY, FakeOpenAI, failing
from tests.support.fake_server import Handler
from tests.support.identity_provider import SECRET, shared
from tests.support.leaks import Recorder
from tests.support.responses_api import asked, calls, says, streaming
from tests.support.waiting import wait_for

SERVERS = "tests.support.servers_under_test"
PLAIN = f"{SERVERS}:Plain"


def test_default_assistant(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start(CHATKIT_MODEL="gpt-mine", CHATKIT_INSTRUCTIONS="Speak like a pirate.")
    fake_openai.behaviour = streaming(says("Ahoy, my friend"))
    _, events = caller.create("Hello")
    assert texts(events) == ["Ahoy, my friend"]
    assert deltas(events) == ["Ahoy,", " my", " friend"]
    assert (fake_openai.received[0].body["model"], fake_openai.received[0].body["instructions"]) == (
        "gpt-mine",
        "Speak like a pirate.",
    )
    assert fake_openai.received[0].headers["authorization"] == f"Bearer {API_KEY}"


@pytest.mark.parametrize("agent", ["simple", "for_user", "for_user_later", "run_workflow", PLAIN])
def test_deltas_are_streamed_as_they_arrive(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(says("one two three four", pause=0.5))
    stream = caller.stream("threads.create", input=user_input("Count"))
    arrivals = [(time.monotonic(), delta) for event in stream for delta in deltas([event])]
    assert [delta for _, delta in arrivals] == ["one", " two", " three", " four"]
    gaps = [later[0] - earlier[0] for earlier, later in itertools.pairwise(arrivals)]
    # On a busy machine the first words may have waited for each other in a first turn.
    assert sum(gap > 0.1 for gap in gaps) >= 2, "streamed, not sent at the end"


@pytest.mark.parametrize("agent", ["simple", "run_workflow", PLAIN])
def test_history_precedes_the_new_message(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(says("Hello Ada"), says("You are Ada"))
    thread_id, _ = caller.create("I am Ada")
    events = caller.say(thread_id, "Who am I?")
    assert texts(events) == ["You are Ada"]
    assert asked(fake_openai.received[1].body) == [("user", "I am Ada"), ("assistant", "Hello Ada"), ("user", "Who am I?")]


def test_agent_per_user(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("for_user")
    fake_openai.behaviour = streaming(says("Yes"))
    caller.create("Hello")
    Caller(caller.url).create("Hello")
    served = [received.body["instructions"] for received in fake_openai.received]
    assert all(text.startswith("You serve anonymous:") for text in served)
    assert served[0] != served[1]


@pytest.mark.parametrize(
    ("token", "instructions"),
    [
        (shared(plan="pro"), "user:ada knows {'plan': 'pro'}."),
        (shared(plan=["free", "pro"]), "user:ada knows {}."),
        (shared(plan="free"), "Be brief."),
        (shared(plan="PRO"), "Be brief."),
        (shared(plan={"pro": 1}), "Be brief."),
        (shared(), "Be brief."),
        (None, "Be brief."),
    ],
)
def test_agent_by_claim(start: Start, fake_openai: FakeOpenAI, token: str | None, instructions: str) -> None:
    agents = {"CHATKIT_AGENT_CLAIM": "plan", "CHATKIT_AGENTS": "pro=tests.support.agents_under_test:for_claims"}
    url = start("simple", AUTH_JWT_SECRET=SECRET, CHATKIT_STATE_CLAIMS="plan,email", **agents).url
    fake_openai.behaviour = streaming(says("Yes"))
    Caller(url, token).create("Hello")
    assert fake_openai.received[0].body["instructions"] == instructions


@pytest.mark.parametrize("agent", ["with_tool", f"{SERVERS}:WithTool"])
def test_tool_call(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(calls("weather", city="Paris"), says("Sunny in Paris"))
    _, events = caller.create("Weather?")
    assert texts(events) == ["Sunny in Paris"]
    outputs = [item["output"] for item in fake_openai.received[1].body["input"] if item.get("type") == "function_call_output"]
    assert outputs == ["Sun in Paris"]


@pytest.mark.parametrize("agent", ["with_page", f"{SERVERS}:WithPage"])
def test_client_tool_call_and_output(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(calls("ask_page", question="Colour?"), says("It is blue"))
    thread_id, events = caller.create("What colour is my page?")
    (call,) = [event.item for event in events if event.type == "thread.item.done" and event.item.type == "client_tool_call"]
    assert (call.name, call.arguments, call.call_id, call.status) == ("ask_page", {"question": "Colour?"}, "call_1", "pending")
    answered = list(caller.stream("threads.add_client_tool_output", thread_id=thread_id, result={"colour": "blue"}))
    assert texts(answered) == ["It is blue"]
    given = fake_openai.received[1].body["input"]
    assert [item.get("type") for item in given[1:]] == ["function_call", "function_call_output"]
    assert given[2]["output"] == '{"colour": "blue"}'


def test_silent_stream_sends_heartbeats(start: Start, fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "HEARTBEAT_SECONDS", 0.2)
    caller = start("simple")
    fake_openai.behaviour = streaming([*says("after a while")[:2], 2.0, *says("after a while")[2:]])
    response = caller.send({"type": "threads.create", "params": {"input": user_input("Hello")}})
    assert 2 <= response.text.count(": keep-alive\n\n") <= 50
    assert "after" in response.text


@pytest.mark.parametrize("agent", ["simple", PLAIN])
def test_messages_with_equal_ids_from_the_model_are_kept_apart(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(says("first"), says("second"))
    thread_id, _ = caller.create("one")
    caller.say(thread_id, "two")
    kept = caller.items(thread_id, order="asc").data
    assert ["".join(part.text for part in item.content) for item in kept] == ["one", "first", "two", "second"]
    assert len({item.id for item in kept}) == 4


STREAM_ERROR = ("stream.error", None)


@pytest.mark.parametrize("agent", ["simple", "run_workflow", PLAIN])
@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        (failing(429, "rate_limit_exceeded"), ("custom", "The assistant is busy. Please try again in a moment.", True)),
        (failing(500, "server_error"), (*STREAM_ERROR, True)),
        (failing(401, "invalid_api_key"), (*STREAM_ERROR, False)),
        (failing(400, "invalid_request_error"), (*STREAM_ERROR, False)),
        (Handler.hang_up, (*STREAM_ERROR, True)),
    ],
    ids=["429", "500", "401", "400", "connection closed"],
)
def test_failing_model(start: Start, fake_openai: FakeOpenAI, agent: str, behaviour: Any, expected: Any) -> None:
    caller = start(agent)
    fake_openai.behaviour = behaviour
    thread_id, events = caller.create("Hello")
    assert errors(events) == [expected]
    message = caller.items(thread_id, order="asc").data[0]
    fake_openai.behaviour = streaming(says("Better now"))
    again = list(caller.stream("threads.retry_after_item", thread_id=thread_id, item_id=message.id))
    assert texts(again) == ["Better now"]


@pytest.mark.parametrize("agent", ["simple", "run_workflow", PLAIN])
def test_stalled_model_times_out(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent, CHATKIT_TURN_SECONDS="2")
    fake_openai.behaviour = streaming([*says("half a")[:4], 20.0])
    started = time.monotonic()
    _, events = caller.create("Hello")
    assert time.monotonic() - started < 12
    assert errors(events) == [("custom", "The response took too long. Please try again.", True)]


@pytest.mark.parametrize("agent", ["breaks", "for_nobody"])
def test_exception_of_an_agent_is_logged_and_not_shown(start: Start, recorder: Recorder, agent: str) -> None:
    caller = start(agent)
    _, events = caller.create("Hello")
    assert errors(events) == [(*STREAM_ERROR, True)]
    assert "internal detail" not in repr(events)
    line = next(line for line in reversed(recorder.lines) if "the assistant failed" in line)
    assert ("an internal detail" if agent == "breaks" else "not an Agents SDK agent") in line
    assert '"request_id": "' in line
    assert '"session_id": "ses_' in line


@pytest.mark.parametrize(
    "agent", ["raises_cancelled", "cancels_itself", "cancelling", "cancelling_workflow", "cancels_itself_for_user"]
)
def test_agent_that_cancels_itself(start: Start, fake_openai: FakeOpenAI, recorder: Recorder, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(calls("is_cancelled"))
    before = len(recorder.lines)
    started = time.monotonic()
    _, events = caller.create("Hello")
    assert errors(events) == [(*STREAM_ERROR, True)]
    assert time.monotonic() - started < 5
    assert [line for line in recorder.lines[before:] if "the assistant failed" in line]


LEFT_BEHIND = ("was destroyed", "never retrieved", "never awaited")


@pytest.mark.parametrize("agent", ["simple", "run_workflow", "guarded", "guarded_workflow", PLAIN, f"{SERVERS}:Guarded"])
def test_no_task_is_left_pending(start: Start, fake_openai: FakeOpenAI, recorder: Recorder, agent: str) -> None:
    """However a stream ends, none of its tasks stays pending."""
    caller = start(agent, CHATKIT_TURN_SECONDS="1")
    before = len(recorder.lines)
    for behaviour in (failing(500, "server_error"), Handler.hang_up, streaming([*says("half a")[:4], 20.0])):
        fake_openai.behaviour = behaviour
        assert errors(caller.create("Hello")[1])
    fake_openai.behaviour = streaming(says("a secret of many words", pause=0.05))
    caller.create("forbidden")
    caller.create("Hello")
    fake_openai.behaviour = streaming(says("some words that take a while", pause=0.2))
    for events_read in range(1, 8):  # the reader disconnects
        stream = caller.stream("threads.create", input=user_input("Hello"))
        for _ in range(events_read):
            next(stream, None)
        stream.close()  # type: ignore[attr-defined]
    time.sleep(1.5)
    gc.collect()
    time.sleep(0.2)
    assert [line for line in recorder.lines[before:] if any(words in line for words in LEFT_BEHIND)] == []


def test_timeout_inside_the_agent_is_not_logged_as_the_turns(start: Start, recorder: Recorder) -> None:
    caller = start("times_out")
    before = len(recorder.lines)
    caller.create("Hello")
    lines = "\n".join(recorder.lines[before:])
    assert "CHATKIT_TURN_SECONDS" not in lines
    assert "Traceback" in lines


@pytest.mark.parametrize(
    "agent", ["exiting_workflow", "interrupted_workflow", "leaving_workflow", "exits_for_user", "exits_for_user_later"]
)
def test_agent_that_exits_ends_only_its_turn(start: Start, recorder: Recorder, agent: str) -> None:
    """asyncio lets a task's SystemExit and KeyboardInterrupt stop the event loop, and with it every other stream."""
    caller = start(agent)
    before = len(recorder.lines)
    _, events = caller.create("Hello")
    assert errors(events) == [(*STREAM_ERROR, True)]
    assert [line for line in recorder.lines[before:] if "the assistant failed" in line]
    assert caller.post("threads.list").status_code == 200


def test_what_a_function_raises_is_logged(start: Start, recorder: Recorder) -> None:
    recorder.lines.clear()
    assert errors(start("raises_for_user").create("Hello")[1]) == [(*STREAM_ERROR, True)]
    assert "ValueError: the user's plan is not known" in "\n".join(recorder.lines)


def threads_in(function: str) -> int:
    """Return how many threads are in a call of the function."""
    stacks = map(traceback.extract_stack, sys._current_frames().values())
    return sum(any(frame.name == function for frame in stack) for stack in stacks)


def test_many_functions_block_at_the_same_time(start: Start, fake_openai: FakeOpenAI) -> None:
    """asyncio's own executor has four threads more than there are processors."""
    url = start("blocks_for_user").url
    callers = [Caller(url) for _ in range((os.cpu_count() or 1) + 8)]
    fake_openai.behaviour = streaming(says("Done"))
    release.clear()
    with ThreadPoolExecutor(len(callers)) as pool:
        turns = [pool.submit(caller.create, "Hello") for caller in callers]
        try:
            wait_for(lambda: threads_in("_block") == len(callers))
        finally:
            release.set()
    assert all(texts(turn.result()[1]) == ["Done"] for turn in turns)


@pytest.mark.parametrize("agent", ["blocking", "blocks_for_user"])
def test_blocking_function_delays_only_its_turn(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(calls("blocks"), says("Done")) if agent == "blocking" else streaming(says("Done"))
    blocked.clear()
    release.clear()
    with ThreadPoolExecutor() as pool:
        turn = pool.submit(Caller(caller.url).create, "Hello")
        assert blocked.wait(30)
        for _ in range(5):
            assert caller.post("threads.list").status_code == 200
        assert not turn.done()
        release.set()
    assert texts(turn.result()[1]) == ["Done"]
