"""Counts what the runs of the Agents SDK use, for the response that they belong to."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields
from typing import Any

from agents import Agent, RunContextWrapper, RunHooks, Tool, Usage
from agents.items import TResponseInputItem
from agents.lifecycle import RunHooksBase

from chatkit.backends.selfhosted.chat.history import count_characters
from chatkit.backends.selfhosted.chat.usage import Meter

_FIELDS = [field.name for field in fields(Usage)]
_OTHER_HOOKS = [name for name in dir(RunHooksBase) if name.startswith("on_") and name not in ("on_llm_start", "on_tool_start")]

_caller: ContextVar[list[str]] = ContextVar("caller")
"""The name of the agent that called a model last in the current run, in a list: the SDK calls hooks in tasks of their own."""


@contextmanager
def own_caller() -> Iterator[None]:
    """Start a run, which may be one of several at a time, for what is counted under the names of its agents."""
    token = _caller.set([""])
    try:
        yield
    finally:
        _caller.reset(token)


class _MeteredUsage(Usage):
    """The usage of a run. The SDK adds each model call to it, including calls after which a guardrail or an error ends the run.

    Agents that are used as tools share the usage of their caller.
    """

    meter: Meter

    @classmethod
    def of(cls, usage: Usage, meter: Meter) -> _MeteredUsage:
        metered = cls()
        for name in _FIELDS:
            setattr(metered, name, getattr(usage, name))
        metered.meter = meter
        return metered

    def add(self, other: Usage) -> None:
        super().add(other)
        # Without a caller it is the operator who adds something up, and a run that is metered itself is counted already.
        if (caller := _caller.get(None)) and not isinstance(other, _MeteredUsage):
            self.meter.add(caller[0], other.requests, other)

    def __deepcopy__(self, memo: Any) -> Usage:
        # The SDK copies the usage of a run that is paused.
        copied = Usage()
        for name in _FIELDS:
            setattr(copied, name, copy.deepcopy(getattr(self, name), memo))
        return copied


class _MeteringHooks(RunHooks[Any]):
    """Meters a run, and calls the ``own`` hooks of an operator.

    ``on_llm_end`` is not enough: the SDK does not call it for a response after which a guardrail or an error ends the run.
    """

    def __init__(self, meter: Meter, own: RunHooks[Any]) -> None:
        self._meter = meter
        self._own = own
        for name in _OTHER_HOOKS:
            setattr(self, name, getattr(own, name))

    async def on_llm_start(
        self,
        context: RunContextWrapper[Any],
        agent: Agent[Any],
        system_prompt: str | None,
        input_items: list[TResponseInputItem],
    ) -> None:
        if getattr(context.usage, "meter", None) is not self._meter:
            context.usage = _MeteredUsage.of(context.usage, self._meter)
        _caller.get()[0] = agent.name
        self._meter.begin_call(agent.name, count_characters([system_prompt, *input_items], by_size=True))
        await self._own.on_llm_start(context, agent, system_prompt, input_items)

    async def on_tool_start(self, context: RunContextWrapper[Any], agent: Agent[Any], tool: Tool) -> None:
        self._meter.note_tool()
        await self._own.on_tool_start(context, agent, tool)


def metering(own: Any, meter: Meter) -> Any:
    """Return hooks that meter a run and call ``own``, an operator's hooks or ``None``."""
    if own is None or isinstance(own, RunHooksBase):
        return _MeteringHooks(meter, own or RunHooks())
    return own  # the SDK rejects it
