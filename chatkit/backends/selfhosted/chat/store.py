"""ChatKit's ``Store`` in SQL: threads, their items, and attachments' metadata.

Every statement names the user of the request, so another user's thread is simply not found. Pages are cut by a number that
only grows within a thread, so they stay right while items are added and when clocks agree to the microsecond.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

from pydantic import TypeAdapter
from sqlalchemy import (
    Connection,
    Engine,
    QueuePool,
    Table,
    Text,
    and_,
    bindparam,
    case,
    delete,
    exc,
    exists,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from chatkit.backends.selfhosted.chat.context import ChatContext
from chatkit.backends.selfhosted.chat.timestamps import in_local_time, in_utc
from chatkit.backends.selfhosted.database import engine as database
from chatkit.backends.selfhosted.database.tables import AttachmentRow, ItemRow, ThreadRow
from chatkit.errors import ErrorCode, StreamError
from chatkit.store import NotFoundError, Store
from chatkit.types import (
    AssistantMessageItem,
    Attachment,
    ClientToolCallItem,
    Page,
    ThreadItem,
    ThreadMetadata,
    UserMessageItem,
    WorkflowItem,
)

MAX_PAGE = 100
MAX_PAGE_BYTES = 4 * 1024 * 1024  # a page ends with the row that reaches this; a generated image is some megabytes

log = logging.getLogger(__name__)

_thread_item: TypeAdapter[Any] = TypeAdapter(ThreadItem)
_attachment: TypeAdapter[Any] = TypeAdapter(Attachment)

_ABSENT: Any = object()

_PREFIXES = {
    "thread": "thr",
    "message": "msg",
    "tool_call": "tc",
    "workflow": "wf",
    "task": "tsk",
    "attachment": "atc",
    "sdk_hidden_context": "shcx",
}


Result = TypeVar("Result")


class ThreadGone(NotFoundError, StreamError):
    """A thread has been deleted while a request worked on it. Within a stream the SDK makes an error event of it."""

    def __init__(self) -> None:
        StreamError.__init__(self, ErrorCode.STREAM_ERROR, allow_retry=False)


# Each statement is built once; building one takes longer than running it. Each names the user.

_threads, _items, _attachments = (cast(Table, row.__table__) for row in (ThreadRow, ItemRow, AttachmentRow))
_user: Any = bindparam("user")
_own_thread = and_(_threads.c.id == bindparam("thread"), _threads.c.user_id == _user)
_own_items = and_(_items.c.thread_id == bindparam("thread"), _items.c.user_id == _user)
_own_item = and_(_own_items, _items.c.id == bindparam("item"))
_own_attachment = and_(_attachments.c.id == bindparam("attachment"), _attachments.c.user_id == _user)

_SELECT_THREAD = select(_threads.c.data).where(_own_thread)
_INSERT_THREAD = insert(_threads)
_UPDATE_THREAD = update(_threads).where(_own_thread).values(data=bindparam("new_data"), used_at=bindparam("now"))
_TOUCH_THREAD = update(_threads).where(_own_thread).values(used_at=bindparam("now"))
_DELETE_THREAD = delete(_threads).where(_own_thread)
_SELECT_ITEM = select(_items.c.data).where(_own_item)
_SAVE_ITEM = {  # adds, or replaces where it stands; both databases say it alike, but SQLAlchemy has it for each apart
    "sqlite": sqlite.insert(_items).on_conflict_do_update(
        index_elements=["thread_id", "id"], set_={"data": sqlite.insert(_items).excluded.data}
    ),
    "postgresql": postgresql.insert(_items).on_conflict_do_update(
        index_elements=["thread_id", "id"], set_={"data": postgresql.insert(_items).excluded.data}
    ),
}
_draft = {"thread_id": "thread", "user_id": "user", "id": "item", "data": "new_data"}
_SAVE_DRAFT = {  # only in a thread that is still there, and without an error where it is not
    name: dialect.insert(_items)
    .from_select(
        list(_draft), select(*(bindparam(given, type_=Text) for given in _draft.values())).where(exists().where(_own_thread))
    )
    .on_conflict_do_update(index_elements=["thread_id", "id"], set_={"data": dialect.insert(_items).excluded.data})
    for name, dialect in (("sqlite", sqlite), ("postgresql", postgresql))
}
_UPDATE_FEEDBACK = (
    update(_items).where(_own_items, _items.c.id.in_(bindparam("items", expanding=True))).values(feedback=bindparam("kind"))
)
_DELETE_ITEM = delete(_items).where(_own_item)
_INSERT_ITEM = insert(_items)
_SELECT_LAST_ITEMS = select(_items.c.id, _items.c.data).where(_own_items).order_by(_items.c.position.desc()).limit(2)
_DELETE_LATER_ITEMS = delete(_items).where(
    _own_items, _items.c.position > select(_items.c.position).where(_own_item).scalar_subquery()
)
_SELECT_ATTACHMENT = select(_attachments.c.data).where(_own_attachment)
_INSERT_ATTACHMENT = insert(_attachments)
_UPDATE_ATTACHMENT = (
    update(_attachments).where(_own_attachment).values(data=bindparam("new_data"), thread_id=bindparam("new_thread"))
)
_DELETE_ATTACHMENT = delete(_attachments).where(_own_attachment)


@dataclass(frozen=True)
class _Pages:
    """The statements that page through a table, by database, by order and by whether there is a cursor."""

    cursor: Any
    statements: dict[tuple[str, str, bool], Any]

    @classmethod
    def through(cls, table: Any, own: Any, cursor: Any) -> _Pages:
        query = select(table.c.id, table.c.data, table.c.position).where(own).limit(bindparam("limit"))
        ordered = {"asc": query.order_by(table.c.position), "desc": query.order_by(table.c.position.desc())}
        start: Any = bindparam("start")
        behind = {"asc": table.c.position > start, "desc": table.c.position < start}
        statements: dict[tuple[str, str, bool], Any] = {}
        for order, first in ordered.items():
            for after, statement in ((False, first), (True, first.where(behind[order]))):
                statements["sqlite", order, after] = statement
                statements["postgresql", order, after] = _without_heavy_data(statement.subquery(), order)
        return cls(select(table.c.position).where(cursor), statements)

    def load(
        self,
        connection: Connection,
        read: Callable[[str], Any],
        limit: int,
        after: str | None,
        order: str,
        named: dict[str, Any],
    ) -> Page[Any]:
        """At most ``limit`` rows and about ``MAX_PAGE_BYTES`` behind ``after``, in ``order``.

        An ``after`` that is nobody's is not found.
        """
        limit = max(1, min(limit, MAX_PAGE))
        values = {**named, "limit": limit + 1}
        if after:
            values["start"] = _only(connection.execute(self.cursor, {**named, "after": after}))
        statement = self.statements[connection.dialect.name, "desc" if order == "desc" else "asc", bool(after)]
        shown: list[Any] = []
        size, more = 0, False
        with connection.execute(statement, values) as rows:
            for row in rows:  # SQLite reads them one by one
                if more := row.data is None or len(shown) == limit or size >= MAX_PAGE_BYTES:
                    break
                shown.append(row)
                size += len(row.data)
        return Page(data=[read(row.data) for row in shown], has_more=more, after=shown[-1].id if more else None)


def _without_heavy_data(rows: Any, order: str) -> Any:
    """``rows``, with no ``data`` behind the first ``MAX_PAGE_BYTES`` of it: PostgreSQL sends all rows before one is read."""
    position = rows.c.position if order == "asc" else rows.c.position.desc()
    before = func.sum(func.octet_length(rows.c.data)).over(order_by=position) - func.octet_length(rows.c.data)
    weighed = select(rows.c.id, rows.c.data, rows.c.position, before.label("before")).subquery()
    position = weighed.c.position if order == "asc" else weighed.c.position.desc()
    return select(weighed.c.id, case((weighed.c.before < MAX_PAGE_BYTES, weighed.c.data)).label("data")).order_by(position)


_THREADS = _Pages.through(
    _threads, _threads.c.user_id == _user, and_(_threads.c.id == bindparam("after"), _threads.c.user_id == _user)
)
_ITEMS = _Pages.through(_items, _own_items, and_(_own_items, _items.c.id == bindparam("after")))


class SqlStore(Store[ChatContext]):
    """Threads and items of all users, each user reaching only their own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # A database call must not hold up the loop that all streams run on. SQLite has one writer at a time, and those that
        # find it taken sleep; waiting in line here is faster. Of PostgreSQL's connections one is left for sessions.
        workers = 1 if engine.dialect.name == "sqlite" else max(1, cast(QueuePool, engine.pool).size() - 1)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="storage")

    async def _run(self, work: Callable[[Connection], Result]) -> Result:
        """Do ``work`` in a transaction, on another thread. Waiting for a thread and for locks takes ``WAIT_SECONDS`` in all.

        Raises:
            sqlalchemy.exc.TimeoutError: when no thread was free in time, because the database is slow.
        """
        deadline = time.monotonic() + database.WAIT_SECONDS

        def transaction() -> Result:
            with self._engine.connect() as connection:
                connection.execution_options(**{database.DEADLINE: deadline})
                with connection.begin():
                    return work(connection)

        future = self._threads.submit(transaction)
        result = asyncio.wrap_future(future)
        try:
            await asyncio.wait([result], timeout=database.WAIT_SECONDS)
        except asyncio.CancelledError:
            result.cancel()
            raise
        if future.cancel():
            raise exc.TimeoutError("no thread was free for a database call")
        return await result

    async def _change(self, thread_id: str, context: ChatContext, work: Callable[[Connection], Result]) -> Result:
        """Do ``work`` on a thread, in turn with all others who change it.

        Raises:
            ThreadGone: it is not there, or another user's.
        """
        own = {"user": context.user, "thread": thread_id, "now": int(time.time())}

        def changing(connection: Connection) -> Result:
            # Writers to one thread take turns here, in all processes, so that positions grow as they commit.
            if not connection.execute(_TOUCH_THREAD, own).rowcount:
                raise ThreadGone
            return work(connection)

        try:
            return await self._run(changing)
        except ThreadGone:
            log.info("a thread is not there (any more) and can't be changed")
            raise

    # Identifiers: 122 random bits, where the SDK's own have 32

    def generate_thread_id(self, context: ChatContext) -> str:
        thread_id = new_id("thread")
        context.threads[thread_id] = []
        return thread_id

    def generate_item_id(self, item_type: Any, thread: ThreadMetadata, context: ChatContext) -> str:
        return new_id(item_type)

    # Threads

    async def load_thread(self, thread_id: str, context: ChatContext) -> ThreadMetadata:
        own = {"user": context.user, "thread": thread_id}
        thread = _read_thread(await self._run(lambda connection: _only(connection.execute(_SELECT_THREAD, own))))
        context.threads.setdefault(thread_id, []).append((thread, thread.model_copy(deep=True)))
        return thread

    async def save_thread(self, thread: ThreadMetadata, context: ChatContext) -> None:
        """Store what this request has changed of a thread; the rest of ``thread`` becomes what others have changed.

        A user can rename a thread while it is being answered, and the answer's own copy does not know. A tool can change
        ``thread`` while it is being saved; that stays, for the next time.
        """
        own = {"user": context.user, "thread": thread.id, "now": int(time.time())}
        mine = thread.model_copy(deep=True)
        objects = context.threads.get(thread.id)

        def add(connection: Connection) -> ThreadMetadata:
            new = {"id": thread.id, "user_id": context.user, "data": _thread_data(mine), "used_at": own["now"]}
            connection.execute(_INSERT_THREAD, new)
            return mine

        def change(connection: Connection) -> ThreadMetadata:
            stored = _read_thread(_only(connection.execute(_SELECT_THREAD, own)))
            changed = stored.model_copy(update=_merge(mine, known, stored)) if known else mine
            connection.execute(_UPDATE_THREAD, {**own, "new_data": _thread_data(changed)})
            return changed

        if objects == []:
            written = await self._run(add)
        else:
            # Without an entry of its own it is a copy, of what this request has had first.
            known = next((known for it, known in objects if it is thread), objects[0][1]) if objects else None
            written = await self._change(thread.id, context, change)
        for name, value in _merge(thread, mine, written).items():
            setattr(thread, name, value)
        others = [pair for pair in objects or () if pair[0] is not thread]
        context.threads[thread.id] = [*others, (thread, written.model_copy(deep=True))]

    async def load_threads(self, limit: int, after: str | None, order: str, context: ChatContext) -> Page[ThreadMetadata]:
        own = {"user": context.user}
        return await self._run(lambda connection: _THREADS.load(connection, _read_thread, limit, after, order, own))

    async def delete_thread(self, thread_id: str, context: ChatContext) -> None:
        # Its items, their feedback and its attachments go with it, by their foreign keys.
        own = {"user": context.user, "thread": thread_id}
        await self._run(lambda connection: _changed(connection.execute(_DELETE_THREAD, own)))

    # Items

    async def load_thread_items(
        self, thread_id: str, after: str | None, limit: int, order: str, context: ChatContext
    ) -> Page[ThreadItem]:
        own = {"user": context.user, "thread": thread_id}

        def work(connection: Connection) -> Page[ThreadItem]:
            page = _ITEMS.load(connection, _read_item, limit, after, order, own)
            if not page.data:
                _only(connection.execute(_SELECT_THREAD, own))
            return page

        return await self._run(work)

    async def load_item(self, thread_id: str, item_id: str, context: ChatContext) -> ThreadItem:
        own = {"user": context.user, "thread": thread_id, "item": item_id}
        return _read_item(await self._run(lambda connection: _only(connection.execute(_SELECT_ITEM, own))))

    async def add_thread_item(self, thread_id: str, item: ThreadItem, context: ChatContext) -> None:
        await self.save_item(thread_id, item, context)

    async def save_item(self, thread_id: str, item: ThreadItem, context: ChatContext) -> None:
        """Add an item, or replace the one with its id where that stands: the SDK adds a workflow again when it goes on."""
        new = {"thread_id": thread_id, "user_id": context.user, "id": item.id, "data": in_utc(item).model_dump_json()}
        await self._change(thread_id, context, lambda connection: connection.execute(_SAVE_ITEM[connection.dialect.name], new))

    async def add_before_call(self, thread_id: str, item: ThreadItem, context: ChatContext) -> str | None:
        """Add an item at the end of a thread, or in front of the client tool call that is pending there.

        The SDK takes a client tool's output only while its call is the thread's last item, and goes on with a workflow only
        if that is directly in front of the call.

        Returns:
            the id of the call, if there is one.
        """
        own = {"user": context.user, "thread": thread_id}
        row = {"thread_id": thread_id, "user_id": context.user}

        def work(connection: Connection) -> str | None:
            rows = connection.execute(_SELECT_LAST_ITEMS, own).all()
            last = [_read_item(it.data) for it in rows]
            pending = bool(last) and _is_pending(last[0])
            moved = rows[: 1 + isinstance(last[-1], WorkflowItem)] if pending else []
            for it in moved:
                connection.execute(_DELETE_ITEM, {**own, "item": it.id})
            connection.execute(_INSERT_ITEM, {**row, "id": item.id, "data": in_utc(item).model_dump_json()})
            for it in reversed(moved):
                connection.execute(_INSERT_ITEM, {**row, "id": it.id, "data": it.data})
            return last[0].id if pending else None

        return await self._change(thread_id, context, work)

    async def move_to_end(self, thread_id: str, call_id: str, context: ChatContext) -> None:
        """Make a client tool call the thread's last item, if it is still pending."""
        own = {"user": context.user, "thread": thread_id, "item": call_id}

        def work(connection: Connection) -> None:
            data = connection.execute(_SELECT_ITEM, own).scalar_one_or_none()
            if data is not None and _is_pending(_read_item(data)):
                connection.execute(_DELETE_ITEM, own)
                row = {"thread_id": thread_id, "user_id": context.user, "id": call_id, "data": data}
                connection.execute(_INSERT_ITEM, row)

        await self._change(thread_id, context, work)

    async def delete_after(self, thread_id: str, item_id: str, context: ChatContext) -> None:
        """Delete all items behind a message of the user.

        Raises:
            NotFoundError: there is no such item.
            ValueError: it is something else.
        """
        own = {"user": context.user, "thread": thread_id, "item": item_id}

        def work(connection: Connection) -> None:
            if not isinstance(_read_item(_only(connection.execute(_SELECT_ITEM, own))), UserMessageItem):
                raise ValueError("not a message of the user")
            connection.execute(_DELETE_LATER_ITEMS, own)

        await self._change(thread_id, context, work)

    async def save_drafts(self, drafts: Iterable[tuple[str, AssistantMessageItem]]) -> None:
        """Store unfinished messages, each with the ``User.id`` of its thread's owner."""
        rows = [
            {"user": user, "thread": message.thread_id, "item": message.id, "new_data": in_utc(message).model_dump_json()}
            for user, message in drafts
            if any(part.text.strip() for part in message.content)
        ]
        if rows:
            await self._run(lambda connection: connection.execute(_SAVE_DRAFT[connection.dialect.name], rows))

    async def delete_thread_item(self, thread_id: str, item_id: str, context: ChatContext) -> None:
        """Delete an item. One that is not there is no error: the SDK also removes items that it has shown and never stored."""
        own = {"user": context.user, "thread": thread_id, "item": item_id}
        await self._run(lambda connection: connection.execute(_DELETE_ITEM, own))

    async def save_feedback(
        self, thread_id: str, item_ids: list[str], kind: Literal["positive", "negative"], context: ChatContext
    ) -> None:
        """Keep what the user thinks of these items. Those that are not stored are left out, as long as one is."""
        own = {"user": context.user, "thread": thread_id, "items": item_ids, "kind": kind}
        await self._run(lambda connection: _changed(connection.execute(_UPDATE_FEEDBACK, own)))

    # Attachments' metadata

    async def save_attachment(self, attachment: Attachment, context: ChatContext) -> None:
        data, thread_id = attachment.model_dump_json(), attachment.thread_id
        own = {"user": context.user, "attachment": attachment.id}

        def work(connection: Connection) -> None:
            if not connection.execute(_UPDATE_ATTACHMENT, {**own, "new_data": data, "new_thread": thread_id}).rowcount:
                new = {"id": attachment.id, "user_id": context.user, "thread_id": thread_id, "data": data}
                connection.execute(_INSERT_ATTACHMENT, new)

        await self._run(work)

    async def load_attachment(self, attachment_id: str, context: ChatContext) -> Attachment:
        own = {"user": context.user, "attachment": attachment_id}
        data = await self._run(lambda connection: _only(connection.execute(_SELECT_ATTACHMENT, own)))
        attachment: Attachment = _attachment.validate_json(data)
        return attachment

    async def delete_attachment(self, attachment_id: str, context: ChatContext) -> None:
        own = {"user": context.user, "attachment": attachment_id}
        await self._run(lambda connection: _changed(connection.execute(_DELETE_ATTACHMENT, own)))


def new_id(item_type: str) -> str:
    """An identifier that nobody can guess."""
    return f"{_PREFIXES[item_type]}_{uuid.uuid4().hex}"


def _merge(mine: ThreadMetadata, base: ThreadMetadata, theirs: ThreadMetadata) -> dict[str, Any]:
    """The fields of a thread that two have changed since ``base``: mine where I changed them, else theirs."""

    def pick(mine: Any, base: Any, theirs: Any) -> Any:
        return theirs if mine == base else mine

    versions = (mine, base, theirs)
    fields = {name: pick(*(getattr(thread, name) for thread in versions)) for name in ThreadMetadata.model_fields}
    keys = {**theirs.metadata, **mine.metadata}
    merged = {key: pick(*(thread.metadata.get(key, _ABSENT) for thread in versions)) for key in keys}
    fields["metadata"] = {key: value for key, value in merged.items() if value is not _ABSENT}
    return fields


def _is_pending(item: ThreadItem) -> bool:
    return isinstance(item, ClientToolCallItem) and item.status == "pending"


def _thread_data(thread: ThreadMetadata) -> str:
    return in_utc(thread).model_dump_json(exclude={"items"})


def _read_thread(data: str) -> ThreadMetadata:
    return in_local_time(ThreadMetadata.model_validate_json(data))


def _read_item(data: str) -> ThreadItem:
    item: ThreadItem = in_local_time(_thread_item.validate_json(data))
    return item


def _only(result: Any) -> Any:
    value = result.scalar_one_or_none()
    if value is None:
        raise NotFoundError
    return value


def _changed(result: Any) -> None:
    if not result.rowcount:
        raise NotFoundError
