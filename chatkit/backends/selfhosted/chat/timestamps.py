"""Timestamps in UTC wherever they leave the process.

OpenAI's server package makes its timestamps with a naive ``datetime.now()`` and subtracts them from each other, so in memory
all are naive local times. They are stored and sent in UTC, with ``Z``, as hosted ChatKit does.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import BaseModel

Model = TypeVar("Model", bound=BaseModel)


def in_utc(model: Model) -> Model:
    """A copy of a thread, an item, or what holds some (an event, a page, a response), with ``created_at`` in UTC."""
    names = type(model).model_fields.keys()
    changed: dict[str, Any] = {}
    if "created_at" in names:
        created_at: datetime = model.created_at  # type: ignore[attr-defined]
        changed["created_at"] = created_at.astimezone(UTC)
    for name in names & {"thread", "item", "items", "updated_item"}:
        if isinstance(held := getattr(model, name), BaseModel):
            changed[name] = in_utc(held)
    if "has_more" in names:
        changed["data"] = [in_utc(held) for held in model.data]  # type: ignore[attr-defined]
    return model.model_copy(update=changed) if changed else model


def in_local_time(model: Model) -> Model:
    """``model``, as it was stored, with its ``created_at`` as the SDK computes with it. One without a zone is UTC."""
    stored: datetime = model.created_at  # type: ignore[attr-defined]
    aware = stored if stored.tzinfo else stored.replace(tzinfo=UTC)
    model.created_at = datetime.fromtimestamp(aware.timestamp())  # type: ignore[attr-defined]  # noqa: DTZ006
    return model
