"""Stores what assistants are saying while they say it, so that a process that dies loses about a second of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextvars import Context

from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.types import AssistantMessageItem

EVERY_SECONDS = 1.0
ROWS_AT_ONCE = 100  # in one transaction, so that other writers get their turn

log = logging.getLogger(__name__)


class Drafts:
    """The unfinished messages of a process, all stored together once in a while. Used on the event loop alone."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store
        self._changed: dict[str, tuple[str, AssistantMessageItem]] = {}
        self._storing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def changed(self, user: str, message: AssistantMessageItem) -> None:
        """Have ``message`` of ``user`` stored soon, as it will be then."""
        self._changed[message.id] = (user, message)
        if self._task is None or self._task.done():
            # In a context of its own, because it is for all requests.
            self._task = asyncio.get_running_loop().create_task(self._store_them(), context=Context())

    async def finish(self, message_ids: Iterable[str]) -> None:
        """Store none of these any more; once this returns, no draft overwrites what is stored under their ids."""
        for message_id in message_ids:
            self._changed.pop(message_id, None)
        if self._storing.locked():
            async with self._storing:
                pass

    async def _store_them(self) -> None:
        while self._changed:
            await asyncio.sleep(EVERY_SECONDS)
            async with self._storing:
                batch, self._changed = list(self._changed.values()), {}
                for start in range(0, len(batch), ROWS_AT_ONCE):
                    try:
                        await self._store.save_drafts(batch[start : start + ROWS_AT_ONCE])
                    except Exception as error:  # noqa: BLE001  the whole message is stored at its end
                        log.warning("unfinished messages could not be stored (%s)", type(error).__name__)
