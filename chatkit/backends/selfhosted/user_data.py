"""What is stored about users, for the operator's commands: list, show, export, delete.

Everything is read as it is stored and row by row, so that memory use does not grow with a user's data.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Delete, Executable, bindparam, delete, func, select

from chatkit.backends.selfhosted.chat.data_urls import data_url
from chatkit.backends.selfhosted.chat.timestamps import as_utc
from chatkit.backends.selfhosted.database.tables import (
    ActiveRunRow,
    AttachmentContentRow,
    AttachmentRow,
    ImageRow,
    ItemRow,
    PausedRunRow,
    SessionRow,
    ThreadRow,
    UsageRow,
)

DELETE_BATCH = 200  # rows; a batch holds its locks for a short time
DELETE_FILES = 10  # images or attachments in a batch; one has some megabytes
DELETE_PAUSE_SECONDS = 0.01  # between batches, to let other writers in
RUN_END_SECONDS = 1.0  # after which a process has noticed that a run was deleted, and the run has ended
ROWS_AT_ONCE = 10  # read ahead; an attachment has some megabytes

_user: Any = bindparam("user")
_thread: Any = bindparam("thread")

_COUNT_ITEMS = (  # by thread, because items have no index by user
    select(func.count())
    .select_from(ItemRow)
    .join(ThreadRow, (ThreadRow.id == ItemRow.thread_id) & (ThreadRow.user_id == ItemRow.user_id))
    .where(ThreadRow.user_id == _user)
)
_COUNTS = {
    "sessions": select(func.count()).where(SessionRow.user_id == _user),
    "threads": select(func.count()).where(ThreadRow.user_id == _user),
    "items": _COUNT_ITEMS,
    "ratings": _COUNT_ITEMS.where(ItemRow.feedback.is_not(None)),
    "attachments": select(func.count()).where(AttachmentRow.user_id == _user),
    "usage records": select(func.count()).where(UsageRow.user_id == _user),
}
_SELECT_SESSIONS = select(SessionRow.id, SessionRow.expires_at, SessionRow.agent, SessionRow.claims).where(
    SessionRow.user_id == _user
)
_SELECT_THREADS = (
    select(ThreadRow.id, ThreadRow.used_at, ThreadRow.data, func.count(ItemRow.position).label("items"))
    .outerjoin(ItemRow, (ItemRow.thread_id == ThreadRow.id) & (ItemRow.user_id == _user))
    .where(ThreadRow.user_id == _user)
    .group_by(ThreadRow.position)
    .order_by(ThreadRow.position)
)
_SELECT_ITEMS = (
    select(ItemRow.data, ItemRow.feedback)
    .where(ItemRow.thread_id == _thread, ItemRow.user_id == _user)
    .order_by(ItemRow.position)
)
_SELECT_IMAGE = select(ImageRow.media_type, ImageRow.data).where(
    ImageRow.thread_id == _thread, ImageRow.item_id == bindparam("item"), ImageRow.user_id == _user
)
_SELECT_PAUSED_RUNS = select(PausedRunRow.thread_id, PausedRunRow.decisions, PausedRunRow.state).where(
    PausedRunRow.user_id == _user
)
_SELECT_ACTIVE_RUNS = select(ActiveRunRow.id, ActiveRunRow.thread_id, ActiveRunRow.started_at).where(
    ActiveRunRow.user_id == _user
)
_SELECT_ATTACHMENTS = (
    select(AttachmentRow.data, AttachmentContentRow.data.label("content"))
    .outerjoin(AttachmentContentRow, AttachmentContentRow.attachment_id == AttachmentRow.id)
    .where(AttachmentRow.user_id == _user)
    .order_by(AttachmentRow.id)
)
_SELECT_USAGE = (
    select(
        UsageRow.day, UsageRow.agent, UsageRow.requests, UsageRow.input_tokens, UsageRow.output_tokens, UsageRow.total_tokens
    )
    .where(UsageRow.user_id == _user)
    .order_by(UsageRow.position)
)
_COUNT_ACTIVE_RUNS = select(func.count()).where(ActiveRunRow.user_id == _user)
_own_thread = ThreadRow.user_id == _user
_DELETE = [
    (delete(row).where(key.in_(select(key).where(condition).limit(batch).correlate(None))), batch)
    # Sessions first, so that the user's page can't begin new responses. Threads after what is in them, because a
    # statement that cascades to all of them could take long, and SQLite has one writer at a time.
    for row, key, condition, batch in (
        (SessionRow, SessionRow.id, SessionRow.user_id == _user, DELETE_BATCH),
        (ActiveRunRow, ActiveRunRow.id, ActiveRunRow.user_id == _user, DELETE_BATCH),
        (ImageRow, ImageRow.id, _own_thread & (ImageRow.thread_id == ThreadRow.id), DELETE_FILES),
        (AttachmentRow, AttachmentRow.id, AttachmentRow.user_id == _user, DELETE_FILES),
        (ItemRow, ItemRow.position, _own_thread & (ItemRow.thread_id == ThreadRow.id), DELETE_BATCH),
        (ThreadRow, ThreadRow.position, _own_thread, DELETE_BATCH),
        (UsageRow, UsageRow.position, UsageRow.user_id == _user, DELETE_BATCH),
    )
]
_SELECT_FEEDBACK = (
    select(ItemRow.position, ItemRow.thread_id, ItemRow.user_id, ItemRow.data, ItemRow.feedback)
    .where(ItemRow.feedback.is_not(None))
    .order_by(ItemRow.position)
)
_SELECT_QUESTION = (
    select(ItemRow.data)
    .where(
        ItemRow.thread_id == _thread,
        ItemRow.user_id == _user,
        ItemRow.position < bindparam("before"),
        ItemRow.data.contains('"type":"user_message"', autoescape=True),
    )
    .order_by(ItemRow.position.desc())
)


@dataclass(frozen=True)
class Thread:
    id: str
    title: str | None
    created_at: str
    used_at: str
    items: int


@dataclass(frozen=True)
class Feedback:
    """A rated item. ``created_at`` is the time of the item; that of the rating is not stored."""

    created_at: str
    verdict: str
    question: str
    """The user's message before it."""
    answer: str
    user: str
    thread_id: str
    item_id: str


class UserData:
    """Reads and deletes what is stored about users. A user is given by their ``User.id``.

    Args:
        connection: its statements should have no time limit.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def counts(self, user: str) -> dict[str, int]:
        """Return the number of rows of each kind, named in the plural. ``ratings`` are part of ``items``."""
        counts = {name: self._connection.execute(query, {"user": user}).scalar_one() for name, query in _COUNTS.items()}
        self._connection.rollback()
        return counts

    def threads(self, user: str) -> Iterator[Thread]:
        """Yield the user's threads, oldest first."""
        for row in self._stream(_SELECT_THREADS, user=user):
            data = json.loads(row.data)
            created_at = as_utc(datetime.fromisoformat(data["created_at"])).timestamp()
            yield Thread(row.id, data["title"], _iso(created_at), _iso(row.used_at), row.items)

    def items(self, user: str, thread_id: str) -> Iterator[dict[str, Any]]:
        """Yield the items of a thread of the user, oldest first, as they are stored, with ``feedback`` where there is some."""
        for row in self._stream(_SELECT_ITEMS, user=user, thread=thread_id):
            yield {**json.loads(row.data), **({"feedback": row.feedback} if row.feedback else {})}

    def export(self, user: str) -> Iterator[tuple[str, int]]:
        """Yield one JSON document in pieces, each with the number of items that it completes."""
        yield f'{{"user": {_json(user)}, "exported_at": "{_iso(time.time())}",\n"sessions": [', 0
        yield from self._array(_SELECT_SESSIONS, user, _session)
        yield '],\n"threads": [', 0
        for separator, row in _separated(self._stream(_SELECT_THREADS, user=user)):
            thread = {**json.loads(row.data), "used_at": _iso(row.used_at)}
            yield f'{separator}{_json(thread)[:-1]}, "items": [', 0
            for item_separator, item in _separated(self.items(user, row.id)):
                yield f"{item_separator}{_json(self._with_image(user, item))}", 1
            yield "]}", 0
        yield '],\n"paused_runs": [', 0
        yield from self._array(_SELECT_PAUSED_RUNS, user, lambda row: _json(dict(row._mapping)))
        yield '],\n"active_runs": [', 0
        yield from self._array(
            _SELECT_ACTIVE_RUNS, user, lambda row: _json({**row._mapping, "started_at": _iso(row.started_at)})
        )
        yield '],\n"attachments": [', 0
        yield from self._array(_SELECT_ATTACHMENTS, user, _attachment)
        yield '],\n"usage": [', 0
        yield from self._array(_SELECT_USAGE, user, lambda row: _json({**row._mapping, "day": row.day.isoformat()}))
        yield "]}\n", 0

    def _array(self, statement: Executable, user: str, to_json: Callable[[Any], str]) -> Iterator[tuple[str, int]]:
        """Yield the elements of a JSON array that has no items, as ``export`` does."""
        for separator, row in _separated(self._stream(statement, user=user)):
            yield f"{separator}{to_json(row)}", 0

    def _with_image(self, user: str, item: dict[str, Any]) -> dict[str, Any]:
        """Return the item with its image as a data URL, if it refers to one."""
        if item["type"] != "generated_image":
            return item
        params = {"user": user, "thread": item["thread_id"], "item": item["id"]}
        row = self._connection.execute(_SELECT_IMAGE, params).one_or_none()
        if row is None:  # the image is in the item, or elsewhere
            return item
        return {**item, "image": {**item["image"], "url": data_url(row.media_type, row.data)}}

    def delete(self, user: str) -> None:
        """Delete all rows of the user, in batches. If it is interrupted, repeat it.

        A response that is active ends, and may store something before it does. So all is repeated until nothing is found.
        """
        while True:
            with self._connection.begin():
                active = self._connection.execute(_COUNT_ACTIVE_RUNS, {"user": user}).scalar_one()
            if not sum(self._delete(statement, batch, user) for statement, batch in _DELETE):
                return
            if active:
                time.sleep(RUN_END_SECONDS)

    def _delete(self, statement: Delete, batch: int, user: str) -> int:
        total = 0
        while True:
            with self._connection.begin():
                deleted = self._connection.execute(statement, {"user": user}).rowcount
            total += deleted
            if deleted < batch:
                return total
            time.sleep(DELETE_PAUSE_SECONDS)

    def feedback(self) -> Iterator[Feedback]:
        """Yield all rated items of all users, oldest first."""
        for row in self._stream(_SELECT_FEEDBACK):
            item = json.loads(row.data)
            before = {"user": row.user_id, "thread": row.thread_id, "before": row.position}
            earlier = (json.loads(found.data) for found in self._stream(_SELECT_QUESTION, **before))
            question = next((text_of(found) for found in earlier if found["type"] == "user_message"), "")
            yield Feedback(
                created_at=item["created_at"],
                verdict=row.feedback,
                question=question,
                answer=text_of(item),
                user=row.user_id,
                thread_id=row.thread_id,
                item_id=item["id"],
            )

    def _stream(self, statement: Executable, **params: Any) -> Iterator[Any]:
        with self._connection.execute(statement, params, execution_options={"yield_per": ROWS_AT_ONCE}) as rows:
            yield from rows


def text_of(item: dict[str, Any]) -> str:
    """Return the text of a message, or the JSON of what another item contains."""
    if item["type"] in ("user_message", "assistant_message"):
        return "".join(part["text"] for part in item["content"])
    return _json(
        {name: value for name, value in item.items() if name not in ("id", "thread_id", "created_at", "type", "feedback")}
    )


def _session(row: Any) -> str:
    claims = json.loads(row.claims) if row.claims else {}
    return _json({"id": row.id, "expires_at": _iso(row.expires_at), "agent": row.agent, "claims": claims})


def _attachment(row: Any) -> str:
    """Return an attachment with its content, if there is one, as a data URL."""
    if row.content is None:
        return str(row.data)
    attachment = json.loads(row.data)
    return _json({**attachment, "content": data_url(attachment["mime_type"], row.content)})


def _separated(values: Iterator[Any]) -> Iterator[tuple[str, Any]]:
    """Yield each value with what comes before it in a JSON array."""
    separator = "\n"
    for value in values:
        yield separator, value
        separator = ",\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _iso(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
