"""Conversion of timestamps to UTC when they are stored or sent.

OpenAI's server package creates timestamps with a naive ``datetime.now()`` and subtracts them from each other, so in memory all
are naive local times. They are stored and sent in UTC, with ``Z``, as hosted ChatKit does.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import BaseModel

Model = TypeVar("Model", bound=BaseModel)


def in_utc(model: Model) -> Model:
    """Return a copy of a thread, an item or a container of them (event, page, response) with ``created_at`` in UTC."""
    names = type(model).model_fields.keys()
    changed: dict[str, Any] = {}
    if "created_at" in names:
        created_at: datetime = model.created_at  # type: ignore[attr-defined]
        changed["created_at"] = created_at.astimezone(UTC)
    for name in names & {"thread", "item", "items", "updated_item"}:
        if isinstance(value := getattr(model, name), BaseModel):
            changed[name] = in_utc(value)
    if "has_more" in names:
        changed["data"] = [in_utc(value) for value in model.data]  # type: ignore[attr-defined]
    return model.model_copy(update=changed) if changed else model


def as_utc(stored: datetime) -> datetime:
    """Return a stored time with its zone. One without a zone is in UTC."""
    return stored if stored.tzinfo else stored.replace(tzinfo=UTC)


def in_local_time(model: Model) -> Model:
    """Convert ``created_at`` of a stored ``model``, in place, to naive local time."""
    stored: datetime = model.created_at  # type: ignore[attr-defined]
    model.created_at = datetime.fromtimestamp(as_utc(stored).timestamp())  # type: ignore[attr-defined]  # noqa: DTZ006
    return model
