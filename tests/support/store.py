"""Users, threads and items for the tests of the store."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import datetime
from typing import Any, TypeVar

from chatkit.types import (
    AssistantMessageContent,
    AssistantMessageItem,
    InferenceOptions,
    ThreadMetadata,
    UserMessageItem,
    UserMessageTextContent,
)
from sqlalchemy import insert

from chatkit.backends.selfhosted.chat.context import ChatContext
from chatkit.backends.selfhosted.chat.images import image_urls
from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.backends.selfhosted.database.tables import ItemRow

T = TypeVar("T")
IMAGE_URLS = image_urls("a key that signs the URLs of images")
MOMENT = datetime(2026, 11, 23)  # noqa: DTZ001  naive like the SDK's, and the same for all, because order must not depend on clocks


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def of(user: str, run_id: str = "") -> ChatContext:
    return ChatContext(user, None, run_id=run_id)  # type: ignore[arg-type]  # the store does not use the buffer


def of_run(run_id: str, user: str = "anonymous:ada") -> ChatContext:
    return of(user, run_id)


ADA, EVE = of("anonymous:ada"), of("anonymous:eve")


def new_thread(store: SqlStore, context: ChatContext = ADA) -> str:
    thread = ThreadMetadata(id=store.generate_thread_id(context), created_at=MOMENT)
    run(store.save_thread(thread, context))
    return thread.id


def message(thread_id: str, name: str, words: str = "hello") -> AssistantMessageItem:
    return AssistantMessageItem(id=name, thread_id=thread_id, created_at=MOMENT, content=[AssistantMessageContent(text=words)])


def question(thread_id: str, name: str) -> UserMessageItem:
    return UserMessageItem(
        id=name,
        thread_id=thread_id,
        created_at=MOMENT,
        content=[UserMessageTextContent(text="?")],
        inference_options=InferenceOptions(),
    )


def add_items(store: SqlStore, items: list[Any]) -> None:
    """Add many items of Ada's at once."""
    rows = [{"thread_id": item.thread_id, "user_id": ADA.user, "id": item.id, "data": item.model_dump_json()} for item in items]
    with store.transactions.engine.begin() as connection:
        connection.execute(insert(ItemRow), rows)
