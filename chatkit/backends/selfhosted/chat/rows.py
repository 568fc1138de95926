"""The chat's tables, and what its stores share to read and write rows."""

from __future__ import annotations

import json
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
from chatkit.types import ThreadItem, WidgetItem
from chatkit.widgets import DynamicWidgetRoot

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


class InvalidDataError(Exception):
    """A server has made a thread or an item that could not be read again: pydantic does not validate what is assigned."""


def storable(data: str, read: Callable[[str], Any]) -> str:
    """Return ``data``, which is to be stored and which ``read`` will read.

    Raises:
        InvalidDataError: it is not valid. Stored, it would make the user's conversations unreadable.
    """
    try:
        read(data)
    except UnreadableRowError as error:
        raise InvalidDataError(f"not stored, because it could not be read again: {error}") from None
    return data


def read_item(data: str) -> ThreadItem:
    item: ThreadItem = in_local_time(parsed(_thread_item.validate_json, data))
    if isinstance(item, WidgetItem):
        widget = json.loads(data)["widget"]
        # The classes of widgets drop or convert what they do not know, such as members that a template has.
        if item.widget.model_dump(mode="json") != widget:
            item.widget = parsed(DynamicWidgetRoot.model_validate_json, json.dumps(widget))
    return item


def item_data(item: ThreadItem) -> str:
    """Return ``item`` as JSON.

    Raises:
        InvalidDataError: it is not valid.
    """
    return storable(to_json(in_utc(item)), read_item)


def item_row(item: ThreadItem, thread_id: str, context: ChatContext) -> dict[str, Any]:
    """Return the columns of ``item``, for ``SAVE_ITEM`` and ``INSERT_ITEM``. Raises as ``item_data``."""
    return {"thread_id": thread_id, "user_id": context.user, "id": item.id, "data": item_data(item)}


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
