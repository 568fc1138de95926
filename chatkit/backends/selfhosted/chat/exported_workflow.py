"""Runs what Agent Builder exported, unchanged, and streams it all the same.

The exported code calls ``Runner.run`` for each agent and hands a finished text back. ``Runner.run`` delegates to a default
runner that can be replaced (``agents.run.set_default_agent_runner``; the Agents SDK marks it as experimental, its version is
pinned, and ``tests/test_agents.py`` would tell). Ours runs streamed while a turn of the chat is on, passes the events on to
that turn, and puts the thread's earlier messages in front, which the hosted service did and the exported code does not.

What the user gets to see: the messages of each agent that answers in text, and whatever an agent's tools show. The result of
an agent with an ``output_type`` is for the workflow, which branches on it or returns it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any

from agents import Agent, RunResult
from agents.run import AgentRunner, set_default_agent_runner

from chatkit.agents import AgentContext
from chatkit.backends.selfhosted.chat.events import KEEP_REFUSED_MESSAGE, agent_events, message_text, outcome
from chatkit.types import AssistantMessageItem, ThreadItemDoneEvent, ThreadItemRemovedEvent, ThreadStreamEvent

_current: ContextVar[Run | None] = ContextVar("workflow_run", default=None)


class Run:
    """One turn of a workflow.

    Args:
        new_context: makes a context for one agent's run; agents that run side by side must not share one.
        earlier: the thread's earlier messages, as a model's input.
    """

    def __init__(self, new_context: Callable[[], AgentContext[Any]], earlier: list[Any]) -> None:
        self.new_context = new_context
        self.earlier = earlier
        self.shown: dict[str, str] = {}
        """The texts that the user sees, by the id of their item."""
        self.result: Any = None
        """What the workflow returned, once ``events`` is over."""
        self._events: asyncio.Queue[ThreadStreamEvent | None] = asyncio.Queue(maxsize=32)
        self._closed = False

    async def events(self, workflow: Awaitable[Any]) -> AsyncGenerator[ThreadStreamEvent]:
        """The events that ``workflow`` gives rise to.

        Raises:
            Exception: whatever the workflow raises.
        """
        task = asyncio.create_task(self._work(workflow))
        try:
            while (event := await self._events.get()) is not None:
                yield event
            self.result, error = await task
            if error:
                raise error
        finally:
            self._closed = True
            task.cancel()

    async def _work(self, workflow: Awaitable[Any]) -> tuple[Any, BaseException | None]:
        _current.set(self)
        try:
            return await outcome(workflow)
        finally:
            if not self._closed:  # nobody would take it
                await self._events.put(None)

    async def show(self, event: ThreadStreamEvent) -> None:
        """Pass an event of an agent on to the user."""
        if isinstance(event, ThreadItemDoneEvent) and isinstance(event.item, AssistantMessageItem):
            self.shown[event.item.id] = message_text(event.item)
        elif isinstance(event, ThreadItemRemovedEvent):
            self.shown.pop(event.item_id, None)
        # A copy, because the SDK goes on changing what it has handed out, and this waits in line.
        await self._events.put(event.model_copy(deep=True))


class _Runner(AgentRunner):
    """The default runner, except during a turn of a workflow."""

    async def run(self, starting_agent: Agent[Any], input: Any, **kwargs: Any) -> RunResult:  # noqa: A002
        run = _current.get()
        if run is None:
            return await super().run(starting_agent, input, **kwargs)
        token = _current.set(None)  # an agent that is another's tool speaks to that one, not to the user
        try:
            return await self._run_in_turn(run, starting_agent, input, kwargs)
        finally:
            _current.reset(token)

    async def _run_in_turn(self, run: Run, agent: Agent[Any], given: Any, kwargs: dict[str, Any]) -> RunResult:
        remembers = any(kwargs.get(name) for name in ("session", "conversation_id", "previous_response_id"))
        if not remembers and isinstance(given, str):
            given = [*run.earlier, {"role": "user", "content": given}]
        elif not remembers and isinstance(given, list):
            given = [*run.earlier, *given]
        context = run.new_context()
        kwargs["context"] = kwargs.get("context") or context  # so that tools know the thread and the user
        kwargs["error_handlers"] = {**KEEP_REFUSED_MESSAGE, **(kwargs.get("error_handlers") or {})}
        result: Any = self.run_streamed(agent, given, **kwargs)
        async with aclosing(agent_events(context, result, speaks=agent.output_type in (None, str))) as events:
            async for event in events:
                await run.show(event)
        return result  # type: ignore[no-any-return]  # has all that the exported code reads of a RunResult


def install() -> None:
    """Make ours the process's default runner. Outside a turn of a workflow it does what the SDK's own does."""
    set_default_agent_runner(_Runner())
