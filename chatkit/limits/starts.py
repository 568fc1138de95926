"""Starts what costs processor time a few at a time, one address after the other.

A burst otherwise keeps the event loop busy until all of it has started, and everybody else waits as long.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Starts:
    """Lets at most ``width`` start at the same time, and ``each`` of one holder; holders that wait take turns.

    A start that takes longer than ``seconds`` is taken to wait for something other than the processor, and counts no more.
    """

    width: int
    each: int
    seconds: float
    _starting: Counter[str] = field(default_factory=Counter)
    _waiting: dict[str, deque[asyncio.Future[None]]] = field(default_factory=dict)

    async def enter(self, holder: str) -> Callable[[], None]:
        """Wait until ``holder`` may start. The function that is returned ends the start; only its first call counts."""
        loop = asyncio.get_running_loop()
        place = loop.create_future()
        self._waiting.setdefault(holder, deque()).append(place)
        self._admit()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._end(holder)
            raise
        ended = False

        def end() -> None:
            nonlocal ended
            if not ended:
                ended = True
                timer.cancel()
                self._end(holder)

        timer = loop.call_later(self.seconds, end)
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
                places = self._waiting.pop(holder)
                place = places.popleft()
                if places:
                    self._waiting[holder] = places  # behind the others
                if not place.cancelled():
                    self._starting[holder] += 1
                    place.set_result(None)
