"""ChatKit's ``Store`` in SQL: threads, their items, and attachments' metadata.

Every statement names the user of the request, so another user's thread is simply not found. Pages are cut by a number that
only grows within a thread, so they stay right while items are added and when clocks agree to the microsecond.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter
from sqlalchemy import (
    Connection,
    Engine,
    Select,
    and_,
    delete,
    insert,
    select,
    update,
)

from chatkit.conversation.event_loop import Answer
from chatkit.store import NotFoundError, Store
from chatkit.tables import AttachmentRow, ItemRow, ThreadRow
from chatkit.types import Attachment, Page, ThreadItem, ThreadMetadata

MAX_PAGE = 100
PURGE_EVERY_SECONDS = 3600
SECONDS_A_DAY = 86400

_thread_item: TypeAdapter[Any] = TypeAdapter(ThreadItem)
_attachment: TypeAdapter[Any] = TypeAdapter(Attachment)

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


@dataclass(frozen=True)
class ChatContext:
    """What one request's handling knows: whose it is, and the answer it writes to."""

    user: str
    answer: Answer
    new_threads: set[str] = field(default_factory=set)
    """Threads that this request has begun and that are not stored yet."""


class SqlStore(Store[ChatContext]):
    """Threads and items of all users, each user reaching only their own.

    Args:
        retention_days: how long a thread is kept after its last use; for ever unless set.
    """

    def __init__(self, engine: Engine, retention_days: int | None) -> None:
        self._engine = engine
        self._retention_days = retention_days
        self._next_purge = 0.0
        # A database call must not hold up the loop that all other streams run on.
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="storage")

    async def _run(self, work: Callable[[Connection], Result]) -> Result:
        """Do ``work`` in a transaction, on another thread."""

        def transaction() -> Result:
            with self._engine.begin() as connection:
                return work(connection)

        return await asyncio.get_running_loop().run_in_executor(self._threads, transaction)

    # Identifiers: 122 random bits, where the SDK's own have 32

    def generate_thread_id(self, context: ChatContext) -> str:
        thread_id = new_id("thread")
        context.new_threads.add(thread_id)
        return thread_id

    def generate_item_id(self, item_type: Any, thread: ThreadMetadata, context: ChatContext) -> str:
        return new_id(item_type)

    # Threads

    async def load_thread(self, thread_id: str, context: ChatContext) -> ThreadMetadata:
        query = select(ThreadRow.data).where(*_own_thread(thread_id, context))
        return ThreadMetadata.model_validate_json(await self._run(lambda connection: _only(connection, query)))

    async def save_thread(self, thread: ThreadMetadata, context: ChatContext) -> None:
        values = {"data": thread.model_dump_json(exclude={"items"}), "used_at": int(time.time())}

        def work(connection: Connection) -> None:
            if thread.id in context.new_threads:
                self._purge(connection)
                connection.execute(insert(ThreadRow).values(id=thread.id, user_id=context.user, **values))
            else:  # only if it is still there: a thread deleted while it is answered does not come back
                _changed(connection.execute(update(ThreadRow).where(*_own_thread(thread.id, context)).values(values)))

        await self._run(work)
        context.new_threads.discard(thread.id)

    async def load_threads(self, limit: int, after: str | None, order: str, context: ChatContext) -> Page[ThreadMetadata]:
        query = select(ThreadRow.position, ThreadRow.id, ThreadRow.data).where(ThreadRow.user_id == context.user)
        cursor = select(ThreadRow.position).where(*_own_thread(after or "", context))

        def work(connection: Connection) -> Page[ThreadMetadata]:
            return _page(
                connection,
                query,
                ThreadRow.position,
                cursor if after else None,
                limit,
                order,
                ThreadMetadata.model_validate_json,
            )

        return await self._run(work)

    async def delete_thread(self, thread_id: str, context: ChatContext) -> None:
        def work(connection: Connection) -> None:
            # Its items, their feedback and its attachments go with it, by their foreign keys.
            _changed(connection.execute(delete(ThreadRow).where(*_own_thread(thread_id, context))))

        await self._run(work)

    # Items

    async def load_thread_items(
        self, thread_id: str, after: str | None, limit: int, order: str, context: ChatContext
    ) -> Page[ThreadItem]:
        query = select(ItemRow.position, ItemRow.id, ItemRow.data).where(*_own_items(thread_id, context))
        cursor = select(ItemRow.position).where(*_own_items(thread_id, context), ItemRow.id == after)

        def work(connection: Connection) -> Page[ThreadItem]:
            page = _page(
                connection, query, ItemRow.position, cursor if after else None, limit, order, _thread_item.validate_json
            )
            if not page.data:
                _only(connection, select(ThreadRow.id).where(*_own_thread(thread_id, context)))
            return page

        return await self._run(work)

    async def load_item(self, thread_id: str, item_id: str, context: ChatContext) -> ThreadItem:
        query = select(ItemRow.data).where(*_own_items(thread_id, context), ItemRow.id == item_id)
        item: ThreadItem = _thread_item.validate_json(await self._run(lambda connection: _only(connection, query)))
        return item

    async def add_thread_item(self, thread_id: str, item: ThreadItem, context: ChatContext) -> None:
        await self.save_item(thread_id, item, context)

    async def save_item(self, thread_id: str, item: ThreadItem, context: ChatContext) -> None:
        """Add an item, or replace the one with its id where that stands: the SDK adds a workflow again when it goes on."""
        data = item.model_dump_json()

        def work(connection: Connection) -> None:
            # Touching the thread first also makes writers to one thread take turns, so that positions grow as they commit.
            used = update(ThreadRow).where(*_own_thread(thread_id, context)).values(used_at=int(time.time()))
            _changed(connection.execute(used))
            own = and_(*_own_items(thread_id, context), ItemRow.id == item.id)
            if not connection.execute(update(ItemRow).where(own).values(data=data)).rowcount:
                connection.execute(insert(ItemRow).values(thread_id=thread_id, user_id=context.user, id=item.id, data=data))

        await self._run(work)

    async def delete_thread_item(self, thread_id: str, item_id: str, context: ChatContext) -> None:
        statement = delete(ItemRow).where(*_own_items(thread_id, context), ItemRow.id == item_id)
        await self._run(lambda connection: _changed(connection.execute(statement)))

    async def save_feedback(
        self, thread_id: str, item_ids: list[str], kind: Literal["positive", "negative"], context: ChatContext
    ) -> None:
        """Keep what the user thinks of these items; all of them have to be there."""

        def work(connection: Connection) -> None:
            for item_id in item_ids:
                own = and_(*_own_items(thread_id, context), ItemRow.id == item_id)
                _changed(connection.execute(update(ItemRow).where(own).values(feedback=kind)))

        await self._run(work)

    # Attachments' metadata

    async def save_attachment(self, attachment: Attachment, context: ChatContext) -> None:
        values = {"data": attachment.model_dump_json(), "thread_id": attachment.thread_id}

        def work(connection: Connection) -> None:
            own = and_(AttachmentRow.id == attachment.id, AttachmentRow.user_id == context.user)
            if not connection.execute(update(AttachmentRow).where(own).values(values)).rowcount:
                connection.execute(insert(AttachmentRow).values(id=attachment.id, user_id=context.user, **values))

        await self._run(work)

    async def load_attachment(self, attachment_id: str, context: ChatContext) -> Attachment:
        own = and_(AttachmentRow.id == attachment_id, AttachmentRow.user_id == context.user)
        query = select(AttachmentRow.data).where(own)
        attachment: Attachment = _attachment.validate_json(await self._run(lambda connection: _only(connection, query)))
        return attachment

    async def delete_attachment(self, attachment_id: str, context: ChatContext) -> None:
        own = and_(AttachmentRow.id == attachment_id, AttachmentRow.user_id == context.user)
        await self._run(lambda connection: _changed(connection.execute(delete(AttachmentRow).where(own))))

    def _purge(self, connection: Connection) -> None:
        """Delete threads that nobody has used for the retention time; at most once an hour, in passing."""
        if self._retention_days is None or time.monotonic() < self._next_purge:
            return
        self._next_purge = time.monotonic() + PURGE_EVERY_SECONDS
        oldest = time.time() - self._retention_days * SECONDS_A_DAY
        connection.execute(delete(ThreadRow).where(ThreadRow.used_at < oldest))


def new_id(item_type: str) -> str:
    """An identifier that nobody can guess."""
    return f"{_PREFIXES[item_type]}_{uuid.uuid4().hex}"


def _own_thread(thread_id: str, context: ChatContext) -> tuple[Any, ...]:
    return ThreadRow.id == thread_id, ThreadRow.user_id == context.user


def _own_items(thread_id: str, context: ChatContext) -> tuple[Any, ...]:
    return ItemRow.thread_id == thread_id, ItemRow.user_id == context.user


def _only(connection: Connection, query: Select[Any]) -> Any:
    value = connection.execute(query).scalar_one_or_none()
    if value is None:
        raise NotFoundError
    return value


def _changed(result: Any) -> None:
    if not result.rowcount:
        raise NotFoundError


def _page(
    connection: Connection,
    query: Any,
    position: Any,
    cursor: Select[Any] | None,
    limit: int,
    order: str,
    read: Callable[[str], Any],
) -> Page[Any]:
    """The ``limit`` rows of ``query`` behind the one that ``cursor`` finds, in ``order``; a cursor of nobody is not found."""
    limit = max(1, min(limit, MAX_PAGE))
    descending = order == "desc"
    if cursor is not None:
        start = _only(connection, cursor)
        query = query.where(position < start if descending else position > start)
    rows = connection.execute(query.order_by(position.desc() if descending else position).limit(limit + 1)).all()
    shown = rows[:limit]
    more = len(rows) > limit
    return Page(data=[read(row.data) for row in shown], has_more=more, after=shown[-1].id if more else None)
