"""The tokens and requests that models use: counted per response, stored per user, UTC day and agent, limited per user."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import agents
import openai
from agents.models.openai_responses import ResponsesWebSocketError
from sqlalchemy import Connection, Engine, Table, bindparam, func, select

from chatkit.backends.selfhosted.database import engine as database
from chatkit.backends.selfhosted.database.tables import DIALECTS, UsageRow
from chatkit.backends.selfhosted.sessions import is_session_deleted
from chatkit.web import errors

MAX_AGENT_NAME = 255
MAX_AMOUNT = 10**9  # of one call; a service that reports more is wrong, and the columns could not hold it
CHARACTERS_PER_TOKEN = 4  # OpenAI's rule of thumb
AMOUNTS = ("requests", "input_tokens", "output_tokens", "total_tokens")

log = logging.getLogger(__name__)

# Raised by a call of a model. Those of connections come from WebSockets. A timeout is not among them: the service goes on.
_CALL_ERRORS = (openai.APIError, ResponsesWebSocketError, ConnectionError, socket.gaierror, agents.UserError)

_usage = cast(Table, UsageRow.__table__)
_KEY = ("user_id", "day", "agent")
_SAVE_USAGE = {
    dialect_name: dialect.insert(_usage).on_conflict_do_update(
        index_elements=_KEY, set_={name: _usage.c[name] + dialect.insert(_usage).excluded[name] for name in AMOUNTS}
    )
    for dialect_name, dialect in DIALECTS.items()
}
_SELECT_TOKENS = select(func.sum(_usage.c.total_tokens)).where(
    _usage.c.user_id == bindparam("user"), _usage.c.day == bindparam("today")
)

Usage = Mapping[str, Mapping[str, int]]
"""``AMOUNTS`` by the name of the agent."""


@dataclass
class _Call:
    """A call of a model that has not ended, in characters."""

    input: int
    output: int = 0


Submit = Callable[[Callable[[Connection], Any], float], Future[Any]]
"""Runs a function in a transaction, within so many seconds."""


class Meter:
    """Counts what one response uses.

    Args:
        save: called with the usage at the end of the response, and with that of a run that goes on after it. Not called
            without usage.
    """

    def __init__(self, save: Callable[[Usage], None] = lambda _usage: None) -> None:
        self._save = save
        self._used: dict[str, Counter[str]] = {}
        self._calls: dict[str, list[_Call]] = {}
        """The calls that have not ended, by the name of the agent."""
        self._closed = False
        self.begun = 0
        """The number of calls of models and tools that have begun."""
        self._lock = threading.Lock()  # an operator may run an agent in a thread

    def add(self, agent: str, requests: int, tokens: Any) -> None:
        """Count ``requests`` of ``agent``.

        ``tokens`` has the other ``AMOUNTS`` as attributes, as the model's service reports them. Negative numbers and values
        that are no whole numbers count as 0, larger ones than ``MAX_AMOUNT`` as that.
        """
        amounts = {name: getattr(tokens, name, None) for name in AMOUNTS} | {"requests": requests}
        used = {name: min(max(amount, 0), MAX_AMOUNT) if isinstance(amount, int) else 0 for name, amount in amounts.items()}
        with self._lock:
            if calls := self._calls.get(agent):
                calls.pop(0)
            self._used.setdefault(agent[:MAX_AGENT_NAME], Counter()).update(used)
        if self._closed:
            self.close()

    def apart(self) -> Meter:
        """Return a meter of the same response for a run that does not end with it. Close it at the end of the run."""
        return Meter(self._save)

    def begin_call(self, agent: str, characters: int) -> None:
        """Note that ``agent`` calls a model, with an input of so many characters. ``add`` ends the call."""
        with self._lock:
            self.begun += 1
            self._calls.setdefault(agent, []).append(_Call(characters))

    def note_tool(self) -> None:
        """Note that a tool is called."""
        with self._lock:
            self.begun += 1

    def note_output(self, agent: str, characters: int) -> None:
        """Note that the model has streamed so many characters to ``agent``."""
        with self._lock:
            if calls := self._calls.get(agent):
                calls[0].output += characters

    def abort_calls(self, error: BaseException | None) -> None:
        """Estimate the calls that have not ended, because of ``error``. OpenAI bills them, and reports nothing of them.

        If the call of the model has failed, those without output are not counted.
        """
        failed = isinstance(error, _CALL_ERRORS)
        with self._lock:
            calls, self._calls = self._calls, {}
        for agent, of_agent in calls.items():
            for call in of_agent:
                if call.output or not failed:
                    given, written = math.ceil(call.input / CHARACTERS_PER_TOKEN), math.ceil(call.output / CHARACTERS_PER_TOKEN)
                    tokens = SimpleNamespace(input_tokens=given, output_tokens=written, total_tokens=given + written)
                    self.add(agent, 1, tokens)

    def close(self) -> None:
        """Save what was counted. Call it at the end of the response."""
        with self._lock:
            self._closed = True
            used, self._used = self._used, {}
        if used:
            self._save(used)


class UsageStore:
    """Stores usage, for all processes, and enforces ``CHATKIT_TOKENS_PER_DAY``.

    Args:
        engine: the database.
        submit: runs the transactions, which are not awaited, see ``Transactions.submit``.
        tokens_per_day: the limit of one user; ``None`` for no limit.
    """

    def __init__(self, engine: Engine, submit: Submit, tokens_per_day: int | None) -> None:
        self._engine = engine
        self._submit = submit
        self._tokens_per_day = tokens_per_day
        self._saving: dict[Future[Any], str] = {}
        """The transactions that are not done, with their users."""
        self._unlimited_logged = False

    def meter(self, user: str, session_id: str | None = None) -> Meter:
        """Return a meter for a response to ``user`` (a ``User.id``). Nothing is stored once the session has been deleted."""
        return Meter(partial(self._save, user, session_id))

    def check(self, user: str) -> None:
        """Check that ``user`` may begin a turn. May block.

        Raises:
            TooManyRequests: the user has used the tokens of this day. ``retry_after`` is the time until the next.
            DatabaseUnavailable: the database can't be queried.
        """
        if self._tokens_per_day is None:
            return
        now = datetime.now(UTC)
        wait([saving for saving, owner in list(self._saving.items()) if owner == user], database.WAIT_SECONDS)
        try:
            with self._engine.connect() as connection:
                used = connection.execute(_SELECT_TOKENS, {"user": user, "today": now.date()}).scalar_one() or 0
        except database.UNAVAILABLE as error:
            raise database.unavailable("the tokens of a user could not be added up", error) from error
        if used >= self._tokens_per_day:
            midnight = datetime.combine(now.date() + timedelta(days=1), datetime.min.time(), UTC)
            raise errors.TooManyRequests(
                f"more than {self._tokens_per_day} tokens per day of one user",
                retry_after=int((midnight - now).total_seconds()) + 1,
            )

    def _save(self, user: str, session_id: str | None, usage: Usage) -> None:
        """Log and store the usage of a response without waiting for the database."""
        total: Counter[str] = Counter()
        for used in usage.values():
            total.update(used)
        log.info(
            "used %d tokens in %d model requests",
            total["total_tokens"],
            total["requests"],
            extra={
                "model_requests": total["requests"],
                **{name: total[name] for name in AMOUNTS if name != "requests"},
                "agents": sorted(usage),
            },
        )
        unlimited = sorted(agent for agent, used in usage.items() if used["requests"] and not used["total_tokens"])
        if unlimited and self._tokens_per_day is not None and not self._unlimited_logged:
            self._unlimited_logged = True
            log.warning(
                "CHATKIT_TOKENS_PER_DAY does not limit the agents %s, for whose model requests no tokens were reported. "
                "With the Chat Completions API, ModelSettings(include_usage=True) asks for them. This is logged once.",
                ", ".join(unlimited),
            )
        today = datetime.now(UTC).date()
        # Sorted, because two transactions that lock rows in different orders would wait for each other.
        rows = [{"user_id": user, "day": today, "agent": agent, **usage[agent]} for agent in sorted(usage)]

        def save(connection: Connection) -> None:
            connection.execute(_SAVE_USAGE[connection.dialect.name], rows)
            if is_session_deleted(connection, session_id):
                connection.rollback()

        saving = self._submit(save, database.WAIT_SECONDS)
        self._saving[saving] = user
        saving.add_done_callback(self._saved)

    def _saved(self, saving: Future[Any]) -> None:
        del self._saving[saving]
        if error := saving.exception():
            log.warning("usage could not be stored (%s)", type(error).__name__)

    async def finish_at_shutdown(self) -> None:
        """Run until cancelled, then wait for what is being stored."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            if saving := [asyncio.wrap_future(future) for future in list(self._saving)]:
                await asyncio.wait(saving, timeout=database.WAIT_SECONDS)
