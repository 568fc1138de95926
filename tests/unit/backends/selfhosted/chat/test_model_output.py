"""Characters that a model sends in halves of a surrogate pair, or only one half of."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.applications import Start
from tests.support.approving_agents import executed
from tests.support.chat import Caller, deltas, errors, texts
from tests.support.chat_completions import completing, requests_tool, writes
from tests.support.fake_openai import FakeOpenAI
from tests.support.responses_api import Events, asked, by_model, calls, cites, refuses, says, streaming, thinks
from tests.support.waiting import wait_for

SHAPES = ["simple", "for_user", "run_workflow", "tests.support.servers_under_test:Plain"]
FACE, HIGH, LOW = "\U0001f600", "\ud83d", "\ude00"


def split(events: Events) -> Events:
    """``events`` with each ``FACE`` in a delta sent as two deltas. The whole texts are as they were."""
    sent: Events = []
    for event in events:
        if isinstance(event, dict) and FACE in (delta := event.get("delta", "")):
            before, after = delta.split(FACE)
            sent += [{**event, "delta": before + HIGH}, {**event, "delta": LOW + after}]
        else:
            sent.append(event)
    return sent


def reply(caller: Caller, thread_id: str) -> Any:
    return caller.items(thread_id).data[0]


@pytest.mark.parametrize("agent", SHAPES)
@pytest.mark.parametrize(
    ("output", "shown"),
    [
        (split(says(f"Good {FACE} day")), ["Good", " ", FACE, " day"]),
        (split(says(FACE)), ["", FACE]),
        (says(f"Good{HIGH} day"), ["Good", "\ufffd day"]),
        (says(f"Good {LOW}day"), ["Good", " \ufffdday"]),
        (says(f"{HIGH} {HIGH} {FACE}"), ["", "\ufffd ", f"\ufffd {FACE}"]),
    ],
    ids=["a character in two deltas", "at the beginning", "no second half", "no first half", "two first halves"],
)
def test_message(start: Start, fake_openai: FakeOpenAI, agent: str, output: Events, shown: list[str]) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(output)
    thread_id, events = caller.create("Hello")
    assert (errors(events), deltas(events), texts(events)) == ([], shown, ["".join(shown)])
    assert reply(caller, thread_id).content[0].text == "".join(shown)


def test_message_that_ends_with_half_a_character(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("simple")
    fake_openai.behaviour = streaming(says(f"Good {HIGH}"))
    _, events = caller.create("Hello")
    assert (errors(events), deltas(events), texts(events)) == ([], ["Good", " "], ["Good \ufffd"])


def test_refusal(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("simple")
    fake_openai.behaviour = streaming(refuses(f"No {HIGH}"))
    _, events = caller.create("Hello")
    assert (errors(events), texts(events)) == ([], ["No \ufffd"])


def test_chat_completions(start: Start, fake_openai: FakeOpenAI) -> None:
    """The Agents SDK makes the whole text of the halves."""
    caller = start("chat_completions")
    asks = requests_tool("ask_page", question=f"{HIGH}?")
    fake_openai.behaviour = completing([*writes(f"Good {HIGH}"), *writes(f"{LOW} day"), *asks])
    thread_id, events = caller.create("Hello")
    assert (errors(events), deltas(events)) == ([], ["Good ", f"{FACE} day"])
    call, message, _ = caller.items(thread_id).data
    assert (message.content[0].text, call.arguments) == (f"Good {FACE} day", {"question": "\ufffd?"})


def test_thought(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("simple")
    fake_openai.behaviour = streaming([*split(thinks(f"First {FACE}", f"Then {LOW}")), *says("Hello")])
    thread_id, events = caller.create("Hello")
    assert errors(events) == []
    _, workflow, _ = caller.items(thread_id).data
    assert [task.content for task in workflow.workflow.tasks] == [f"First {FACE}", "Then \ufffd"]


def test_citation(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("simple")
    url = {"type": "url_citation", "start_index": 0, "end_index": 5, "url": "https://example.com", "title": f"News {HIGH}"}
    fake_openai.behaviour = streaming(cites("Hello", url))
    thread_id, events = caller.create("Hello")
    assert errors(events) == []
    assert reply(caller, thread_id).content[0].annotations[0].source.title == "News \ufffd"


@pytest.mark.parametrize(
    "agent", ["with_tool", "with_tool_for_user", "tool_workflow", "tests.support.servers_under_test:WithTool"]
)
@pytest.mark.parametrize(("given", "taken"), [(FACE, FACE), (HIGH, "\ufffd"), (f"{LOW}{HIGH}", "\ufffd\ufffd")], ids=ascii)
def test_arguments_of_a_tool(start: Start, fake_openai: FakeOpenAI, agent: str, given: str, taken: str) -> None:
    """The next call has all that the model has said so far as its input."""
    caller = start(agent)
    fake_openai.behaviour = streaming([*says(f"Let me see {given}"), *calls("weather", city=given)], says("Done"))
    _, events = caller.create("Hello")
    assert (errors(events), texts(events)) == ([], [f"Let me see {taken}", "Done"])
    *_, said, call, output = fake_openai.received[1].body["input"]
    assert said["content"][0]["text"] == f"Let me see {taken}"
    assert json.loads(call["arguments"]) == {"city": taken}
    assert output["output"] == f"Sun in {taken}"


def test_arguments_that_are_not_json(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("with_tool")
    broken: Any = json.loads(json.dumps(calls("weather", city="?")).replace('\\"?\\"}', "\\\\ud83d"))
    fake_openai.behaviour = streaming(broken, says("Done"))
    _, events = caller.create("Hello")
    assert (errors(events), texts(events)) == ([], ["Done"])


def test_call_that_needs_approval(start: Start, fake_openai: FakeOpenAI) -> None:
    executed.clear()
    caller = start("tests.support.approving_agents:careful")
    fake_openai.behaviour = streaming(calls("delete_file", path=f"a{HIGH}.txt"), says("Done"))
    thread_id, events = caller.create("Hello")
    assert errors(events) == []
    widget = reply(caller, thread_id)
    assert "a\ufffd.txt" in [child.get("value") for child in widget.widget.model_dump()["children"]]
    approval = {"type": "chatkit.approval", "payload": {"approved": True}}
    events = list(caller.stream("threads.custom_action", thread_id=thread_id, item_id=widget.id, action=approval))
    assert texts(events) == ["Done"]
    assert [line.split(" of ")[0] for line in executed] == ["delete a\ufffd.txt"]


def test_title(start: Start, fake_openai: FakeOpenAI) -> None:
    """Its call has no stream."""
    caller = start("simple", CHATKIT_TITLE_MODEL="gpt-title")
    fake_openai.behaviour = by_model({"gpt-title": [says(f"Greetings {HIGH}")], "gpt-test": [says("Hello")]})
    thread_id, _ = caller.create("Hello")
    wait_for(lambda: caller.thread(thread_id).title == "Greetings \ufffd")


def test_history(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("simple")
    fake_openai.behaviour = streaming(says(f"Good {HIGH}"), says("Bye"))
    thread_id, _ = caller.create("Hello")
    assert texts(caller.say(thread_id, "Bye")) == ["Bye"]
    assert asked(fake_openai.received[1].body)[1] == ("assistant", "Good \ufffd")


def test_agent_that_is_used_as_a_tool(start: Start, fake_openai: FakeOpenAI) -> None:
    """Its calls have no stream."""
    caller = start("asking_experts")
    asks = [calls("quick", input="Hello"), says("Done")]
    fake_openai.behaviour = by_model({"gpt-quick": [says(f"Fine {HIGH}")], "gpt-test": asks})
    _, events = caller.create("Hello")
    assert (errors(events), texts(events)) == ([], ["Done"])
    assert fake_openai.received[-1].body["input"][-1]["output"] == "Fine \ufffd"
