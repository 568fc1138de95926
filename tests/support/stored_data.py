"""What is stored about users."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

from sqlalchemy import MetaData, create_engine, insert

from chatkit.backends.selfhosted.database.tables import (
    ActiveRunRow,
    AttachmentContentRow,
    AttachmentRow,
    ImageRow,
    ItemRow,
    PausedRunRow,
    ThreadRow,
    UsageRow,
)
from chatkit.web.asgi import AsgiFlask
from tests.support.chat_users import ChatUser, begin_conversation, chat, chat_user

WORDS = "Purple elephants ✓"


def answer(text_: str) -> dict[str, Any]:
    return {"type": "assistant_message", "content": [{"type": "output_text", "text": text_, "annotations": []}]}


USAGE = {"requests": 2, "input_tokens": 30, "output_tokens": 4, "total_tokens": 34}


FILE = {"type": "file", "mime_type": "text/plain"}


def question(text_: str) -> dict[str, Any]:
    return {"type": "user_message", "content": [{"type": "input_text", "text": text_}], "attachments": []}


def with_data(app: AsgiFlask, database: str, name: str) -> ChatUser:
    """A visitor with a session, a thread with feedback, and an attachment."""
    someone = chat_user(app, "anonymous", name)
    begin_conversation(someone, f"{WORDS} of {name}")
    rated = {"thread_id": someone.thread, "item_ids": [someone.item], "kind": "negative"}
    assert chat(someone, {"type": "items.feedback", "params": rated}).status_code == 200
    with create_engine(database).begin() as connection:
        attachment = {
            "id": f"atc_{name}",
            "user_id": someone.user,
            "thread_id": None,
            "data": json.dumps(FILE | {"name": name}),
        }
        connection.execute(insert(AttachmentRow), attachment)
        content = {"attachment_id": f"atc_{name}", "data": f"File of {name}".encode()}
        connection.execute(insert(AttachmentContentRow), content)
        connection.execute(
            insert(UsageRow), {"user_id": someone.user, "day": date(2026, 11, 23), **USAGE, "agent": f"of {name}"}
        )
        paused = {"thread_id": someone.thread, "user_id": someone.user, "decisions": "{}", "state": f"{WORDS} of {name}"}
        connection.execute(insert(PausedRunRow), paused)
        active = {"id": f"run_{name}", "thread_id": someone.thread, "user_id": someone.user, "started_at": 1_760_000_000}
        connection.execute(insert(ActiveRunRow), {**active, "heartbeat": 0, "stop_requested": False})
        image = {"id": f"img_{name}", "user_id": someone.user, "thread_id": someone.thread, "item_id": "msg_image"}
        connection.execute(insert(ImageRow), {**image, "media_type": "image/png", "data": f"Image of {name}".encode()})
    return someone


def fill(database: str, user: str, thread: str, *items: dict[str, Any], **columns: Any) -> None:
    """Store a thread as it is."""
    data = {"id": thread, "title": "A title", "created_at": "2026-11-01T00:00:00Z"}
    with create_engine(database).begin() as connection:
        row = {"id": thread, "user_id": user, "used_at": 1_760_000_000, "data": json.dumps(data)}
        connection.execute(insert(ThreadRow), row)
        base = {"created_at": "2026-11-01T00:00:01Z", "thread_id": thread}
        rows = [
            {
                "thread_id": thread,
                "user_id": user,
                "id": f"msg_{number}",
                # Compact, as the service stores it.
                "data": json.dumps({"id": f"msg_{number}", **base, **item}, separators=(",", ":")),
                "feedback": None,
                **columns,
            }
            for number, item in enumerate(items)
        ]
        if rows:
            connection.execute(insert(ItemRow), rows)


def everything(database: str) -> str:
    """All that is in any table, as text."""
    engine = create_engine(database)
    metadata = MetaData()
    metadata.reflect(engine)
    assert {
        "chat_sessions",
        "chat_threads",
        "chat_items",
        "chat_attachments",
        "chat_attachment_contents",
        "chat_imports",
        "chat_usage",
        "chat_paused_runs",
        "chat_images",
        "chat_active_runs",
    } <= metadata.tables.keys()
    with engine.connect() as connection:
        return "\n".join(str(tuple(row)) for table in metadata.tables.values() for row in connection.execute(table.select()))


def items_of(someone: ChatUser) -> dict[str, Any]:
    return {"type": "items.list", "params": {"thread_id": someone.thread, "limit": 100, "order": "asc"}}
