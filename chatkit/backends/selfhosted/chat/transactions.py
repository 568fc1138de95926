"""The transactions of the chat: on threads of their own, and within time limits."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, Engine, QueuePool, Text, bindparam, exc, exists, or_, update

from chatkit.backends.selfhosted.chat.context import ChatContext
from chatkit.backends.selfhosted.chat.rows import ACTIVE_RUNS, OWN_THREAD, THREADS, USER
from chatkit.backends.selfhosted.database import engine as database
from chatkit.errors import ErrorCode, StreamError
from chatkit.store import NotFoundError

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# A run whose row is gone stores nothing: the text of another one may have replaced its own.
_writer: Any = bindparam("active_run", type_=Text)
RUN_GOES_ON = or_(_writer == "", exists().where(ACTIVE_RUNS.c.id == _writer, ACTIVE_RUNS.c.user_id == USER))
TOUCH_THREAD = update(THREADS).where(OWN_THREAD, RUN_GOES_ON).values(used_at=bindparam("now"))


class ThreadGone(NotFoundError, StreamError):
    """A thread was deleted, or another run replaced that of a request, while the request was using the thread.

    Within a stream, the SDK converts this to an error event.
    """

    def __init__(self) -> None:
        StreamError.__init__(self, ErrorCode.STREAM_ERROR, allow_retry=False)


class Transactions:
    """Runs transactions on threads of its own, because a database call must not block the event loop of all streams."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        # SQLite has one writer at a time, and a blocked writer polls; queueing here is faster. With PostgreSQL, one connection
        # of the pool is left for sessions.
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
            with self.engine.connect() as connection:
                connection.execution_options(**{database.DEADLINE: deadline})
                with connection.begin():
                    return work(connection)

        return self._executor.submit(transaction)

    async def run(
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
            if future.cancel():
                raise exc.TimeoutError("no thread was free for a database call")
            return await result
        except asyncio.CancelledError:
            result.cancel()
            if undo:
                future.add_done_callback(lambda _: self.submit(undo, database.WAIT_SECONDS))
            raise

    async def write(
        self,
        thread_id: str,
        context: ChatContext,
        work: Callable[[Connection], Result],
        undo: Callable[[Connection], Any] | None = None,
    ) -> Result:
        """Run ``work`` in a transaction that locks the thread. ``undo`` is that of ``run``.

        Raises:
            ThreadGone: the user has no such thread, or the context's run was replaced.
        """
        params = {**writer_params(context), "thread": thread_id, "now": int(time.time())}

        def touch_and_work(connection: Connection) -> Result:
            # The update locks the row, so positions grow in the order of commits, across all processes.
            if not connection.execute(TOUCH_THREAD, params).rowcount:
                raise ThreadGone
            return work(connection)

        with gone_threads_logged():
            return await self.run(touch_and_work, undo=undo)


@contextmanager
def gone_threads_logged() -> Iterator[None]:
    """Log a ``ThreadGone``."""
    try:
        yield
    except ThreadGone:
        log.info("the thread does not exist, or no longer exists")
        raise


def writer_params(context: ChatContext) -> dict[str, Any]:
    """Return the parameters of ``RUN_GOES_ON`` and ``USER``."""
    return {"user": context.user, "active_run": context.run_id if context.run_is_active.is_set() else ""}
