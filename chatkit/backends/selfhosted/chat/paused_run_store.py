"""The paused runs: runs of agents that wait for the user's decisions on tool calls. See ``approvals``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Connection, and_, bindparam, delete, insert, select, update

from chatkit.backends.selfhosted.chat.context import ChatContext
from chatkit.backends.selfhosted.chat.rows import (
    INSERT_ITEM,
    PAUSED_RUNS,
    SAVE_ITEM,
    SELECT_ITEM,
    USER,
    item_row,
    one_or_not_found,
    read_item,
)
from chatkit.backends.selfhosted.chat.transactions import Transactions
from chatkit.types import WidgetItem

_own_paused_run = and_(PAUSED_RUNS.c.thread_id == bindparam("thread"), PAUSED_RUNS.c.user_id == USER)
_SELECT_PAUSED_RUN = select(PAUSED_RUNS.c.decisions, PAUSED_RUNS.c.state).where(_own_paused_run)
_HAS_PAUSED_RUN = select(PAUSED_RUNS.c.thread_id).where(_own_paused_run)
_INSERT_PAUSED_RUN = insert(PAUSED_RUNS)
_UPDATE_DECISIONS = update(PAUSED_RUNS).where(_own_paused_run).values(decisions=bindparam("new_decisions"))
DELETE_PAUSED_RUN = delete(PAUSED_RUNS).where(_own_paused_run)


@dataclass(frozen=True)
class PausedRun:
    """A run of an agent that waits for the user's decisions on tool calls."""

    state: str
    """Of the Agents SDK, as ``run_states`` stores it."""
    decisions: dict[str, Any]
    """By the id of a call's widget, in the order of the calls; ``None`` while there is no decision."""


class PausedRunStore:
    """Stores at most one paused run for each thread."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    async def pause(
        self,
        run: PausedRun,
        thread_id: str,
        widgets: Iterable[WidgetItem],
        discarded: Callable[[WidgetItem], WidgetItem],
        context: ChatContext,
    ) -> list[WidgetItem]:
        """Store a run and the widgets of its calls, and discard the thread's paused run as ``discard`` does."""
        owner = {"thread_id": thread_id, "user_id": context.user}

        def work(connection: Connection) -> list[WidgetItem]:
            closed = _discard(connection, thread_id, discarded, context)
            connection.execute(_INSERT_PAUSED_RUN, {**owner, "state": run.state, "decisions": json.dumps(run.decisions)})
            for widget in widgets:
                connection.execute(INSERT_ITEM, item_row(widget, thread_id, context))
            return closed

        return await self._transactions.write(thread_id, context, work)

    async def load(self, thread_id: str, context: ChatContext) -> PausedRun | None:
        params = {"user": context.user, "thread": thread_id}
        return await self._transactions.run(lambda connection: _load(connection, params))

    async def discard(
        self, thread_id: str, discarded: Callable[[WidgetItem], WidgetItem], context: ChatContext
    ) -> list[WidgetItem]:
        """Delete the thread's paused run, if it has one, and store its widgets as ``discarded`` changes them. Return those."""
        params = {"user": context.user, "thread": thread_id}
        has_run = await self._transactions.run(lambda connection: connection.execute(_HAS_PAUSED_RUN, params).scalar())
        if not has_run:
            return []
        return await self._transactions.write(
            thread_id, context, lambda connection: _discard(connection, thread_id, discarded, context)
        )

    async def change_widgets(
        self, thread_id: str, item_ids: Iterable[str], change: Callable[[WidgetItem], WidgetItem], context: ChatContext
    ) -> list[WidgetItem]:
        """Store those of the widgets that exist as ``change`` returns them. Return these."""
        return await self._transactions.write(
            thread_id, context, lambda connection: _change_widgets(connection, thread_id, item_ids, change, context)
        )

    async def decide(
        self,
        widget: WidgetItem,
        decision: Any,
        decided: Callable[[WidgetItem], WidgetItem],
        not_pending: Callable[[WidgetItem], WidgetItem],
        context: ChatContext,
    ) -> tuple[WidgetItem, PausedRun | None]:
        """Store a decision on a call of the thread's paused run, if the call is pending, and the call's widget.

        Args:
            widget: the widget, of any state; the stored one is used.
            decision: the decision.
            decided: changes the widget if the call was pending.
            not_pending: changes the widget otherwise.
            context: the context of the request.

        Returns:
            The widget, and the run if this was its last decision. The run is deleted with that, so no other request gets it.

        Raises:
            NotFoundError: the widget was deleted.
        """
        params = {"user": context.user, "thread": widget.thread_id, "item": widget.id}

        def work(connection: Connection) -> tuple[WidgetItem, PausedRun | None]:
            run = _load(connection, params)
            is_pending = run is not None and run.decisions.get(widget.id, decision) is None
            stored = cast(WidgetItem, read_item(one_or_not_found(connection.execute(SELECT_ITEM, params))))
            changed = (decided if is_pending else not_pending)(stored)
            connection.execute(SAVE_ITEM[connection.dialect.name], item_row(changed, widget.thread_id, context))
            if run is None or not is_pending:
                return changed, None
            run.decisions[widget.id] = decision
            if None in run.decisions.values():
                connection.execute(_UPDATE_DECISIONS, {**params, "new_decisions": json.dumps(run.decisions)})
                return changed, None
            connection.execute(DELETE_PAUSED_RUN, params)
            return changed, run

        return await self._transactions.write(widget.thread_id, context, work)


def _load(connection: Connection, params: dict[str, Any]) -> PausedRun | None:
    row = connection.execute(_SELECT_PAUSED_RUN, params).one_or_none()
    return PausedRun(row.state, json.loads(row.decisions)) if row else None


def _discard(
    connection: Connection, thread_id: str, discarded: Callable[[WidgetItem], WidgetItem], context: ChatContext
) -> list[WidgetItem]:
    params = {"user": context.user, "thread": thread_id}
    run = _load(connection, params)
    connection.execute(DELETE_PAUSED_RUN, params)
    return _change_widgets(connection, thread_id, run.decisions if run else (), discarded, context)


def _change_widgets(
    connection: Connection,
    thread_id: str,
    item_ids: Iterable[str],
    change: Callable[[WidgetItem], WidgetItem],
    context: ChatContext,
) -> list[WidgetItem]:
    changed = []
    for item_id in item_ids:
        params = {"user": context.user, "thread": thread_id, "item": item_id}
        data = connection.execute(SELECT_ITEM, params).scalar_one_or_none()
        if data is not None:  # a server may delete items
            changed.append(change(cast(WidgetItem, read_item(data))))
            connection.execute(SAVE_ITEM[connection.dialect.name], item_row(changed[-1], thread_id, context))
    return changed
