"""Conversion of timestamps to UTC when they are stored or sent.

OpenAI's server package creates timestamps with a naive ``datetime.now()`` and subtracts them from each other, so in memory all
are naive local times. They are stored and sent in UTC, with ``Z``, as hosted ChatKit does.
"""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import BaseModel

Model = TypeVar("Model", bound=BaseModel)


def in_utc(model: Model) -> Model:
    """Return a copy of a thread, an item or a container of them (event, page, response) with ``created_at`` in UTC."""
    changed: dict[str, Any] = {}
    for name in _fields_with_times(type(model)):
        value = getattr(model, name)
        if isinstance(value, datetime):
            changed[name] = value.astimezone(UTC)
        elif isinstance(value, list):
            changed[name] = [in_utc(each) if isinstance(each, BaseModel) else each for each in value]
        elif isinstance(value, BaseModel):
            changed[name] = in_utc(value)
    return model.model_copy(update=changed) if changed else model


@functools.cache
def _fields_with_times(model: type[BaseModel]) -> list[str]:
    names = model.model_fields.keys()
    of_page = {"data"} if "has_more" in names else set()
    return list(names & {"created_at", "thread", "item", "items", "updated_item"} | of_page)


def as_utc(stored: datetime) -> datetime:
    """Return a stored time with its zone. One without a zone is in UTC."""
    return stored if stored.tzinfo else stored.replace(tzinfo=UTC)


def in_local_time(model: Model) -> Model:
    """Convert ``created_at`` of a stored ``model``, in place, to naive local time."""
    stored: datetime = model.created_at  # type: ignore[attr-defined]
    model.created_at = datetime.fromtimestamp(as_utc(stored).timestamp())  # type: ignore[attr-defined]  # noqa: DTZ006
    return model
