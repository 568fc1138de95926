"""Storage of conversations that were imported from elsewhere.

Threads and items keep their ids. Ids of this service are random, so the two can't collide, and no user can choose one.
"""

from __future__ import annotations

import heapq
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Connection, Engine, bindparam, delete, func, insert, select, update

from chatkit.backends.selfhosted.chat.surrogates import to_json
from chatkit.backends.selfhosted.chat.timestamps import as_utc, in_utc
from chatkit.backends.selfhosted.database.engine import WAIT_SECONDS, public_address
from chatkit.backends.selfhosted.database.tables import DIALECTS, ImportRow, ItemRow, ThreadRow
from chatkit.backends.selfhosted.sessions import shown_part
from chatkit.types import ThreadItem, ThreadMetadata

POSITIONS_PER_SECOND = 2**20  # threads that were created in one second
LAST_SECOND = 2**33  # in the year 2242
BATCH = 200  # rows of a statement, which has a time limit
CHECK_BATCH = 500  # threads

_thread: Any = bindparam("thread")
_owner: Any = bindparam("owner")

_INSERT_IMPORT = {
    name: dialect.insert(ImportRow).on_conflict_do_nothing(index_elements=["thread_id"]).returning(ImportRow.thread_id)
    for name, dialect in DIALECTS.items()
}
_SELECT_IMPORT = select(ImportRow.last_item_id, ImportRow.used_at).where(ImportRow.thread_id == _thread)
_UPDATE_IMPORT = (
    update(ImportRow)
    .where(ImportRow.thread_id == _thread)
    .values(last_item_id=bindparam("last_item"), items=bindparam("number"), used_at=bindparam("new_used_at"))
)
# The only statement here that does not name the owner, because a visitor's thread may have been transferred to another user.
_SELECT_THREAD = select(ThreadRow.user_id, ThreadRow.used_at, ThreadRow.data).where(ThreadRow.id == _thread).with_for_update()
_LOCK_SECOND = select(func.pg_advisory_xact_lock(bindparam("first", type_=BigInteger)))  # for imports at the same time
_SELECT_POSITION = select(func.max(ThreadRow.position)).where(ThreadRow.position.between(bindparam("first"), bindparam("last")))
_INSERT_THREAD = insert(ThreadRow)
_UPDATE_THREAD = (
    update(ThreadRow)
    .where(ThreadRow.id == _thread, ThreadRow.user_id == _owner)
    .values(data=bindparam("new_data"), used_at=bindparam("now"))
)
_SELECT_ITEMS = (
    select(ItemRow.position, ItemRow.id, ItemRow.data, ItemRow.feedback)
    .where(ItemRow.thread_id == _thread, ItemRow.user_id == _owner)
    .order_by(ItemRow.position)
)
_INSERT_ITEMS = insert(ItemRow)
_own_item = (ItemRow.position == bindparam("item"), ItemRow.user_id == _owner)
_UPDATE_ITEMS = update(ItemRow).where(*_own_item).values(data=bindparam("new_data"))
_DELETE_ITEMS = delete(ItemRow).where(*_own_item)
_SELECT_UNUSED = (
    select(ImportRow.thread_id, ImportRow.items, func.count(ItemRow.position).label("stored"))
    .join(ThreadRow, (ThreadRow.id == ImportRow.thread_id) & (ThreadRow.used_at == ImportRow.used_at))
    .outerjoin(ItemRow, ItemRow.thread_id == ImportRow.thread_id)
    .where(ImportRow.thread_id > bindparam("after"))
    .group_by(ImportRow.thread_id, ImportRow.items)
    .order_by(ImportRow.thread_id)
    .limit(CHECK_BATCH)
)


@dataclass(frozen=True)
class ImportedItem:
    item: ThreadItem
    original: Any = None
    """Stored beside the item, as a text with JSON, if it is not ``None``; the chat ignores it."""


@dataclass(frozen=True)
class Outcome:
    created: bool = False
    deleted: bool = False
    """Whether the thread was imported before and has been deleted here since."""
    new_items: int = 0
    changed_items: int = 0


@dataclass(frozen=True)
class _NewItem:
    id: str
    created_at: datetime
    data: str
    feedback: str | None = None


class ImportStore:
    """Stores imported threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._new_owners: dict[str, str] = {}
        """The users to whom the threads of a visitor were transferred, by visitor."""
        self.database = public_address(engine)
        """Its address, for the operator, without secrets."""

    def save(self, user: str, thread: ThreadMetadata, items: list[ImportedItem]) -> Outcome:
        """Store a thread of ``user`` (a ``User.id``) and its items, in one transaction.

        A thread that was imported before gets the items that are new. Nothing is deleted, nothing is stored twice, and a thread
        or an item that was deleted here stays deleted. While the thread has not been used here, its title, its status, its
        items and their order follow the imported ones. After that they are the user's, except that a message that was still
        being written at the import is completed.

        Args:
            user: the owner of a new thread; one that was imported before keeps its owner. If an earlier one of this visitor was
                transferred to a user, the new one is that user's as well.
            thread: the thread.
            items: all its items, oldest first, with ``created_at`` in UTC.
        """
        listed = {imported.item.id: _new_item(imported) for imported in items}
        with self._engine.begin() as connection:
            return _save(connection, user, thread, listed, self._new_owners)

    def check(self) -> Iterator[tuple[str, int, int]]:
        """Yield each imported thread that was not used here since: its id, its number of items, and how many it should have."""
        after = ""
        while True:
            with self._engine.connect() as connection:
                rows = connection.execute(_SELECT_UNUSED, {"after": after}).all()
            for row in rows:
                yield row.thread_id, row.stored, row.items
            if len(rows) < CHECK_BATCH:
                return
            after = rows[-1].thread_id


def _save(
    connection: Connection, user: str, thread: ThreadMetadata, listed: dict[str, _NewItem], new_owners: dict[str, str]
) -> Outcome:
    used_at = int(time.time()) - 2 * WAIT_SECONDS  # so that a use is detected that began before, and waited for a lock
    last = next(reversed(listed), None)
    if user in new_owners:
        listed = {item.id: item for item in _shown_parts(listed.values())}
    record = {"thread_id": thread.id, "last_item_id": last, "items": len(listed), "used_at": used_at}
    # Written first, so that two imports of a thread at the same time follow each other.
    if connection.execute(_INSERT_IMPORT[connection.dialect.name], record).scalar_one_or_none() is not None:
        owner = new_owners.get(user, user)
        row = {"position": _position(connection, thread), "id": thread.id, "user_id": owner, "used_at": used_at}
        connection.execute(_INSERT_THREAD, {**row, "data": _thread_data(thread)})
        _insert_items(connection, thread.id, owner, list(listed.values()))
        return Outcome(created=True, new_items=len(listed))

    stored = connection.execute(_SELECT_THREAD, {"thread": thread.id}).one_or_none()
    if stored is None:
        return Outcome(deleted=True)
    transferred = stored.user_id != user
    if transferred:
        new_owners[user] = stored.user_id
    known = connection.execute(_SELECT_IMPORT, {"thread": thread.id}).one()
    unused = stored.used_at == known.used_at and not transferred
    own = {"thread": thread.id, "owner": stored.user_id}
    rows = connection.execute(_SELECT_ITEMS, own).all()
    by_id = {row.id: row for row in rows}

    later = list(listed.values())
    if not unused and known.last_item_id in listed:
        later = later[list(listed).index(known.last_item_id) + 1 :]
    if transferred:
        later = list(_shown_parts(later))
    new = [item for item in later if item.id not in by_id]
    changed = [
        {"item": by_id[item.id].position, "owner": stored.user_id, "new_data": item.data}
        for item in listed.values()
        if item.id in by_id and by_id[item.id].data != item.data and (unused or _completes(by_id[item.id].data, item.data))
    ]
    order = _order(rows, listed) if unused else []
    moved = unused and [item.id for item in order if item.id in by_id] != list(by_id)
    old_thread = ThreadMetadata.model_validate_json(stored.data)
    follow = {"title": thread.title, "status": thread.status} if unused else {"title": old_thread.title or thread.title}
    new_thread = old_thread.model_copy(update=follow)
    if not new and not changed and not moved and new_thread == old_thread:
        return Outcome()

    for start in range(0, len(changed), BATCH):
        connection.execute(_UPDATE_ITEMS, changed[start : start + BATCH])
    if unused:
        _replace_from_first_difference(connection, thread.id, stored.user_id, rows, order)
    else:
        _add_by_time(connection, thread.id, stored.user_id, rows, new, listed)
    connection.execute(_UPDATE_THREAD, {**own, "new_data": _thread_data(new_thread), "now": used_at})
    record = {"last_item": last or known.last_item_id, "number": len(rows) + len(new), "thread": thread.id}
    # Zero: a thread that was used here does not become an unused one again.
    connection.execute(_UPDATE_IMPORT, {**record, "new_used_at": used_at if unused else 0})
    return Outcome(new_items=len(new), changed_items=len(changed))


def _position(connection: Connection, thread: ThreadMetadata) -> int:
    """Return a position by the time of the thread, and below those of all threads that were created here.

    Lists of threads are ordered by position, and a user may have threads of this service already.
    """
    first = (int(thread.created_at.timestamp()) - LAST_SECOND) * POSITIONS_PER_SECOND
    if connection.dialect.name == "postgresql":  # SQLite has one writer at a time
        connection.execute(_LOCK_SECOND, {"first": first})
    taken: int | None = connection.execute(
        _SELECT_POSITION, {"first": first, "last": first + POSITIONS_PER_SECOND - 1}
    ).scalar_one()
    return first if taken is None else taken + 1


def _completes(old_data: str, new_data: str) -> bool:
    """Return whether the old item is the beginning of the new one, a message."""
    old, new = json.loads(old_data), json.loads(new_data)
    if not old["type"] == new["type"] == "assistant_message":
        return False
    old_text, new_text = ("".join(part["text"] for part in item["content"]) for item in (old, new))
    return len(old_text) < len(new_text) and new_text.startswith(old_text)


def _order(rows: Any, listed: dict[str, _NewItem]) -> list[_NewItem]:
    """Return the items in the order of the list. One that is no longer listed stays behind the item before it."""
    by_id = {row.id: row for row in rows}
    order = [replace(item, feedback=by_id[item.id].feedback) if item.id in by_id else item for item in listed.values()]
    unlisted_after: dict[str | None, list[_NewItem]] = {}
    before: str | None = None
    for row in rows:
        if row.id in listed:
            before = row.id
        else:
            item = _NewItem(row.id, _created_at(row.data), row.data, row.feedback)
            unlisted_after.setdefault(before, []).append(item)
    return [
        *unlisted_after.get(None, []),
        *(one for item in order for one in (item, *unlisted_after.get(item.id, []))),
    ]


def _replace_from_first_difference(
    connection: Connection, thread_id: str, owner: str, rows: Any, order: list[_NewItem]
) -> None:
    """Give the stored items the order, and add those that are new."""
    same = next((n for n, (row, item) in enumerate(zip(rows, order, strict=False)) if row.id != item.id), len(rows))
    _delete_items(connection, owner, rows[same:])
    _insert_items(connection, thread_id, owner, order[same:])


def _add_by_time(
    connection: Connection, thread_id: str, owner: str, rows: Any, new: list[_NewItem], listed: dict[str, _NewItem]
) -> None:
    """Add items after those imported before. Items of this service that are newer than these move behind them."""
    if not new:
        return
    imported = [index for index, row in enumerate(rows) if row.id in listed]
    own_rows = rows[imported[-1] + 1 if imported else 0 :]
    own = [_NewItem(row.id, _created_at(row.data), row.data, row.feedback) for row in own_rows]
    merged = list(heapq.merge(new, own, key=lambda item: item.created_at))
    stay = merged.index(new[0])
    _delete_items(connection, owner, own_rows[stay:])
    _insert_items(connection, thread_id, owner, merged[stay:])


def _delete_items(connection: Connection, owner: str, rows: Any) -> None:
    params = [{"item": row.position, "owner": owner} for row in rows]
    for start in range(0, len(params), BATCH):
        connection.execute(_DELETE_ITEMS, params[start : start + BATCH])


def _insert_items(connection: Connection, thread_id: str, owner: str, items: list[_NewItem]) -> None:
    for start in range(0, len(items), BATCH):
        rows = [
            {"thread_id": thread_id, "user_id": owner, "id": item.id, "data": item.data, "feedback": item.feedback}
            for item in items[start : start + BATCH]
        ]
        connection.execute(_INSERT_ITEMS, rows)


def _shown_parts(items: Iterable[_NewItem]) -> Iterator[_NewItem]:
    """Yield what a transfer of conversations leaves of ``items``."""
    for item in items:
        shown = shown_part(item.data)
        if shown is not None:
            yield replace(item, data=shown)


def _new_item(imported: ImportedItem) -> _NewItem:
    data = to_json(in_utc(imported.item))
    if imported.original is not None:
        # In a text, because it may be nested more deeply than what the chat can read.
        data = f'{data[:-1]},"original":{json.dumps(json.dumps(imported.original))}}}'
    return _NewItem(imported.item.id, imported.item.created_at, data)


def _thread_data(thread: ThreadMetadata) -> str:
    return to_json(in_utc(thread))


def _created_at(data: str) -> datetime:
    return as_utc(datetime.fromisoformat(json.loads(data)["created_at"]))
