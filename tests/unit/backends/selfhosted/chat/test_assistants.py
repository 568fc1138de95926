"""All kinds of ``CHATKIT_AGENT``, over real HTTP, with a fake of OpenAI's Responses API."""

from __future__ import annotations

import gc
import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from agents.run import AgentRunner, get_default_agent_runner

from chatkit.backends.selfhosted.chat import exported_workflow
from chatkit.backends.selfhosted.chat.assistants import _load
from chatkit.settings import SettingsError
from chatkit.web import asgi
from tests.support.agents_under_test import simple
from tests.support.applications import Start
from tests.support.chat import Caller, deltas, errors, texts, user_input
from tests.support.fake_openai import API_KEY, FakeOpenAI, failing
from tests.support.fake_server import Handler, responding
from tests.support.identity_provider import SECRET, shared
from tests.support.leaks import Recorder
from tests.support.responses_api import asked, calls, says, streaming

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
    fake_openai.behaviour = streaming(says("one two three four", pause=0.3))
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


@pytest.mark.parametrize("agent", ["knowing", "knowing_workflow", f"{SERVERS}:WithKnowingTool"])
def test_tools_see_the_request(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    url = start(agent, AUTH_JWT_SECRET=SECRET, CHATKIT_STATE_CLAIMS="plan").url
    fake_openai.behaviour = streaming(calls("what_is_known"), says("I see"))
    caller = Caller(url, shared(plan="pro", email="ada@example.com"))
    caller.http.headers["Accept-Language"] = "de"
    caller.send({"type": "threads.create", "params": {"input": user_input("Hello")}, "metadata": {"page": 7}})
    (output,) = [item["output"] for item in fake_openai.received[1].body["input"] if item.get("type") == "function_call_output"]
    assert output == "user:ada {'plan': 'pro'} {'Accept-Language': 'de'} {'page': 7}"


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


def test_output_of_an_agent_used_as_a_tool_is_not_shown(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("runs_another_agent_as_tool")
    fake_openai.behaviour = streaming(calls("expert", input="Weather?"), says("secret of the expert"), says("All is well"))
    _, events = caller.create("Hello")
    assert texts(events) == ["All is well"]
    given = fake_openai.received[-1].body["input"]
    assert [item["output"] for item in given if item.get("type") == "function_call_output"] == ["secret of the expert"]


def test_agents_running_in_parallel(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("runs_two_at_once")
    fake_openai.behaviour = streaming(says("one of two", pause=0.05))
    thread_id, events = caller.create("Hello")
    assert texts(events) == ["one of two", "one of two"]
    assert len(caller.items(thread_id).data) == 3


def test_silent_stream_sends_heartbeats(start: Start, fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "HEARTBEAT_SECONDS", 0.2)
    caller = start("simple")
    fake_openai.behaviour = streaming([*says("after a while")[:2], 1.0, *says("after a while")[2:]])
    response = caller.send({"type": "threads.create", "params": {"input": user_input("Hello")}})
    assert 2 <= response.text.count(": keep-alive\n\n") <= 5
    assert "after" in response.text


def test_widget_action_is_passed_to_the_model(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("simple")
    fake_openai.behaviour = streaming(says("Hello"), says("You pressed it"))
    thread_id, _ = caller.create("Hello")
    action = {"type": "press", "payload": {"button": "red"}}
    assert caller.post("threads.sync_custom_action", thread_id=thread_id, action=action).json() == {}
    events = list(caller.stream("threads.custom_action", thread_id=thread_id, action=action))
    assert texts(events) == ["You pressed it"]
    reports = [
        text for _, text in asked(fake_openai.received[1].body) if "acted on the page: press with {'button': 'red'}" in text
    ]
    assert len(reports) == 2
    assert [item.type for item in caller.items(thread_id, order="asc").data] == ["user_message", *["assistant_message"] * 2]


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
    assert time.monotonic() - started < 4
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


@pytest.mark.parametrize("agent", ["simple", PLAIN])
def test_dictation(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = responding(200, {"text": "Hello there"})
    response = caller.post("input.transcribe", audio_base64="aGVsbG8=", mime_type="audio/webm;codecs=opus")
    assert (response.status_code, response.json()) == (200, {"text": "Hello there"})
    assert fake_openai.received[0].path == "/v1/audio/transcriptions"
    assert b"gpt-transcribe" in fake_openai.received[0].body


@pytest.mark.parametrize(
    ("mime_type", "extension"),
    [
        ("audio/webm;codecs=opus", "webm"),
        ('audio/webm; codecs="opus"', "webm"),
        ("audio/ogg; codecs=opus", "ogg"),
        ("audio/mp4;codecs=mp4a.40.2", "mp4"),
        ("audio/mp4 ; codecs=opus", "mp4"),
        ("audio/x-m4a", "m4a"),
        ("audio/wav", "wav"),
        ("audio/x-wav", "wav"),
        ("audio/wave", "wav"),
        ("audio/vnd.wave;codec=1", "wav"),
        ("Audio/MPEG", "mpeg"),
    ],
)
def test_what_browsers_record(start: Start, fake_openai: FakeOpenAI, mime_type: str, extension: str) -> None:
    """OpenAI tells the format by the name of the file."""
    caller = start("simple", CHATKIT_TRANSCRIPTION_MODEL="gpt-other-transcribe")
    fake_openai.behaviour = responding(200, {"text": "Hello there"})
    assert caller.post("input.transcribe", audio_base64="aGVsbG8=", mime_type=mime_type).json() == {"text": "Hello there"}
    (received,) = fake_openai.received
    assert f'filename="audio.{extension}"'.encode() in received.body
    assert b"gpt-other-transcribe" in received.body


UNAVAILABLE = (503, "openai_unavailable")


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        (failing(401, "invalid_api_key", X_Request_Id="req_7"), (401, "openai_authentication_failed")),
        (failing(429, "rate_limit_exceeded", X_Request_Id="req_7"), (429, "openai_rate_limited")),
        (failing(500, "server_error", X_Request_Id="req_7"), UNAVAILABLE),
        (responding(200, b"{"), UNAVAILABLE),
        (responding(200, b"text", Content_Type="text/plain"), UNAVAILABLE),
        (responding(200, {"text": 7}), UNAVAILABLE),
        (responding(200, {}), UNAVAILABLE),
        (Handler.hang_up, UNAVAILABLE),
    ],
    ids=["401", "429", "500", "invalid json", "text", "text is not a string", "no text", "connection closed"],
)
def test_failing_dictation(start: Start, fake_openai: FakeOpenAI, recorder: Recorder, behaviour: Any, expected: Any) -> None:
    caller = start("simple")
    fake_openai.behaviour = behaviour
    before = len(recorder.lines)
    response = caller.post("input.transcribe", audio_base64="aGVsbG8=", mime_type="audio/webm")
    assert (response.status_code, response.json()["code"]) == expected
    (line,) = [line for line in recorder.lines[before:] if "transcription failed" in line]
    if expected != UNAVAILABLE:
        assert f"OpenAI answered {response.status_code} (request req_7)" in line


@pytest.mark.parametrize("mime_type", ["audio/webm\r\nX-Injected: yes", "text/html", "audio/" + "x" * 60_000, ""])
def test_invalid_media_type_of_a_dictation_is_refused(start: Start, fake_openai: FakeOpenAI, mime_type: str) -> None:
    """The media type becomes a header in the request to OpenAI."""
    caller = start("simple")
    assert caller.post("input.transcribe", audio_base64="aGVsbG8=", mime_type=mime_type).status_code == 400
    assert fake_openai.received == []


DESCRIPTIONS = {
    PLAIN: f"the server {PLAIN}",
    "simple": "the Agents SDK agent 'Simple'",
    "for_user": "the agents that the function",
    "for_claims": "the agents that the function",
    "run_workflow": "the exported workflow",
    "returns_nothing": "the exported workflow",
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_description_of_the_agent(name: str) -> None:
    assert DESCRIPTIONS[name] in _load(name if ":" in name else f"tests.support.agents_under_test:{name}")[1]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tests.nowhere:agent", "tests.nowhere can't be imported (ModuleNotFoundError"),
        ("tests.support.agents_under_test:nothing", "has no nothing"),
        ("tests.support.agents_under_test:a_number", "is of type int"),
        ("tests.support.agents_under_test:WorkflowInput", "it has to be an Agents SDK Agent"),
        ("tests.support.agents_under_test:takes_nothing", "takes 0 arguments"),
        ("tests.support.agents_under_test:takes_three", "takes 3 arguments"),
        ("tests.support.agents_under_test:not_async", "not an async function"),
    ],
)
def test_invalid_agent_is_a_setting_error(name: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        _load(name)
    assert str(caught.value).startswith("CHATKIT_AGENT: ")
    assert words in str(caught.value)


def test_runner_outside_a_chat_is_the_sdks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other uses of the Agents SDK in the process keep its default behaviour."""
    exported_workflow.install_runner()
    received: list[Any] = []
    monkeypatch.setattr(AgentRunner, "run_streamed", lambda _self, *arguments, **named: received.append((arguments, named)))
    get_default_agent_runner().run_streamed(simple, "Hello", max_turns=2)
    assert received == [((simple, "Hello"), {"max_turns": 2})]


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


def test_widget_of_an_agent_with_an_output_type_is_shown(start: Start, fake_openai: FakeOpenAI) -> None:
    """In an exported workflow the agent's own output goes to the workflow only."""
    caller = start("typed_workflow")
    fake_openai.behaviour = streaming(calls("shows_a_widget"), says('{"word":"a"}'))
    thread_id, _ = caller.create("Hello")
    kinds = [item.type for item in caller.items(thread_id, order="asc").data]
    assert kinds == ["user_message", "widget", "assistant_message"]


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


@pytest.mark.parametrize("agent", ["blocking", "blocks_for_user"])
def test_blocking_function_delays_only_its_turn(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(calls("blocks"), says("Done")) if agent == "blocking" else streaming(says("Done"))
    with ThreadPoolExecutor() as pool:
        turn = pool.submit(Caller(caller.url).create, "Hello")
        delays = []
        while not turn.done():
            started = time.monotonic()
            assert caller.post("threads.list").status_code == 200
            delays.append(time.monotonic() - started)
    assert texts(turn.result()[1]) == ["Done"]
    assert len(delays) > 5
    assert max(delays) < 1
