"""The active runs: responses that are being produced, each with a row in the database.

The row lets any process see that a response is being produced and stop it in its own process, which reads the rows of its runs
several times per second. That process also stops a run whose row is gone: the thread was deleted or belongs to another user
now, or the process stalled for so long that another run has replaced this one. The store refuses what such a run still writes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from chatkit.backends.selfhosted.chat.active_run_store import ActiveRun, ActiveRunStore, draft_rows
from chatkit.backends.selfhosted.chat.context import ChatContext
from chatkit.backends.selfhosted.database.engine import UNAVAILABLE
from chatkit.store import NotFoundError
from chatkit.web.asgi import cancel_once
from chatkit.web.errors import ServiceBusy

POLL_SECONDS = 0.4
HEARTBEAT_SECONDS = 2.5
GRACE_SECONDS = 0.5  # for a run to end by itself before it is stopped: it may just be saving its last item
TAKEOVER_SECONDS = 14  # for a run to save its message and end, or to become stale
RETRY_SECONDS = 0.1

log = logging.getLogger(__name__)


@dataclass
class _Running:
    user: str
    task: asyncio.Task[None]


class Runs:
    """The active runs of this process. Not thread-safe; used on the event loop only."""

    def __init__(self, store: ActiveRunStore) -> None:
        self._store = store
        self._running: dict[str, _Running] = {}
        self._ended: dict[str, tuple[ChatContext, bool, list[dict[str, Any]]]] = {}
        """By id, the runs whose end is not stored yet: their contexts, whether they were interrupted, and their drafts."""
        self._next_heartbeat = 0.0

    async def begin(self, thread_id: str, context: ChatContext) -> None:
        """Make the current task an active run of the thread, beside others.

        Raises:
            NotFoundError: the user has no such thread.
        """
        if context.run_id:
            await self._store.begin(thread_id, context, alone=False)
            self.begun(context)

    async def begin_alone(self, thread_id: str, context: ChatContext, check: Callable[[], Awaitable[None]]) -> None:
        """Make the current task the active run of the thread. Stop the others and wait until they have saved their text.

        Args:
            thread_id: the thread.
            context: of the request.
            check: called before the others are stopped and after they have ended; raises if the request no longer fits.

        Raises:
            ServiceBusy: another run does not end.
            NotFoundError: the user has no such thread.
        """
        if not context.run_id:
            return
        loop = asyncio.get_running_loop()
        began = loop.time()
        seen: dict[str, float] = {}
        while others := await self._store.begin(thread_id, context, alone=True):
            context.started()
            now = loop.time()
            if now - began > TAKEOVER_SECONDS:
                raise ServiceBusy("an active run of the thread does not end")
            if due := [other for other in others if now - seen.setdefault(other, now) > GRACE_SECONDS]:
                await check()
            for other in due:
                with suppress(NotFoundError):  # it has ended
                    await self.stop(other, context.user)
            await asyncio.sleep(RETRY_SECONDS)
        self.begun(context)
        if seen:
            await check()

    def begun(self, context: ChatContext) -> None:
        """Watch the context's run, which is stored, as the current task."""
        context.run_is_active.set()
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._running[context.run_id] = _Running(context.user, task)

    async def end(self, context: ChatContext, *, interrupted: bool) -> None:
        """End the run of the current task, if it has one, and store what its response has shown and could not store.

        If it was ``interrupted``, the page offers a retry.
        """
        if self._running.pop(context.run_id, None) is None:
            return
        context.run_is_active.clear()  # what goes on after the response, such as a title, has no row
        drafts = draft_rows((context, message) for message in context.drafts.values())
        try:
            await self._store_end(context, interrupted, drafts)
        except Exception as error:  # noqa: BLE001  watch() tries again; the run counts as active until it is stale
            log.warning("the end of a run could not be stored yet (%s)", type(error).__name__)

    async def stop(self, run_id: str, user: str) -> None:
        """Stop a run of ``user`` (a ``User.id``), in whichever process it is.

        Raises:
            NotFoundError: the user has no such active run.
        """
        await self._store.stop(run_id, user)
        running = self._running.get(run_id)
        if running and running.user == user:
            cancel_once(running.task)

    async def of_thread(self, thread_id: str, user: str) -> ActiveRun | None:
        """Return an active or, if there is none, an interrupted run of the thread.

        Raises:
            NotFoundError: the user has no such thread.
        """
        return await self._store.load(thread_id, user)

    async def watch(self) -> None:
        """Stop the runs that are to be stopped, keep the others' rows alive, and store ends that could not be stored before.

        Runs until it is cancelled.
        """
        failure = ""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                await self._check()
                await self._store_ends()
                failure = ""
            except Exception as error:  # noqa: BLE001  an exception would end the task; runs go on without the database
                if failure != (failure := type(error).__name__):  # not in each round of an outage
                    log.warning("the active runs could not be checked (%s)", failure)

    async def _store_ends(self) -> None:
        for ended in list(self._ended.values()):
            await self._store_end(*ended)

    async def _store_end(self, context: ChatContext, interrupted: bool, drafts: list[dict[str, Any]]) -> None:
        try:
            await self._store.end(context, interrupted=interrupted, drafts=drafts)
        except BaseException as error:  # also if this is cancelled
            # What can't be stored must not keep the run active.
            is_storable = isinstance(error, UNAVAILABLE) or not isinstance(error, Exception)
            self._ended[context.run_id] = (context, interrupted, drafts if is_storable else [])
            raise
        self._ended.pop(context.run_id, None)

    async def _check(self) -> None:
        watched = dict(self._running)
        if not watched:
            return
        users = {running.user for running in watched.values()}
        active = await self._store.find_active(watched, users)
        for run_id, running in watched.items():
            if (run_id, running.user) not in active:
                cancel_once(running.task)
        now = asyncio.get_running_loop().time()
        if now >= self._next_heartbeat:
            await self._store.beat(watched, users)
            self._next_heartbeat = now + HEARTBEAT_SECONDS
