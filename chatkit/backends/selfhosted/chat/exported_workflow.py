"""Runs code exported from Agent Builder unchanged, and streams its events.

The exported code calls ``Runner.run`` for each agent and returns a finished text. ``Runner.run`` delegates to a default runner
that can be replaced with ``agents.run.set_default_agent_runner``. The Agents SDK marks that as experimental; its version is
pinned and ``test_exported_workflow.py`` covers it. During a turn of the chat, our runner streams, passes the events to the
turn, and prepends the thread's earlier messages, which the hosted service did and the exported code does not.

The user sees the messages of agents with text output, and items that tools stream. The output of an agent with an
``output_type`` is only for the workflow, which branches on it or returns it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from contextvars import ContextVar
from functools import partial
from typing import Any

from agents import Agent, RunResult, RunResultStreaming
from agents.run import AgentRunner, set_default_agent_runner

from chatkit.agents import AgentContext
from chatkit.backends.selfhosted.chat.composer import has_tool, with_model, with_tool_choice, without_forced_tool
from chatkit.backends.selfhosted.chat.context import current_context
from chatkit.backends.selfhosted.chat.events import agent_events, assistant_text, keep_refused_message, outcome
from chatkit.backends.selfhosted.chat.run_hooks import metering, own_caller
from chatkit.errors import CustomStreamError
from chatkit.types import (
    AssistantMessageItem,
    InferenceOptions,
    ThreadItemDoneEvent,
    ThreadItemRemovedEvent,
    ThreadStreamEvent,
)

log = logging.getLogger(__name__)

_current: ContextVar[WorkflowRun | None] = ContextVar("workflow_run", default=None)


class WorkflowRun:
    """One turn of a workflow.

    Args:
        new_context: creates a context for one agent's run; agents that run concurrently must not share one.
        earlier: the thread's earlier messages, as model input.
        options: the model and the tool that the user chose. The model is for agents whose messages the user sees, the tool for
            the first agent that has it.
        text: the text of the message, ``input_as_text``.
        files: the attachments of the message, as parts of model input. The exported code does not know of them.
        answered_tool: the name of the client tool with whose output the turn continues, if it does.
    """

    def __init__(
        self,
        new_context: Callable[[], AgentContext[Any]],
        earlier: list[Any],
        options: InferenceOptions,
        text: str,
        files: list[Any],
        *,
        answered_tool: str,
    ) -> None:
        self.answered_tool = answered_tool
        self.text = text
        self.files = files
        self.new_context = new_context
        self.earlier = earlier
        self.model = options.model
        self.tool = options.tool_choice and options.tool_choice.id
        self.shown_texts: dict[str, str] = {}
        """The texts of the messages that the user sees, by item id."""
        self.result: Any = None
        """The return value of the workflow, set when ``events`` is exhausted."""
        self._events: asyncio.Queue[ThreadStreamEvent | None] = asyncio.Queue(maxsize=32)
        self._closed = False

    async def events(self, workflow: Awaitable[Any]) -> AsyncGenerator[ThreadStreamEvent]:
        """Run ``workflow`` and stream its events. Raises what the workflow raises."""
        task = asyncio.create_task(self._run(workflow))
        try:
            while (event := await self._events.get()) is not None:
                yield event
            self.result, error = await task
            if error:
                raise error
        finally:
            self._closed = True
            task.cancel()

    async def _run(self, workflow: Awaitable[Any]) -> tuple[Any, BaseException | None]:
        _current.set(self)
        try:
            return await outcome(workflow)
        finally:
            if not self._closed:  # else nothing reads the queue
                await self._events.put(None)

    async def emit(self, event: ThreadStreamEvent) -> None:
        if isinstance(event, ThreadItemDoneEvent) and isinstance(event.item, AssistantMessageItem):
            self.shown_texts[event.item.id] = assistant_text(event.item)
        elif isinstance(event, ThreadItemRemovedEvent):
            self.shown_texts.pop(event.item_id, None)
        # A copy, because the SDK keeps changing the object while the event is queued.
        await self._events.put(event.model_copy(deep=True))


class _Runner(AgentRunner):
    """The SDK's default runner. In a chat it meters runs and keeps refused messages; ``run`` streams in a workflow's turn."""

    def run_streamed(self, starting_agent: Agent[Any], input: Any, **kwargs: Any) -> RunResultStreaming:  # noqa: A002
        start = partial(super().run_streamed, starting_agent, input)
        token = _current.set(None)  # output of an agent used as a tool goes to its caller, not to the user
        try:
            with own_caller():
                if context := current_context.get():
                    kwargs["hooks"] = metering(kwargs.get("hooks"), context.usage)
                    return keep_refused_message(partial(start, **kwargs), kwargs.get("error_handlers"))
                return start(**kwargs)
        finally:
            _current.reset(token)

    async def run(self, starting_agent: Agent[Any], input: Any, **kwargs: Any) -> RunResult:  # noqa: A002
        run = _current.get()
        if run is None:
            if context := current_context.get():
                kwargs["hooks"] = metering(kwargs.get("hooks"), context.usage)
            with own_caller():
                return await super().run(starting_agent, input, **kwargs)
        return await self._run_streamed(run, starting_agent, input, kwargs)

    async def _run_streamed(self, run: WorkflowRun, agent: Agent[Any], messages: Any, kwargs: dict[str, Any]) -> RunResult:
        has_history = any(kwargs.get(name) for name in ("session", "conversation_id", "previous_response_id"))
        if isinstance(messages, str) and (run.files or not has_history):
            messages = [{"role": "user", "content": messages}]
        if isinstance(messages, list) and has_history:
            messages = _with_files(messages, run, only_exact=True)
        elif isinstance(messages, list):
            # A workflow may go on with all of an earlier result, RunResult.to_input_list().
            known = run.earlier if messages[: len(run.earlier)] == run.earlier else []
            new = _with_files(messages[len(known) :], run)
            messages = [*run.earlier, *(message for message in new if not _is_empty(message))] or messages
        context = run.new_context()
        if kwargs.get("context") is None:
            kwargs["context"] = context  # gives tools the thread and the user
        shown = agent.output_type in (None, str)
        kwargs["run_config"] = with_model(kwargs.get("run_config"), run.model if shown else None)
        if run.answered_tool:
            agent = without_forced_tool(agent, run.answered_tool)
        tool = run.tool
        if tool and await has_tool(agent, tool, kwargs["context"]) and run.tool:  # else an agent at the same time has taken it
            agent, run.tool = with_tool_choice(agent, tool, kwargs["run_config"]), None
        result: Any = self.run_streamed(agent, messages, **kwargs)
        async with aclosing(agent_events(context, result, show_typed=False)) as events:
            async for event in events:
                await run.emit(event)
        if result.interruptions:
            log.error("The agent %s has a tool with needs_approval, for which an exported workflow can't wait", agent.name)
            raise CustomStreamError("This needs an approval, which is not possible here.", allow_retry=False)
        return result  # type: ignore[no-any-return]  # has what the exported code reads of a RunResult


def _with_files(messages: list[Any], run: WorkflowRun, *, only_exact: bool = False) -> list[Any]:
    """Return ``messages`` with the attachments in the user's message.

    Args:
        messages: the input of a run.
        run: the turn.
        only_exact: whether the user's message has to have the user's words. Else it may be another one of the role.
    """
    users = [message for message in messages if isinstance(message, dict) and message.get("role") == "user"]
    if not run.files or not users or any(part in run.files for message in users for part in _parts(message)):
        return messages
    text, empty = ({"type": "input_text", "text": words} for words in (run.text, ""))
    chosen = next((message for message in users if _parts(message) == [text]), None if only_exact else users[-1])
    if chosen is None:
        return messages
    parts = [part for part in _parts(chosen) if part != empty]
    return [{**chosen, "content": [*parts, *run.files]} if message is chosen else message for message in messages]


def _parts(message: dict[str, Any]) -> list[Any]:
    content = message.get("content")
    return content if isinstance(content, list) else [{"type": "input_text", "text": content}]


def _is_empty(message: Any) -> bool:
    """Return whether a user message has no text: exported code also makes one in a turn without a message of the user."""
    if not isinstance(message, dict) or message.get("role") != "user":
        return False
    return all(isinstance(part, dict) and part.get("type") == "input_text" and not part.get("text") for part in _parts(message))


def install_runner() -> None:
    set_default_agent_runner(_Runner())
