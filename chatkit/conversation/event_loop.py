"""One asyncio loop for the process, on a thread of its own, and the way of an answer from it to a WSGI thread."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future

MAX_WAITING_BYTES = 256 * 1024


class Answer:
    """Chunks of bytes from a coroutine on the loop to one thread that sends them on.

    Only ``room`` may make the coroutine wait. Everything is iterated inside one task and nothing is awaited between two events,
    so a cancelled task is always interrupted within OpenAI's server, which then keeps what was said so far.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._changed = threading.Condition()
        self._chunks: list[bytes] = []
        self._waiting_bytes = 0
        self._ended = False
        self._error: BaseException | None = None
        self._taken: asyncio.Event | None = None
        self.task: Future[None] | None = None

    # Called on the loop

    def put(self, chunk: bytes) -> None:
        """Add a chunk, at once."""
        with self._changed:
            self._chunks.append(chunk)
            self._waiting_bytes += len(chunk)
            self._changed.notify()

    async def room(self) -> None:
        """Wait until the reader has caught up; a slow one does not fill the memory."""
        while self._waiting_bytes > MAX_WAITING_BYTES:
            self._taken = asyncio.Event()
            if self._waiting_bytes > MAX_WAITING_BYTES:
                await self._taken.wait()
            self._taken = None

    def end(self, error: BaseException | None = None) -> None:
        """Say that nothing more comes; ``error`` is raised in the reader."""
        with self._changed:
            self._ended = True
            self._error = error
            self._changed.notify()

    # Called in the reader's thread

    def take(self, timeout: float | None = None) -> bytes | None:
        """All that has come since; nothing (``b""``) after ``timeout`` seconds without any, ``None`` at the end.

        Raises:
            BaseException: with which the coroutine has ended.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._chunks or self._ended, timeout)
            taken = b"".join(self._chunks)
            self._chunks.clear()
            self._waiting_bytes = 0
            ended, error = self._ended, self._error
        if self._taken is not None:
            self._loop.call_soon_threadsafe(self._let_go_on)
        if taken:
            return taken
        if error is not None:
            self._error = None
            raise error
        return None if ended else b""

    def cancel(self) -> None:
        """The reader is gone: interrupt the coroutine, unless it has ended."""
        if self.task is not None:
            self.task.cancel()

    def _let_go_on(self) -> None:
        if self._taken is not None:
            self._taken.set()


class EventLoop:
    """A running loop. Started when it is first needed, so after gunicorn has forked: a thread does not survive a fork."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
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


_starting = threading.Lock()


@functools.cache
def _start() -> EventLoop:
    return EventLoop()


def event_loop() -> EventLoop:
    """The loop of this process."""
    with _starting:
        return _start()
