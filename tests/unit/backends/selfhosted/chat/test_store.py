"""The SQL store, on SQLite and PostgreSQL: pages, isolation of users, deletion, retention."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal

import pytest
from chatkit.store import NotFoundError
from chatkit.types import (
    ClientToolCallItem,
    FileAttachment,
    ThreadMetadata,
    UserMessageItem,
    WidgetItem,
    Workflow,
    WorkflowItem,
)
from chatkit.widgets import Card, DatePicker, DynamicWidgetRoot, Text
from sqlalchemy import create_engine, insert, text

from chatkit.backends.selfhosted.chat.context import ChatContext
from chatkit.backends.selfhosted.chat.pages import MAX_PAGE_BYTES
from chatkit.backends.selfhosted.chat.store import INSERT_THREAD, SqlStore
from chatkit.backends.selfhosted.database.engine import open_database
from chatkit.backends.selfhosted.database.tables import ItemRow
from chatkit.backends.selfhosted.sessions import SessionStore
from chatkit.backends.selfhosted.user_data import UserData
from chatkit.identity.user import User
from chatkit.web.errors import ClientSecretUnknown
from tests.support.store import ADA, EVE, IMAGE_URLS, MOMENT, add_items, message, new_thread, of, question, run


def counts(database: str) -> dict[str, int]:
    with create_engine(database).connect() as connection:
        tables = ("chat_threads", "chat_items", "chat_attachments")
        return {table: connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() for table in tables}


def of_template(**members: Any) -> DynamicWidgetRoot:
    return DynamicWidgetRoot.model_validate({"type": "Card", **members})


@pytest.mark.parametrize(
    "widget",
    [
        of_template(border={"size": 2, "color": "red"}, children=[{"type": "Text", "value": "Hello", "new": None, "newer": 1}]),
        of_template(children=[{"type": "Row", "children": [{"type": "DatePicker", "name": "day", "min": "2026-01-02"}]}]),
        Card(children=[Text(value="Hello"), DatePicker(name="day", min=datetime(2026, 1, 2, tzinfo=UTC))]),
    ],
    ids=["unknown members", "date", "classes"],
)
def test_widget_is_as_it_was_shown(store: SqlStore, widget: Any) -> None:
    """The classes of OpenAI's package do not know all that a template may contain."""
    thread_id = new_thread(store)
    item = WidgetItem(id="msg_1", thread_id=thread_id, created_at=MOMENT, widget=widget)
    shown = item.model_dump(mode="json")
    run(store.add_thread_item(thread_id, item, ADA))
    loaded = run(store.load_item(thread_id, "msg_1", ADA))
    assert loaded.model_dump(mode="json") == shown
    assert isinstance(loaded, WidgetItem)
    assert type(loaded.widget) is type(widget)


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_contain_each_item_once_in_order(store: SqlStore, order: str) -> None:
    thread_id = new_thread(store)
    names = [f"msg_{number}" for number in range(25)]
    for name in names:
        run(store.add_thread_item(thread_id, message(thread_id, name), ADA))
    seen, after = [], None
    for _ in range(10):
        page = run(store.load_thread_items(thread_id, after, 7, order, ADA))
        seen += [item.id for item in page.data]
        if not page.has_more:
            break
        after = page.after
    assert seen == (names if order == "asc" else names[::-1])


def test_pages_are_stable_while_items_are_added(store: SqlStore) -> None:
    thread_id = new_thread(store)
    for number in range(6):
        run(store.add_thread_item(thread_id, message(thread_id, f"msg_{number}"), ADA))
    first = run(store.load_thread_items(thread_id, None, 3, "desc", ADA))
    run(store.add_thread_item(thread_id, message(thread_id, "msg_new"), ADA))
    second = run(store.load_thread_items(thread_id, first.after, 3, "desc", ADA))
    assert [item.id for item in first.data + second.data] == [f"msg_{number}" for number in range(5, -1, -1)]


def test_pages_of_threads(store: SqlStore) -> None:
    ids = [new_thread(store) for _ in range(5)]
    new_thread(store, EVE)
    first = run(store.load_threads(2, None, "desc", ADA))
    second = run(store.load_threads(10, first.after, "desc", ADA))
    assert [thread.id for thread in first.data + second.data] == ids[::-1]
    assert (first.has_more, second.has_more, second.after) == (True, False, None)


@pytest.mark.parametrize("limit", [-1, 0])
def test_page_has_a_row_at_least(store: SqlStore, limit: int) -> None:
    thread_id = new_thread(store)
    add_items(store, [message(thread_id, f"msg_{number}") for number in range(3)])
    assert len(run(store.load_thread_items(thread_id, None, limit, "asc", ADA)).data) == 1


@pytest.mark.parametrize(("limit", "expected", "more"), [(100, 100, True), (101, 101, True), (10**9, 102, False)])
def test_server_may_load_as_many_rows_as_it_likes(store: SqlStore, limit: int, expected: int, more: bool) -> None:
    thread_id = new_thread(store)
    add_items(store, [message(thread_id, f"msg_{number}") for number in range(102)])
    page = run(store.load_thread_items(thread_id, None, limit, "asc", ADA))
    assert (len(page.data), page.has_more) == (expected, more)


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_page_ends_with_the_item_that_exceeds_its_bytes(store: SqlStore, order: str) -> None:
    thread_id = new_thread(store)
    for name, size in (("a", 10), ("b", MAX_PAGE_BYTES), ("c", 10), ("d", 2 * MAX_PAGE_BYTES), ("e", 10)):
        run(store.add_thread_item(thread_id, message(thread_id, name, "x" * size), ADA))
    pages, after = [], None
    while True:
        page = run(store.load_thread_items(thread_id, after, 10, order, ADA))
        pages.append("".join(item.id for item in page.data))
        if not (after := page.after):
            break
    assert pages == (["ab", "cd", "e"] if order == "asc" else ["ed", "cb", "a"])


def test_items_after_a_full_page_are_not_read(store: SqlStore) -> None:
    thread_id = new_thread(store)
    for number in range(40):
        run(store.add_thread_item(thread_id, message(thread_id, f"msg_{number}", "x" * (MAX_PAGE_BYTES // 2)), ADA))
    tracemalloc.start()
    page = run(store.load_thread_items(thread_id, None, 100, "asc", ADA))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(page.data) == 2
    assert peak < 10 * MAX_PAGE_BYTES, "all items are 20 times MAX_PAGE_BYTES"


def test_item_saved_again_keeps_its_position(store: SqlStore) -> None:
    thread_id = new_thread(store)
    for name in ("a", "b"):
        run(store.add_thread_item(thread_id, message(thread_id, name), ADA))
    run(store.add_thread_item(thread_id, message(thread_id, "a", "changed"), ADA))
    page = run(store.load_thread_items(thread_id, None, 10, "asc", ADA))
    assert page.data == [message(thread_id, "a", "changed"), message(thread_id, "b")]


def client_tool_call(thread_id: str, name: str, status: Literal["pending", "completed"] = "pending") -> ClientToolCallItem:
    return ClientToolCallItem(
        id=name, thread_id=thread_id, created_at=MOMENT, status=status, call_id="call", name="ask_page", arguments={}
    )


def answered_call(thread_id: str, name: str) -> ClientToolCallItem:
    return client_tool_call(thread_id, name, "completed")


def reasoning(thread_id: str, name: str) -> WorkflowItem:
    return WorkflowItem(id=name, thread_id=thread_id, created_at=MOMENT, workflow=Workflow(type="reasoning", tasks=[]))


ADDED_BEFORE: dict[str, tuple[list[Callable[[str, str], Any]], list[str]]] = {
    "empty thread": ([], ["new"]),
    "message": ([message], ["0", "new"]),
    "call": ([client_tool_call], ["new", "0"]),
    "message, call": ([message, client_tool_call], ["0", "new", "1"]),
    "message, reasoning, call": ([message, reasoning, client_tool_call], ["0", "new", "1", "2"]),
    "completed call": ([answered_call], ["0", "new"]),
    "call, message": ([client_tool_call, message], ["0", "1", "new"]),
}


@pytest.mark.parametrize("case", ADDED_BEFORE)
def test_item_is_added_before_a_pending_call(store: SqlStore, case: str) -> None:
    thread_id = new_thread(store)
    makers, order = ADDED_BEFORE[case]
    for number, make in enumerate(makers):
        run(store.add_thread_item(thread_id, make(thread_id, str(number)), ADA))
    call = run(store.add_before_call(thread_id, message(thread_id, "new"), ADA))
    assert [item.id for item in run(store.load_thread_items(thread_id, None, 10, "asc", ADA)).data] == order
    assert call == (order[-1] if order[-1] != "new" else None)


def test_pending_call_is_moved_to_the_end(store: SqlStore) -> None:
    thread_id = new_thread(store)
    for item in (client_tool_call(thread_id, "call"), message(thread_id, "a")):
        run(store.add_thread_item(thread_id, item, ADA))

    def order() -> list[str]:
        return [item.id for item in run(store.load_thread_items(thread_id, None, 10, "asc", ADA)).data]

    run(store.move_to_end(thread_id, "call", ADA))
    assert order() == ["a", "call"]
    run(store.save_item(thread_id, answered_call(thread_id, "call"), ADA))
    run(store.add_thread_item(thread_id, message(thread_id, "b"), ADA))
    for completed_or_unknown in ("call", "nowhere"):
        run(store.move_to_end(thread_id, completed_or_unknown, ADA))
    assert order() == ["a", "call", "b"]


def test_saving_a_thread_keeps_concurrent_changes(store: SqlStore) -> None:
    thread_id = new_thread(store)
    responding, renaming = of(ADA.user), of(ADA.user)
    answered = run(store.load_thread(thread_id, responding))
    renamed = run(store.load_thread(thread_id, renaming))
    renamed.title = "Renamed"
    run(store.save_thread(renamed, renaming))
    answered.metadata = {"count": 1}
    run(store.save_thread(answered, responding))
    assert answered.title == "Renamed", "so that the page gets the new title as well"
    stored = run(store.load_thread(thread_id, ADA))
    assert (stored.title, stored.metadata) == ("Renamed", {"count": 1})
    answered.title = "The agent's"
    run(store.save_thread(answered, responding))
    assert run(store.load_thread(thread_id, ADA)).title == "The agent's"


def test_tenant_isolation(store: SqlStore, database: str) -> None:
    thread_id = new_thread(store)
    run(store.add_thread_item(thread_id, message(thread_id, "msg_1"), ADA))
    run(store.save_attachment(FileAttachment(id="atc_1", name="a", mime_type="b", thread_id=thread_id), ADA))
    before = counts(database)
    metadata = run(store.load_thread(thread_id, ADA))
    attempts: list[Coroutine[Any, Any, Any]] = [
        store.load_thread(thread_id, EVE),
        store.save_thread(metadata, EVE),
        store.load_thread_items(thread_id, None, 10, "asc", EVE),
        store.load_thread_items(thread_id, "msg_1", 10, "asc", EVE),
        store.load_item(thread_id, "msg_1", EVE),
        store.add_thread_item(thread_id, message(thread_id, "msg_2"), EVE),
        store.save_item(thread_id, message(thread_id, "msg_1", "changed"), EVE),
        store.add_before_call(thread_id, message(thread_id, "msg_2"), EVE),
        store.save_feedback(thread_id, ["msg_1"], "negative", EVE),
        store.load_threads(10, thread_id, "asc", EVE),
        store.delete_thread(thread_id, EVE),
        store.load_attachment("atc_1", EVE),
        store.delete_attachment("atc_1", EVE),
    ]
    for attempt in attempts:
        with pytest.raises(NotFoundError):
            run(attempt)
    run(store.delete_thread_item(thread_id, "msg_1", EVE))  # no effect, as for an item that does not exist
    assert run(store.load_threads(10, None, "asc", EVE)).data == []
    assert counts(database) == before
    assert run(store.load_item(thread_id, "msg_1", ADA)) == message(thread_id, "msg_1")


@pytest.mark.parametrize("context", [ADA, EVE], ids=["own", "another user's"])
def test_item_of_another_thread_is_no_cursor(store: SqlStore, context: ChatContext) -> None:
    other, thread_id = new_thread(store), new_thread(store, context)
    run(store.add_thread_item(other, message(other, "msg_1"), ADA))
    run(store.add_thread_item(thread_id, message(thread_id, "msg_2"), context))
    with pytest.raises(NotFoundError):
        run(store.load_thread_items(thread_id, "msg_1", 10, "asc", context))


def test_deleting_later_items_leaves_other_threads_alone(store: SqlStore) -> None:
    thread_id, own, anothers = new_thread(store), new_thread(store), new_thread(store, EVE)
    run(store.add_thread_item(thread_id, question(thread_id, "q"), ADA))
    for number in range(2):
        run(store.add_thread_item(thread_id, message(thread_id, f"msg_{number}"), ADA))
        run(store.add_thread_item(own, message(own, f"own_{number}"), ADA))
        run(store.add_thread_item(anothers, message(anothers, f"eves_{number}"), EVE))
    run(store.delete_after(thread_id, "q", ADA))
    left = [(thread_id, ADA), (own, ADA), (anothers, EVE)]
    assert [[item.id for item in run(store.load_thread_items(id_, None, 10, "asc", who)).data] for id_, who in left] == [
        ["q"],
        ["own_0", "own_1"],
        ["eves_0", "eves_1"],
    ]


def test_deleting_an_item_detaches_its_attachments_only(store: SqlStore, database: str) -> None:
    thread_id = new_thread(store)
    for number in (1, 2):
        send(store, f"atc_{number}", question(thread_id, f"msg_{number}"))
    run(store.delete_thread_item(thread_id, "msg_1", ADA))
    with create_engine(database).connect() as connection:
        query = "SELECT id, thread_id, item_id, created_at > 0 FROM chat_attachments ORDER BY id"
        rows = [tuple(row) for row in connection.execute(text(query))]
    assert rows == [("atc_1", None, None, False), ("atc_2", thread_id, "msg_2", True)]
    with pytest.raises(NotFoundError):
        run(store.attachments.check_sendable(["atc_1"], ADA, need_content=False))


def test_attachment_of_a_message_is_not_moved_to_another_thread(store: SqlStore) -> None:
    thread_id, other = new_thread(store), new_thread(store)
    attachment = send(store, "atc_1", question(thread_id, "msg_1"))
    moved = attachment.model_copy(update={"thread_id": other})
    with pytest.raises(NotFoundError):
        run(store.save_attachment(moved, replace(ADA, brings_message=True)))
    assert run(store.load_attachment("atc_1", ADA)).thread_id == thread_id


def test_attachment_of_another_user_is_not_sent(store: SqlStore) -> None:
    thread_id, mine = new_thread(store, EVE), FileAttachment(id="atc_1", name="a", mime_type="b")
    run(store.save_attachment(mine, ADA))
    item = question(thread_id, "msg_1").model_copy(update={"attachments": [mine]})
    with pytest.raises(NotFoundError):
        run(store.add_thread_item(thread_id, item, replace(EVE, brings_message=True)))
    run(store.add_thread_item(thread_id, item, EVE))
    assert run(store.attachments.check_sendable(["atc_1"], ADA, need_content=False)) == 0, "it is still Ada's to send"


def send(store: SqlStore, attachment_id: str, item: UserMessageItem) -> FileAttachment:
    """Store an attachment, and ``item`` with it."""
    attachment = FileAttachment(id=attachment_id, name="a", mime_type="b", thread_id=item.thread_id)
    run(store.save_attachment(attachment, ADA))
    run(store.add_thread_item(item.thread_id, item.model_copy(update={"attachments": [attachment]}), ADA))
    return attachment


def test_draft_of_a_deleted_thread_does_not_hold_up_the_others(store: SqlStore, database: str) -> None:
    gone, kept = new_thread(store), new_thread(store)
    run(store.delete_thread(gone, ADA))
    drafts = [(ADA, message(gone, "a")), (ADA, message(kept, "b")), (EVE, message(kept, "c"))]
    run(store.save_drafts(drafts))
    assert [item.id for item in run(store.load_thread_items(kept, None, 10, "asc", ADA)).data] == ["b"]
    assert counts(database)["chat_items"] == 1


class TestDeletedUser:
    """``users delete`` deletes the sessions first, while their requests may still be served."""

    @pytest.fixture
    def context(self, database: str) -> ChatContext:
        session = SessionStore(open_database(database), ttl=600).issue(User("anonymous", "ada"))
        return replace(ADA, session_id=session.session_id, threads={})

    def test_has_no_new_threads(self, store: SqlStore, database: str, context: ChatContext) -> None:
        new_thread(store, context)
        with create_engine(database).connect() as connection:
            UserData(connection).delete(ADA.user)
        with pytest.raises(ClientSecretUnknown):
            new_thread(store, context)
        assert counts(database)["chat_threads"] == 0

    def test_thread_that_is_being_created_is_deleted(self, store: SqlStore, database: str, context: ChatContext) -> None:
        thread = {"id": "thr_1", "user_id": ADA.user, "used_at": 1, "data": "{}"}

        def delete() -> None:
            with create_engine(database).connect() as connection:
                UserData(connection).delete(ADA.user)

        with ThreadPoolExecutor(1) as pool:
            with store.transactions.engine.begin() as connection:
                statement = INSERT_THREAD[connection.dialect.name]
                assert connection.execute(statement, {**thread, "session": context.session_id, "after": 0}).rowcount
                deleted = pool.submit(delete)
                time.sleep(0.5)
                assert not deleted.done()
            deleted.result()
        assert counts(database)["chat_threads"] == 0


def test_deleting_a_thread_deletes_its_rows(store: SqlStore, database: str) -> None:
    kept = new_thread(store)
    thread_id = new_thread(store)
    for number in range(3):
        run(store.add_thread_item(thread_id, message(thread_id, f"msg_{number}"), ADA))
    run(store.save_attachment(FileAttachment(id="atc_1", name="a", mime_type="b", thread_id=thread_id), ADA))
    run(store.delete_thread(thread_id, ADA))
    assert counts(database) == {"chat_threads": 1, "chat_items": 0, "chat_attachments": 1}
    SessionStore(store.transactions.engine, ttl=600).maintain()
    assert counts(database) == {"chat_threads": 1, "chat_items": 0, "chat_attachments": 0}
    assert run(store.load_thread(kept, ADA)).id == kept


def test_deleted_thread_is_not_recreated_by_later_writes(store: SqlStore, database: str) -> None:
    thread_id = new_thread(store)
    metadata = run(store.load_thread(thread_id, ADA))
    run(store.delete_thread(thread_id, ADA))
    for write in (store.save_thread(metadata, ADA), store.add_thread_item(thread_id, message(thread_id, "msg_1"), ADA)):
        with pytest.raises(NotFoundError):
            run(write)
    assert counts(database)["chat_threads"] == 0


def test_retention(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_database(database)
    store, issuer = SqlStore(engine, IMAGE_URLS), SessionStore(engine, ttl=600, retention_days=30)
    old, used = new_thread(store), new_thread(store)
    run(store.add_thread_item(old, message(old, "msg_1"), ADA))
    now, monotonic = time.time(), time.monotonic()
    monkeypatch.setattr("time.time", lambda: now + 20 * 86400)
    issuer.maintain()
    run(store.add_thread_item(used, message(used, "msg_1"), ADA))
    monkeypatch.setattr("time.time", lambda: now + 31 * 86400)
    issuer.maintain()
    assert counts(database)["chat_threads"] == 2, "at most once an hour"
    monkeypatch.setattr("time.monotonic", lambda: monotonic + 3500)
    issuer.maintain()
    assert counts(database)["chat_threads"] == 2
    monkeypatch.setattr("time.monotonic", lambda: monotonic + 3700)
    issuer.maintain()
    assert {thread.id for thread in run(store.load_threads(10, None, "asc", ADA)).data} == {used}
    assert counts(database)["chat_items"] == 1


def test_ids_have_96_random_bits(store: SqlStore) -> None:
    thread = ThreadMetadata(id="t", created_at=MOMENT)
    kinds = ("message", "tool_call", "task", "workflow", "attachment", "sdk_hidden_context")
    made = [store.generate_thread_id(ADA), *(store.generate_item_id(kind, thread, ADA) for kind in kinds)]
    for identifier in made:
        assert len(identifier.rpartition("_")[2]) * 4 >= 96
    assert len(set(made)) == len(made)


def test_paging_uses_an_index(store: SqlStore) -> None:
    """Checked on the query plan, because timing is noisy: a page reads no more rows than it returns. bench/ has the timing."""
    thread_id = new_thread(store)
    other = new_thread(store)
    with store.transactions.engine.begin() as connection:
        for target in (thread_id, other):
            rows = [
                {
                    "thread_id": target,
                    "user_id": ADA.user,
                    "id": f"msg_{number}",
                    "data": message(target, f"msg_{number}").model_dump_json(),
                }
                for number in range(5000)
            ]
            connection.execute(insert(ItemRow), rows)
        if connection.dialect.name == "postgresql":
            connection.execute(text("ANALYZE"))
            explain = "EXPLAIN "
        else:
            explain = "EXPLAIN QUERY PLAN "
        where = "thread_id = :thread AND user_id = :user AND position < 9000 ORDER BY position DESC LIMIT 21"
        query = text(f"{explain}SELECT id, data FROM chat_items WHERE {where}")
        plan = " ".join(str(row) for row in connection.execute(query, {"thread": thread_id, "user": ADA.user}))
    assert "ix_chat_items_thread_id_position" in plan or "pk_chat_items" in plan
    assert "SCAN" not in plan.upper().replace("INDEX SCAN", "").replace("SCAN BACKWARD", "")
    assert "SORT" not in plan.upper().replace("COVERING", "")
