"""How many answers may be on their way at once in this process, for one user and for one address.

An answer holds a thread of this process, so each process counts its own; how many there can be in all is bounded by the turns a
minute, which Redis counts for all of them.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from chatkit.problems import TooManyRequests

OF_A_USER = 5  # tabs that are answered at the same time
RETRY_SECONDS = 5


class Places:
    """Args: threads: how many callers this process serves at once. No address gets the last eighth of them."""

    def __init__(self, threads: int) -> None:
        self._of_address = max(OF_A_USER, threads - threads // 8)
        self._taken: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def taken(self, user: str, address: str) -> Iterator[None]:
        """Hold a place for an answer to ``user`` at ``address``.

        Raises:
            TooManyRequests: theirs are all taken.
        """
        limits = {f"user {user}": OF_A_USER, f"address {address}": self._of_address}
        with self._lock:
            for who, allowed in limits.items():
                if self._taken[who] >= allowed:
                    kind = who.partition(" ")[0]
                    raise TooManyRequests(f"more than {allowed} answers at once for one {kind}", retry_after=RETRY_SECONDS)
            self._taken.update(limits.keys())
        try:
            yield
        finally:
            with self._lock:
                self._taken.subtract(limits.keys())
                self._taken = +self._taken  # without those that have none left
