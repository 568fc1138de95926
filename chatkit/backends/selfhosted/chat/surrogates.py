"""Halves of surrogate pairs in texts. Some models and gateways send the halves of a character one by one, or only one of them.

Python's ``str`` takes them, but UTF-8 does not, and so neither do JSON, the database and requests to models.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

Json = TypeVar("Json", str, bytes)

_HALF = re.compile("[\ud800-\udfff]")


def joined(value: Any) -> Any:
    """Return ``value`` with the halves in its texts joined to characters. A half without the other becomes U+FFFD.

    ``value`` may be a text, a model, or a list or dictionary of these. If it has no halves, it is returned itself.
    """
    if isinstance(value, str):
        if value.isascii() or not _HALF.search(value):
            return value
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list | tuple):
        parts = [joined(part) for part in value]
        same = all(part is old for part, old in zip(parts, value, strict=True))
        return value if same else tuple(parts) if isinstance(value, tuple) else parts
    if isinstance(value, dict):
        old = [*value, *value.values()]
        new = joined(old)
        return value if new is old else dict(zip(new[: len(value)], new[len(value) :], strict=True))
    if isinstance(value, BaseModel):
        changed = {name: part for name, old in value if (part := joined(old)) is not old}
        return value.model_copy(update=changed) if changed else value
    return value


def to_json(model: BaseModel, dump: Callable[[Any], Json] = BaseModel.model_dump_json) -> Json:  # type: ignore[assignment]
    """Return the JSON that ``dump`` makes of ``model``, also if its texts have halves of characters."""
    try:
        return dump(model)
    except PydanticSerializationError:
        return dump(joined(model))
