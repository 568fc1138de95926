"""Pages of rows, limited in number and in bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, case, func, select

from chatkit.backends.selfhosted.chat.rows import one_or_not_found
from chatkit.types import Page

MAX_PAGE = 100  # for pages that a request asks for; a server may load more
MAX_PAGE_BYTES = 4 * 1024 * 1024  # a page ends with the row that reaches this; a widget may have some megabytes


@dataclass(frozen=True)
class PageQuery:
    """The statements that page through a table, by dialect, by order and by whether there is a cursor."""

    cursor: Any
    statements: dict[tuple[str, str, bool], Any]

    @classmethod
    def for_table(cls, table: Any, condition: Any, cursor: Any) -> PageQuery:
        query = select(table.c.id, table.c.data, table.c.position).where(condition).limit(bindparam("limit"))
        ordered = {"asc": query.order_by(table.c.position), "desc": query.order_by(table.c.position.desc())}
        start: Any = bindparam("start")
        follows = {"asc": table.c.position > start, "desc": table.c.position < start}
        statements: dict[tuple[str, str, bool], Any] = {}
        for order, first in ordered.items():
            for after, statement in ((False, first), (True, first.where(follows[order]))):
                statements["sqlite", order, after] = statement
                statements["postgresql", order, after] = _limit_page_bytes(statement.subquery(), order)
        return cls(select(table.c.position).where(cursor), statements)

    def load(
        self,
        connection: Connection,
        read: Callable[[str], Any],
        limit: int,
        after: str | None,
        order: str,
        params: dict[str, Any],
    ) -> Page[Any]:
        """Load at most ``limit`` rows and about ``MAX_PAGE_BYTES`` that follow the row ``after``.

        Raises:
            NotFoundError: the user has no row ``after``.
        """
        limit = max(1, limit)
        values = {**params, "limit": limit + 1}
        if after:
            values["start"] = one_or_not_found(connection.execute(self.cursor, {**params, "after": after}))
        statement = self.statements[connection.dialect.name, "desc" if order == "desc" else "asc", bool(after)]
        page: list[Any] = []
        size, more = 0, False
        with connection.execute(statement, values) as rows:
            for row in rows:  # SQLite reads them one at a time
                if more := row.data is None or len(page) == limit or size >= MAX_PAGE_BYTES:
                    break
                page.append(row)
                size += len(row.data)
        return Page(data=[read(row.data) for row in page], has_more=more, after=page[-1].id if more else None)


def _limit_page_bytes(rows: Any, order: str) -> Any:
    """Omit ``data`` after the first ``MAX_PAGE_BYTES``, because PostgreSQL sends all rows before one is read."""
    position = rows.c.position if order == "asc" else rows.c.position.desc()
    before = func.sum(func.octet_length(rows.c.data)).over(order_by=position) - func.octet_length(rows.c.data)
    sized = select(rows.c.id, rows.c.data, rows.c.position, before.label("before")).subquery()
    position = sized.c.position if order == "asc" else sized.c.position.desc()
    return select(sized.c.id, case((sized.c.before < MAX_PAGE_BYTES, sized.c.data)).label("data")).order_by(position)
