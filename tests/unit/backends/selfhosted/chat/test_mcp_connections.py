"""MCP servers of agents: connected while the process serves, and nothing that the chat depends on."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import time
from typing import Any

import psutil
import pytest

from chatkit.backends.selfhosted.chat import mcp_connections
from tests.support import processes
from tests.support.applications import Start, served
from tests.support.chat import Caller, errors, texts, user_input
from tests.support.fake_openai import FakeOpenAI
from tests.support.leaks import Recorder
from tests.support.responses_api import calls, says, streaming
from tests.support.service import PROJECT, free_port
from tests.support.waiting import wait_for

AGENTS, REMOTE = "tests.support.agents_with_mcp", "tests.support.agent_with_remote_mcp"
HIDDEN = "tests.support.agents_with_hidden_mcp"
FIND = calls("find_customer", who="Ada")


@pytest.fixture(autouse=True)
def _new_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_connections, "RETRY_SECONDS", 0.2)
    monkeypatch.setattr(mcp_connections, "CONNECT_SECONDS", 60)
    mcp_connections._report_unknown.cache_clear()
    for module in (AGENTS, REMOTE, HIDDEN):
        sys.modules.pop(module, None)


def stdio_servers() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "tests.support.mcp_server" in child.cmdline()]


def lines(recorder: Recorder, words: str) -> list[str]:
    return [line for line in recorder.lines if words in line]


def outputs(fake_openai: FakeOpenAI) -> list[str]:
    calls = [item for item in fake_openai.received[-1].body["input"] if item.get("type") == "function_call_output"]
    return [part["text"] for call in calls for part in call["output"] if isinstance(part, dict)]


def tools(fake_openai: FakeOpenAI) -> list[str]:
    return [tool["name"] for tool in fake_openai.received[-1].body["tools"]]


@pytest.mark.parametrize("agent", ["local", "local_for_user", "handing_over"])
def test_server_over_stdio(make_app: Any, fake_openai: FakeOpenAI, recorder: Recorder, agent: str) -> None:
    recorder.lines.clear()
    handing_over = json.loads(json.dumps(calls("transfer_to_local")).replace("call_1", "call_0"))
    handoff = [handing_over] if agent == "handing_over" else []
    fake_openai.behaviour = streaming(*handoff, FIND, says("It is 7"))
    assert stdio_servers() == []
    with served(make_app(CHATKIT_BACKEND="selfhosted", CHATKIT_AGENT=f"{AGENTS}:{agent}")) as url:
        wait_for(lambda: lines(recorder, "MCP server stdio"))
        _, events = Caller(url).create("Who is Ada?")
        assert texts(events) == ["It is 7"]
        assert outputs(fake_openai)[-1] == "Ada is customer 7"
        assert len(stdio_servers()) == 1
    wait_for(lambda: stdio_servers() == [])
    assert not [line for line in lines(recorder, "MCP server") if "ERROR" in line or "WARNING" in line]


def test_composer_offers_a_tool_of_a_server(start: Start, fake_openai: FakeOpenAI, recorder: Recorder) -> None:
    recorder.lines.clear()
    tool = {"id": "find_customer", "label": "Customers", "icon": "search"}
    caller = start(f"{AGENTS}:local", CHATKIT_COMPOSER=json.dumps({"tools": [tool]}))
    wait_for(lambda: lines(recorder, "is connected"))
    fake_openai.behaviour = streaming(FIND, says("It is 7"))
    message = user_input("Who is Ada?", tool_choice={"id": "find_customer"})
    assert texts(list(caller.stream("threads.create", input=message))) == ["It is 7"]
    assert fake_openai.received[0].body["tool_choice"] == {"type": "function", "name": "find_customer"}


@pytest.mark.parametrize("agent", ["of_dictionary", "OfClass", "OfInstance"])
def test_server_that_is_not_at_the_top_level(start: Start, fake_openai: FakeOpenAI, recorder: Recorder, agent: str) -> None:
    module = importlib.import_module(HIDDEN)
    if agent == "of_dictionary":
        module.AGENTS["local"] = [module.new_agent("")]
    recorder.lines.clear()
    fake_openai.behaviour = streaming(FIND, says("It is 7"))
    caller = start(f"{HIDDEN}:{agent}")
    wait_for(lambda: lines(recorder, "is connected"))
    assert texts(caller.create("Who is Ada?")[1]) == ["It is 7"]
    assert outputs(fake_openai) == ["Ada is customer 7"]
    assert len(stdio_servers()) == 1


def test_server_that_is_not_found(start: Start, fake_openai: FakeOpenAI, recorder: Recorder) -> None:
    recorder.lines.clear()
    fake_openai.behaviour = streaming(says("Hello"))
    caller = start(f"{HIDDEN}:new_agent")
    for _ in range(2):
        _, events = caller.create("Hi")
        assert (errors(events), texts(events)) == ([], ["Hello"])
        assert tools(fake_openai) == ["weather"]
    (line,) = lines(recorder, "was not found")
    assert "ERROR" in line
    assert "Create it at the top level of the module in CHATKIT_AGENT" in line


@pytest.mark.parametrize("agent", ["prompted", "asking_prompted"])
def test_prompts_and_resources(start: Start, fake_openai: FakeOpenAI, recorder: Recorder, agent: str) -> None:
    recorder.lines.clear()
    fake_openai.behaviour = streaming(*([calls("ask_prompted")] if agent == "asking_prompted" else []), says("Hello"))
    caller = start(f"{AGENTS}:{agent}", CHATKIT_TURN_SECONDS="30")
    wait_for(lambda: lines(recorder, "is connected"))
    assert texts(caller.create("Who is Ada?")[1]) == ["Hello"]
    given = [received.body.get("instructions") for received in fake_openai.received if received.body["model"] == "gpt-test"]
    assert given == ["Be kind. Say hello."]


def test_server_in_another_event_loop(start: Start, fake_openai: FakeOpenAI, recorder: Recorder) -> None:
    recorder.lines.clear()
    fake_openai.behaviour = streaming(calls("ask_local"), FIND, says("It is 7"), says("Seven"))
    caller = start(f"{AGENTS}:asking", CHATKIT_TURN_SECONDS="30")
    wait_for(lambda: lines(recorder, "is connected"))
    recorder.lines.clear()
    assert texts(caller.create("Who is Ada?")[1]) == ["Seven"]
    (output,) = [item["output"] for item in fake_openai.received[-1].body["input"] if "output" in item]
    assert output == "It is 7"
    assert lines(recorder, "can't be used") == []


def test_call_that_needs_approval(start: Start, fake_openai: FakeOpenAI, recorder: Recorder, monkeypatch: Any) -> None:
    monkeypatch.setenv("TEST_MCP_APPROVAL", "always")
    recorder.lines.clear()
    fake_openai.behaviour = streaming(FIND, says("It is 7"))
    caller = start(f"{AGENTS}:local")
    wait_for(lambda: lines(recorder, "is connected"))
    assert texts(approve(caller, pause(caller))) == ["It is 7"]
    assert outputs(fake_openai) == ["Ada is customer 7"]


def approve(caller: Caller, widget: Any) -> list[Any]:
    action = {"type": "chatkit.approval", "payload": {"approved": True}}
    return list(caller.stream("threads.custom_action", thread_id=widget.thread_id, item_id=widget.id, action=action))


def pause(caller: Caller) -> Any:
    """Return the widget of the call that waits for approval."""
    (widget,) = [event.item for event in caller.create("Go")[1] if event.type == "thread.item.done"][-1:]
    assert widget.type == "widget"
    return widget


SLOW = "import runpy, time; time.sleep(1); runpy.run_module('tests.support.mcp_server', run_name='__main__')"
NEVER = "import time; time.sleep(100)"


@pytest.mark.parametrize(
    ("database", "agent"),  # starting the server's process takes seconds
    [("sqlite", "local"), ("postgresql", "local_for_user"), ("sqlite", "handing_over"), ("postgresql", "managing")],
    indirect=["database"],
)
def test_an_approval_while_the_server_is_being_connected(
    start: Start, fake_openai: FakeOpenAI, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, database: str, agent: str
) -> None:
    monkeypatch.setenv("TEST_MCP_APPROVAL", "always")
    recorder.lines.clear()
    before = {
        "handing_over": [json.loads(json.dumps(calls("transfer_to_local")).replace("call_1", "call_0"))],
        "managing": [json.loads(json.dumps(calls("clerk", input="Ada?")).replace("call_1", "call_0"))],
    }
    fake_openai.behaviour = streaming(*before.get(agent, []), FIND, says("It is 7"))
    caller = start(f"{AGENTS}:{agent}", DATABASE_URL=database)
    wait_for(lambda: lines(recorder, "is connected"))
    widget = pause(caller)
    sys.modules.pop(AGENTS)
    importlib.import_module(AGENTS).stdio.params.args = ["-c", SLOW]
    later = start(f"{AGENTS}:{agent}", DATABASE_URL=database)
    later.secret = caller.secret
    assert len(lines(recorder, "is connected")) == 1
    events = approve(later, widget)
    assert (errors(events), texts(events)) == ([], ["It is 7"])
    assert len(lines(recorder, "is connected")) == 2


def test_an_approval_while_the_server_is_away(
    start: Start, fake_openai: FakeOpenAI, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_MCP_APPROVAL", "always")
    recorder.lines.clear()
    fake_openai.behaviour = streaming(FIND, calls("book", city="Rome"), says("It is booked"), says("It is 7"))
    caller = start(f"{AGENTS}:local")
    wait_for(lambda: lines(recorder, "is connected"))
    widget, of_another_tool = pause(caller), pause(caller)
    parameters = importlib.import_module(AGENTS).stdio.params
    args, parameters.args = parameters.args, ["-c", NEVER]
    monkeypatch.setattr(mcp_connections, "CONNECT_SECONDS", 2)
    (process,) = stdio_servers()
    process.kill()
    away = "The tool can't be reached at the moment. Please decide again later."
    assert errors(approve(caller, widget)) == [("custom", away, False)]
    assert caller.items(widget.thread_id).data[0] == widget, "it is still pending"
    assert texts(approve(caller, of_another_tool)) == ["It is booked"], "it needs no server that is away"
    parameters.args = args
    monkeypatch.setattr(mcp_connections, "CONNECT_SECONDS", 60)
    wait_for(lambda: len(lines(recorder, "is connected")) == 2)
    assert texts(approve(caller, widget)) == ["It is 7"]
    assert outputs(fake_openai) == ["Ada is customer 7"]


def test_server_that_is_down_comes_and_goes(
    start: Start, fake_openai: FakeOpenAI, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = str(free_port())
    monkeypatch.setenv("TEST_MCP_PORT", port)
    recorder.lines.clear()
    fake_openai.behaviour = streaming(says("Hello"))
    caller = start(f"{REMOTE}:remote")
    wait_for(lambda: lines(recorder, "can't be used"))
    time.sleep(1)  # several attempts
    _, events = caller.create("Hi")
    assert (errors(events), texts(events)) == ([], ["Hello"])
    assert tools(fake_openai) == ["weather"]
    assert len(lines(recorder, "can't be used")) == 1
    assert len([line for line in recorder.lines if "WARNING" in line or "ERROR" in line]) == 1 + len(
        lines(recorder, "CHATKIT_ALLOWED_ORIGINS")
    )

    command = [sys.executable, "-m", "tests.support.mcp_server", port]
    server: subprocess.Popen[Any] = processes.start(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: lines(recorder, "is connected"))
        fake_openai.behaviour = streaming(FIND, says("It is 7"))
        _, events = caller.create("Who is Ada?")
        assert (texts(events), outputs(fake_openai)) == (["It is 7"], ["Ada is customer 7"])
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait(10)
    fake_openai.behaviour = streaming(says("I can't say"))
    _, events = caller.create("Who is Ada?")
    assert (errors(events), texts(events)) == ([], ["I can't say"])
    assert tools(fake_openai) == ["weather"]
    wait_for(lambda: len(lines(recorder, "can't be used")) == 2)
    assert not [line for line in lines(recorder, "key-in-the-address") if "DEBUG" not in line]


def test_server_over_stdio_that_dies_is_started_again(start: Start, fake_openai: FakeOpenAI, recorder: Recorder) -> None:
    recorder.lines.clear()
    fake_openai.behaviour = streaming(says("Hello"))
    caller = start(f"{AGENTS}:local")
    wait_for(lambda: lines(recorder, "is connected"))
    (process,) = stdio_servers()
    process.kill()
    process.wait(10)
    _, events = caller.create("Hi")
    assert (errors(events), texts(events)) == ([], ["Hello"])
    wait_for(lambda: len(lines(recorder, "is connected")) == 2)
    fake_openai.behaviour = streaming(FIND, says("It is 7"))
    assert texts(caller.create("Who is Ada?")[1]) == ["It is 7"]


def test_server_whose_tools_are_cached_dies_and_is_started_again(
    start: Start, fake_openai: FakeOpenAI, recorder: Recorder
) -> None:
    """The list would hide that the server is gone, and each call would fail."""
    importlib.import_module(AGENTS).stdio.cache_tools_list = True
    recorder.lines.clear()
    fake_openai.behaviour = streaming(says("Hello"))
    caller = start(f"{AGENTS}:local")
    wait_for(lambda: lines(recorder, "is connected"))
    caller.create("Hi")
    assert "find_customer" in tools(fake_openai)
    (process,) = stdio_servers()
    process.kill()
    process.wait(10)
    fake_openai.behaviour = streaming(FIND, says("I can't say"))
    _, events = caller.create("Who is Ada?")
    assert (errors(events), texts(events)) == ([], ["I can't say"])
    assert tools(fake_openai) == ["weather", "book"]
    wait_for(lambda: len(lines(recorder, "is connected")) == 2)
    assert lines(recorder, "can't be used")
    fake_openai.behaviour = streaming(FIND, says("It is 7"))
    assert texts(caller.create("Who is Ada?")[1]) == ["It is 7"]
    assert outputs(fake_openai) == ["Ada is customer 7"]


@pytest.mark.parametrize("cached", [True, False])
def test_server_whose_tool_fails_stays_connected(
    start: Start, fake_openai: FakeOpenAI, recorder: Recorder, cached: bool
) -> None:
    importlib.import_module(AGENTS).stdio.cache_tools_list = cached
    recorder.lines.clear()
    caller = start(f"{AGENTS}:local")
    wait_for(lambda: lines(recorder, "is connected"))
    recorder.lines.clear()
    for protocol in (True, False):
        fake_openai.behaviour = streaming(calls("refuse", protocol=protocol), says("It refuses"))
        assert texts(caller.create("Hi")[1]) == ["It refuses"]
        assert "refuse" in tools(fake_openai)
    time.sleep(0.5)
    assert len(stdio_servers()) == 1
    assert lines(recorder, "is connected") == lines(recorder, "can't be used") == []


def test_server_that_never_answers(
    start: Start, fake_openai: FakeOpenAI, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp_connections, "CONNECT_SECONDS", 0.5)
    module = importlib.import_module(AGENTS)
    module.stdio.params.args = ["-c", "import time; time.sleep(100)"]
    recorder.lines.clear()
    fake_openai.behaviour = streaming(says("Hello"))
    caller = start(f"{AGENTS}:local")
    assert texts(caller.create("Hi")[1]) == ["Hello"], "while it is being connected"
    wait_for(lambda: lines(recorder, "can't be used (TimeoutError)"))
    assert texts(caller.create("Hi")[1]) == ["Hello"]
