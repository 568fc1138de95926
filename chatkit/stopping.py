"""What has to be done before this process stops, for those who know it and the worker that is told to stop."""

from __future__ import annotations

from collections.abc import Callable

interruptions: list[Callable[[], None]] = []
"""Called when a stop can't wait any longer; each ends, in an orderly way, what is still going on."""


def interrupt() -> None:
    """End what is still going on."""
    for end in interruptions:
        end()
