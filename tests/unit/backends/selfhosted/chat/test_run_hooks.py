"""What models use is counted in every shape, however a response ends."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from tests.support.agents_under_test import seen
from tests.support.applications import Start
from tests.support.attachments import PDF, attach
from tests.support.chat import Caller, deltas, errors, texts, user_input
from tests.support.fake_openai import FakeOpenAI, failing
from tests.support.fake_server import Handler
from tests.support.responses_api import FAILED, INCOMPLETE, calls, says, streaming
from tests.support.usage import requests_of, used
from tests.support.waiting import wait_for

SERVERS = "tests.support.servers_under_test"

TOOL = [calls("weather", city="Paris"), says("Sun")]


SHAPES: dict[str, tuple[list[Any], list[tuple[Any, ...]]]] = {
    "with_tool": (TOOL, [requests_of("With a tool", 2)]),
    "with_tool_for_user": (TOOL, [requests_of("With a tool", 2)]),
    "adding_usage": (
        [calls("adds_usage"), says("Hello"), says("Hello too")],
        [requests_of("Adding usage", 2), requests_of("Simple", 1)],
    ),
    "handing_over": (
        [calls("transfer_to_simple"), says("Hello")],
        [requests_of("Handing over", 1), requests_of("Simple", 1)],
    ),
    "tool_workflow": (TOOL, [requests_of("With a tool", 2)]),
    "runs_two_at_once": ([says("Hello")], [requests_of("Simple", 2)]),
    "runs_another_agent_as_tool": (
        [calls("expert", input="The weather?"), *TOOL, says("It is sunny")],
        [requests_of("Boss", 2), requests_of("With a tool", 2)],
    ),
    f"{SERVERS}:WithTool": (TOOL, [requests_of("With a tool", 2)]),
    f"{SERVERS}:AskingExperts": (
        [calls("quick", input="A slate?"), says("A slate"), says("It is a slate")],
        [requests_of("Asking experts", 2), requests_of("Quick expert", 1)],
    ),
}


@pytest.mark.parametrize("agent", SHAPES)
def test_usage_is_stored_for_each_agent(
    start: Start, fake_openai: FakeOpenAI, agent: str, tmp_path: Any, usage_lines: list[dict[str, Any]]
) -> None:
    answers, rows = SHAPES[agent]
    caller = start(agent)
    fake_openai.behaviour = streaming(*answers)
    _, events = caller.create("Hello")
    assert errors(events) == []
    wait_for(lambda: used(f"sqlite:///{tmp_path}/chatkit.db") == rows)
    (line,) = usage_lines
    assert line["agents"] == [row[0] for row in rows]
    totals = [sum(amounts) for amounts in zip(*(row[1:] for row in rows), strict=True)]
    assert [line[name] for name in ("model_requests", "input_tokens", "output_tokens", "total_tokens")] == totals


@pytest.mark.parametrize("agent", ["asking_experts", "asking_experts_for_user", "experts_workflow", f"{SERVERS}:AskingExperts"])
def test_usage_of_agents_that_run_at_the_same_time(start: Start, fake_openai: FakeOpenAI, tmp_path: Any, agent: str) -> None:
    other_call = calls("quick", "call_2", input="?")
    of_boss = streaming([*calls("slow", input="?"), *other_call], says("Both agree"))
    quick, slow = threading.Event(), threading.Event()

    def behave(handler: Handler) -> None:
        """The slow expert answers after the quick one, which is asked after it."""
        model = handler.received.body["model"]
        if model == "gpt-test":
            of_boss(handler)
        elif model == "gpt-slow":
            slow.set()
            assert quick.wait(10)
            time.sleep(0.3)
            streaming(says("Much"))(handler)
        else:
            assert slow.wait(10)
            streaming(says("Little"))(handler)
            quick.set()

    caller = start(agent)
    fake_openai.behaviour = behave
    _, events = caller.create("Hello")
    assert texts(events) == ["Both agree"]
    rows = [requests_of("Asking experts", 2), requests_of("Quick expert", 1), requests_of("Slow expert", 1)]
    wait_for(lambda: used(f"sqlite:///{tmp_path}/chatkit.db") == rows)


def test_demo_uses_nothing(start: Start, tmp_path: Any, usage_lines: list[dict[str, Any]]) -> None:
    start("", OPENAI_API_KEY="").create("Hello")
    assert used(f"sqlite:///{tmp_path}/chatkit.db") == []
    assert usage_lines == []


ENDINGS: dict[str, tuple[str, list[Any], int]] = {
    "an error of the model's service": ("with_tool", [calls("weather", city="Paris"), [FAILED]], 2),
    "an answer that is too long": ("simple", [[*says("Half of"), INCOMPLETE]], 1),
    "an answer that is too long, in a workflow": ("run_workflow", [[*says("Half of"), INCOMPLETE]], 1),
    "an answer that is too long, of a server": (f"{SERVERS}:Plain", [[*says("Half of"), INCOMPLETE]], 1),
    "an unknown tool": ("with_tool", [calls("no_such_tool")], 1),
    "an output guardrail": ("guarded", [says("the secret word")], 1),
    "an input guardrail": ("guarded", [says("Hello")], 1),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_response_that_fails_is_counted(start: Start, fake_openai: FakeOpenAI, tmp_path: Any, ending: str) -> None:
    agent, answers, number = ENDINGS[ending]
    caller = start(agent)
    fake_openai.behaviour = streaming(*answers)
    _, events = caller.create("forbidden" if ending == "an input guardrail" else "Hello")
    assert len(errors(events)) == 1
    wait_for(lambda: [row[1:] for row in used(f"sqlite:///{tmp_path}/chatkit.db")] == [requests_of("", number)[1:]])


@pytest.mark.parametrize("how", ["the reader leaves", "the time limit"])
@pytest.mark.parametrize("agent", ["with_tool", "tool_workflow", f"{SERVERS}:WithTool"])
def test_response_that_is_cancelled_is_counted(
    start: Start, fake_openai: FakeOpenAI, tmp_path: Any, agent: str, how: str
) -> None:
    caller = start(agent, CHATKIT_TURN_SECONDS="2" if how == "the time limit" else "30")
    fake_openai.behaviour = streaming(calls("weather", city="Paris"), [*says("A long"), 5.0])
    stream: Any = caller.stream("threads.create", input=user_input("Hello"))
    if how == "the reader leaves":
        shown = ""
        while shown != "A long":
            shown += "".join(deltas([next(stream)]))
        stream.close()
    else:
        assert len(errors(list(stream))) == 1
    wait_for(lambda: used(f"sqlite:///{tmp_path}/chatkit.db"))
    # The second call has not ended. It is estimated: what it was given, and the six characters of "A long".
    ((_, requests, input_tokens, output_tokens, total),) = used(f"sqlite:///{tmp_path}/chatkit.db")
    given = [str(value) for item in fake_openai.received[1].body["input"] for value in item.values()]
    assert (requests, output_tokens, total) == (2, 1 + 2, input_tokens + output_tokens)
    assert sum(map(len, given)) / 4 * 0.5 < input_tokens < sum(map(len, given)) / 4 * 1.5


def test_large_file_of_a_cancelled_response(attaching: Caller, fake_openai: FakeOpenAI, tmp_path: Any) -> None:
    """Services count its pages: about 1,000 tokens for each 60 KB."""
    attachment_id = attach(attaching, "a.pdf", "application/pdf", PDF + bytes(1_200_000 - len(PDF)))
    fake_openai.behaviour = streaming([*says("A long"), 5.0])
    stream: Any = attaching.stream("threads.create", input=user_input("Read", [attachment_id]))
    while not deltas([next(stream)]):
        pass
    stream.close()
    wait_for(lambda: used(f"sqlite:///{tmp_path}/chatkit.db"))
    ((_, _, input_tokens, _, _),) = used(f"sqlite:///{tmp_path}/chatkit.db")
    assert 20_000 < input_tokens < 20_050


@pytest.mark.parametrize("failure", [failing(500, "server_error"), Handler.hang_up])
def test_call_that_fails_without_output_is_not_counted(
    start: Start, fake_openai: FakeOpenAI, tmp_path: Any, failure: Any
) -> None:
    caller = start("with_tool")
    answers = iter([streaming(calls("weather", city="Paris"))])

    def behave(handler: Handler) -> None:
        next(answers, failure)(handler)

    fake_openai.behaviour = behave
    assert len(errors(caller.create("Hello")[1])) == 1
    wait_for(lambda: used(f"sqlite:///{tmp_path}/chatkit.db") == [requests_of("With a tool", 1)])


def test_call_that_fails_with_output_is_estimated(start: Start, fake_openai: FakeOpenAI, tmp_path: Any) -> None:
    caller = start("simple")
    fails = {"type": "error", "code": "server_error", "message": "", "param": None}
    fake_openai.behaviour = streaming([*says("ten words " * 5), fails])
    assert len(errors(caller.create("Hello")[1])) == 1
    wait_for(lambda: used(f"sqlite:///{tmp_path}/chatkit.db"))
    ((_, requests, _, output_tokens, _),) = used(f"sqlite:///{tmp_path}/chatkit.db")
    assert (requests, output_tokens) == (1, 13), "50 characters"


def test_run_that_outlives_its_response_is_counted(start: Start, fake_openai: FakeOpenAI, tmp_path: Any) -> None:
    caller = start(f"{SERVERS}:Afterwards")
    going_on, answer = threading.Event(), streaming(says("Hello"))
    fake_openai.behaviour = lambda handler: answer(handler) if going_on.wait(30) else None
    _, events = caller.create("Hello")
    assert texts(events) == ["Later"]
    assert used(f"sqlite:///{tmp_path}/chatkit.db") == []
    going_on.set()
    wait_for(lambda: used(f"sqlite:///{tmp_path}/chatkit.db") == [requests_of("Simple", 1)])


def test_own_hooks_are_called(start: Start, fake_openai: FakeOpenAI, tmp_path: Any) -> None:
    seen.clear()
    caller = start("hooked_workflow")
    fake_openai.behaviour = streaming(*TOOL)
    _, events = caller.create("Hello")
    assert texts(events) == ["Sun"]
    assert seen == ["start", "llm_start", "llm_end", "tool", "llm_start", "llm_end", "end", 4]
    wait_for(lambda: used(f"sqlite:///{tmp_path}/chatkit.db") == [requests_of("With a tool", 2)])


def test_call_that_the_sdk_refuses_is_not_counted(start: Start, fake_openai: FakeOpenAI, tmp_path: Any) -> None:
    caller = start("refused_by_the_sdk")
    thread_id, events = caller.create("Hello")
    assert [code for code, *_ in errors(events)] == ["stream.error"]
    assert fake_openai.received == []
    caller.items(thread_id)  # is stored and loaded in turn
    assert used(f"sqlite:///{tmp_path}/chatkit.db") == []
