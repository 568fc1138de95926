"""One asyncio loop for the process, on a thread of its own, and the way of an answer from it to a WSGI thread."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import queue
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass

from chatkit import stopping

MAX_WAITING_BYTES = 256 * 1024
INTERRUPT_SECONDS = 2  # to keep what was said, when the process is told to end at once


@dataclass(frozen=True)
class _End:
    error: BaseException | None


class Answer:
    """Chunks of bytes from a coroutine on the loop to one thread that sends them on.

    Only ``room`` may make the coroutine wait. Everything is iterated inside one task and nothing is awaited between two events,
    so a cancelled task is always interrupted within OpenAI's server, which then keeps what was said so far.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # A queue in C: a condition variable in Python took a tenth of all that a stream costs.
        self._chunks: queue.SimpleQueue[bytes | _End] = queue.SimpleQueue()
        self._end: _End | None = None
        self._put_bytes = 0  # written on the loop alone
        self._taken_bytes = 0  # written in the reader's thread alone
        self._reader_has_caught_up: asyncio.Event | None = None
        self.task: Future[None] | None = None

    # Called on the loop

    def put(self, chunk: bytes) -> None:
        """Add a chunk, at once."""
        self._put_bytes += len(chunk)
        self._chunks.put(chunk)

    async def room(self) -> None:
        """Wait until the reader has caught up; a slow one does not fill the memory."""
        while self._put_bytes - self._taken_bytes > MAX_WAITING_BYTES:
            self._reader_has_caught_up = asyncio.Event()
            if self._put_bytes - self._taken_bytes > MAX_WAITING_BYTES:  # not taken in the meantime
                await self._reader_has_caught_up.wait()
            self._reader_has_caught_up = None

    def end(self, error: BaseException | None = None) -> None:
        """Say that nothing more comes; ``error`` is raised in the reader."""
        self._chunks.put(_End(error))

    # Called in the reader's thread

    def take(self, timeout: float | None = None) -> bytes | None:
        """All that has come since; nothing (``b""``) after ``timeout`` seconds without any, ``None`` at the end.

        Raises:
            BaseException: with which the coroutine has ended.
        """
        taken: list[bytes] = []
        try:
            while self._end is None:
                chunk = self._chunks.get(timeout=timeout) if not taken else self._chunks.get_nowait()
                if isinstance(chunk, _End):
                    self._end = chunk
                else:
                    taken.append(chunk)
        except queue.Empty:
            pass
        if taken:
            together = b"".join(taken)
            self._taken_bytes += len(together)
            if self._reader_has_caught_up is not None:
                self._loop.call_soon_threadsafe(self._let_go_on)
            return together
        if self._end is None:
            return b""
        if self._end.error is not None:
            raise self._end.error
        return None

    def cancel(self) -> None:
        """The reader is gone: interrupt the coroutine, unless it has ended."""
        if self.task is not None:
            self.task.cancel()

    def _let_go_on(self) -> None:
        if self._reader_has_caught_up is not None:
            self._reader_has_caught_up.set()


class EventLoop:
    """A running loop. Started when it is first needed, so after gunicorn has forked: a thread does not survive a fork."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        stopping.interruptions.append(self._interrupt)
        threading.Thread(target=self.loop.run_forever, name="event-loop", daemon=True).start()

    def answer(self, produce: Callable[[Answer], Awaitable[None]]) -> Answer:
        """Run ``produce`` in a task of its own, with the caller's context variables, and hand its chunks over."""
        answer = Answer(self.loop)

        async def run() -> None:
            try:
                await produce(answer)
            except asyncio.CancelledError:
                answer.end()
                raise
            except BaseException as error:  # noqa: BLE001  raised again in the reader's thread
                answer.end(error)
            else:
                answer.end()

        answer.task = asyncio.run_coroutine_threadsafe(run(), self.loop)
        return answer

    def _interrupt(self) -> None:
        """Cancel all answers, as if their readers had left: what was said so far is kept."""

        async def cancel_all() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=INTERRUPT_SECONDS) if tasks else None

        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(cancel_all(), self.loop).result(INTERRUPT_SECONDS)


_starting = threading.Lock()


@functools.cache
def _start() -> EventLoop:
    return EventLoop()


def event_loop() -> EventLoop:
    """The loop of this process."""
    with _starting:
        return _start()
