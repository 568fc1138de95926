"""Storage of imported conversations, beside those of this service, on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from chatkit.types import (
    AssistantMessageContent,
    AssistantMessageItem,
    ClientToolCallItem,
    EndOfTurnItem,
    InferenceOptions,
    LockedStatus,
    ThreadItem,
    ThreadMetadata,
    UserMessageItem,
    UserMessageTagContent,
)
from sqlalchemy import Engine, text, update

from chatkit.backends.selfhosted import imports
from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.backends.selfhosted.database.engine import WAIT_SECONDS, open_database
from chatkit.backends.selfhosted.database.tables import ThreadRow
from chatkit.backends.selfhosted.imports import ImportedItem, ImportStore, Outcome
from chatkit.backends.selfhosted.sessions import SECONDS_PER_DAY, SessionStore
from chatkit.identity.user import User
from tests.support.store import ADA, EVE, new_thread, run

START = datetime(2026, 11, 1, tzinfo=UTC)
NOTHING = Outcome()


@pytest.fixture
def imported(engine: Engine) -> ImportStore:
    return ImportStore(engine)


def thread(number: int = 1, **changes: Any) -> ThreadMetadata:
    created_at = START + timedelta(days=number)
    return ThreadMetadata(**{"id": f"cthr_{number}", "created_at": created_at, "title": f"Thread {number}", **changes})


def said(*words: str, minutes: int = 0) -> list[ImportedItem]:
    """Items of ``thread()``, a minute apart; the id is ``cthi_`` and the word."""
    first = START + timedelta(days=1, minutes=minutes)
    return [ImportedItem(message(f"cthi_{word}", word, first + timedelta(minutes=n))) for n, word in enumerate(words)]


def message(id_: str, words: str, created_at: datetime, thread_id: str = "cthr_1") -> AssistantMessageItem:
    content = [AssistantMessageContent(text=words)]
    return AssistantMessageItem(id=id_, thread_id=thread_id, created_at=created_at, content=content)


def words(store: SqlStore, thread_id: str = "cthr_1", context: Any = ADA) -> list[str]:
    page = run(store.load_thread_items(thread_id, None, 100, "asc", context))
    return [getattr(item, "content", [None])[0].text for item in page.data]


def say(store: SqlStore, id_: str, created_at: datetime, context: Any = ADA) -> None:
    """An item of this service; the SDK's time is naive and local."""
    run(store.add_thread_item("cthr_1", message(id_, id_, created_at.astimezone().replace(tzinfo=None)), context))


def use_later(engine: Engine, seconds: int = 1) -> None:
    """As if the thread was used after the import."""
    with engine.begin() as connection:
        connection.execute(update(ThreadRow).values(used_at=ThreadRow.used_at + seconds))


def rows(engine: Engine, query: str) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def test_whole_thread_is_imported(store: SqlStore, imported: ImportStore) -> None:
    assert imported.save(ADA.user, thread(), said("a", "b", "c")) == Outcome(created=True, new_items=3)
    loaded = run(store.load_thread("cthr_1", ADA))
    assert (loaded.title, loaded.created_at.astimezone(UTC)) == ("Thread 1", START + timedelta(days=1))
    assert words(store) == ["a", "b", "c"]
    item = run(store.load_item("cthr_1", "cthi_b", ADA))
    assert item.created_at.astimezone(UTC) == START + timedelta(days=1, minutes=1)
    assert list(imported.check()) == [("cthr_1", 3, 3)]


def test_others_do_not_see_an_imported_thread(store: SqlStore, imported: ImportStore) -> None:
    imported.save(ADA.user, thread(), said("a"))
    assert run(store.load_threads(10, None, "asc", EVE)).data == []
    with pytest.raises(Exception, match=r"^$"):
        run(store.load_thread("cthr_1", EVE))


def test_second_import_changes_nothing(engine: Engine, imported: ImportStore) -> None:
    imported.save(ADA.user, thread(), said("a", "b"))
    with engine.begin() as connection:  # so that a write would show
        connection.execute(text("UPDATE chat_threads SET used_at = 5"))
        connection.execute(text("UPDATE chat_imports SET used_at = 5"))
    before = [rows(engine, f"SELECT * FROM {table} ORDER BY 1") for table in ("chat_threads", "chat_items", "chat_imports")]
    assert imported.save(ADA.user, thread(), said("a", "b")) == NOTHING
    assert before == [
        rows(engine, f"SELECT * FROM {table} ORDER BY 1") for table in ("chat_threads", "chat_items", "chat_imports")
    ]


def test_item_that_is_listed_twice_is_stored_once(store: SqlStore, imported: ImportStore) -> None:
    assert imported.save(ADA.user, thread(), said("a", "b") + said("b", minutes=1)).new_items == 2
    assert words(store) == ["a", "b"]


def test_new_items_are_added(store: SqlStore, imported: ImportStore) -> None:
    imported.save(ADA.user, thread(title=None), said("a", "b"))
    assert imported.save(ADA.user, thread(title="At last"), said("a", "b", "c", "d")) == Outcome(new_items=2)
    assert words(store) == ["a", "b", "c", "d"]
    assert run(store.load_thread("cthr_1", ADA)).title == "At last"
    assert imported.save(ADA.user, thread(title="At last"), said("a", "b", "c", "d")) == NOTHING
    assert list(imported.check()) == [("cthr_1", 4, 4)]


def test_new_items_leave_the_users_other_threads_alone(store: SqlStore, imported: ImportStore) -> None:
    for number in (1, 2):
        imported.save(ADA.user, thread(number), said("a", "b"))
    assert imported.save(ADA.user, thread(), said("c", minutes=-1) + said("a", "b")) == Outcome(new_items=1)
    assert words(store) == ["c", "a", "b"]
    assert words(store, "cthr_2") == ["a", "b"]


def test_empty_thread_that_gets_items(store: SqlStore, imported: ImportStore, engine: Engine) -> None:
    assert imported.save(ADA.user, thread(), []) == Outcome(created=True)
    use_later(engine)
    assert imported.save(ADA.user, thread(), said("a")) == Outcome(new_items=1)
    assert words(store) == ["a"]


def test_item_that_was_unfinished_is_completed(store: SqlStore, imported: ImportStore) -> None:
    imported.save(ADA.user, thread(), said("a", "half"))
    run(store.save_feedback("cthr_1", ["cthi_half"], "positive", ADA))
    whole = [*said("a"), ImportedItem(message("cthi_half", "half and half", START))]
    locked = thread(status=LockedStatus(reason="done"))
    assert imported.save(ADA.user, locked, whole) == Outcome(changed_items=1)
    assert words(store) == ["a", "half and half"]
    assert run(store.load_thread("cthr_1", ADA)).status.type == "locked"


def test_feedback_stays(engine: Engine, store: SqlStore, imported: ImportStore) -> None:
    imported.save(ADA.user, thread(), said("a"))
    run(store.save_feedback("cthr_1", ["cthi_a"], "negative", ADA))
    imported.save(ADA.user, thread(), [ImportedItem(message("cthi_a", "A", START)), *said("b", minutes=1)])
    assert rows(engine, "SELECT id, feedback FROM chat_items ORDER BY position") == [("cthi_a", "negative"), ("cthi_b", None)]


def test_thread_used_here_belongs_to_the_user(engine: Engine, store: SqlStore, imported: ImportStore) -> None:
    imported.save(ADA.user, thread(), said("a", "b"))
    loaded = run(store.load_thread("cthr_1", ADA))
    loaded.title = "Mine"
    run(store.save_thread(loaded, ADA))
    run(store.save_item("cthr_1", message("cthi_a", "changed here", START.replace(tzinfo=None)), ADA))
    there = [ImportedItem(message("cthi_a", "changed there", START)), *said("b", "c", minutes=1)]
    assert imported.save(ADA.user, thread(status=LockedStatus()), there) == Outcome(new_items=1)
    assert words(store) == ["changed here", "b", "c"]
    loaded = run(store.load_thread("cthr_1", ADA))
    assert (loaded.title, loaded.status.type) == ("Mine", "active")
    imported.save(ADA.user, thread(), [*there, *said("d", minutes=9)])
    imported.save(ADA.user, thread(), [*there, *said("d", minutes=9)])
    assert words(store) == ["changed here", "b", "c", "d"], "it is not followed again after that"


def test_order_of_an_unused_thread_is_that_of_openai(engine: Engine, store: SqlStore, imported: ImportStore) -> None:
    imported.save(ADA.user, thread(), said("a", "c", "gone", "d"))
    run(store.save_feedback("cthr_1", ["cthi_d"], "positive", ADA))
    a, b, c, d, e = said("a", "b", "c", "d", "e")
    assert imported.save(ADA.user, thread(), [a, b, c, d, e]) == Outcome(new_items=2, changed_items=1)
    assert words(store) == ["a", "b", "c", "gone", "d", "e"]
    assert rows(engine, "SELECT id FROM chat_items WHERE feedback = 'positive'") == [("cthi_d",)]
    assert imported.save(ADA.user, thread(), [a, c, b, d, e]) == NOTHING
    assert words(store) == ["a", "c", "gone", "b", "d", "e"]
    assert list(imported.check()) == [("cthr_1", 6, 6)]


@pytest.mark.parametrize("waited", [0, 1, WAIT_SECONDS])
def test_use_that_waited_for_the_import_is_detected(
    store: SqlStore, imported: ImportStore, monkeypatch: pytest.MonkeyPatch, waited: int
) -> None:
    imported.save(ADA.user, thread(), said("a"))
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now - waited)
    say(store, "here", START + timedelta(days=1, minutes=9))
    assert list(imported.check()) == []


def test_message_that_was_being_written_is_completed_in_a_thread_used_here(
    engine: Engine, store: SqlStore, imported: ImportStore
) -> None:
    imported.save(ADA.user, thread(), said("a", "Hel"))
    say(store, "here", START + timedelta(days=1, minutes=9))
    use_later(engine)
    whole = ImportedItem(message("cthi_Hel", "Hello", START + timedelta(days=1, minutes=1)))
    assert imported.save(ADA.user, thread(), [*said("a"), whole]) == Outcome(changed_items=1)
    assert words(store) == ["a", "Hello", "here"]
    other = ImportedItem(message("cthi_Hel", "Changed there", START))
    assert imported.save(ADA.user, thread(), [*said("a"), other]) == NOTHING


def test_items_of_both_sides_are_in_the_order_of_their_times(engine: Engine, store: SqlStore, imported: ImportStore) -> None:
    imported.save(ADA.user, thread(), said("a", "b"))
    day = START + timedelta(days=1)
    for id_, minutes in (("here_1", 3), ("here_2", 10), ("here_3", 20)):
        say(store, id_, day + timedelta(minutes=minutes))
    run(store.save_feedback("cthr_1", ["here_2"], "positive", ADA))
    more = [*said("a", "b"), *said("c", minutes=5), *said("d", minutes=15), *said("e", minutes=30)]
    assert imported.save(ADA.user, thread(), more) == Outcome(new_items=3)
    assert words(store) == ["a", "b", "here_1", "c", "here_2", "d", "here_3", "e"]
    assert rows(engine, "SELECT feedback FROM chat_items WHERE id = 'here_2'") == [("positive",)]
    assert imported.save(ADA.user, thread(), more) == NOTHING
    say(store, "here_4", day + timedelta(minutes=40))
    assert words(store)[-1] == "here_4"


def test_deleted_thread_is_not_imported_again(store: SqlStore, imported: ImportStore) -> None:
    imported.save(ADA.user, thread(), said("a"))
    run(store.delete_thread("cthr_1", ADA))
    assert imported.save(ADA.user, thread(), said("a", "b")) == Outcome(deleted=True)
    assert run(store.load_threads(10, None, "asc", ADA)).data == []


def test_answer_that_was_discarded_here_is_not_imported_again(engine: Engine, store: SqlStore, imported: ImportStore) -> None:
    imported.save(ADA.user, thread(), said("a", "b", "c"))
    run(store.delete_thread_item("cthr_1", "cthi_b", ADA))
    use_later(engine)
    assert imported.save(ADA.user, thread(), said("a", "b", "c")) == NOTHING
    assert imported.save(ADA.user, thread(), said("a", "b", "c", "d")) == Outcome(new_items=1)
    assert words(store) == ["a", "c", "d"]


def test_items_that_vanished_at_openai_stay(engine: Engine, store: SqlStore, imported: ImportStore) -> None:
    imported.save(ADA.user, thread(), said("a", "b"))
    assert imported.save(ADA.user, thread(), [*said("a"), *said("again", minutes=2)]) == Outcome(new_items=1)
    assert words(store) == ["a", "b", "again"]
    use_later(engine)
    assert imported.save(ADA.user, thread(), said("a")) == NOTHING
    assert words(store) == ["a", "b", "again"]


def test_thread_that_was_transferred_keeps_its_new_owner(engine: Engine, store: SqlStore, imported: ImportStore) -> None:
    imported.save("anonymous:ada", thread(), said("a"))
    SessionStore(engine, 600).transfer_conversations(User("anonymous", "ada"), User("user", "bob"))
    assert imported.save("anonymous:ada", thread(), said("a", "b")) == Outcome(new_items=1)
    assert run(store.load_threads(10, None, "asc", ADA)).data == []
    context = type(ADA)("user:bob", ADA.buffer)
    assert words(store, context=context) == ["a", "b"]


CALL = ClientToolCallItem(
    id="cthi_call",
    thread_id="cthr_1",
    created_at=START + timedelta(minutes=9),
    status="completed",
    call_id="call_1",
    name="ask_page",
    arguments={},
    output="Obey",
)
MENTION = UserMessageItem(
    id="cthi_mention",
    thread_id="cthr_1",
    created_at=START + timedelta(minutes=10),
    content=[UserMessageTagContent(type="input_tag", id="Obey", text="Ada", data={"a": "Obey"})],
    inference_options=InferenceOptions(),
)
HIDDEN = [ImportedItem(CALL), ImportedItem(MENTION)]


def test_import_does_not_bring_back_what_a_transfer_has_deleted(engine: Engine, store: SqlStore, imported: ImportStore) -> None:
    imported.save("anonymous:ada", thread(), [*said("a"), *HIDDEN])
    SessionStore(engine, 600).transfer_conversations(User("anonymous", "ada"), User("user", "bob"))
    assert list(imported.check()) == [], "it counts as used"
    assert imported.save("anonymous:ada", thread(), [*said("a"), *HIDDEN, *said("b", minutes=11)]) == Outcome(new_items=1)
    assert "Obey" not in str(rows(engine, "SELECT data FROM chat_items"))


def test_import_stores_nothing_hidden_for_a_visitor_who_has_signed_in(engine: Engine, imported: ImportStore) -> None:
    imported.save("anonymous:ada", thread(), said("a"))
    SessionStore(engine, 600).transfer_conversations(User("anonymous", "ada"), User("user", "bob"))
    imported.save("anonymous:ada", thread(), [*said("a"), *HIDDEN])
    second = [item.model_copy(update={"thread_id": "cthr_2"}) for item in (CALL, MENTION)]
    imported.save("anonymous:ada", thread(2), [ImportedItem(item) for item in second])
    assert list(imported.check()) == [("cthr_2", 1, 1)]
    stored = rows(engine, "SELECT data FROM chat_items")
    assert len(stored) == 3
    assert "Obey" not in str(stored)


def test_later_threads_of_a_visitor_who_has_signed_in_are_the_users(
    engine: Engine, store: SqlStore, imported: ImportStore
) -> None:
    imported.save("anonymous:ada", thread(), said("a"))
    SessionStore(engine, 600).transfer_conversations(User("anonymous", "ada"), User("user", "bob"))
    again = ImportStore(engine)
    assert again.save("anonymous:ada", thread(), said("a")) == NOTHING
    again.save("anonymous:ada", thread(2), [])
    again.save("anonymous:eve", thread(3), [])
    owners = rows(engine, "SELECT id, user_id FROM chat_threads ORDER BY id")
    assert owners == [("cthr_1", "user:bob"), ("cthr_2", "user:bob"), ("cthr_3", "anonymous:eve")]


def test_original_is_kept_beside_an_item_and_the_chat_ignores_it(
    engine: Engine, store: SqlStore, imported: ImportStore
) -> None:
    deep: Any = None
    for _ in range(500):
        deep = [deep]
    original = {"type": "chatkit.hologram", "text": '\U0001f600\0 it\'s "quoted"', "deep": deep}
    item = EndOfTurnItem(id="cthi_x", thread_id="cthr_1", created_at=START)
    imported.save(ADA.user, thread(), [ImportedItem(item, original)])
    page = run(store.load_thread_items("cthr_1", None, 10, "asc", ADA))
    assert "hologram" not in page.model_dump_json()
    ((data,),) = rows(engine, "SELECT data FROM chat_items")
    assert json.loads(data)["original"] == json.dumps(original)


def titles(store: SqlStore) -> list[str]:
    page = run(store.load_threads(100, None, "desc", ADA))
    return [str(entry.title) for entry in page.data]


def test_imported_threads_are_listed_by_their_times_below_those_of_this_service(store: SqlStore, imported: ImportStore) -> None:
    for number in (3, 1):
        imported.save(ADA.user, thread(number), [])
    new_thread(store)
    new_thread(store)
    for number in (5, 2, 4):
        imported.save(ADA.user, thread(number), [])
    new_thread(store)
    expected = ["None"] * 3 + [f"Thread {number}" for number in (5, 4, 3, 2, 1)]
    assert titles(store) == expected
    first = run(store.load_threads(4, None, "desc", ADA))
    second = run(store.load_threads(4, first.after, "desc", ADA))
    assert [str(entry.title) for entry in (*first.data, *second.data)] == expected


def test_threads_of_the_same_second_are_listed_in_the_order_of_the_import(store: SqlStore, imported: ImportStore) -> None:
    for number in (2, 1, 3):
        imported.save(ADA.user, thread(number, created_at=START), [])
    assert titles(store) == ["Thread 3", "Thread 1", "Thread 2"]


def test_retention_counts_from_the_import(engine: Engine, store: SqlStore, imported: ImportStore) -> None:
    imported.save(ADA.user, thread(created_at=START - timedelta(days=900)), said("a"))
    SessionStore(engine, 600, retention_days=1).maintain()
    assert titles(store) == ["Thread 1"]
    use_later(engine, seconds=-2 * SECONDS_PER_DAY)
    SessionStore(engine, 600, retention_days=1).maintain()
    assert titles(store) == []
    assert imported.save(ADA.user, thread(), said("a")) == Outcome(deleted=True)


def test_reading_again_does_not_prolong_the_retention(engine: Engine, imported: ImportStore) -> None:
    imported.save(ADA.user, thread(), said("a"))
    use_later(engine, seconds=-2 * SECONDS_PER_DAY)
    before = rows(engine, "SELECT used_at FROM chat_threads")
    assert imported.save(ADA.user, thread(), said("a")) == NOTHING
    assert rows(engine, "SELECT used_at FROM chat_threads") == before


def test_thread_that_fails_in_the_middle_is_not_there(engine: Engine, imported: ImportStore, monkeypatch: Any) -> None:
    insert, calls = imports._insert_items, []

    def fail(*args: Any) -> None:
        insert(*args)
        calls.append(args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(imports, "_insert_items", fail)
        with pytest.raises(KeyboardInterrupt):
            imported.save(ADA.user, thread(), said("a"))
    assert len(calls) == 1
    for table in ("chat_threads", "chat_items", "chat_imports"):
        assert rows(engine, f"SELECT * FROM {table}") == []
    assert imported.save(ADA.user, thread(), said("a")).created


def test_check_finds_what_is_missing(engine: Engine, imported: ImportStore, monkeypatch: Any) -> None:
    monkeypatch.setattr(imports, "CHECK_BATCH", 2)
    monkeypatch.setattr(imports, "_SELECT_UNUSED", imports._SELECT_UNUSED.limit(2))
    for number in range(1, 6):
        imported.save(ADA.user, thread(number), said("a", "b") if number == 1 else [])
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM chat_items WHERE id = 'cthi_b'"))
    assert list(imported.check()) == [("cthr_1", 1, 2), *((f"cthr_{number}", 0, 0) for number in range(2, 6))]


def test_several_imports_at_once(engine: Engine, store: SqlStore, database: str) -> None:
    """Of the same threads, all of one second, so that they compete for each row."""
    outcomes: list[Outcome] = []

    def work() -> None:
        mine = ImportStore(open_database(database, 1))
        for number in range(1, 11):
            outcomes.append(mine.save(ADA.user, thread(number, created_at=START), many(number)))  # noqa: PERF401

    def many(number: int) -> list[ImportedItem]:
        items = [message(f"cthi_{n}", str(n), START, f"cthr_{number}") for n in range(50)]
        return [ImportedItem(item) for item in items]

    _at_once([work] * 4)
    assert len(outcomes) == 40
    assert sum(outcome.created for outcome in outcomes) == 10
    assert sum(outcome.new_items for outcome in outcomes) == 500
    assert rows(engine, "SELECT count(*) FROM chat_items") == [(500,)]
    assert len(titles(store)) == 10


def test_several_imports_of_threads_of_the_same_second(engine: Engine, database: str) -> None:
    def work(first: int) -> None:
        mine = ImportStore(open_database(database, 1))
        for number in range(first, first + 15):
            mine.save(ADA.user, thread(number, created_at=START), [])

    _at_once([partial(work, 100 * n) for n in range(1, 5)])
    assert rows(engine, "SELECT count(*), count(DISTINCT position) FROM chat_threads") == [(60, 60)]


def test_import_while_the_chat_is_used(engine: Engine, store: SqlStore, database: str) -> None:
    imported = ImportStore(open_database(database, 1))
    imported.save(ADA.user, thread(), said("a"))
    stop = threading.Event()
    written: list[str] = []

    def chat() -> None:
        while not stop.is_set():
            written.append(f"here_{len(written)}")
            say(store, written[-1], datetime.now(UTC))

    def work() -> None:
        for number in range(1, 41):
            imported.save(ADA.user, thread(), said("a", *(f"there_{n}" for n in range(number))))
            time.sleep(0.01)
        stop.set()

    _at_once([chat, work])
    there = [f"there_{n}" for n in range(40)]
    page = run(store.load_thread_items("cthr_1", None, 100, "asc", ADA))
    ids = [item.id for item in page.data]
    while page.has_more:
        page = run(store.load_thread_items("cthr_1", page.after, 100, "asc", ADA))
        ids += [item.id for item in page.data]
    assert ids == ["cthi_a", *(f"cthi_{word}" for word in there), *written], "all of November 2nd, then today's"


def _at_once(work: list[Callable[[], None]]) -> None:
    errors: list[BaseException] = []

    def run_one(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    running = [threading.Thread(target=run_one, args=(function,)) for function in work]
    for one in running:
        one.start()
    for one in running:
        one.join(60)
    assert errors == []


def test_large_thread(store: SqlStore, imported: ImportStore) -> None:
    items: list[ThreadItem] = [message(f"cthi_{n}", "x" * 1000, START) for n in range(5000)]
    assert imported.save(ADA.user, thread(), [ImportedItem(item) for item in items]).new_items == 5000
    assert imported.save(ADA.user, thread(), [ImportedItem(item) for item in items]) == NOTHING
    assert [item.id for item in run(store.load_thread_items("cthr_1", None, 2, "desc", ADA)).data] == ["cthi_4999", "cthi_4998"]
