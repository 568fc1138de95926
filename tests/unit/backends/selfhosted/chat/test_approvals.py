"""Tool calls that need the user's approval, decided in the chat."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from typing import Any
from unittest.mock import Mock

import pytest
from agents import Agent, Runner, ToolApprovalItem
from chatkit.types import ThreadMetadata, WidgetItem
from chatkit.widgets import DynamicWidgetRoot
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from chatkit.backends.selfhosted.chat import approvals, run_states
from chatkit.backends.selfhosted.chat.paused_run_store import PausedRunStore
from chatkit.backends.selfhosted.chat.run_states import MAX_STATE_BYTES
from chatkit.backends.selfhosted.chat.transactions import Transactions
from tests.support import approving_agents
from tests.support.applications import MakeApp, Start, served
from tests.support.approving_agents import SECRET_OF_MCP, executed
from tests.support.chat import Caller, errors, texts, user_input
from tests.support.fake_openai import FakeOpenAI
from tests.support.identity_provider import SECRET, shared
from tests.support.images import PNG, encoded
from tests.support.leaks import Recorder
from tests.support.responses_api import FAILED, INCOMPLETE, Events, asked, by_model, calls, draws, says, streaming, thinks
from tests.support.waiting import wait_for

AGENTS = "tests.support.approving_agents"
SHAPES = [f"{AGENTS}:careful", f"{AGENTS}:OwnServer"]
APPROVE = {"type": "chatkit.approval", "payload": {"approved": True}}
REJECT = {"type": "chatkit.approval", "payload": {"approved": False}}


@pytest.fixture(autouse=True)
def _nothing_executed() -> None:
    executed.clear()
    approving_agents.tools_of_users[:] = [approving_agents.delete_file]


def widgets(caller: Caller, thread_id: str) -> list[Any]:
    return [item for item in caller.items(thread_id, order="asc").data if item.type == "widget"]


def is_open(widget: Any) -> bool:
    """Whether the page draws buttons."""
    card = widget.widget.model_dump()
    return "confirm" in card or "cancel" in card or "Input" in json.dumps(card)


def lines(widget: Any) -> list[str]:
    """What the user reads on it."""
    return [child["value"] for child in widget.widget.model_dump()["children"] if "value" in child]


def decide(caller: Caller, widget: Any, action: Any) -> list[Any]:
    return list(caller.stream("threads.custom_action", thread_id=widget.thread_id, item_id=widget.id, action=action))


def outputs(body: Any) -> list[Any]:
    """What the model was told of its calls."""
    return [item["output"] for item in body["input"] if item.get("type") == "function_call_output"]


def paused(address: str) -> list[Any]:
    with create_engine(address).connect() as connection:
        return list(connection.execute(text("SELECT user_id, thread_id, decisions, state FROM chat_paused_runs")).all())


@pytest.fixture
def address(tmp_path: Any) -> str:
    """The database of the applications of ``start``."""
    return f"sqlite:///{tmp_path}/chatkit.db"


@pytest.mark.parametrize("agent", [*SHAPES, f"{AGENTS}:for_user"])
def test_approved_call_is_executed(start: Start, fake_openai: FakeOpenAI, database: str, agent: str) -> None:
    caller = start(agent, DATABASE_URL=database)
    fake_openai.behaviour = streaming([*says("I will."), *calls("delete_file", path="a.txt")], says("It is gone"))
    thread_id, events = caller.create("Delete a.txt")
    assert texts(events) == ["I will."]
    assert errors(events) == []
    shown = events[-1].item
    assert (events[-1].type, shown.type) == ("thread.item.done", "widget")
    assert lines(shown) == ["Allow delete_file?", "path", "a.txt"]
    card = shown.widget.model_dump()
    assert [card[button]["label"] for button in ("confirm", "cancel")] == ["Approve", "Reject"]
    assert [card[button]["action"]["handler"] for button in ("confirm", "cancel")] == ["server", "server"]
    assert card["cancel"]["action"]["payload"] == {"approved": False}
    assert executed == []
    assert len(fake_openai.received) == 1

    (kept,) = widgets(caller, thread_id)
    assert kept == shown, "the same after a reload"
    events = decide(
        caller, kept, card["confirm"]["action"] | {"payload": {**card["confirm"]["action"]["payload"], "reason": ""}}
    )
    (replaced,) = [event.item for event in events if event.type == "thread.item.replaced"]
    assert lines(replaced) == ["Allow delete_file?", "path", "a.txt", "Approved."]
    assert not is_open(replaced)
    assert texts(events) == ["It is gone"]
    assert len(executed) == 1
    assert executed[0].startswith("delete a.txt of anonymous:"), "the tool knows the user"
    assert outputs(fake_openai.received[1].body) == ["a.txt is deleted"]
    assert widgets(caller, thread_id) == [replaced]
    assert [item.type for item in caller.items(thread_id, order="asc").data] == [
        "user_message",
        "assistant_message",
        "widget",
        "assistant_message",
    ]
    assert paused(database) == []

    fake_openai.behaviour = streaming(says("You're welcome"))
    assert texts(caller.say(thread_id, "Thanks")) == ["You're welcome"]
    assert "Approved." in json.dumps(asked(fake_openai.received[-1].body))


@pytest.mark.parametrize("agent", SHAPES)
@pytest.mark.parametrize(
    ("reason", "told", "shown"),
    [
        ("", "The user rejected this call.", "Rejected."),
        (
            "Not <b>that</b> one",
            "The user rejected this call. The user's reason: Not <b>that</b> one",
            "Rejected: Not <b>that</b> one",
        ),
        ("x" * 5000, f"The user rejected this call. The user's reason: {'x' * 1000}", f"Rejected: {'x' * 1000}"),
    ],
)
def test_rejected_call_is_not_executed(
    start: Start, fake_openai: FakeOpenAI, agent: str, reason: str, told: str, shown: str
) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(calls("delete_file", path="a.txt"), says("Then not"))
    thread_id, _ = caller.create("Delete a.txt")
    (widget,) = widgets(caller, thread_id)
    events = decide(caller, widget, {**REJECT, "payload": {"approved": False, "reason": reason}})
    assert texts(events) == ["Then not"]
    assert executed == []
    assert outputs(fake_openai.received[1].body) == [told]
    (widget,) = widgets(caller, thread_id)
    assert lines(widget)[-1] == shown
    assert not is_open(widget)


@pytest.mark.parametrize("approved", ["true", 1, None, "missing"])
def test_only_true_is_an_approval(start: Start, fake_openai: FakeOpenAI, approved: Any) -> None:
    caller = start(f"{AGENTS}:careful")
    fake_openai.behaviour = streaming(calls("delete_file", path="a.txt"), says("Then not"))
    thread_id, _ = caller.create("Delete a.txt")
    (widget,) = widgets(caller, thread_id)
    payload = None if approved == "missing" else {"approved": approved}
    assert texts(decide(caller, widget, {**APPROVE, "payload": payload})) == ["Then not"]
    assert executed == []


def test_each_of_several_calls_is_decided(start: Start, fake_openai: FakeOpenAI, database: str) -> None:
    caller = start(f"{AGENTS}:careful", DATABASE_URL=database)
    fake_openai.behaviour = streaming(
        [
            *calls("delete_file", "call_a", path="a.txt"),
            *calls("look_up", "call_b", path="b.txt"),
            *calls("pay", "call_c", euros=11),
            *calls("pay", "call_d", euros=9),
        ],
        says("Done"),
    )
    thread_id, _ = caller.create("Go")
    first, second = widgets(caller, thread_id)
    assert (lines(first)[0], lines(second)[0]) == ("Allow delete_file?", "Allow pay?")
    assert sorted(executed) == ["look up b.txt", "pay 9"], "what needs no approval is not held back"
    events = decide(caller, second, REJECT)
    assert texts(events) == []
    assert len(fake_openai.received) == 1, "the other call is still pending"
    first, second = widgets(caller, thread_id)
    assert (is_open(first), is_open(second)) == (True, False)
    events = decide(caller, first, APPROVE)
    assert texts(events) == ["Done"]
    assert len(executed) == 3
    told = outputs(fake_openai.received[1].body)
    assert sorted(told) == ["9 euros are paid", "The user rejected this call.", "a.txt is deleted", "b.txt exists"]


def test_run_may_be_paused_again(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start(f"{AGENTS}:careful")
    fake_openai.behaviour = streaming(
        calls("delete_file", "call_a", path="a.txt"), calls("delete_file", "call_b", path="b.txt"), says("Done")
    )
    thread_id, _ = caller.create("Go")
    events = decide(caller, widgets(caller, thread_id)[0], APPROVE)
    assert texts(events) == []
    assert len(executed) == 1
    first, second = widgets(caller, thread_id)
    assert (is_open(first), is_open(second)) == (False, True)
    assert texts(decide(caller, second, APPROVE)) == ["Done"]
    assert len(executed) == 2


def test_decision_that_is_made_twice(start: Start, fake_openai: FakeOpenAI, database: str) -> None:
    caller = start(f"{AGENTS}:careful", DATABASE_URL=database)
    fake_openai.behaviour = streaming(calls("delete_file", path="a.txt"), says("It is gone", pause=0.3))
    thread_id, _ = caller.create("Go")
    (widget,) = widgets(caller, thread_id)
    with ThreadPoolExecutor(5) as pool:  # as many responses as a user may have at once
        answers = list(pool.map(lambda action: decide(caller, widget, action), [APPROVE] * 3 + [REJECT] * 2))
    assert sum(texts(events) != [] for events in answers) == 1
    assert [errors(events) for events in answers] == [[]] * 5
    assert len(fake_openai.received) == 2
    (widget,) = widgets(caller, thread_id)
    assert lines(widget)[-1] == ("Approved." if executed else "Rejected.")
    shown = [event.item for events in answers for event in events if event.type == "thread.item.replaced"]
    assert shown == [widget] * 5
    before = len(executed)
    assert [event.item for event in decide(caller, widget, APPROVE) if event.type == "thread.item.replaced"] == [widget]
    assert len(executed) == before


def test_concurrent_decisions_on_several_calls_resume_the_run_once(
    start: Start, fake_openai: FakeOpenAI, database: str
) -> None:
    caller = start(f"{AGENTS}:careful", DATABASE_URL=database)
    fake_openai.behaviour = streaming(
        [event for n in range(6) for event in calls("pay", f"call_{n}x", euros=20 + n)], says("Done")
    )
    thread_id, _ = caller.create("Go")
    shown = widgets(caller, thread_id)
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda widget: decide(caller, widget, APPROVE), shown))
    assert [text for events in answers for text in texts(events)] == ["Done"]
    assert sorted(executed) == [f"pay {20 + n}" for n in range(6)]


def test_foreign_and_unknown_calls_are_not_decided(start: Start, fake_openai: FakeOpenAI, address: str) -> None:
    caller = start(f"{AGENTS}:careful")
    fake_openai.behaviour = streaming(calls("delete_file", path="a.txt"), says("Hello"))
    thread_id, _ = caller.create("Go")
    (widget,) = widgets(caller, thread_id)
    stranger = Caller(caller.url)
    own, _ = stranger.create("Hi")
    before = paused(address)
    for other, item in ((thread_id, widget.id), (own, widget.id), (thread_id, "msg_unknown")):
        answer = stranger.post("threads.custom_action", thread_id=other, item_id=item, action=APPROVE)
        assert answer.status_code == 404, (other, item)
    message = stranger.items(own).data[0]
    assert errors(decide(stranger, message, APPROVE)), "not a widget"
    assert list(stranger.stream("threads.custom_action", thread_id=own, action=APPROVE))[1:] == []
    assert stranger.post("threads.sync_custom_action", thread_id=own, action=APPROVE).json() == {}
    assert [item.type for item in stranger.items(own).data] == ["assistant_message", "user_message"], "nothing is noted"
    assert executed == []
    assert paused(address) == before
    assert len(before) == 1


@pytest.mark.parametrize("agent", SHAPES)
def test_new_message_discards_what_is_pending(start: Start, fake_openai: FakeOpenAI, database: str, agent: str) -> None:
    caller = start(agent, DATABASE_URL=database)
    two = [*calls("delete_file", "call_a", path="a.txt"), *calls("delete_file", "call_b", path="b.txt")]
    fake_openai.behaviour = streaming(two, says("As you like"))
    thread_id, _ = caller.create("Go")
    first, second = widgets(caller, thread_id)
    decide(caller, first, APPROVE)
    events = caller.say(thread_id, "No, wait")
    assert texts(events) == ["As you like"]
    shown = widgets(caller, thread_id)
    replaced = [event.item for event in events if event.type == "thread.item.replaced"]
    assert sorted(replaced, key=str) == sorted(shown, key=str)
    assert [lines(widget)[3:] for widget in shown] == [
        ["Approved.", "Not carried out, because the conversation went on."],
        ["Not carried out, because the conversation went on."],
    ]
    assert not any(is_open(widget) for widget in shown)
    assert paused(database) == []
    assert json.dumps(asked(fake_openai.received[-1].body)).count("Not carried out") == 2, "the model knows"
    (event,) = [event for event in decide(caller, second, APPROVE) if event.type == "thread.item.replaced"]
    assert event.item == shown[1]
    assert executed == []
    assert len(fake_openai.received) == 2
    assert [event.type for event in caller.say(thread_id, "Go on") if event.type == "thread.item.replaced"] == []


@pytest.mark.parametrize("agent", SHAPES)
@pytest.mark.parametrize("how", ["large calls", "many calls", "actions"])
def test_message_discards_what_the_model_is_not_given(
    start: Start, fake_openai: FakeOpenAI, address: str, agent: str, how: str
) -> None:
    """The model's history is shorter than the thread."""
    paths = {"large calls": ["a" * 45_000, "b" * 45_000, "c" * 45_000], "many calls": [str(n) for n in range(25)]}
    caller = start(agent)
    wanted = [event for n, path in enumerate(paths.get(how, ["a"])) for event in calls("delete_file", f"call_{n}", path=path)]
    fake_openai.behaviour = streaming(wanted, says("As you like"))
    thread_id, _ = caller.create("Go")
    for _ in range(2 if how == "actions" else 0):
        action = {"type": "form", "payload": "x" * 55_000}
        assert caller.post("threads.sync_custom_action", thread_id=thread_id, action=action).status_code == 200
    assert texts(caller.say(thread_id, "No, wait")) == ["As you like"]
    shown = [item for item in caller.items(thread_id, limit=100).data if item.type == "widget"]
    assert len(shown) == len(paths.get(how, ["a"]))
    assert not any(is_open(widget) for widget in shown)
    assert paused(address) == []
    decide(caller, shown[0], APPROVE)
    assert executed == []


@pytest.mark.parametrize("other", ["run_workflow", "simple"])
def test_message_to_another_agent_discards_what_is_pending(make_app: MakeApp, fake_openai: FakeOpenAI, other: str) -> None:
    """A user whose claim has changed, or a deployment."""
    fake_openai.behaviour = streaming(calls("delete_file", path="a.txt"), says("As you like"))
    with ExitStack() as running:
        url, elsewhere = (
            running.enter_context(served(make_app(CHATKIT_BACKEND="selfhosted", CHATKIT_AGENT=agent)))
            for agent in (f"{AGENTS}:careful", f"tests.support.agents_under_test:{other}")
        )
        caller = Caller(url)
        thread_id, _ = caller.create("Go")
        (widget,) = widgets(caller, thread_id)
        caller.url = elsewhere
        assert errors(caller.say(thread_id, "No, wait")) == []
        caller.url = url
        decide(caller, widget, APPROVE)
        assert lines(widgets(caller, thread_id)[0])[-1] == "Not carried out, because the conversation went on."
    assert executed == []


@pytest.mark.parametrize("agent", SHAPES)
def test_decision_before_the_response_has_ended(
    start: Start, fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch, agent: str
) -> None:
    """Another tab shows the widgets as soon as they are stored."""
    caller = start(agent)
    fake_openai.behaviour = streaming(calls("delete_file", path="a.txt"), says("It is gone"))
    pause = PausedRunStore.pause

    async def pause_and_decide(self: PausedRunStore, run: Any, thread_id: str, *arguments: Any) -> list[WidgetItem]:
        closed = await pause(self, run, thread_id, *arguments)
        (widget,) = await asyncio.to_thread(widgets, caller, thread_id)
        assert texts(await asyncio.to_thread(decide, caller, widget, APPROVE)) == ["It is gone"]
        return closed

    monkeypatch.setattr(PausedRunStore, "pause", pause_and_decide)
    thread_id, _ = caller.create("Go")
    assert lines(widgets(caller, thread_id)[0])[-1] == "Approved."
    assert len(executed) == 1


def test_late_output_of_a_client_tool_discards_nothing(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start(f"{AGENTS}:asking")
    fake_openai.behaviour = streaming(
        calls("ask_page", question="?"), calls("delete_file", "call_2", path="a.txt"), says("It is gone")
    )
    thread_id, _ = caller.create("Hello")
    caller.say(thread_id, "Never mind, delete a.txt")
    assert caller.post("threads.add_client_tool_output", thread_id=thread_id, result="late").status_code == 400
    (widget,) = widgets(caller, thread_id)
    assert texts(decide(caller, widget, APPROVE)) == ["It is gone"]


def test_server_may_change_the_widget(start: Start, fake_openai: FakeOpenAI) -> None:
    """It translates the buttons. What the user sees is stored."""
    caller = start(f"{AGENTS}:German")
    fake_openai.behaviour = streaming(calls("delete_file", path="a.txt"))
    thread_id, events = caller.create("Hello")
    assert widgets(caller, thread_id) == [events[-1].item]
    assert events[-1].item.widget.model_dump()["confirm"]["label"] == "Erlauben"


@pytest.mark.parametrize("agent", SHAPES)
@pytest.mark.parametrize("how", ["the reader leaves", "an error"])
def test_decision_that_is_interrupted_before_the_call(
    start: Start, fake_openai: FakeOpenAI, address: str, monkeypatch: pytest.MonkeyPatch, agent: str, how: str
) -> None:
    caller = start(agent, CHATKIT_ON_DISCONNECT="stop")
    two = [*calls("delete_file", "call_a", path="a.txt"), *calls("delete_file", "call_b", path="b.txt")]
    fake_openai.behaviour = streaming(two)
    thread_id, _ = caller.create("Go")
    first, second = widgets(caller, thread_id)
    decide(caller, first, REJECT)

    if how == "the reader leaves":
        monkeypatch.setattr(approvals, "_restore", lambda *_arguments: asyncio.sleep(60))
    else:
        monkeypatch.setattr(Runner, "run_streamed", Mock(side_effect=RuntimeError))
    stream: Any = caller.stream("threads.custom_action", thread_id=thread_id, item_id=second.id, action=APPROVE)
    events = [next(stream), next(stream)]
    if how == "the reader leaves":
        stream.close()
        wait_for(lambda: lines(widgets(caller, thread_id)[1])[-1] != "Approved.")
    else:
        events += list(stream)
        assert len(errors(events)) == 1
        assert [lines(event.item)[-1] for event in events if event.type == "thread.item.replaced"] == [
            "Approved.",
            "Not carried out, please ask again.",
        ]
    assert [lines(widget)[3:] for widget in widgets(caller, thread_id)] == [
        ["Rejected."],
        ["Approved.", "Not carried out, please ask again."],
    ]
    assert (executed, paused(address)) == ([], [])


@pytest.mark.parametrize("agent", SHAPES)
def test_database_is_away_after_the_decision(
    start: Start, fake_openai: FakeOpenAI, address: str, monkeypatch: pytest.MonkeyPatch, agent: str
) -> None:
    """Nothing needs to be stored between the decision and the call."""
    caller = start(agent)
    fake_openai.behaviour = streaming(calls("delete_file", path="a.txt"), says("It is gone"))
    thread_id, _ = caller.create("Go")
    (widget,) = widgets(caller, thread_id)
    decide_in_store = PausedRunStore.decide

    async def decide_and_go_away(self: PausedRunStore, *arguments: Any) -> Any:
        decided = await decide_in_store(self, *arguments)
        monkeypatch.setattr(Transactions, "write", unavailable)
        return decided

    async def unavailable(*_arguments: Any) -> None:
        raise OperationalError("", None, Exception("away"))

    monkeypatch.setattr(PausedRunStore, "decide", decide_and_go_away)
    decide(caller, widget, APPROVE)
    assert len(executed) == 1


@pytest.mark.parametrize("confirm", ["Yes", ["Yes"], {"action": "yes"}, None])
def test_approval_sent_from_another_widget(confirm: Any) -> None:
    widget = DynamicWidgetRoot.model_validate({"type": "Card", "children": [], "confirm": confirm})
    item = WidgetItem(id="msg_1", thread_id="thr_1", created_at=datetime.now(), widget=widget)  # noqa: DTZ005
    assert not approvals._is_pending(item)


def test_message_does_not_discard_a_run_that_is_being_resumed(
    start: Start, fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decision comes after the message's turn has loaded the thread."""
    caller = start(f"{AGENTS}:careful")
    fake_openai.behaviour = streaming(calls("delete_file", path="a.txt"), says("It is gone"))
    thread_id, _ = caller.create("Go")
    (widget,) = widgets(caller, thread_id)
    discard = PausedRunStore.discard

    async def decide_first(*arguments: Any) -> list[WidgetItem]:
        await asyncio.to_thread(decide, caller, widget, APPROVE)
        return await discard(*arguments)

    monkeypatch.setattr(PausedRunStore, "discard", decide_first)
    assert texts(caller.say(thread_id, "No, wait")) == ["It is gone"]
    assert len(executed) == 1
    assert lines(widgets(caller, thread_id)[0])[-1] == "Approved."


def test_retry_discards_what_is_pending(start: Start, fake_openai: FakeOpenAI, address: str) -> None:
    caller = start(f"{AGENTS}:careful")
    fake_openai.behaviour = streaming(calls("delete_file", path="a.txt"), calls("delete_file", path="b.txt"), says("Done"))
    thread_id, _ = caller.create("Go")
    (first,) = widgets(caller, thread_id)
    message = caller.items(thread_id, order="asc").data[0]
    events = list(caller.stream("threads.retry_after_item", thread_id=thread_id, item_id=message.id))
    assert errors(events) == []
    (second,) = widgets(caller, thread_id)
    assert second.id != first.id
    assert events[-1].item.id == second.id
    (row,) = paused(address)
    assert list(json.loads(row.decisions)) == [second.id]
    assert texts(decide(caller, second, APPROVE)) == ["Done"]
    assert len(executed) == 1
    assert "b.txt" in executed[0]


def test_thread_has_one_paused_run(
    start: Start, fake_openai: FakeOpenAI, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two turns in one thread at once, as of a user with two tabs."""
    monkeypatch.setattr("chatkit.backends.selfhosted.chat.runs.GRACE_SECONDS", 5)  # the second waits for the end of the first
    caller = start(f"{AGENTS}:careful")
    fake_openai.behaviour = streaming(says("Hello"), [0.7, *calls("pay", euros=11)])
    thread_id, _ = caller.create("Hi")
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda said: caller.say(thread_id, said), ["one", "two"]))
    assert [errors(events) for events in answers] == [[], []]
    shown = widgets(caller, thread_id)
    assert sorted(is_open(widget) for widget in shown) == [False, True]
    assert sorted(lines(widget)[-1] for widget in shown) == ["11", "Not carried out, because the conversation went on."]
    (row,) = paused(address)
    (pending,) = [widget for widget in shown if is_open(widget)]
    assert list(json.loads(row.decisions)) == [pending.id]


def test_widget_without_its_run_is_closed(start: Start, fake_openai: FakeOpenAI, address: str) -> None:
    """As a process leaves it that is killed between the last decision and the update of the page."""
    caller = start(f"{AGENTS}:careful")
    fake_openai.behaviour = streaming(calls("delete_file", path="a.txt"), says("Never said"))
    thread_id, _ = caller.create("Go")
    (widget,) = widgets(caller, thread_id)
    with create_engine(address).begin() as connection:
        connection.execute(text("DELETE FROM chat_paused_runs"))
    events = decide(caller, widget, APPROVE)
    assert (errors(events), texts(events), executed) == ([], [], [])
    (widget,) = widgets(caller, thread_id)
    assert lines(widget)[-1] == "This can no longer be decided."
    assert not is_open(widget)


def test_run_whose_widget_was_deleted_is_replaced(start: Start, fake_openai: FakeOpenAI, address: str) -> None:
    """As a server of one's own may delete it."""
    caller = start(f"{AGENTS}:careful")
    fake_openai.behaviour = streaming(calls("delete_file", path="a.txt"), calls("delete_file", path="b.txt"))
    thread_id, _ = caller.create("Go")
    (first,) = widgets(caller, thread_id)
    with create_engine(address).begin() as connection:
        connection.execute(text("DELETE FROM chat_items WHERE id = :widget"), {"widget": first.id})
    events = caller.say(thread_id, "Go on")
    (second,) = widgets(caller, thread_id)
    assert (errors(events), events[-1].item.id) == ([], second.id)
    (row,) = paused(address)
    assert list(json.loads(row.decisions)) == [second.id]


def test_deleted_thread_takes_its_run_along(start: Start, fake_openai: FakeOpenAI, database: str) -> None:
    caller = start(f"{AGENTS}:careful", DATABASE_URL=database)
    fake_openai.behaviour = streaming(calls("delete_file", path="a.txt"))
    thread_id, _ = caller.create("Go")
    (widget,) = widgets(caller, thread_id)
    assert len(paused(database)) == 1
    assert caller.post("threads.delete", thread_id=thread_id).status_code == 200
    assert paused(database) == []
    answer = caller.post("threads.custom_action", thread_id=thread_id, item_id=widget.id, action=APPROVE)
    assert answer.status_code == 404


CHANGED = "The assistant has changed in the meantime. Please ask again."
ABANDONED = ["Approved.", "Not carried out, because the assistant has changed."]


@pytest.mark.parametrize(
    ("agent", "second"),
    [
        ("careful", [FAILED]),
        ("careful", [INCOMPLETE]),
        ("careful", [*says("Well"), INCOMPLETE]),
        ("careful", calls("unknown", "call_9")),
        ("careful_with_output", says("no JSON")),
        ("instructed_once", says("Never said")),
    ],
)
def test_call_that_was_executed_before_an_error_is_not_denied(
    start: Start, fake_openai: FakeOpenAI, agent: str, second: Events
) -> None:
    caller = start(f"{AGENTS}:{agent}")
    fake_openai.behaviour = streaming(calls("delete_file", path="a.txt"), second)
    thread_id, _ = caller.create("Go")
    (widget,) = widgets(caller, thread_id)
    events = decide(caller, widget, APPROVE)
    assert len(executed) == 1
    ((code, message, allow_retry),) = errors(events)
    assert (code, message) == ("stream.error", None)
    assert not allow_retry
    (widget,) = widgets(caller, thread_id)
    assert lines(widget)[-1] == "Approved."


def test_call_of_an_agent_used_as_a_tool_that_was_executed_before_an_error_is_not_denied(
    start: Start, fake_openai: FakeOpenAI
) -> None:
    caller = start(f"{AGENTS}:boss_of_failing_clerk")
    clerk: list[Events] = [calls("delete_file", "call_2", path="a.txt"), [FAILED]]
    fake_openai.behaviour = by_model({"gpt-boss": [calls("clerk", input="Delete it"), says("Done")], "gpt-test": clerk})
    thread_id, _ = caller.create("Go")
    (widget,) = widgets(caller, thread_id)
    events = decide(caller, widget, APPROVE)
    assert len(executed) == 1
    assert [code for code, *_ in errors(events)] == ["stream.error"]
    (widget,) = widgets(caller, thread_id)
    assert lines(widget)[-1] == "Approved."


@pytest.mark.parametrize("replacement", ["simple", f"{AGENTS}:asking_under_a_name"])
def test_another_agent_does_not_resume_the_run(
    start: Start, fake_openai: FakeOpenAI, address: str, replacement: str, recorder: Recorder
) -> None:
    caller = start(f"{AGENTS}:careful")
    fake_openai.behaviour = streaming(calls("delete_file", path="a.txt"), says("Never said"))
    thread_id, _ = caller.create("Go")
    (widget,) = widgets(caller, thread_id)
    later = start(replacement)
    later.secret = caller.secret
    recorder.lines.clear()
    events = decide(later, widget, APPROVE)
    assert errors(events) == [("custom", CHANGED, False)]
    assert texts(events) == []
    assert [line for line in recorder.lines if "has changed" in line and "ERROR" in line]
    (widget,) = widgets(later, thread_id)
    assert lines(widget)[-2:] == ABANDONED
    assert not is_open(widget)
    assert paused(address) == []
    assert (executed, len(fake_openai.received)) == ([], 1)
    assert texts(later.say(thread_id, "Hello?")) == ["Never said"], "the thread goes on"


def test_decision_leaves_the_users_other_threads_alone(start: Start, fake_openai: FakeOpenAI, database: str) -> None:
    caller = start(f"{AGENTS}:careful", DATABASE_URL=database)
    asks = [calls("delete_file", path=path) for path in ("a.txt", "b.txt")]
    fake_openai.behaviour = streaming(*asks, says("b.txt is gone"), says("a.txt is gone"))
    one, two = (caller.create("Go")[0] for _ in range(2))
    assert texts(decide(caller, widgets(caller, two)[0], APPROVE)) == ["b.txt is gone"]
    assert is_open(widgets(caller, one)[0])
    assert texts(decide(caller, widgets(caller, one)[0], APPROVE)) == ["a.txt is gone"]
    assert [line.split(" of ")[0] for line in executed] == ["delete b.txt", "delete a.txt"]


def test_agent_that_lost_its_tool(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start(f"{AGENTS}:for_user")
    fake_openai.behaviour = streaming(calls("delete_file", path="a.txt"), says("Never said"))
    thread_id, _ = caller.create("Go")
    approving_agents.tools_of_users[:] = [approving_agents.pay]
    events = decide(caller, widgets(caller, thread_id)[0], APPROVE)
    assert errors(events) == [("custom", CHANGED, False)]
    assert lines(widgets(caller, thread_id)[0])[-2:] == ABANDONED
    assert (executed, len(fake_openai.received)) == ([], 1)


def test_agent_that_can_not_be_made_for_now(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start(f"{AGENTS}:for_user")
    fake_openai.behaviour = streaming(calls("delete_file", path="a.txt"), says("Done"))
    thread_id, _ = caller.create("Go")
    (widget,) = widgets(caller, thread_id)
    approving_agents.tools_of_users.clear()
    assert errors(decide(caller, widget, APPROVE)) == [("stream.error", None, False)]
    assert widgets(caller, thread_id) == [widget], "it is still pending"
    approving_agents.tools_of_users[:] = [approving_agents.delete_file]
    assert texts(decide(caller, widget, APPROVE)) == ["Done"]


def test_call_that_fails_after_its_approval(start: Start, fake_openai: FakeOpenAI) -> None:
    """It was carried out, at least in part, so the widget says no more than that it was approved."""
    caller = start(f"{AGENTS}:failing")
    fake_openai.behaviour = streaming(calls("fail"), says("Never said"))
    thread_id, _ = caller.create("Go")
    events = decide(caller, widgets(caller, thread_id)[0], APPROVE)
    assert errors(events) == [("stream.error", None, False)]
    assert executed == ["fail"]
    assert lines(widgets(caller, thread_id)[0]) == ["Allow fail?", "Approved."]


@pytest.mark.parametrize(("action", "told"), [(APPROVE, "a.txt is deleted"), (REJECT, "The user rejected this call.")])
def test_another_process_resumes_the_run(start: Start, fake_openai: FakeOpenAI, database: str, action: Any, told: str) -> None:
    caller = start(f"{AGENTS}:boss", DATABASE_URL=database)
    fake_openai.behaviour = streaming(
        calls("clerk", "call_boss", input="Delete a.txt"),
        calls("delete_file", "call_clerk", path="a.txt"),
        says("The clerk is done"),
        says("All done"),
    )
    thread_id, events = caller.create("Go")
    assert errors(events) == []
    (widget,) = widgets(caller, thread_id)
    assert lines(widget) == ["Allow delete_file?", "path", "a.txt"], "a call of an agent that is used as a tool"
    later = start(f"{AGENTS}:boss", DATABASE_URL=database)
    later.secret = caller.secret
    events = decide(later, widget, action)
    assert (errors(events), texts(events)) == ([], ["All done"])
    assert len(executed) == (action is APPROVE)
    assert outputs(fake_openai.received[2].body) == [told]
    assert outputs(fake_openai.received[3].body) == ["The clerk is done"]


def test_after_a_handoff(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start(f"{AGENTS}:handing_over")
    fake_openai.behaviour = streaming(
        calls("transfer_to_careful", "call_0"), calls("delete_file", "call_1x", path="a.txt"), says("Done")
    )
    thread_id, _ = caller.create("Go")
    assert texts(decide(caller, widgets(caller, thread_id)[0], APPROVE)) == ["Done"]
    assert [received.body["model"] for received in fake_openai.received] == ["gpt-first", "gpt-test", "gpt-test"]


HOSTED_REQUEST = {
    "id": "mcpr_1",
    "type": "mcp_approval_request",
    "server_label": "crm",
    "name": "delete_customer",
    "arguments": '{"customer": 7}',
}
HOSTED_CALL: Events = [
    {"type": f"response.output_item.{event}", "output_index": 0, "item": HOSTED_REQUEST} for event in ("added", "done")
]


@pytest.mark.parametrize("agent", ["hosted_mcp", "boss_of_hosted_mcp"])
@pytest.mark.parametrize(("action", "approved"), [(APPROVE, True), (REJECT, False)])
def test_tool_of_a_hosted_mcp_server(
    start: Start, fake_openai: FakeOpenAI, address: str, agent: str, action: Any, approved: bool
) -> None:
    caller = start(f"{AGENTS}:{agent}")
    asks_clerk = [calls("clerk", "call_boss", input="Delete 7")] if agent == "boss_of_hosted_mcp" else []
    fake_openai.behaviour = streaming(*asks_clerk, HOSTED_CALL, says("Done"))
    thread_id, events = caller.create("Go")
    assert errors(events) == []
    (widget,) = widgets(caller, thread_id)
    assert lines(widget) == ["Allow delete_customer (crm)?", "customer", "7"]
    (row,) = paused(address)
    assert SECRET_OF_MCP not in row.state
    asked = len(asks_clerk)
    assert SECRET_OF_MCP in json.dumps(fake_openai.received[asked].body), "the search would have found it"
    assert texts(decide(caller, widget, action)) == ["Done"]
    given = fake_openai.received[asked + 1].body["input"]
    (response,) = [item for item in given if item.get("type") == "mcp_approval_response"]
    assert (response["approve"], response["approval_request_id"]) == (approved, "mcpr_1")


def test_response_fails_after_a_call_of_a_hosted_mcp_server_was_approved(start: Start, fake_openai: FakeOpenAI) -> None:
    """OpenAI may have carried it out, so the widget does not tell the user to ask again."""
    caller = start(f"{AGENTS}:hosted_mcp")
    fake_openai.behaviour = streaming(HOSTED_CALL, [FAILED])
    thread_id, _ = caller.create("Go")
    assert len(errors(decide(caller, widgets(caller, thread_id)[0], APPROVE))) == 1
    assert lines(widgets(caller, thread_id)[0])[-1] == "Approved."


def test_state_of_a_run_has_no_secrets(start: Start, fake_openai: FakeOpenAI, address: str) -> None:
    url = start(
        f"{AGENTS}:careful",
        AUTH_JWT_SECRET=SECRET,
        CHATKIT_STATE_CLAIMS="plan",
        CHATKIT_AGENT_HEADERS="X-Org-Id",
    ).url
    caller = Caller(url, shared(plan="claim-of-the-user"))
    caller.http.headers["X-Org-Id"] = "header-of-the-page"
    fake_openai.behaviour = streaming(calls("delete_file", path="a.txt"), says("Done"))
    body = {"type": "threads.create", "params": {"input": user_input("Go")}, "metadata": {"page": "metadata-of-the-page"}}
    assert caller.send(body).status_code == 200
    (row,) = paused(address)
    assert row.user_id == "user:ada"
    assert "a.txt" in row.state
    for secret in ("claim-of-the-user", "header-of-the-page", "metadata-of-the-page", "user:ada", "sk-test", caller.secret):
        assert secret not in row.state, secret


@pytest.mark.parametrize(("word", "times"), [("x", MAX_STATE_BYTES - 10_000), ("ü", MAX_STATE_BYTES // 2 - 5_000)])
def test_tools_may_return_as_much_as_a_state_has(
    start: Start, fake_openai: FakeOpenAI, database: str, word: str, times: int
) -> None:
    caller = start(f"{AGENTS}:careful", DATABASE_URL=database)
    much = calls("repeats", "call_a", text=word, times=times)
    fake_openai.behaviour = streaming(much, calls("delete_file", "call_b", path="a.txt"), says("Done"))
    thread_id, events = caller.create("Go")
    assert errors(events) == []
    assert texts(decide(caller, widgets(caller, thread_id)[0], APPROVE)) == ["Done"]
    assert outputs(fake_openai.received[-1].body) == [word * times, "a.txt is deleted"]


@pytest.mark.parametrize(("word", "times"), [("x", MAX_STATE_BYTES), ("ü", MAX_STATE_BYTES // 2)])
def test_state_that_is_too_large(
    start: Start, fake_openai: FakeOpenAI, address: str, recorder: Recorder, word: str, times: int
) -> None:
    caller = start(f"{AGENTS}:careful")
    much = calls("repeats", "call_a", text=word, times=times)
    fake_openai.behaviour = streaming(much, calls("delete_file", "call_b", path="a.txt"), says("Hm"))
    recorder.lines.clear()
    thread_id, events = caller.create("Go")
    assert errors(events) == [("custom", "This needs your approval, but is too large to be kept until then.", False)]
    assert (paused(address), widgets(caller, thread_id), executed) == ([], [], [])
    assert [line for line in recorder.lines if "was not kept" in line]


def test_an_earlier_version_stored_the_state_as_the_sdk_has_it(start: Start, fake_openai: FakeOpenAI, database: str) -> None:
    caller = start(f"{AGENTS}:careful", DATABASE_URL=database)
    fake_openai.behaviour = streaming(calls("delete_file", path="a.txt"), says("Done"))
    thread_id, _ = caller.create("# Delete a.txt")
    state = json.dumps(run_states.unpack(paused(database)[0].state)["run_state"])
    with create_engine(database).begin() as connection:
        connection.execute(text("UPDATE chat_paused_runs SET state = :state"), {"state": state})
    assert texts(decide(caller, widgets(caller, thread_id)[0], APPROVE)) == ["Done"]
    assert "# Delete a.txt" in json.dumps(asked(fake_openai.received[-1].body))


IMAGE = encoded(PNG + bytes(1_800_000))
"""More than a state may have."""


@pytest.mark.parametrize("agent", SHAPES)
def test_generated_images_are_given_back_to_the_model(start: Start, fake_openai: FakeOpenAI, database: str, agent: str) -> None:
    caller = start(agent, DATABASE_URL=database)
    first = [*draws(IMAGE), *calls("delete_file", "call_a", path="a.txt")]
    fake_openai.behaviour = streaming(first, calls("delete_file", "call_b", path="b.txt"), says("Done"))
    thread_id, events = caller.create("Draw, and delete")
    assert errors(events) == []
    assert "iVBO" not in paused(database)[0].state
    decide(caller, widgets(caller, thread_id)[0], APPROVE)
    assert "iVBO" not in paused(database)[0].state, "paused again"
    later = start(agent, DATABASE_URL=database)
    later.secret = caller.secret
    assert texts(decide(later, widgets(caller, thread_id)[1], APPROVE)) == ["Done"]
    for received in fake_openai.received[1:]:
        (image,) = [item for item in received.body["input"] if item.get("type") == "image_generation_call"]
        assert image["result"] == IMAGE


def test_a_generated_image_that_is_gone(start: Start, fake_openai: FakeOpenAI, address: str) -> None:
    caller = start(f"{AGENTS}:careful")
    fake_openai.behaviour = streaming([*draws(IMAGE), *calls("delete_file", path="a.txt")], says("Done"))
    thread_id, _ = caller.create("Draw, and delete")
    with create_engine(address).begin() as connection:
        connection.execute(text("DELETE FROM chat_images"))
    assert texts(decide(caller, widgets(caller, thread_id)[0], APPROVE)) == ["Done"]
    (image,) = [item for item in fake_openai.received[1].body["input"] if item.get("type") == "image_generation_call"]
    assert (image["id"], image["result"]) == ("ig_of_the_model", None)


def test_images_of_earlier_turns_that_do_not_fit(start: Start, fake_openai: FakeOpenAI, address: str) -> None:
    caller = start(f"{AGENTS}:careful")
    fake_openai.behaviour = streaming([*draws(IMAGE), *says("Here")], calls("delete_file", path="a.txt"), says("Done"))
    thread_id, _ = caller.create("Draw")
    assert errors(caller.say(thread_id, "Delete it")) == []
    assert "iVBO" in json.dumps(fake_openai.received[1].body)
    (row,) = paused(address)
    assert "iVBO" not in row.state
    assert texts(decide(caller, widgets(caller, thread_id)[0], APPROVE)) == ["Done"]
    assert "(This image is not shown to you.)" in json.dumps(fake_openai.received[2].body)


@pytest.mark.parametrize("size", [1000, len(IMAGE)])
def test_images_of_tools_are_kept_if_they_fit(start: Start, fake_openai: FakeOpenAI, size: int) -> None:
    caller = start(f"{AGENTS}:careful")
    photograph = calls("photographs", "call_a", size=size)
    fake_openai.behaviour = streaming(photograph, calls("delete_file", "call_b", path="a.txt"), says("Done"))
    thread_id, events = caller.create("Go")
    assert errors(events) == []
    assert texts(decide(caller, widgets(caller, thread_id)[0], APPROVE)) == ["Done"]
    ((part,), _) = outputs(fake_openai.received[2].body)
    before = outputs(fake_openai.received[1].body)[0][0]
    assert part == (before if size == 1000 else {"type": "input_text", "text": "(This image is not shown to you.)"})


@pytest.mark.parametrize("name", ["first", "second"])
def test_own_server_with_several_agents_a_session_hooks_and_a_converter(
    start: Start, fake_openai: FakeOpenAI, database: str, name: str
) -> None:
    caller = start(f"{AGENTS}:LargeServer", DATABASE_URL=database)
    image = encoded(PNG + bytes(300))
    partly = draws(image, image, image)
    fake_openai.behaviour = streaming(
        [*partly, *calls("delete_file", "call_a", path="a.txt")],
        calls("delete_file", "call_b", path="b.txt"),
        [*partly, *says("Done")],
        says("You're welcome"),
    )
    thread_id, events = caller.create(f"The {name}, please")
    assert (errors(events), progress(events)) == ([], [0.0, 0.5])
    decide(caller, widgets(caller, thread_id)[0], APPROVE)
    later = start(f"{AGENTS}:LargeServer", DATABASE_URL=database)
    later.secret = caller.secret
    events = decide(later, widgets(caller, thread_id)[1], APPROVE)
    assert (errors(events), texts(events), progress(events)) == ([], ["Done"], [0.0, 0.5])
    assert [received.body["model"] for received in fake_openai.received] == [f"gpt-{name}"] * 3
    assert [line.split(" of ")[0] for line in executed] == ["hook", "delete a.txt", "hook", "delete b.txt"]
    later.say(thread_id, "Thanks")
    assert [item.get("type", item.get("role")) for item in fake_openai.received[3].body["input"]] == [
        "message",
        "image_generation_call",
        "function_call",
        "function_call_output",
        "function_call",
        "function_call_output",
        "message",
        "message",
    ], "the session has all of it; both images have one id"


def progress(events: list[Any]) -> list[float]:
    """Of the images, if it is known how many partial ones there are."""
    updates = [event.update for event in events if event.type == "thread.item.updated"]
    return [update.progress for update in updates if update.type == "generated_image.updated"]


def test_chosen_model_stays(start: Start, fake_openai: FakeOpenAI) -> None:
    offered = {"models": [{"id": "gpt-test", "label": "Small"}, {"id": "gpt-large", "label": "Large"}]}
    caller = start(f"{AGENTS}:careful", CHATKIT_COMPOSER=json.dumps(offered))
    fake_openai.behaviour = streaming(calls("delete_file", path="a.txt"), says("Done"))
    events = list(caller.stream("threads.create", input=user_input("Go", model="gpt-large")))
    assert texts(decide(caller, widgets(caller, events[0].thread.id)[0], APPROVE)) == ["Done"]
    assert [received.body["model"] for received in fake_openai.received] == ["gpt-large", "gpt-large"]


CHOICES = {"tools": [{"id": tool, "label": tool, "icon": "globe"} for tool in ("look_up", "delete_file")]}


@pytest.mark.parametrize("agent", [f"{AGENTS}:triage", f"{AGENTS}:triage_for_user", f"{AGENTS}:TriageServer"])
def test_a_chosen_tool_before_a_handoff_back(start: Start, fake_openai: FakeOpenAI, database: str, agent: str) -> None:
    caller = start(agent, CHATKIT_COMPOSER=json.dumps(CHOICES), DATABASE_URL=database)
    fake_openai.behaviour = streaming(
        calls("look_up", "call_a", path="a.txt"),
        calls("transfer_to_specialist", "call_b"),
        calls("transfer_to_triage", "call_c"),
        calls("delete_file", "call_d", path="a.txt"),
        calls("delete_file", "call_e", path="b.txt"),
        says("Done"),
    )
    events = list(caller.stream("threads.create", input=user_input("Go", tool_choice={"id": "look_up"})))
    thread_id = events[0].thread.id
    assert decide(caller, widgets(caller, thread_id)[0], APPROVE)
    later = start(agent, CHATKIT_COMPOSER=json.dumps(CHOICES), DATABASE_URL=database)
    later.secret = caller.secret
    events = decide(later, widgets(caller, thread_id)[1], APPROVE)
    assert (errors(events), texts(events)) == ([], ["Done"])
    assert len(executed) == 3
    chosen = [received.body.get("tool_choice") for received in fake_openai.received]
    assert chosen == [{"type": "function", "name": "look_up"}, *[None] * 5], "it is called first, once"


def test_a_chosen_tool_that_needs_approval(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start(f"{AGENTS}:triage", CHATKIT_COMPOSER=json.dumps(CHOICES))
    fake_openai.behaviour = streaming(calls("delete_file", path="a.txt"), says("Done"))
    events = list(caller.stream("threads.create", input=user_input("Go", tool_choice={"id": "delete_file"})))
    assert texts(decide(caller, widgets(caller, events[0].thread.id)[0], APPROVE)) == ["Done"]
    chosen = [received.body.get("tool_choice") for received in fake_openai.received]
    assert chosen == [{"type": "function", "name": "delete_file"}, None]


def test_reasoning_before_the_call_is_finished(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start(f"{AGENTS}:careful")
    fake_openai.behaviour = streaming(
        [*thinks("The user wants it gone"), *calls("delete_file", path="a.txt")], [*thinks("It is gone"), *says("Done")]
    )
    thread_id, events = caller.create("Go")
    (done,) = [event.item for event in events if event.type == "thread.item.done" and event.item.type == "workflow"]
    assert done.workflow.summary is not None
    assert texts(decide(caller, widgets(caller, thread_id)[0], APPROVE)) == ["Done"]
    kept = caller.items(thread_id, order="asc").data
    assert [item.type for item in kept] == ["user_message", "workflow", "widget", "workflow", "assistant_message"]
    assert all(item.workflow.summary for item in kept if item.type == "workflow")
    assert [item["type"] for item in fake_openai.received[1].body["input"][1:]] == [
        "reasoning",
        "function_call",
        "function_call_output",
    ]


def test_client_tool_call_beside_a_pending_one(start: Start, fake_openai: FakeOpenAI) -> None:
    """The page answers at once, and the answer continues the conversation."""
    caller = start(f"{AGENTS}:asking")
    both = [*calls("delete_file", "call_a", path="a.txt"), *calls("ask_page", "call_b", question="Which?")]
    fake_openai.behaviour = streaming(both, says("I see"))
    thread_id, events = caller.create("Go")
    assert [event.item.type for event in events if event.type == "thread.item.done"][-2:] == ["widget", "client_tool_call"]
    events = list(caller.stream("threads.add_client_tool_output", thread_id=thread_id, result={"answer": "that one"}))
    assert (errors(events), texts(events)) == ([], ["I see"])
    (widget,) = widgets(caller, thread_id)
    assert not is_open(widget)
    assert executed == []


def test_exported_workflow_can_not_wait(start: Start, fake_openai: FakeOpenAI, address: str, recorder: Recorder) -> None:
    caller = start(f"{AGENTS}:workflow")
    fake_openai.behaviour = streaming(calls("delete_file", path="a.txt"))
    recorder.lines.clear()
    thread_id, events = caller.create("Go")
    assert errors(events) == [("custom", "This needs an approval, which is not possible here.", False)]
    assert [line for line in recorder.lines if "needs_approval" in line and "Careful" in line]
    assert (paused(address), widgets(caller, thread_id), executed) == ([], [], [])


def test_user_sees_all_of_a_call(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start(f"{AGENTS}:careful")
    hidden = "a.txt\u202egnp.\u200b" + " " * 5000 + "and b.txt"
    fake_openai.behaviour = streaming(calls("delete_file", path=hidden, more={"of": ["it", "ü"]}), says("Done"))
    thread_id, _ = caller.create("Go")
    (widget,) = widgets(caller, thread_id)
    shown = "a.txt\\u202egnp.\\u200b" + " " * 5000 + "and b.txt"
    assert lines(widget) == ["Allow delete_file?", "path", shown, "more", '{"of": ["it", "ü"]}']
    assert {child["type"] for child in widget.widget.model_dump()["children"]} == {"Title", "Caption", "Text", "Input"}


def test_arguments_that_are_no_json_object(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start(f"{AGENTS}:careful")
    events = json.loads(json.dumps(calls("delete_file")).replace('"{}"', '"[1, 2]"'))
    fake_openai.behaviour = streaming(events, says("Done"))
    thread_id, _ = caller.create("Go")
    assert lines(widgets(caller, thread_id)[0]) == ["Allow delete_file?", "", "[1, 2]"]


@pytest.mark.parametrize(
    ("call", "shown", "done"),
    [
        (
            {"type": "shell_call", "action": {"commands": ["rm -rf /srv", "ls"], "timeout_ms": 1000}},
            ["Allow shell?", "commands", '["rm -rf /srv", "ls"]', "timeout_ms", "1000"],
            "shell ['rm -rf /srv', 'ls']",
        ),
        (
            {"type": "apply_patch_call", "operation": {"type": "update_file", "path": "a.txt", "diff": "@@\n-a\n+\u200bü"}},
            ["Allow apply_patch?", "diff", "@@\n-a\n+\\u200bü", "path", "a.txt", "type", "update_file"],
            "update a.txt",
        ),
    ],
)
def test_the_user_sees_what_a_call_without_arguments_does(
    start: Start, fake_openai: FakeOpenAI, call: Any, shown: list[str], done: str
) -> None:
    caller = start(f"{AGENTS}:administrator")
    item = {"id": "sh_1", "call_id": "call_1", "status": "completed", **call}
    added_and_done: Events = [
        {"type": f"response.output_item.{stage}", "output_index": 0, "item": item} for stage in ("added", "done")
    ]
    fake_openai.behaviour = streaming(added_and_done, says("Done"))
    thread_id, _ = caller.create("Go")
    (widget,) = widgets(caller, thread_id)
    assert lines(widget) == shown
    assert shown[4] in widget.copy_text
    assert texts(decide(caller, widget, APPROVE)) == ["Done"]
    assert executed == [done]


def test_a_call_of_an_unknown_kind_is_shown_as_it_is() -> None:
    call = ToolApprovalItem(Agent(name="New"), {"type": "new_call", "id": "n_1", "target": {"path": "a.txt"}}, "new")
    widget = approvals._widget(ThreadMetadata(id="thr_1", created_at=datetime.now()), call)  # noqa: DTZ005
    assert lines(widget) == ["Allow new?", "type", "new_call", "id", "n_1", "target", '{"path": "a.txt"}']


@pytest.mark.parametrize("agent", SHAPES)
def test_usage_before_and_after_the_decision_adds_up(start: Start, fake_openai: FakeOpenAI, agent: str, address: str) -> None:
    fake_openai.behaviour = streaming(calls("delete_file", path="a.txt"), says("It is gone"))
    caller = start(agent)
    thread_id, _ = caller.create("Delete a.txt")

    def used() -> list[tuple[Any, ...]]:
        with create_engine(address).connect() as connection:
            return [tuple(row) for row in connection.execute(text("SELECT agent, requests, total_tokens FROM chat_usage"))]

    wait_for(lambda: used() == [("Careful", 1, 2)])
    decide(caller, widgets(caller, thread_id)[0], APPROVE)
    wait_for(lambda: used() == [("Careful", 2, 4)])
