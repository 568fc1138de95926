"""Titles: the first words, a model's own beside the response, and always the user's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from chatkit.types import ThreadMetadata
from sqlalchemy import create_engine, select

from chatkit.backends.selfhosted.chat import titles
from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.backends.selfhosted.database.tables import UsageRow
from tests.support.applications import Start
from tests.support.chat import Caller, errors, texts, user_input
from tests.support.fake_openai import FakeOpenAI
from tests.support.fake_server import Behaviour, Handler, Received, responding
from tests.support.leaks import Recorder
from tests.support.responses_api import Events, asked, says, streaming
from tests.support.store import MOMENT, of, run
from tests.support.usage import requests_of, used
from tests.support.waiting import wait_for

SAID = "What is the weather going to be like in Paris tomorrow, and do I need an umbrella?"
FIRST_WORDS = "What is the weather going to be like in Paris tomorrow, and…"
TITLE_MODEL = {"CHATKIT_TITLE_MODEL": "gpt-title"}
SLOWLY = says("The weather is going to be fine", pause=0.4)


def for_titles(received: Received) -> bool:
    return received.method == "POST" and received.body["model"] == "gpt-title"


def titling(title: Behaviour | str, *answers: Events) -> Behaviour:
    """Answers the title model with ``title``, and other calls one after another."""
    answer = streaming(*(answers or (says("Sun"),)))
    write = streaming(says(title)) if isinstance(title, str) else title

    def behave(handler: Handler) -> None:
        (write if for_titles(handler.received) else answer)(handler)

    return behave


def held(title: str) -> tuple[Behaviour, Callable[[], None]]:
    """A title that is written when the second of these is called."""
    going_on, write = threading.Event(), streaming(says(title))
    return lambda handler: write(handler) if going_on.wait(30) else None, going_on.set


def create(caller: Caller) -> tuple[str, list[Any]]:
    thread_id, events = caller.create(SAID)
    assert errors(events) == []
    return thread_id, events


@pytest.mark.parametrize("agent", ["", "simple", "for_user", "run_workflow"])
def test_model_writes_the_title_beside_the_response(start: Start, fake_openai: FakeOpenAI, tmp_path: Any, agent: str) -> None:
    caller = start(agent, **TITLE_MODEL)
    fake_openai.behaviour = titling("\u201cParis in the\n rain\u201d", SLOWLY)
    thread_id, events = create(caller)
    told = [event.thread.title for event in events if event.type == "thread.updated"]
    assert told == [FIRST_WORDS, "Paris in the rain"]
    assert caller.thread(thread_id).title == "Paris in the rain"
    (call,) = filter(for_titles, fake_openai.received)
    assert asked(call.body) == [("user", SAID)]
    assert call.body["max_output_tokens"] == 2000
    assert len(call.body["safety_identifier"]) == 64

    def used() -> list[Any]:
        with create_engine(f"sqlite:///{tmp_path}/chatkit.db").connect() as connection:
            found = connection.execute(select(UsageRow.requests).where(UsageRow.agent == "Title"))
            return list(found.scalars())

    wait_for(lambda: used() == [1])
    caller.say(thread_id, "And in Rome?")
    assert len([*filter(for_titles, fake_openai.received)]) == 1


def test_title_is_the_first_words_without_the_setting(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("simple")
    fake_openai.behaviour = streaming(SLOWLY)
    thread_id, _ = create(caller)
    assert caller.thread(thread_id).title == FIRST_WORDS
    assert len(fake_openai.received) == 1


@pytest.mark.parametrize("agent", ["", "tests.support.servers_under_test:Plain"], ids=["the demo", "an own server"])
def test_demo_and_own_servers_have_no_titles_of_a_model(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent, **TITLE_MODEL, **({} if agent else {"OPENAI_API_KEY": ""}))
    fake_openai.behaviour = titling("Never", SLOWLY)
    thread_id, _ = create(caller)
    assert caller.thread(thread_id).title == (None if agent else FIRST_WORDS)
    assert not [*filter(for_titles, fake_openai.received)]


def test_response_does_not_wait_for_the_title(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("simple", **TITLE_MODEL)
    write, go_on = held("Paris")
    fake_openai.behaviour = titling(write)
    thread_id, events = create(caller)
    assert texts(events) == ["Sun"]
    assert caller.thread(thread_id).title == FIRST_WORDS
    wait_for(lambda: any(map(for_titles, fake_openai.received)))
    assert caller.thread(thread_id).title == FIRST_WORDS
    go_on()
    wait_for(lambda: caller.thread(thread_id).title == "Paris")


def test_reader_that_leaves_still_gets_a_title(start: Start, fake_openai: FakeOpenAI, tmp_path: Any) -> None:
    caller = start("simple", **TITLE_MODEL)
    write, go_on = held("Paris")
    fake_openai.behaviour = titling(write, SLOWLY)
    stream: Any = caller.stream("threads.create", input=user_input(SAID))
    thread_id = next(stream).thread.id
    while next(stream).type != "thread.item.updated":
        pass
    wait_for(lambda: any(map(for_titles, fake_openai.received)))
    stream.close()
    wait_for(lambda: [row[0] for row in used(f"sqlite:///{tmp_path}/chatkit.db")] == ["Simple"])
    go_on()
    wait_for(lambda: caller.thread(thread_id).title == "Paris")
    wait_for(lambda: requests_of("Title", 1) in used(f"sqlite:///{tmp_path}/chatkit.db"))


FAILURES: dict[str, Behaviour | str] = {
    "an error": responding(400, {"error": {"message": "An internal detail"}}),
    "nothing": " \n",
    "no JSON": responding(200, b"An internal detail"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_failure_leaves_the_first_words(start: Start, fake_openai: FakeOpenAI, recorder: Recorder, failure: str) -> None:
    caller = start("simple", **TITLE_MODEL)
    before = len(recorder.lines)
    fake_openai.behaviour = titling(FAILURES[failure], SLOWLY)
    thread_id, events = create(caller)
    assert len(texts(events)) == 1
    assert caller.thread(thread_id).title == FIRST_WORDS
    logged = [line for line in recorder.lines[before:] if "no title was written" in line]
    assert len(logged) == (failure != "nothing")
    assert "internal detail" not in "".join(recorder.lines[before:])


def test_time_for_a_title_is_limited(
    start: Start, fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch, recorder: Recorder
) -> None:
    monkeypatch.setattr(titles, "TITLE_SECONDS", 0.5)
    caller = start("simple", **TITLE_MODEL)
    before = len(recorder.lines)
    write, go_on = held("Paris")
    fake_openai.behaviour = titling(write)
    thread_id, _ = create(caller)
    wait_for(lambda: any("no title was written (TimeoutError)" in line for line in recorder.lines[before:]))
    go_on()
    assert caller.thread(thread_id).title == FIRST_WORDS


def test_length_of_a_title_is_limited(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("simple", **TITLE_MODEL)
    fake_openai.behaviour = titling("A title " * 1000, SLOWLY)
    thread_id, _ = caller.create("x" * 50_000)
    assert caller.thread(thread_id).title == " ".join(["A title"] * 7) + " A…"
    (call,) = filter(for_titles, fake_openai.received)
    assert asked(call.body) == [("user", "x" * 2000)]


@pytest.mark.parametrize("answer", [SLOWLY, says("Sun")], ids=["during the response", "after the response"])
def test_title_of_the_user_stays(
    start: Start, fake_openai: FakeOpenAI, database: str, answer: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced, replace = threading.Event(), SqlStore.replace_title

    async def replace_title(*arguments: Any) -> None:
        await replace(*arguments)
        replaced.set()

    monkeypatch.setattr(SqlStore, "replace_title", replace_title)
    caller = start("counting", DATABASE_URL=database, **TITLE_MODEL)
    write, go_on = held("Paris")
    fake_openai.behaviour = titling(write, answer)
    stream = caller.stream("threads.create", input=user_input(SAID))
    thread_id = next(stream).thread.id
    if answer is not SLOWLY:
        list(stream)
    wait_for(lambda: any(map(for_titles, fake_openai.received)))
    assert caller.post("threads.update", thread_id=thread_id, title="The user's").status_code == 200
    go_on()
    list(stream)
    assert replaced.wait(10)
    assert caller.thread(thread_id).title == "The user's"


@pytest.mark.parametrize("first_words_are_stored", [True, False])
@pytest.mark.parametrize("renamed", ["before", "after", "never"])
def test_rename_wins_in_any_order(store: SqlStore, renamed: str, first_words_are_stored: bool) -> None:
    """The model's title, that of the user in another request, and a save of the response with the first words."""
    context, page = of("anonymous:ada"), of("anonymous:ada")
    thread = ThreadMetadata(id=store.generate_thread_id(context), created_at=MOMENT)
    run(store.save_thread(thread.model_copy(), context))  # OpenAI's server saves a copy
    thread.title = "First words"
    if first_words_are_stored:
        run(store.save_thread(thread, context))

    def rename() -> None:
        own = run(store.load_thread(thread.id, page))
        own.title = "The user's"
        run(store.save_thread(own, page))

    if renamed == "before":
        rename()
    run(store.replace_title(thread, "First words", "The model's", context))
    if renamed == "after":
        rename()
    thread.metadata["noted"] = True
    run(store.save_thread(thread, context))
    expected = "The model's" if renamed == "never" else "The user's"
    assert thread.title == expected
    assert run(store.load_thread(thread.id, of("anonymous:ada"))).title == expected


def test_title_that_comes_during_a_save(store: SqlStore) -> None:
    """The title comes while the first words are being saved, and the user renames the thread after that."""
    context = of("anonymous:ada")
    thread = ThreadMetadata(id=store.generate_thread_id(context), created_at=MOMENT)
    run(store.save_thread(thread.model_copy(), context))

    async def both() -> None:
        thread.title = "First words"
        await asyncio.gather(
            store.save_thread(thread, context), store.replace_title(thread, "First words", "The model's", context)
        )

    run(both())
    page = of("anonymous:ada")
    own = run(store.load_thread(thread.id, page))
    assert own.title == "The model's"
    own.title = "The user's"
    run(store.save_thread(own, page))
    thread.metadata["noted"] = True
    run(store.save_thread(thread, context))
    assert run(store.load_thread(thread.id, of("anonymous:ada"))).title == "The user's"
