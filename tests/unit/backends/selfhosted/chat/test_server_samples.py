"""Servers written like OpenAI's four advanced samples: a conversation with each, in which a fake model calls its tools."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.applications import Start
from tests.support.chat import Caller, errors, texts, user_input
from tests.support.fake_openai import FakeOpenAI
from tests.support.fake_server import responding
from tests.support.responses_api import asked, by_model, calls, draws, says, streaming

SERVERS = "tests.support.sample_servers"


def effects(events: list[Any]) -> list[tuple[str, Any]]:
    return [(event.name, event.data) for event in events if event.type == "client_effect"]


def widgets(events: list[Any]) -> list[Any]:
    return [event.item for event in events if event.type == "thread.item.done" and event.item.type == "widget"]


def stored(caller: Caller, thread_id: str) -> list[str]:
    return [item.type for item in caller.items(thread_id, order="asc").data]


def choose(caller: Caller, thread_id: str, widget: Any, name: str) -> list[Any]:
    action = {"type": "choose", "payload": {"name": name}}
    return list(caller.stream("threads.custom_action", thread_id=thread_id, item_id=widget.id, action=action))


def test_like_cat_lounge(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start(f"{SERVERS}:AquariumServer")
    fake_openai.behaviour = streaming(
        calls("feed", food="flakes"),
        says("It ate"),
        calls("suggest_names", suggestions=[{"name": "Nemo", "reason": "fast"}, {"name": "Dory", "reason": "blue"}]),
        calls("feed", food="shrimp"),
        [*draws("iVBORw0KGgo=", "iVBORw0K", "iVBORw0KGg"), *says("Here it is")],
    )
    thread_id, events = caller.create("Feed it")
    assert (errors(events), texts(events), effects(events)) == ([], ["It ate"], [("fed", {"fish": None})])
    assert [event.stream_options.allow_cancel for event in events if event.type == "stream_options"] == [False]
    events = caller.say(thread_id, "How could it be called?")
    (names,) = widgets(events)
    assert (texts(events), names.copy_text) == (["Some names:"], "Nemo, Dory")
    events = choose(caller, thread_id, names, "Dory")
    assert (errors(events), texts(events)) == ([], ["Hello, Dory."])
    (replaced,) = [event.item for event in events if event.type == "thread.item.replaced"]
    assert replaced.id == names.id
    assert [item.children[0].weight for item in replaced.widget.children] == ["bold"]
    assert caller.thread(thread_id).title == "Dory's tank"
    events = caller.say(thread_id, "Feed it again and draw it")
    assert (effects(events), texts(events)) == ([("fed", {"fish": "Dory"})], ["Here it is"])
    updates = [event.update for event in events if event.type == "thread.item.updated"]
    assert [update.progress for update in updates if update.type == "generated_image.updated"] == [0, pytest.approx(1 / 3)]
    given = [text for _, text in asked(fake_openai.received[-1].body)]
    assert [text for text in given if text.startswith("<")] == ["<FED>flakes</FED>", "<NAMED>Dory</NAMED>"]
    assert stored(caller, thread_id) == [
        *("user_message", "assistant_message"),
        *("user_message", "assistant_message", "widget", "assistant_message"),
        *("user_message", "generated_image", "assistant_message"),
    ]


def test_like_customer_support(start: Start, fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{fake_openai.url}/v1")  # of the client that the server creates
    caller = start(f"{SERVERS}:HotelServer")
    fake_openai.behaviour = by_model(
        {
            "gpt-titles": [says("A quiet room.")],
            "gpt-test": [calls("change_room", room="12"), says("Moved"), calls("show_breakfasts")],
        }
    )
    thread_id, events = caller.create("A quiet room please")
    assert (errors(events), texts(events), effects(events)) == ([], ["Moved"], [("profile", {"room": "12"})])
    assert caller.thread(thread_id).title == "A quiet room"
    (breakfasts,) = widgets(caller.say(thread_id, "Breakfast?"))
    last = fake_openai.received[-1].body
    assert (last["temperature"], asked(last)[0][1]) == (0.4, "<ROOM>12</ROOM>")
    events = choose(caller, thread_id, breakfasts, "Tea")
    assert (errors(events), texts(events)) == ([], ["Tea at eight."])
    (update,) = [event for event in events if event.type == "thread.item.updated"]
    assert (update.item_id, len(update.update.widget.children)) == (breakfasts.id, 1)
    (menu,) = widgets(events)
    assert menu.widget.children[0].value == "Menu with Tea"
    kinds = stored(caller, thread_id)
    assert kinds[-4:] == ["user_message", "widget", "assistant_message", "widget"]
    refused = caller.post("input.transcribe", audio_base64="aGVsbG8=", mime_type="audio/flac")
    assert (refused.status_code, refused.json()["message"]) == (400, "Unexpected audio format")
    fake_openai.behaviour = responding(200, {"text": "Good morning", "usage": {"type": "duration", "seconds": 1}})
    assert caller.post("input.transcribe", audio_base64="aGVsbG8=", mime_type="audio/webm").json() == {"text": "Good morning"}


def test_like_metro_map(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start(f"{SERVERS}:TrailsServer")
    hut = {"id": "h1", "name": "Crow hut"}
    fake_openai.behaviour = by_model(
        {
            "gpt-titles": [says("Huts.")],
            "gpt-test": [
                *(calls("list_huts"), says("One hut")),
                *(calls("get_selected_huts"), says("You chose the Crow hut")),
                calls("show_route", route=[hut], text="To the Crow hut in an hour"),
            ],
        }
    )
    thread_id, events = caller.create("Which huts?")
    assert (errors(events), texts(events)) == ([], ["One hut"])
    assert [event.text for event in events if event.type == "progress_update"] == ["Reading the map"]
    assert caller.thread(thread_id).title == "Huts"
    (call,) = [event.item for event in caller.say(thread_id, "And mine?") if getattr(event, "item", None)][1:]
    assert (call.type, call.name) == ("client_tool_call", "get_selected_huts")
    events = list(caller.stream("threads.add_client_tool_output", thread_id=thread_id, result={"huts": ["h1"]}))
    assert (errors(events), texts(events)) == ([], ["You chose the Crow hut"])
    tag = {"type": "input_tag", "id": "h1", "text": "Crow hut", "data": {"hut": "h1"}, "interactive": True}
    message = {**user_input(""), "content": [tag, {"type": "input_text", "text": " and how far?"}]}
    events = list(caller.stream("threads.add_user_message", thread_id=thread_id, input=message))
    (route,) = [event.item for event in events if event.type == "thread.item.done" and event.item.type == "assistant_message"]
    ((source, index),) = [(part.source, part.index) for part in route.content[0].annotations]
    assert (source.type, source.id, source.interactive, index) == ("entity", "h1", True, len("To the Crow hut"))
    assert any("<HUT>Crow hut</HUT>" in text for _, text in asked(fake_openai.received[-1].body))


def test_like_news_guide(start: Start, fake_openai: FakeOpenAI) -> None:
    tools = '{"tools": [{"id": "riddles", "label": "Riddles", "icon": "star"}]}'
    caller = start(f"{SERVERS}:LibraryServer", CHATKIT_AGENT_HEADERS="book-id", CHATKIT_COMPOSER=tools)
    fake_openai.behaviour = by_model(
        {
            "gpt-titles": [says("Books.")],
            "gpt-test": [
                *(calls("read_open_book"), says("It begins at sea")),
                *(calls("delegate_to_riddles", input="One more"), says("Guess")),
                calls("delegate_to_readings", input="Today"),
            ],
            "gpt-riddles": [says("What has keys?"), says("What has hands?")],
            "gpt-readings": [calls("show_readings", titles=["Ithaca"])],
        }
    )
    body = {"type": "threads.create", "params": {"input": user_input("What is this book?")}}
    with caller.send(body, stream=True, **{"book-id": "Moby Dick"}) as response:
        assert "It begins at sea" in response.text
    assert "Chapter one of Moby Dick" in str(fake_openai.received[-1].body)
    (thread,) = caller.post("threads.list").json()["data"]
    assert thread["title"] == "Books"
    riddle = user_input("A riddle", tool_choice={"id": "riddles"})
    events = list(caller.stream("threads.add_user_message", thread_id=thread["id"], input=riddle))
    assert (errors(events), texts(events)) == ([], ["What has keys?"])
    events = caller.say(thread["id"], "Another one")
    assert (errors(events), texts(events)) == ([], ["Guess"])
    events = caller.say(thread["id"], "Readings today?")
    (readings,) = widgets(events)
    assert (errors(events), texts(events)) == ([], ["These readings:"])
    assert readings.widget.children[0].children[0].value == "Ithaca"
