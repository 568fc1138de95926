"""The rows of active runs. See ``runs``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Text, and_, bindparam, delete, exists, insert, or_, select, update

from chatkit.backends.selfhosted.chat.context import ChatContext
from chatkit.backends.selfhosted.chat.rows import (
    ACTIVE_RUNS,
    ITEMS,
    OWN_THREAD,
    THREADS,
    USER,
    InvalidDataError,
    item_data,
    require_match,
)
from chatkit.backends.selfhosted.chat.transactions import RUN_GOES_ON, Transactions
from chatkit.backends.selfhosted.database.tables import DIALECTS
from chatkit.store import NotFoundError
from chatkit.types import AssistantMessageItem

STALE_SECONDS = 10  # without a heartbeat, after which a run counts as interrupted: its process has died

_is_active = ACTIVE_RUNS.c.heartbeat.between(bindparam("oldest"), bindparam("newest"))
_runs_of_thread = and_(ACTIVE_RUNS.c.thread_id == bindparam("thread"), ACTIVE_RUNS.c.user_id == USER)
_own_run = and_(ACTIVE_RUNS.c.id == bindparam("run"), ACTIVE_RUNS.c.user_id == USER)
_own_runs = and_(
    ACTIVE_RUNS.c.id.in_(bindparam("runs", expanding=True)), ACTIVE_RUNS.c.user_id.in_(bindparam("users", expanding=True))
)
_SELECT_ACTIVE_RUNS_OF_THREAD = select(ACTIVE_RUNS.c.id).where(_runs_of_thread, _is_active)
_DELETE_INACTIVE_RUNS = delete(ACTIVE_RUNS).where(_runs_of_thread, ~_is_active)
INSERT_RUN = insert(ACTIVE_RUNS)
_is_shown = or_(_is_active, and_(ACTIVE_RUNS.c.is_repeatable, ~ACTIVE_RUNS.c.stop_requested))
_SELECT_RUN = (  # an active one, if there is one
    select(ACTIVE_RUNS.c.id, ACTIVE_RUNS.c.started_at, _is_active.label("is_active"))
    .select_from(THREADS.outerjoin(ACTIVE_RUNS, and_(ACTIVE_RUNS.c.thread_id == THREADS.c.id, _is_shown)))
    .where(OWN_THREAD)
    .order_by(_is_active.desc())
    .limit(1)
)
_STOP_RUN = update(ACTIVE_RUNS).where(_own_run, _is_active).values(stop_requested=True)
_INTERRUPT_RUN = update(ACTIVE_RUNS).where(_own_run).values(heartbeat=0)
MAKE_REPEATABLE = update(ACTIVE_RUNS).where(_own_run).values(is_repeatable=True)
"""Once the message of its request is stored."""
_draft = {"thread_id": "thread", "user_id": "user", "id": "item", "data": "new_data"}
SAVE_DRAFT = {  # does nothing if the thread has been deleted, or the run replaced
    name: dialect.insert(ITEMS)
    .from_select(
        list(_draft),
        select(*(bindparam(value, type_=Text) for value in _draft.values())).where(exists().where(OWN_THREAD), RUN_GOES_ON),
    )
    .on_conflict_do_update(index_elements=["thread_id", "id"], set_={"data": dialect.insert(ITEMS).excluded.data})
    for name, dialect in DIALECTS.items()
}
_DELETE_RUN = delete(ACTIVE_RUNS).where(_own_run)
_SELECT_ACTIVE_RUNS = select(ACTIVE_RUNS.c.id, ACTIVE_RUNS.c.user_id).where(_own_runs, ~ACTIVE_RUNS.c.stop_requested)
# Skips rows that another transaction has locked, because two that lock several rows in different orders would wait for each
# other. SQLite ignores this: it has no row locks. A run can be interrupted while its heartbeat waits, and must remain so.
_beating = select(ACTIVE_RUNS.c.id).where(_own_runs, ACTIVE_RUNS.c.heartbeat > 0).with_for_update(skip_locked=True)
_BEAT = update(ACTIVE_RUNS).where(ACTIVE_RUNS.c.id.in_(_beating)).values(heartbeat=bindparam("now"))


@dataclass(frozen=True)
class ActiveRun:
    """A response that is being produced, or one that was interrupted: its process has stopped, or it failed."""

    id: str
    started_at: int
    """Unix seconds"""
    is_active: bool


class ActiveRunStore:
    """Stores which responses are being produced, in all processes."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    async def begin(self, thread_id: str, context: ChatContext, *, alone: bool) -> list[str]:
        """Store the context's run, unless it must be ``alone`` and the thread has active runs. Return the ids of those.

        It replaces the interrupted ones: a retry of what they answered would delete what this run stores.

        Raises:
            ThreadGone: the user has no such thread.
        """
        params = {"user": context.user, "thread": thread_id, **_active_params()}

        def work(connection: Connection) -> list[str]:
            if alone and (active := list(connection.execute(_SELECT_ACTIVE_RUNS_OF_THREAD, params).scalars())):
                return active
            connection.execute(_DELETE_INACTIVE_RUNS, params)
            connection.execute(INSERT_RUN, run_row(thread_id, context))
            return []

        return await self._transactions.write(thread_id, context, work, undo=ending(context))

    async def end(self, context: ChatContext, *, interrupted: bool, drafts: Sequence[dict[str, Any]] = ()) -> None:
        """Save the ``drafts`` of the context's run, and delete it or mark it as interrupted, even if this is cancelled."""
        end = ending(context, interrupted=interrupted, drafts=drafts)
        await self._transactions.run(end, undo=end)

    async def load(self, thread_id: str, user: str) -> ActiveRun | None:
        """Return an active or, if there is none, an interrupted run of a thread that can be repeated and was not to be stopped.

        Raises:
            NotFoundError: the user has no such thread.
        """
        params = {"user": user, "thread": thread_id, **_active_params()}
        row = await self._transactions.run(lambda connection: connection.execute(_SELECT_RUN, params).one_or_none())
        if row is None:
            raise NotFoundError
        return ActiveRun(row.id, row.started_at, row.is_active) if row.id else None

    async def stop(self, run_id: str, user: str) -> None:
        """Request that a run be stopped.

        Raises:
            NotFoundError: the user has no such active run.
        """
        params = {"run": run_id, "user": user, **_active_params()}
        await self._transactions.run(lambda connection: require_match(connection.execute(_STOP_RUN, params)))

    async def find_active(self, run_ids: Iterable[str], users: Iterable[str]) -> set[tuple[str, str]]:
        """Return those of the users' runs that are not to be stopped, each with its user."""
        params = {"runs": list(run_ids), "users": list(users)}
        rows = await self._transactions.run(lambda connection: connection.execute(_SELECT_ACTIVE_RUNS, params).all())
        return {(row.id, row.user_id) for row in rows}

    async def beat(self, run_ids: Iterable[str], users: Iterable[str]) -> None:
        """Store that the process of these runs is alive."""
        params = {"runs": list(run_ids), "users": list(users), "now": int(time.time())}
        await self._transactions.run(lambda connection: connection.execute(_BEAT, params))


def _active_params() -> dict[str, int]:
    """Return the range of heartbeats. One in the future is from a clock that was wrong, and would block its thread for long."""
    now = int(time.time())
    return {"oldest": now - STALE_SECONDS, "newest": now + STALE_SECONDS}


def run_row(thread_id: str, context: ChatContext) -> dict[str, Any]:
    """Return the columns of the context's run, for ``INSERT_RUN``."""
    now = int(time.time())
    row = {"id": context.run_id, "thread_id": thread_id, "user_id": context.user, "started_at": now, "heartbeat": now}
    return {**row, "stop_requested": False, "is_repeatable": context.can_be_repeated}


def draft_rows(drafts: Iterable[tuple[ChatContext, AssistantMessageItem]]) -> list[dict[str, Any]]:
    """Return the parameters of ``SAVE_DRAFT`` for unfinished messages, each paired with the context of its response.

    Messages without text are left out, and invalid ones.
    """
    rows = []
    for context, message in drafts:
        if any(part.text.strip() for part in message.content):
            with suppress(InvalidDataError):
                row = {"user": context.user, "active_run": context.run_id, "thread": message.thread_id, "item": message.id}
                rows.append({**row, "new_data": item_data(message)})
    return rows


def ending(
    context: ChatContext, *, interrupted: bool = False, drafts: Sequence[dict[str, Any]] = ()
) -> Callable[[Connection], Any]:
    """Return what ends the context's run in a transaction."""
    params = {"run": context.run_id, "user": context.user}

    def end(connection: Connection) -> None:
        if drafts:
            connection.execute(SAVE_DRAFT[connection.dialect.name], drafts)
        connection.execute(_INTERRUPT_RUN if interrupted else _DELETE_RUN, params)

    return end
