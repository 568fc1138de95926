"""What of a conversation reaches the model: the newest items, within limits, and what the user mentioned and quoted."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from chatkit.types import (
    GeneratedImage,
    GeneratedImageItem,
)
from sqlalchemy import Engine, event, insert, text

from chatkit.backends.selfhosted.chat.history import MAX_CHARACTERS, MAX_FILE_BYTES, load_history, refusal, to_model_input
from chatkit.backends.selfhosted.chat.rows import new_id
from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.backends.selfhosted.database.tables import ItemRow
from tests.support.applications import Start
from tests.support.chat import errors, user_input
from tests.support.fake_openai import FakeOpenAI, failing
from tests.support.images import PNG, data_url, drawn, encoded, url_of
from tests.support.responses_api import asked, calls, draws, says, streaming
from tests.support.store import ADA, MOMENT, add_items, message, new_thread, question, run


def image_of(thread_id: str, size: int) -> GeneratedImageItem:
    """An image whose URL has this many characters."""
    image = GeneratedImage(id=new_id("message"), url="A" * size)
    return GeneratedImageItem(id=image.id, thread_id=thread_id, created_at=MOMENT, image=image)


@pytest.mark.parametrize(("number", "expected"), [(200, 200), (201, 199), (300, 200)])
def test_long_history_starts_at_a_user_message(store: SqlStore, number: int, expected: int) -> None:
    thread_id = new_thread(store)
    makers: list[Callable[[str, str], Any]] = [message, question]
    add_items(store, [makers[index % 2 == 0](thread_id, f"msg_{index}") for index in range(number)])
    history = run(load_history(store, thread_id, ADA))
    assert history[-1].id == f"msg_{number - 1}"
    assert history[0].type == "user_message"
    assert len(history) == expected


def test_refused_message_is_left_out_wherever_its_mark_is(store: SqlStore) -> None:
    thread_id = new_thread(store)
    mark = refusal(run(store.load_thread(thread_id, ADA)))
    items = [question(thread_id, "q"), message(thread_id, "a"), question(thread_id, "refused"), message(thread_id, "b")]
    add_items(store, [*items, mark, question(thread_id, "new")])
    assert [item.id for item in run(load_history(store, thread_id, ADA))] == ["q", "a", "b", "new"]


def test_refused_messages_count_as_items(store: SqlStore) -> None:
    """A history with many of them starts at a user message as well."""
    thread_id = new_thread(store)
    thread = run(store.load_thread(thread_id, ADA))
    refused = [item for number in range(13) for item in (question(thread_id, f"refused_{number}"), refusal(thread))]
    talk = [item for number in range(150) for item in (question(thread_id, f"q_{number}"), message(thread_id, f"a_{number}"))]
    add_items(store, [*talk, message(thread_id, "more"), *refused, question(thread_id, "new")])
    history = run(load_history(store, thread_id, ADA))
    assert [history[0].type, history[-1].id, len(history)] == ["user_message", "new", 200 - len(refused)]


@pytest.mark.parametrize(("length", "expected"), [(99_500, ["q_0", "a_0", "q_1"]), (100_000, ["q_1"])])
def test_history_has_a_hundred_thousand_characters_at_most(store: SqlStore, length: int, expected: list[str]) -> None:
    """The words that the model's input has besides the text, such as roles, are counted too."""
    thread_id = new_thread(store)
    add_items(store, [question(thread_id, "q_0"), message(thread_id, "a_0", "x" * length), question(thread_id, "q_1")])
    assert [item.id for item in run(load_history(store, thread_id, ADA))] == expected


def test_twenty_megabytes_of_images_are_sent_and_of_older_ones_the_mention(store: SqlStore) -> None:
    thread_id = new_thread(store)
    add_items(store, [question(thread_id, "q"), *(image_of(thread_id, size) for size in (1, 10_000_000, 10_009_999, 1))])
    items: list[Any] = run(load_history(store, thread_id, ADA))
    assert [len(item.image.url) for item in items[1:]] == [0, 10_000_000, 10_009_999, 1]
    [mention, image] = run(to_model_input(items[1:3], None))
    assert [part["type"] for part in mention["content"]] == ["input_text"]
    assert [part["type"] for part in image["content"]] == ["input_text", "input_image"]


def test_history_is_cut_by_characters(store: SqlStore) -> None:
    thread_id = new_thread(store)
    for number in range(6):
        run(store.add_thread_item(thread_id, question(thread_id, f"q_{number}"), ADA))
        run(store.add_thread_item(thread_id, message(thread_id, f"a_{number}", "x" * (MAX_CHARACTERS // 3)), ADA))
    history = run(load_history(store, thread_id, ADA))
    assert [item.id for item in history] == ["q_4", "a_4", "q_5", "a_5"]


def test_last_message_is_kept_if_longer_than_the_limit(store: SqlStore) -> None:
    thread_id = new_thread(store)
    run(store.add_thread_item(thread_id, message(thread_id, "old"), ADA))
    run(store.add_thread_item(thread_id, message(thread_id, "long", "x" * (2 * MAX_CHARACTERS)), ADA))
    assert [item.id for item in run(load_history(store, thread_id, ADA))] == ["long"]


def test_user_message_is_kept_with_a_result_longer_than_the_limit(store: SqlStore) -> None:
    thread_id = new_thread(store)
    for item in (question(thread_id, "old"), question(thread_id, "q"), message(thread_id, "between")):
        run(store.add_thread_item(thread_id, item, ADA))
    run(store.add_thread_item(thread_id, message(thread_id, "long", "x" * (2 * MAX_CHARACTERS)), ADA))
    assert [item.id for item in run(load_history(store, thread_id, ADA))] == ["q", "long"]


def test_history_without_a_recent_user_message(store: SqlStore) -> None:
    thread_id = new_thread(store)
    with store.transactions.engine.begin() as connection:
        for number in range(1000):
            item = message(thread_id, f"msg_{number}")
            connection.execute(
                insert(ItemRow).values(thread_id=thread_id, user_id=ADA.user, id=item.id, data=item.model_dump_json())
            )
    assert [item.id for item in run(load_history(store, thread_id, ADA))] == ["msg_999"]


def test_images_count_as_a_fixed_number_of_characters(store: SqlStore) -> None:
    thread_id = new_thread(store)
    url = data_url(PNG + bytes(2 * MAX_CHARACTERS))
    many = 16  # of 6,000 characters each
    for number in range(many + 1):
        run(store.add_thread_item(thread_id, question(thread_id, f"q_{number}"), ADA))
        image = GeneratedImage(id=f"ig_{number}", url=url)
        item = GeneratedImageItem(id=f"i_{number}", thread_id=thread_id, created_at=MOMENT, image=image)
        run(store.add_thread_item(thread_id, item, ADA))
    history = [item.id for item in run(load_history(store, thread_id, ADA))]
    assert history[-2:] == [f"q_{many}", f"i_{many}"]
    assert len(history) == 2 * many


def test_short_history_is_complete(store: SqlStore) -> None:
    thread_id = new_thread(store)
    run(store.add_thread_item(thread_id, message(thread_id, "greeting"), ADA))
    assert [item.id for item in run(load_history(store, thread_id, ADA))] == ["greeting"]


def quoting(text_: str) -> dict[str, Any]:
    tag = {"type": "input_tag", "id": "art_1", "text": "The future", "data": {"kind": "article"}, "interactive": False}
    content = [{"type": "input_text", "text": f"{text_} "}, tag]
    return {**user_input(""), "content": content, "quoted_text": "a sentence above"}


@pytest.mark.parametrize("agent", ["simple", "for_user", "run_workflow", "guarded_workflow"])
def test_mentions_and_quoted_text_reach_the_model(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = streaming(says("I see"))
    list(caller.stream("threads.create", input=quoting("What about")))
    given = " ".join(words for _, words in asked(fake_openai.received[0].body))
    for part in ("What about @The future", "a sentence above", "@The future stands for art_1", "'kind': 'article'"):
        assert given.count(part) == 1, part


def test_history_before_a_large_image_is_kept(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("simple")
    image = encoded(PNG + bytes(200 * 1024))
    fake_openai.behaviour = streaming([*draws(image), *says("Here it is")], says("You are Ada"))
    thread_id, events = caller.create("I am Ada. Draw me.")
    assert errors(events) == []
    caller.say(thread_id, "Who am I?")
    given = fake_openai.received[-1].body["input"]
    words = [text_ for _, text_ in asked(fake_openai.received[-1].body)]
    assert words == ["I am Ada. Draw me.", "The following image was generated by the agent.", "Here it is", "Who am I?"]
    assert given[1]["content"][1]["image_url"] == f"data:image/png;base64,{image}"


@pytest.mark.slow
def test_images_in_the_history_stay_below_openais_limit(start: Start, fake_openai: FakeOpenAI) -> None:
    """OpenAI accepts 50 MB per request. A thread with more could never get another reply."""
    caller = start("simple")
    image = encoded(PNG + bytes(2_600_000))
    fake_openai.behaviour = streaming([event for _ in range(16) for event in draws(image)], says("A lot"))
    thread_id, events = caller.create("Draw")
    assert errors(events) == []
    caller.say(thread_id, "What do you see?")
    assert len(json.dumps(fake_openai.received[-1].body)) < 50_000_000


def test_quoted_text_is_given_after_a_client_tool(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("with_page")
    fake_openai.behaviour = streaming(calls("ask_page", question="Colour?"), says("It is blue"))
    quoting = {**user_input("Explain this"), "quoted_text": "a sentence above"}
    created, *_ = list(caller.stream("threads.create", input=quoting))
    list(caller.stream("threads.add_client_tool_output", thread_id=created.thread.id, result={"colour": "blue"}))
    assert "a sentence above" in json.dumps(fake_openai.received[1].body["input"])


def test_quote_of_an_earlier_message_is_not_given_again(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("run_workflow")
    fake_openai.behaviour = failing(400, "invalid_request_error")
    quoting = {**user_input("Explain"), "quoted_text": "the old quote"}
    created, *_ = list(caller.stream("threads.create", input=quoting))
    fake_openai.behaviour = streaming(says("Well"))
    caller.say(created.thread.id, "Something else")
    assert "the old quote" not in json.dumps(fake_openai.received[-1].body["input"])


def test_two_mentions_with_the_same_name(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("simple")
    fake_openai.behaviour = streaming(says("Well"))
    tag = {"type": "input_tag", "text": "Anna", "data": {}, "interactive": False}
    content = [{**tag, "id": "user_1"}, {**tag, "id": "user_2"}]
    list(caller.stream("threads.create", input={**user_input(""), "content": content}))
    given = json.dumps(fake_openai.received[0].body["input"])
    assert ("user_1" in given, "user_2" in given) == (True, True)


def test_model_is_told_of_an_image_that_is_gone(store: SqlStore, engine: Engine) -> None:
    thread_id = new_thread(store)
    run(store.add_thread_item(thread_id, drawn(thread_id), ADA))
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM chat_images"))
    [message] = run(to_model_input(run(load_history(store, thread_id, ADA)), None))
    assert [part["type"] for part in message["content"]] == ["input_text"]


def test_history_reads_no_more_images_than_it_gives_to_the_model(store: SqlStore, engine: Engine) -> None:
    thread_id = new_thread(store)
    large = PNG + bytes(MAX_FILE_BYTES // 2 * 3 // 4)  # a little more than half, in base64
    run(store.add_thread_item(thread_id, question(thread_id, "msg_0"), ADA))
    for number in range(1, 6):
        run(store.add_thread_item(thread_id, drawn(thread_id, data_url(large), f"msg_{number}"), ADA))
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
    given: list[Any] = run(load_history(store, thread_id, ADA))
    assert [url_of(item)[:14] for item in given[1:]] == ["", "", "", "", "data:image/png"]
    assert len([statement for statement in statements if "chat_images" in statement]) == 2
