"""Admits CPU-bound starts a few at a time, round-robin between addresses.

Otherwise a burst from one address would block the event loop for all others until it has started.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Starts:
    """Admits at most ``width`` concurrent starts, and ``each`` per holder. Waiting holders are admitted in turn.

    A start that takes longer than ``seconds``, if there is such a limit, probably waits for I/O, and is no longer counted.
    """

    width: int
    each: int
    seconds: float | None
    _starting: Counter[str] = field(default_factory=Counter)
    _waiting: dict[str, deque[asyncio.Future[None]]] = field(default_factory=dict)

    @property
    def is_full(self) -> bool:
        """Whether a holder that has less than ``each`` waits, because others have all of ``width``."""
        return any(
            self._starting[holder] < self.each and not waiter.cancelled()
            for holder, waiters in self._waiting.items()
            for waiter in waiters
        )

    async def enter(self, holder: str) -> Callable[[], None]:
        """Wait until ``holder`` may start. Call the returned function when it has; only the first call counts."""
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._waiting.setdefault(holder, deque()).append(waiter)
        self._admit()
        try:
            await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():
                self._end(holder)
            raise
        ended = False

        def end() -> None:
            nonlocal ended
            if not ended:
                ended = True
                self._end(holder)

        if self.seconds is not None:
            loop.call_later(self.seconds, end)
        return end

    def _end(self, holder: str) -> None:
        self._starting[holder] -= 1
        if not self._starting[holder]:
            del self._starting[holder]
        self._admit()

    def _admit(self) -> None:
        for holder in list(self._waiting):
            if self._starting.total() >= self.width:
                return
            if self._starting[holder] < self.each:
                waiters = self._waiting.pop(holder)
                while waiters:
                    waiter = waiters.popleft()
                    if not waiter.cancelled():
                        self._starting[holder] += 1
                        waiter.set_result(None)
                        break
                if waiters:
                    self._waiting[holder] = waiters  # at the end of the queue
