"""``bench.stream_app`` without drafts and without active runs."""

from typing import Any

from chatkit.backends.selfhosted.chat import blueprint
from chatkit.backends.selfhosted.chat.drafts import Drafts
from chatkit.backends.selfhosted.chat.runs import Runs


async def _nothing(*_: Any, **__: Any) -> Any:
    """Saves nothing."""


Drafts.schedule = lambda *_: None  # type: ignore[method-assign]
Runs.begin = Runs.end = _nothing  # type: ignore[method-assign]
Runs.begun = lambda *_: None  # type: ignore[method-assign]
setattr(blueprint, "MESSAGES", ())  # noqa: B010  nor is it made repeatable
setattr(blueprint, "new_id", lambda _: "")  # noqa: B010  mypy rejects the assignment; a run without an id is not stored

import bench.stream_app  # noqa: E402, F401
from app import app  # noqa: E402, F401
