"""The chat's tables, and what its stores share to read and write rows."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Table, and_, bindparam, insert, select

from chatkit.backends.selfhosted.chat.context import ChatContext
from chatkit.backends.selfhosted.chat.surrogates import to_json
from chatkit.backends.selfhosted.chat.timestamps import in_local_time, in_utc
from chatkit.backends.selfhosted.database.tables import (
    DIALECTS,
    ActiveRunRow,
    AttachmentContentRow,
    AttachmentRow,
    ImageRow,
    ItemRow,
    PausedRunRow,
    ThreadRow,
)
from chatkit.store import NotFoundError
from chatkit.types import ThreadItem

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

Parsed = TypeVar("Parsed")

_thread_item: TypeAdapter[Any] = TypeAdapter(ThreadItem)

# Statements are built once: building one takes longer than running it. Each names the user.

THREADS, ITEMS, ATTACHMENTS, CONTENTS, PAUSED_RUNS, IMAGES, ACTIVE_RUNS = (
    cast(Table, row.__table__)
    for row in (ThreadRow, ItemRow, AttachmentRow, AttachmentContentRow, PausedRunRow, ImageRow, ActiveRunRow)
)
USER: Any = bindparam("user")
OWN_THREAD = and_(THREADS.c.id == bindparam("thread"), THREADS.c.user_id == USER)
OWN_ITEMS = and_(ITEMS.c.thread_id == bindparam("thread"), ITEMS.c.user_id == USER)
OWN_ITEM = and_(OWN_ITEMS, ITEMS.c.id == bindparam("item"))
LATER_ITEMS = and_(OWN_ITEMS, ITEMS.c.position > select(ITEMS.c.position).where(OWN_ITEM).scalar_subquery())
SELECT_ITEM = select(ITEMS.c.data).where(OWN_ITEM)
SAVE_ITEM = {  # an upsert that keeps the position
    name: dialect.insert(ITEMS).on_conflict_do_update(
        index_elements=["thread_id", "id"], set_={"data": dialect.insert(ITEMS).excluded.data}
    )
    for name, dialect in DIALECTS.items()
}
INSERT_ITEM = insert(ITEMS)


def new_id(item_type: str) -> str:
    return f"{_PREFIXES[item_type]}_{uuid.uuid4().hex}"


class UnreadableRowError(Exception):
    """A row has JSON that this version can't read. A newer version may have stored it."""


def parsed(validate_json: Callable[[str], Parsed], data: str) -> Parsed:
    """Return stored JSON as what ``validate_json`` makes of it.

    Raises:
        UnreadableRowError: it is not valid. Unlike pydantic's, this error is no ``ValueError`` and quotes no texts.
    """
    try:
        return validate_json(data)
    except ValidationError as error:
        first, *_ = error.errors(include_url=False, include_context=False, include_input=False)
        raise UnreadableRowError(f"{first['type']} at {first['loc']}") from None


def read_item(data: str) -> ThreadItem:
    item: ThreadItem = in_local_time(parsed(_thread_item.validate_json, data))
    return item


def item_row(item: ThreadItem, thread_id: str, context: ChatContext) -> dict[str, Any]:
    """Return the columns of ``item``, for ``SAVE_ITEM`` and ``INSERT_ITEM``."""
    return {"thread_id": thread_id, "user_id": context.user, "id": item.id, "data": to_json(in_utc(item))}


def one_or_not_found(result: Any) -> Any:
    """Return the value of ``result``.

    Raises:
        NotFoundError: there is none.
    """
    value = result.scalar_one_or_none()
    if value is None:
        raise NotFoundError
    return value


def require_match(result: Any) -> None:
    """Check that a statement has changed a row.

    Raises:
        NotFoundError: it has not.
    """
    if not result.rowcount:
        raise NotFoundError
