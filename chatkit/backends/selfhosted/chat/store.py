"""ChatKit's ``Store`` in SQL: threads, their items, generated images, and attachments' metadata.

Every statement but ``_SELECT_IMAGE_OWNER`` names the user of the request, so another user's thread is not found. Pages are
ordered by a number that only grows within a thread, so they stay correct while items are added and when two items have the same
timestamp.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
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
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from chatkit.backends.selfhosted.chat import images
from chatkit.backends.selfhosted.chat.context import ChatContext
from chatkit.backends.selfhosted.chat.images import MAX_IMAGES, Image, ImageRefusedError, ImageUrls
from chatkit.backends.selfhosted.chat.timestamps import in_local_time, in_utc
from chatkit.backends.selfhosted.database import engine as database
from chatkit.backends.selfhosted.database.tables import (
    ActiveRunRow,
    AttachmentRow,
    ImageRow,
    ItemRow,
    PausedRunRow,
    ThreadRow,
)
from chatkit.backends.selfhosted.sessions import exists_until_commit
from chatkit.errors import ErrorCode, StreamError
from chatkit.store import NotFoundError, Store
from chatkit.types import (
    AssistantMessageItem,
    Attachment,
    ClientToolCallItem,
    GeneratedImage,
    GeneratedImageItem,
    Page,
    ThreadItem,
    ThreadMetadata,
    UserMessageItem,
    WidgetItem,
    WorkflowItem,
)

DRAFT_SECONDS = 1.0  # the end of a message waits for a draft of it that is being saved
STALE_SECONDS = 10  # without a heartbeat, after which a run counts as interrupted: its process has died
MAX_PAGE = 100
MAX_PAGE_BYTES = 4 * 1024 * 1024  # a page ends with the row that reaches this; a widget may have some megabytes

log = logging.getLogger(__name__)

_thread_item: TypeAdapter[Any] = TypeAdapter(ThreadItem)
_attachment: TypeAdapter[Any] = TypeAdapter(Attachment)

_MISSING: Any = object()

_PREFIXES = {
    "thread": "thr",
    "message": "msg",
    "tool_call": "tc",
    "workflow": "wf",
    "task": "tsk",
    "attachment": "atc",
    "image": "img",
    "sdk_hidden_context": "shcx",
    "run": "run",
}

Result = TypeVar("Result")


class ThreadGone(NotFoundError, StreamError):
    """A thread was deleted, or another run replaced that of a request, while the request was using the thread.

    Within a stream, the SDK converts this to an error event.
    """

    def __init__(self) -> None:
        StreamError.__init__(self, ErrorCode.STREAM_ERROR, allow_retry=False)


# Statements are built once: building one takes longer than running it. Each names the user.

_threads, _items, _attachments, _paused_runs, _images, _active_runs = (
    cast(Table, row.__table__) for row in (ThreadRow, ItemRow, AttachmentRow, PausedRunRow, ImageRow, ActiveRunRow)
)
_user: Any = bindparam("user")
_own_thread = and_(_threads.c.id == bindparam("thread"), _threads.c.user_id == _user)
_own_items = and_(_items.c.thread_id == bindparam("thread"), _items.c.user_id == _user)
_own_item = and_(_own_items, _items.c.id == bindparam("item"))
_own_attachment = and_(_attachments.c.id == bindparam("attachment"), _attachments.c.user_id == _user)

_SELECT_THREAD = select(_threads.c.data).where(_own_thread)
_INSERT_THREAD = {
    # Imported threads have negative positions, and SQLite's own choice is one more than the highest.
    "sqlite": insert(_threads).values(
        position=select(func.max(func.coalesce(func.max(_threads.c.position), 0), 0) + 1).scalar_subquery()
    ),
    "postgresql": insert(_threads),
}
_UPDATE_THREAD = update(_threads).where(_own_thread).values(data=bindparam("new_data"))
# A run whose row is gone stores nothing: the text of another one may have replaced its own.
_writer: Any = bindparam("active_run", type_=Text)
_run_goes_on = or_(_writer == "", exists().where(_active_runs.c.id == _writer, _active_runs.c.user_id == _user))
_TOUCH_THREAD = update(_threads).where(_own_thread, _run_goes_on).values(used_at=bindparam("now"))
_TOUCH_AND_SELECT_THREAD = _TOUCH_THREAD.returning(_threads.c.data)
_DELETE_THREAD = delete(_threads).where(_own_thread)
_SELECT_ITEM = select(_items.c.data).where(_own_item)
_SAVE_ITEM = {  # an upsert that keeps the position; SQLAlchemy has one for each dialect
    "sqlite": sqlite.insert(_items).on_conflict_do_update(
        index_elements=["thread_id", "id"], set_={"data": sqlite.insert(_items).excluded.data}
    ),
    "postgresql": postgresql.insert(_items).on_conflict_do_update(
        index_elements=["thread_id", "id"], set_={"data": postgresql.insert(_items).excluded.data}
    ),
}
_draft = {"thread_id": "thread", "user_id": "user", "id": "item", "data": "new_data"}
_SAVE_DRAFT = {  # does nothing if the thread has been deleted, or the run replaced
    dialect_name: dialect.insert(_items)
    .from_select(
        list(_draft),
        select(*(bindparam(name, type_=Text) for name in _draft.values())).where(exists().where(_own_thread), _run_goes_on),
    )
    .on_conflict_do_update(index_elements=["thread_id", "id"], set_={"data": dialect.insert(_items).excluded.data})
    for dialect_name, dialect in (("sqlite", sqlite), ("postgresql", postgresql))
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
_own_paused_run = and_(_paused_runs.c.thread_id == bindparam("thread"), _paused_runs.c.user_id == _user)
_SELECT_PAUSED_RUN = select(_paused_runs.c.decisions, _paused_runs.c.state).where(_own_paused_run)
_INSERT_PAUSED_RUN = insert(_paused_runs)
_UPDATE_DECISIONS = update(_paused_runs).where(_own_paused_run).values(decisions=bindparam("new_decisions"))
_DELETE_PAUSED_RUN = delete(_paused_runs).where(_own_paused_run)
_own_images = and_(_images.c.thread_id == bindparam("thread"), _images.c.user_id == _user)
_COUNT_IMAGES = select(func.count()).select_from(_images).where(_own_images)
_INSERT_IMAGE = insert(_images)
_DELETE_IMAGE = delete(_images).where(_own_images, _images.c.item_id == bindparam("item"))
_DELETE_LATER_IMAGES = delete(_images).where(
    _own_images,
    _images.c.item_id.in_(
        select(_items.c.id).where(_own_items, _items.c.position > select(_items.c.position).where(_own_item).scalar_subquery())
    ),
)
_SELECT_IMAGE = select(_images.c.media_type, _images.c.data).where(
    _images.c.id == bindparam("image"), _images.c.user_id == _user
)
# Finds out whose image it is, to compare with the signed URL.
_SELECT_IMAGE_OWNER = select(_images.c.user_id, func.length(_images.c.data).label("size")).where(
    _images.c.id == bindparam("image")
)
_is_active = _active_runs.c.heartbeat.between(bindparam("oldest"), bindparam("newest"))
_runs_of_thread = and_(_active_runs.c.thread_id == bindparam("thread"), _active_runs.c.user_id == _user)
_own_run = and_(_active_runs.c.id == bindparam("run"), _active_runs.c.user_id == _user)
_own_runs = and_(
    _active_runs.c.id.in_(bindparam("runs", expanding=True)), _active_runs.c.user_id.in_(bindparam("users", expanding=True))
)
_SELECT_ACTIVE_RUNS_OF_THREAD = select(_active_runs.c.id).where(_runs_of_thread, _is_active)
_DELETE_INACTIVE_RUNS = delete(_active_runs).where(_runs_of_thread, ~_is_active)
_INSERT_RUN = insert(_active_runs)
_is_shown = or_(_is_active, and_(_active_runs.c.is_repeatable, ~_active_runs.c.stop_requested))
_SELECT_RUN = (  # an active one, if there is one
    select(_active_runs.c.id, _active_runs.c.started_at, _is_active.label("is_active"))
    .select_from(_threads.outerjoin(_active_runs, and_(_active_runs.c.thread_id == _threads.c.id, _is_shown)))
    .where(_own_thread)
    .order_by(_is_active.desc())
    .limit(1)
)
_STOP_RUN = update(_active_runs).where(_own_run, _is_active).values(stop_requested=True)
_INTERRUPT_RUN = update(_active_runs).where(_own_run).values(heartbeat=0)
_DELETE_RUN = delete(_active_runs).where(_own_run)
_SELECT_ACTIVE_RUNS = select(_active_runs.c.id, _active_runs.c.user_id).where(_own_runs, ~_active_runs.c.stop_requested)
# Skips rows that another transaction has locked, because two that lock several rows in different orders would wait for each
# other. SQLite ignores this: it has no row locks. A run can be interrupted while its heartbeat waits, and must remain so.
_beating = select(_active_runs.c.id).where(_own_runs, _active_runs.c.heartbeat > 0).with_for_update(skip_locked=True)
_BEAT = update(_active_runs).where(_active_runs.c.id.in_(_beating)).values(heartbeat=bindparam("now"))


@dataclass(frozen=True)
class _PageQuery:
    """The statements that page through a table, by dialect, by order and by whether there is a cursor."""

    cursor: Any
    statements: dict[tuple[str, str, bool], Any]

    @classmethod
    def for_table(cls, table: Any, condition: Any, cursor: Any) -> _PageQuery:
        query = select(table.c.id, table.c.data, table.c.position).where(condition).limit(bindparam("limit"))
        ordered = {"asc": query.order_by(table.c.position), "desc": query.order_by(table.c.position.desc())}
        start: Any = bindparam("start")
        follows = {"asc": table.c.position > start, "desc": table.c.position < start}
        statements: dict[tuple[str, str, bool], Any] = {}
        for order, first in ordered.items():
            for after, statement in ((False, first), (True, first.where(follows[order]))):
                statements["sqlite", order, after] = statement
                statements["postgresql", order, after] = _limit_page_bytes(statement.subquery(), order)
        return cls(select(table.c.position).where(cursor), statements)

    def load(
        self,
        connection: Connection,
        read: Callable[[str], Any],
        limit: int,
        after: str | None,
        order: str,
        params: dict[str, Any],
    ) -> Page[Any]:
        """Load at most ``limit`` rows and about ``MAX_PAGE_BYTES`` that follow the row ``after``.

        Raises:
            NotFoundError: the user has no row ``after``.
        """
        limit = max(1, min(limit, MAX_PAGE))
        values = {**params, "limit": limit + 1}
        if after:
            values["start"] = _one_or_not_found(connection.execute(self.cursor, {**params, "after": after}))
        statement = self.statements[connection.dialect.name, "desc" if order == "desc" else "asc", bool(after)]
        page: list[Any] = []
        size, more = 0, False
        with connection.execute(statement, values) as rows:
            for row in rows:  # SQLite reads them one at a time
                if more := row.data is None or len(page) == limit or size >= MAX_PAGE_BYTES:
                    break
                page.append(row)
                size += len(row.data)
        return Page(data=[read(row.data) for row in page], has_more=more, after=page[-1].id if more else None)


def _limit_page_bytes(rows: Any, order: str) -> Any:
    """Omit ``data`` after the first ``MAX_PAGE_BYTES``, because PostgreSQL sends all rows before one is read."""
    position = rows.c.position if order == "asc" else rows.c.position.desc()
    before = func.sum(func.octet_length(rows.c.data)).over(order_by=position) - func.octet_length(rows.c.data)
    sized = select(rows.c.id, rows.c.data, rows.c.position, before.label("before")).subquery()
    position = sized.c.position if order == "asc" else sized.c.position.desc()
    return select(sized.c.id, case((sized.c.before < MAX_PAGE_BYTES, sized.c.data)).label("data")).order_by(position)


_THREAD_PAGES = _PageQuery.for_table(
    _threads, _threads.c.user_id == _user, and_(_threads.c.id == bindparam("after"), _threads.c.user_id == _user)
)
_ITEM_PAGES = _PageQuery.for_table(_items, _own_items, and_(_own_items, _items.c.id == bindparam("after")))


@dataclass(frozen=True)
class PausedRun:
    """A run of an agent that waits for the user's decisions on tool calls."""

    state: str
    """Of the Agents SDK, as ``run_states`` stores it."""
    decisions: dict[str, Any]
    """By the id of a call's widget, in the order of the calls; ``None`` while there is no decision."""


@dataclass(frozen=True)
class ActiveRun:
    """A response that is being produced, or one that was interrupted: its process has stopped, or it failed."""

    id: str
    started_at: int
    """Unix seconds"""
    is_active: bool


class SqlStore(Store[ChatContext]):
    """Stores the threads and items of all users; each user can access only their own.

    Args:
        engine: the database.
        image_urls: makes the URLs of images in the items that are loaded.
    """

    def __init__(self, engine: Engine, image_urls: ImageUrls) -> None:
        self._engine = engine
        self._image_urls = image_urls
        # A database call must not block the event loop that all streams run on. SQLite has one writer at a time, and a blocked
        # writer polls; queueing here is faster. With PostgreSQL, one connection of the pool is left for sessions.
        workers = 1 if engine.dialect.name == "sqlite" else max(1, cast(QueuePool, engine.pool).size() - 1)
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="storage")

    def submit(self, work: Callable[[Connection], Result], seconds: float) -> Future[Result]:
        """Run ``work`` in a transaction on another thread, and limit the time for the thread and for locks together.

        The future raises ``sqlalchemy.exc.TimeoutError`` if no thread was free in time, because the database is slow.
        """
        deadline = time.monotonic() + seconds

        def transaction() -> Result:
            if time.monotonic() > deadline:
                raise exc.TimeoutError("no thread was free for a database call")
            with self._engine.connect() as connection:
                connection.execution_options(**{database.DEADLINE: deadline})
                with connection.begin():
                    return work(connection)

        return self._executor.submit(transaction)

    async def _run(
        self,
        work: Callable[[Connection], Result],
        seconds: float | None = None,
        undo: Callable[[Connection], Any] | None = None,
    ) -> Result:
        """Submit ``work`` and await it.

        Args:
            work: runs in a transaction on another thread.
            seconds: limits the time for the thread and for locks together, by default to ``WAIT_SECONDS``.
            undo: runs in a transaction after that of ``work``, if this is cancelled. It is not awaited.

        Raises:
            sqlalchemy.exc.TimeoutError: no thread was free in time, because the database is slow.
        """
        seconds = seconds or database.WAIT_SECONDS
        future = self.submit(work, seconds)
        result = asyncio.wrap_future(future)
        try:
            await asyncio.wait([result], timeout=seconds)
        except asyncio.CancelledError:
            result.cancel()
            if undo:
                future.add_done_callback(lambda _: self.submit(undo, database.WAIT_SECONDS))
            raise
        if future.cancel():
            raise exc.TimeoutError("no thread was free for a database call")
        return await result

    async def _write(
        self,
        thread_id: str,
        context: ChatContext,
        work: Callable[[Connection], Result],
        undo: Callable[[Connection], Any] | None = None,
    ) -> Result:
        """Run ``work`` in a transaction that locks the thread. ``undo`` is that of ``_run``.

        Raises:
            ThreadGone: the user has no such thread, or the context's run was replaced.
        """
        params = {**_writer_params(context), "thread": thread_id, "now": int(time.time())}

        def touch_and_work(connection: Connection) -> Result:
            # The update locks the row, so positions grow in the order of commits, across all processes.
            if not connection.execute(_TOUCH_THREAD, params).rowcount:
                raise ThreadGone
            return work(connection)

        with _gone_threads_logged():
            return await self._run(touch_and_work, undo=undo)

    async def _change(
        self, thread_id: str, context: ChatContext, change: Callable[[ThreadMetadata], ThreadMetadata]
    ) -> ThreadMetadata:
        """Store the changed thread in a transaction that locks the thread, and return it.

        Raises:
            ThreadGone: the user has no such thread, or the context's run was replaced.
        """
        params = {**_writer_params(context), "thread": thread_id, "now": int(time.time())}

        def work(connection: Connection) -> ThreadMetadata:
            data = connection.execute(_TOUCH_AND_SELECT_THREAD, params).scalar_one_or_none()
            if data is None:
                raise ThreadGone
            stored = _read_thread(data)
            changed = change(stored)
            if changed is not stored:
                connection.execute(_UPDATE_THREAD, {**params, "new_data": _thread_data(changed)})
            return changed

        with _gone_threads_logged():
            return await self._run(work)

    # Identifiers: 122 random bits; the SDK's own have 32

    def generate_thread_id(self, context: ChatContext) -> str:
        thread_id = new_id("thread")
        context.threads[thread_id] = []
        return thread_id

    def generate_item_id(self, item_type: Any, thread: ThreadMetadata, context: ChatContext) -> str:
        return new_id(item_type)

    # Threads

    async def load_thread(self, thread_id: str, context: ChatContext) -> ThreadMetadata:
        params = {"user": context.user, "thread": thread_id}
        thread = _read_thread(await self._run(lambda connection: _one_or_not_found(connection.execute(_SELECT_THREAD, params))))
        context.threads.setdefault(thread_id, []).append((thread, thread.model_copy(deep=True)))
        return thread

    async def save_thread(self, thread: ThreadMetadata, context: ChatContext) -> None:
        """Store this request's changes to a thread, and merge other requests' changes into ``thread``.

        For example, a user can rename a thread while a response to it is streamed. Changes that a tool makes to ``thread``
        during the save are kept, and stored by the next one.

        A new thread and its run are stored in one transaction.
        """
        async with context.saving_thread:
            await self._save_thread(thread, context)

    async def _save_thread(self, thread: ThreadMetadata, context: ChatContext) -> None:
        mine = thread.model_copy(deep=True)
        objects = context.threads.get(thread.id)
        begins_run = bool(context.run_id) and len(context.threads) == 1

        def add(connection: Connection) -> ThreadMetadata:
            new = {"id": thread.id, "user_id": context.user, "data": _thread_data(mine), "used_at": int(time.time())}
            connection.execute(_INSERT_THREAD[connection.dialect.name], new)
            if context.session_id and not exists_until_commit(connection, context.session_id):
                raise ThreadGone  # with all that its user had
            if begins_run:
                connection.execute(_INSERT_RUN, _run_row(thread.id, context))
            return mine

        def change(stored: ThreadMetadata) -> ThreadMetadata:
            return stored.model_copy(update=_merge(mine, known, stored)) if known else mine

        if objects == []:
            with _gone_threads_logged():
                written = await self._run(add, undo=self._end_run(context) if begins_run else None)
        else:
            # An object without an entry is a copy; its base is the state that this request loaded first.
            known = next((known for loaded, known in objects if loaded is thread), objects[0][1]) if objects else None
            written = await self._change(thread.id, context, change)
        for name, value in _merge(thread, mine, written).items():
            setattr(thread, name, value)
        others = [pair for pair in objects or () if pair[0] is not thread]
        context.threads[thread.id] = [*others, (thread, written.model_copy(deep=True))]

    async def replace_title(self, thread: ThreadMetadata, old: str | None, new: str, context: ChatContext) -> None:
        """Replace the title ``old``, which may not be stored yet. A title that another request has stored stays.

        ``thread`` and other objects of this request get the stored title, so that its later saves do not change it.
        """

        def replace(stored: ThreadMetadata) -> ThreadMetadata:
            return stored.model_copy(update={"title": new}) if stored.title in (None, old) else stored

        async with context.saving_thread:
            title = (await self._change(thread.id, context, replace)).title
            known_objects = context.threads.get(thread.id, [])
            for mine in (thread, *(loaded for loaded, _known in known_objects)):
                if mine.title in (None, old):
                    mine.title = title
            for _loaded, known in known_objects:
                known.title = title

    async def load_threads(self, limit: int, after: str | None, order: str, context: ChatContext) -> Page[ThreadMetadata]:
        params = {"user": context.user}
        return await self._run(lambda connection: _THREAD_PAGES.load(connection, _read_thread, limit, after, order, params))

    async def delete_thread(self, thread_id: str, context: ChatContext) -> None:
        # Foreign keys cascade to its items, images and attachments.
        params = {"user": context.user, "thread": thread_id}
        await self._run(lambda connection: _require_match(connection.execute(_DELETE_THREAD, params)))

    # Items

    async def load_thread_items(
        self, thread_id: str, after: str | None, limit: int, order: str, context: ChatContext
    ) -> Page[ThreadItem]:
        params = {"user": context.user, "thread": thread_id}

        def work(connection: Connection) -> Page[ThreadItem]:
            page = _ITEM_PAGES.load(connection, _read_item, limit, after, order, params)
            if not page.data:
                _one_or_not_found(connection.execute(_SELECT_THREAD, params))
            return page

        page = await self._run(work)
        for item in page.data:
            self._set_image_url(item, context)
        return page

    async def load_item(self, thread_id: str, item_id: str, context: ChatContext) -> ThreadItem:
        params = {"user": context.user, "thread": thread_id, "item": item_id}
        item = _read_item(await self._run(lambda connection: _one_or_not_found(connection.execute(_SELECT_ITEM, params))))
        self._set_image_url(item, context)
        return item

    async def add_thread_item(self, thread_id: str, item: ThreadItem, context: ChatContext) -> None:
        await self.save_item(thread_id, item, context)

    async def save_item(self, thread_id: str, item: ThreadItem, context: ChatContext) -> None:
        """Add an item, or replace the one with its id in its place: the SDK adds a workflow again when it continues it.

        The image of a generated_image item is stored apart from it. ``item`` gets a URL in place of the data.

        Raises:
            ImageRefusedError: the image is too large or of an unknown type, or the thread has ``MAX_IMAGES``.
        """
        if isinstance(item, GeneratedImageItem) and item.image:
            await self._save_image_item(thread_id, item, item.image, context)
            return
        new = {"thread_id": thread_id, "user_id": context.user, "id": item.id, "data": in_utc(item).model_dump_json()}
        await self._write(thread_id, context, lambda connection: connection.execute(_SAVE_ITEM[connection.dialect.name], new))

    async def _save_image_item(
        self, thread_id: str, item: GeneratedImageItem, image: GeneratedImage, context: ChatContext
    ) -> None:
        new = {"thread_id": thread_id, "user_id": context.user, "id": item.id}
        params = {"user": context.user, "thread": thread_id, "item": item.id}
        stored_item, url = in_utc(item), image.url

        def work(connection: Connection) -> str | None:
            image_id = self._image_urls.find(url)
            if not image_id:
                connection.execute(_DELETE_IMAGE, params)
            if url.startswith("data:"):
                decoded = Image.from_data_url(url)
                if connection.execute(_COUNT_IMAGES, params).scalar_one() >= MAX_IMAGES:
                    raise ImageRefusedError("This conversation can't keep more images. Please begin a new one.")
                image_id = new_id("image")
                row = {"thread_id": thread_id, "user_id": context.user, "item_id": item.id, "id": image_id}
                connection.execute(_INSERT_IMAGE, {**row, "media_type": decoded.media_type, "data": decoded.data})
            stored_url = images.reference(image_id) if image_id else url
            stored = stored_item.model_copy(update={"image": image.model_copy(update={"url": stored_url})})
            connection.execute(_SAVE_ITEM[connection.dialect.name], {**new, "data": stored.model_dump_json()})
            return image_id

        if image_id := await self._write(thread_id, context, work):
            image.url = self._image_urls.make(context.root_url, image_id, context.user)

    def _set_image_url(self, item: ThreadItem, context: ChatContext) -> None:
        if isinstance(item, GeneratedImageItem) and item.image and (image_id := images.referenced(item.image.url)):
            item.image.url = self._image_urls.make(context.root_url, image_id, context.user)

    async def add_before_call(self, thread_id: str, item: ThreadItem, context: ChatContext) -> str | None:
        """Add an item at the end of a thread, or before the client tool call that is pending there.

        The SDK accepts a client tool's output only while the call is the thread's last item, and continues a workflow only if
        it directly precedes the call.

        Returns:
            The id of the pending call, if there is one.
        """
        params = {"user": context.user, "thread": thread_id}
        owner = {"thread_id": thread_id, "user_id": context.user}

        def work(connection: Connection) -> str | None:
            rows = connection.execute(_SELECT_LAST_ITEMS, params).all()
            last = [_read_item(row.data) for row in rows]
            pending = bool(last) and _is_pending(last[0])
            moved = rows[: 1 + isinstance(last[-1], WorkflowItem)] if pending else []
            for row in moved:
                connection.execute(_DELETE_ITEM, {**params, "item": row.id})
            connection.execute(_INSERT_ITEM, {**owner, "id": item.id, "data": in_utc(item).model_dump_json()})
            for row in reversed(moved):
                connection.execute(_INSERT_ITEM, {**owner, "id": row.id, "data": row.data})
            return last[0].id if pending else None

        return await self._write(thread_id, context, work)

    async def move_to_end(self, thread_id: str, call_id: str, context: ChatContext) -> None:
        """Make a client tool call the thread's last item, if it is still pending."""
        params = {"user": context.user, "thread": thread_id, "item": call_id}

        def work(connection: Connection) -> None:
            data = connection.execute(_SELECT_ITEM, params).scalar_one_or_none()
            if data is not None and _is_pending(_read_item(data)):
                connection.execute(_DELETE_ITEM, params)
                row = {"thread_id": thread_id, "user_id": context.user, "id": call_id, "data": data}
                connection.execute(_INSERT_ITEM, row)

        await self._write(thread_id, context, work)

    async def delete_after(self, thread_id: str, item_id: str, context: ChatContext) -> None:
        """Delete all items after a user message.

        Raises:
            NotFoundError: there is no such item.
            ValueError: the item is not a user message.
        """
        params = {"user": context.user, "thread": thread_id, "item": item_id}

        def work(connection: Connection) -> None:
            if not isinstance(_read_item(_one_or_not_found(connection.execute(_SELECT_ITEM, params))), UserMessageItem):
                raise ValueError("not a user message")
            connection.execute(_DELETE_LATER_IMAGES, params)
            connection.execute(_DELETE_LATER_ITEMS, params)

        await self._write(thread_id, context, work)

    async def save_drafts(self, drafts: Iterable[tuple[ChatContext, AssistantMessageItem]]) -> None:
        """Store unfinished messages, each paired with the context of its response, within ``DRAFT_SECONDS``."""
        rows = [
            {
                **_writer_params(context),
                "thread": message.thread_id,
                "item": message.id,
                "new_data": in_utc(message).model_dump_json(),
            }
            for context, message in drafts
            if any(part.text.strip() for part in message.content)
        ]
        if rows:
            await self._run(lambda connection: connection.execute(_SAVE_DRAFT[connection.dialect.name], rows), DRAFT_SECONDS)

    async def delete_thread_item(self, thread_id: str, item_id: str, context: ChatContext) -> None:
        """Delete an item if it exists: the SDK also removes items that it has shown but never stored."""
        params = {"user": context.user, "thread": thread_id, "item": item_id}

        def work(connection: Connection) -> None:
            connection.execute(_DELETE_IMAGE, params)
            connection.execute(_DELETE_ITEM, params)

        await self._run(work)

    async def save_feedback(
        self, thread_id: str, item_ids: list[str], kind: Literal["positive", "negative"], context: ChatContext
    ) -> None:
        """Store feedback on the items that exist; at least one must."""
        params = {"user": context.user, "thread": thread_id, "items": item_ids, "kind": kind}
        await self._run(lambda connection: _require_match(connection.execute(_UPDATE_FEEDBACK, params)))

    # Runs that wait for the user's decisions

    async def pause_run(self, run: PausedRun, thread_id: str, widgets: Iterable[WidgetItem], context: ChatContext) -> list[str]:
        """Store a run and the widgets of its calls. It replaces the thread's paused run.

        Returns:
            The ids of the other run's widgets.
        """
        owner = {"thread_id": thread_id, "user_id": context.user}

        def work(connection: Connection) -> list[str]:
            discarded = _discard_run(connection, thread_id, context)
            connection.execute(_INSERT_PAUSED_RUN, {**owner, "state": run.state, "decisions": json.dumps(run.decisions)})
            for widget in widgets:
                connection.execute(_INSERT_ITEM, {**owner, "id": widget.id, "data": in_utc(widget).model_dump_json()})
            return discarded

        return await self._write(thread_id, context, work)

    async def load_paused_run(self, thread_id: str, context: ChatContext) -> PausedRun | None:
        params = {"user": context.user, "thread": thread_id}
        return await self._run(lambda connection: _load_paused_run(connection, params))

    async def discard_run(self, thread_id: str, context: ChatContext) -> list[str]:
        """Delete the thread's paused run, if it has one. Return the ids of its widgets."""
        return await self._write(thread_id, context, lambda connection: _discard_run(connection, thread_id, context))

    async def decide(
        self,
        widget: WidgetItem,
        decision: Any,
        decided: Callable[[WidgetItem], WidgetItem],
        not_pending: Callable[[WidgetItem], WidgetItem],
        context: ChatContext,
    ) -> tuple[WidgetItem, PausedRun | None]:
        """Store a decision on a call of the thread's paused run, if the call is pending, and the call's widget.

        Args:
            widget: the widget, of any state; the stored one is used.
            decision: the decision.
            decided: changes the widget if the call was pending.
            not_pending: changes the widget otherwise.
            context: the context of the request.

        Returns:
            The widget, and the run if this was its last decision. The run is deleted with that, so no other request gets it.

        Raises:
            NotFoundError: the widget was deleted.
        """
        params = {"user": context.user, "thread": widget.thread_id, "item": widget.id}

        def work(connection: Connection) -> tuple[WidgetItem, PausedRun | None]:
            run = _load_paused_run(connection, params)
            is_pending = run is not None and run.decisions.get(widget.id, decision) is None
            stored = cast(WidgetItem, _read_item(_one_or_not_found(connection.execute(_SELECT_ITEM, params))))
            changed = (decided if is_pending else not_pending)(stored)
            new = {"thread_id": widget.thread_id, "user_id": context.user, "id": widget.id}
            connection.execute(_SAVE_ITEM[connection.dialect.name], {**new, "data": in_utc(changed).model_dump_json()})
            if run is None or not is_pending:
                return changed, None
            run.decisions[widget.id] = decision
            if None in run.decisions.values():
                connection.execute(_UPDATE_DECISIONS, {**params, "new_decisions": json.dumps(run.decisions)})
                return changed, None
            connection.execute(_DELETE_PAUSED_RUN, params)
            return changed, run

        return await self._write(widget.thread_id, context, work)

    # Generated images

    async def load_image(self, url: str, context: ChatContext) -> str:
        """Return an image as a data URL, given its URL; an empty string if there is no such image.

        A URL from elsewhere is returned as it is.
        """
        image_id = self._image_urls.find(url)
        if not image_id:
            return url

        def work(connection: Connection) -> str:
            image = _read_image(connection, image_id, context.user)
            return image.to_data_url() if image else ""

        return await self._run(work)

    def open_image(self, image_id: str, token: str, admit: Callable[[int], None]) -> Image:
        """Return the image of a signed URL. May block.

        Args:
            image_id: of the URL.
            token: of the URL.
            admit: called with the number of bytes before they are read; may raise.

        Raises:
            NotFoundError: the token is not valid for this image, or its user no longer has such an image.
        """
        signed_user = self._image_urls.read(token, image_id)
        if signed_user is None:
            raise NotFoundError
        with self._engine.connect() as connection:
            owner = connection.execute(_SELECT_IMAGE_OWNER, {"image": image_id}).one_or_none()
            if owner is None or images.user_hash(owner.user_id) != signed_user:
                raise NotFoundError
            admit(owner.size)
            image = _read_image(connection, image_id, owner.user_id)
        if image is None:
            raise NotFoundError
        return image

    # Active runs

    async def begin_run(self, thread_id: str, context: ChatContext, *, alone: bool) -> list[str]:
        """Store the context's run, unless it must be ``alone`` and the thread has active runs. Return the ids of those.

        It replaces the interrupted ones: a retry of what they answered would delete what this run stores.

        Raises:
            ThreadGone: the user has no such thread.
        """
        params = {"user": context.user, "thread": thread_id, **_active_params()}

        def work(connection: Connection) -> list[str]:
            if alone and (active := list(connection.execute(_SELECT_ACTIVE_RUNS_OF_THREAD, params).scalars())):
                return active
            connection.execute(_DELETE_INACTIVE_RUNS, params)
            connection.execute(_INSERT_RUN, _run_row(thread_id, context))
            return []

        return await self._write(thread_id, context, work, undo=self._end_run(context))

    async def end_run(self, context: ChatContext, *, interrupted: bool) -> None:
        """Delete the context's run, or mark it as interrupted, even if this is cancelled."""
        end = self._end_run(context, interrupted=interrupted)
        await self._run(end, undo=end)

    @staticmethod
    def _end_run(context: ChatContext, *, interrupted: bool = False) -> Callable[[Connection], Any]:
        params = {"run": context.run_id, "user": context.user}
        return lambda connection: connection.execute(_INTERRUPT_RUN if interrupted else _DELETE_RUN, params)

    async def load_run(self, thread_id: str, user: str) -> ActiveRun | None:
        """Return an active or, if there is none, an interrupted run of a thread that can be repeated and was not to be stopped.

        Raises:
            NotFoundError: the user has no such thread.
        """
        params = {"user": user, "thread": thread_id, **_active_params()}
        row = await self._run(lambda connection: connection.execute(_SELECT_RUN, params).one_or_none())
        if row is None:
            raise NotFoundError
        return ActiveRun(row.id, row.started_at, row.is_active) if row.id else None

    async def stop_run(self, run_id: str, user: str) -> None:
        """Request that a run be stopped.

        Raises:
            NotFoundError: the user has no such active run.
        """
        params = {"run": run_id, "user": user, **_active_params()}
        await self._run(lambda connection: _require_match(connection.execute(_STOP_RUN, params)))

    async def find_active(self, run_ids: Iterable[str], users: Iterable[str]) -> set[tuple[str, str]]:
        """Return those of the users' runs that are not to be stopped, each with its user."""
        params = {"runs": list(run_ids), "users": list(users)}
        rows = await self._run(lambda connection: connection.execute(_SELECT_ACTIVE_RUNS, params).all())
        return {(row.id, row.user_id) for row in rows}

    async def beat(self, run_ids: Iterable[str], users: Iterable[str]) -> None:
        """Store that the process of these runs is alive."""
        params = {"runs": list(run_ids), "users": list(users), "now": int(time.time())}
        await self._run(lambda connection: connection.execute(_BEAT, params))

    # Attachments' metadata

    async def save_attachment(self, attachment: Attachment, context: ChatContext) -> None:
        data, thread_id = attachment.model_dump_json(), attachment.thread_id
        params = {"user": context.user, "attachment": attachment.id}

        def work(connection: Connection) -> None:
            if not connection.execute(_UPDATE_ATTACHMENT, {**params, "new_data": data, "new_thread": thread_id}).rowcount:
                new = {"id": attachment.id, "user_id": context.user, "thread_id": thread_id, "data": data}
                connection.execute(_INSERT_ATTACHMENT, new)

        await self._run(work)

    async def load_attachment(self, attachment_id: str, context: ChatContext) -> Attachment:
        params = {"user": context.user, "attachment": attachment_id}
        data = await self._run(lambda connection: _one_or_not_found(connection.execute(_SELECT_ATTACHMENT, params)))
        attachment: Attachment = _attachment.validate_json(data)
        return attachment

    async def delete_attachment(self, attachment_id: str, context: ChatContext) -> None:
        params = {"user": context.user, "attachment": attachment_id}
        await self._run(lambda connection: _require_match(connection.execute(_DELETE_ATTACHMENT, params)))


@contextmanager
def _gone_threads_logged() -> Iterator[None]:
    try:
        yield
    except ThreadGone:
        log.info("a thread that does not exist, or no longer exists, can't be changed")
        raise


def _read_image(connection: Connection, image_id: str, user: str) -> Image | None:
    row = connection.execute(_SELECT_IMAGE, {"image": image_id, "user": user}).one_or_none()
    return Image(row.media_type, row.data) if row else None


def _writer_params(context: ChatContext) -> dict[str, Any]:
    return {"user": context.user, "active_run": context.run_id if context.run_is_active.is_set() else ""}


def _active_params() -> dict[str, int]:
    """Return the range of heartbeats. One in the future is from a clock that was wrong, and would block its thread for long."""
    now = int(time.time())
    return {"oldest": now - STALE_SECONDS, "newest": now + STALE_SECONDS}


def _run_row(thread_id: str, context: ChatContext) -> dict[str, Any]:
    now = int(time.time())
    row = {"id": context.run_id, "thread_id": thread_id, "user_id": context.user, "is_repeatable": context.is_repeatable}
    return {**row, "started_at": now, "heartbeat": now, "stop_requested": False}


def _load_paused_run(connection: Connection, params: dict[str, Any]) -> PausedRun | None:
    row = connection.execute(_SELECT_PAUSED_RUN, params).one_or_none()
    return PausedRun(row.state, json.loads(row.decisions)) if row else None


def _discard_run(connection: Connection, thread_id: str, context: ChatContext) -> list[str]:
    params = {"user": context.user, "thread": thread_id}
    run = _load_paused_run(connection, params)
    connection.execute(_DELETE_PAUSED_RUN, params)
    return list(run.decisions) if run else []


def new_id(item_type: str) -> str:
    return f"{_PREFIXES[item_type]}_{uuid.uuid4().hex}"


def _merge(mine: ThreadMetadata, base: ThreadMetadata, theirs: ThreadMetadata) -> dict[str, Any]:
    """Three-way merge of a thread's fields: mine where I changed them since ``base``, else theirs."""

    def pick(mine: Any, base: Any, theirs: Any) -> Any:
        return theirs if mine == base else mine

    versions = (mine, base, theirs)
    fields = {name: pick(*(getattr(thread, name) for thread in versions)) for name in ThreadMetadata.model_fields}
    keys = {**theirs.metadata, **mine.metadata}
    merged = {key: pick(*(thread.metadata.get(key, _MISSING) for thread in versions)) for key in keys}
    fields["metadata"] = {key: value for key, value in merged.items() if value is not _MISSING}
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


def _one_or_not_found(result: Any) -> Any:
    value = result.scalar_one_or_none()
    if value is None:
        raise NotFoundError
    return value


def _require_match(result: Any) -> None:
    if not result.rowcount:
        raise NotFoundError
