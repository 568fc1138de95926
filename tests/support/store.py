"""Users and threads for the tests of the store."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import datetime
from typing import Any, TypeVar

from chatkit.types import ThreadMetadata

from chatkit.backends.selfhosted.chat.context import ChatContext
from chatkit.backends.selfhosted.chat.images import ImageUrls
from chatkit.backends.selfhosted.chat.store import SqlStore

T = TypeVar("T")
IMAGE_URLS = ImageUrls("a key that signs the URLs of images")
MOMENT = datetime(2026, 11, 23)  # noqa: DTZ001  naive like the SDK's, and the same for all, because order must not depend on clocks


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def of(user: str) -> ChatContext:
    return ChatContext(user, None)  # type: ignore[arg-type]  # the store does not use the buffer


ADA, EVE = of("anonymous:ada"), of("anonymous:eve")


def new_thread(store: SqlStore, context: ChatContext = ADA) -> str:
    thread = ThreadMetadata(id=store.generate_thread_id(context), created_at=MOMENT)
    run(store.save_thread(thread, context))
    return thread.id
