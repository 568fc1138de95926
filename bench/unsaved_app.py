"""``bench.stream_app`` without drafts and without active runs."""

from typing import Any

from chatkit.backends.selfhosted.chat.drafts import Drafts
from chatkit.backends.selfhosted.chat.runs import Runs


async def _nothing(*_: Any, **__: Any) -> None:
    """Saves nothing."""


Drafts.schedule = lambda *_: None  # type: ignore[method-assign]
Runs.begin = Runs.end = _nothing  # type: ignore[method-assign]

import bench.stream_app  # noqa: E402, F401
from app import app  # noqa: E402, F401
