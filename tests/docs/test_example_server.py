"""The example of an own server, without a model: what each of its abilities sends to the page, and what it stores."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from tests.support.applications import Start
from tests.support.chat import Caller, errors, texts, user_input

COMPOSER = '{"tools": [{"id": "calendar", "label": "Calendar", "icon": "calendar"}]}'
ITEM = "thread.item.done"


@pytest.fixture
def caller(start: Start, monkeypatch: pytest.MonkeyPatch) -> Caller:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)  # the service sets it, for all that follows in this process
    monkeypatch.delitem(sys.modules, "examples.garden", raising=False)
    return start("examples.garden:GardenServer", OPENAI_API_KEY="", CHATKIT_COMPOSER=COMPOSER)


def of_type(events: list[Any], type_: str) -> list[Any]:
    return [event for event in events if event.type == type_]


def items(events: list[Any], type_: str) -> list[Any]:
    return [event.item for event in of_type(events, ITEM) if event.item.type == type_]


def buttons(widget: Any) -> dict[str, Any]:
    """The actions of a card's buttons by their labels."""
    children = json.loads(widget.model_dump_json(by_alias=True, exclude_none=True))["children"]
    return {child["label"]: child["onClickAction"] for child in children if child["type"] == "Button"}


def test_title_that_a_model_writes(caller: Caller) -> None:
    thread_id, events = caller.create("Hello")
    assert errors(events) == []
    assert caller.thread(thread_id).title == "Plans for the garden"
    caller.post("threads.update", thread_id=thread_id, title="Mine")
    caller.say(thread_id, "Hello again")
    assert caller.thread(thread_id).title == "Mine"


def test_widget_and_its_actions(caller: Caller) -> None:
    thread_id, events = caller.create("Show me plants")
    assert [event.text for event in of_type(events, "progress_update")] == ["Looking through the seed box"]
    (card,) = items(events, "widget")
    actions = buttons(card.widget)
    assert actions["Show Kale"]["handler"] == "client"

    star = actions["Star (0)"]
    assert star["streaming"] is False
    action = {"type": star["type"], "payload": star["payload"]}
    answer = caller.post("threads.sync_custom_action", thread_id=thread_id, item_id=card.id, action=action)
    assert "Star (1)" in answer.text

    chosen = actions["Plant Kale"]
    action = {"type": chosen["type"], "payload": chosen["payload"]}
    events = list(caller.stream("threads.custom_action", thread_id=thread_id, item_id=card.id, action=action))
    assert texts(events) == ["Kale it is. Sow in May, harvest all winter. Stands frost."]
    assert [(event.name, event.data) for event in of_type(events, "client_effect")] == [("garden/planted", {"plant": "kale"})]
    (replaced,) = of_type(events, "thread.item.replaced")
    assert "Kale (chosen)" in replaced.item.model_dump_json()
    kept = caller.items(thread_id, order="asc").data
    assert [item.type for item in kept] == ["user_message", "widget", "assistant_message"], "the hidden item is hidden"
    assert "Kale (chosen)" in kept[1].model_dump_json()


@pytest.mark.parametrize(
    ("button", "effects", "said"),
    [
        ("confirm", [{"plant": "kale", "packets": 3}], "Done. 3 packets of kale are ordered."),
        ("cancel", [], "Done. The user rejected this call."),
    ],
)
def test_approval(caller: Caller, button: str, effects: Any, said: str) -> None:
    thread_id, events = caller.create("Order some seeds")
    (card,) = items(events, "widget")
    action = card.widget.model_dump()[button]["action"]
    sent = {"type": action["type"], "payload": action["payload"]}
    events = list(caller.stream("threads.custom_action", thread_id=thread_id, item_id=card.id, action=sent))
    assert [event.data for event in of_type(events, "client_effect")] == effects
    assert texts(events) == [said]


def test_message_instead_of_approval(caller: Caller) -> None:
    thread_id, _ = caller.create("Order some seeds")
    events = caller.say(thread_id, "Hello")
    (replaced,) = of_type(events, "thread.item.replaced")
    assert "confirm" not in replaced.item.widget.model_dump()


def test_client_tool(caller: Caller) -> None:
    thread_id, events = caller.create("Which bed is it?")
    (call,) = items(events, "client_tool_call")
    assert (call.name, call.status) == ("selected_bed", "pending")
    answered = list(caller.stream("threads.add_client_tool_output", thread_id=thread_id, result={"bed": "north"}))
    assert texts(answered) == ['Done. {"bed": "north"}']


def test_effect_and_what_the_thread_remembers(caller: Caller) -> None:
    thread_id, events = caller.create("Water it")
    assert [event.data for event in of_type(events, "client_effect")] == [{"litres": 5}]
    assert texts(events) == ["Done. 5 litres so far."]
    assert texts(caller.say(thread_id, "Water it")) == ["Done. 10 litres so far."]


def test_sources(caller: Caller) -> None:
    _, events = caller.create("Describe them")
    (described,) = items(events, "assistant_message")
    (part,) = described.content
    sources = [(note.source.type, note.source.id, part.text[: note.index]) for note in part.annotations]
    assert [source[:2] for source in sources] == [("entity", "tomato"), ("entity", "bean"), ("entity", "kale")]
    assert all(text.endswith(name) for (_, _, text), name in zip(sources, ["Tomato", "Runner bean", "Kale"], strict=True))


def test_composer_tool_chooses_the_agent(caller: Caller) -> None:
    events = list(caller.stream("threads.create", input=user_input("What now?", tool_choice={"id": "calendar"})))
    assert texts(events) == ["May: sow beans and kale, plant tomatoes out."]


def test_mention(caller: Caller) -> None:
    tag = {"type": "input_tag", "id": "kale", "text": "Kale", "data": {}}
    events = list(caller.stream("threads.create", input={**user_input(""), "content": [tag]}))
    assert items(events, "widget"), "the model is told that it is a plant"
