"""What is stored about the use of models."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import create_engine, select

from chatkit.backends.selfhosted.database.tables import UsageRow


def today() -> Any:
    return datetime.now(UTC).date()


def used(database: str) -> list[tuple[Any, ...]]:
    """Agent, requests and tokens of each row of today."""
    columns = [UsageRow.agent, UsageRow.requests, UsageRow.input_tokens, UsageRow.output_tokens, UsageRow.total_tokens]
    with create_engine(database).connect() as connection:
        rows = connection.execute(select(*columns).where(UsageRow.day == today()).order_by(UsageRow.agent))
        return [tuple(row) for row in rows]


def requests_of(agent: str, number: int) -> tuple[Any, ...]:
    """The row of ``agent`` after so many requests. One uses 1 token of input and 1 of output."""
    return (agent, number, number, number, 2 * number)
