"""Saves unfinished messages while they are streamed, so that a crash loses about a second of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextvars import Context

from chatkit.backends.selfhosted.chat.context import ChatContext
from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.types import AssistantMessageItem

SAVE_INTERVAL_SECONDS = 1.0
SAVE_BATCH = 100  # rows per transaction, to let other writers in

log = logging.getLogger(__name__)


class Drafts:
    """The unfinished messages of this process, saved together in batches. Not thread-safe; used on the event loop only."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store
        self._unsaved: dict[str, tuple[ChatContext, AssistantMessageItem]] = {}
        self._batch: dict[str, tuple[ChatContext, AssistantMessageItem]] = {}
        """The messages that are being saved, unless they are finished meanwhile."""
        self._saving = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def schedule(self, context: ChatContext, message: AssistantMessageItem) -> None:
        """Save ``message`` of the context's response soon, with the content that it has by then."""
        self._unsaved[message.id] = (context, message)
        if self._task is None or self._task.done():
            # An empty context, because the task serves all requests.
            self._task = asyncio.get_running_loop().create_task(self._save_loop(), context=Context())

    async def finish(self, message_ids: Iterable[str]) -> None:
        """Stop saving these messages. After this returns, no draft overwrites their stored items."""
        for message_id in message_ids:
            self._unsaved.pop(message_id, None)
            self._batch.pop(message_id, None)
        if self._saving.locked():
            async with self._saving:
                pass

    async def _save_loop(self) -> None:
        while self._unsaved:
            await asyncio.sleep(SAVE_INTERVAL_SECONDS)
            async with self._saving:
                self._batch, self._unsaved = self._unsaved, {}
                message_ids = list(self._batch)
                for start in range(0, len(message_ids), SAVE_BATCH):
                    some = message_ids[start : start + SAVE_BATCH]
                    try:
                        await self._store.save_drafts([self._batch[each] for each in some if each in self._batch])
                    except Exception as error:  # noqa: BLE001  the next round saves them
                        log.warning("unfinished messages could not be saved (%s)", type(error).__name__)
                    else:
                        for message_id in some:
                            self._batch.pop(message_id, None)
                self._batch, self._unsaved = {}, {**self._batch, **self._unsaved}
