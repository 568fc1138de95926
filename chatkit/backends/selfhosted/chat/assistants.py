"""The servers that run an operator's agents: Agents SDK agents, and workflows exported from Agent Builder."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import agents
from pydantic import BaseModel

from chatkit.actions import Action
from chatkit.agents import AgentContext
from chatkit.backends.selfhosted.chat import approvals, exported_workflow
from chatkit.backends.selfhosted.chat.composer import has_tool, with_model, with_tool_choice, without_forced_tool
from chatkit.backends.selfhosted.chat.context import ChatContext
from chatkit.backends.selfhosted.chat.defaults import DefaultServer
from chatkit.backends.selfhosted.chat.events import assistant_message, outcome
from chatkit.backends.selfhosted.chat.history import (
    load_history,
    newest_user_message,
    to_model_files,
    to_model_input,
    to_model_text,
)
from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.errors import CustomStreamError
from chatkit.types import (
    ClientToolCallItem,
    SyncCustomActionResponse,
    ThreadItem,
    ThreadItemDoneEvent,
    ThreadMetadata,
    ThreadStreamEvent,
    UserMessageItem,
    WidgetItem,
)

log = logging.getLogger(__name__)


class AgentServer(DefaultServer):
    """Runs an Agents SDK agent, or the agent that a function returns for the user of the request."""

    def __init__(self, store: SqlStore, agent: agents.Agent[Any] | Callable[[ChatContext], Any]) -> None:
        super().__init__(store)
        self._agent = agent

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        self._chatkit_resources.titles.set(thread, input_user_message, context)
        agent = await self._agent_for(context)
        agent_context = AgentContext(thread=thread, store=self.store, request_context=context)
        history = await load_history(self.store, thread.id, context)
        # After a client tool call, the message to answer is still the user's last one.
        newest = newest_user_message(history)
        options = self._chatkit_resources.composer.options(input_user_message, newest)
        run_config = with_model(None, options.model)
        if tool := options.tool_choice:
            if not await has_tool(agent, tool.id, agent_context):
                log.warning(
                    "CHATKIT_COMPOSER lists the tool %s, which the agent %s does not have or enable", tool.id, agent.name
                )
                raise CustomStreamError("This tool can't be used here.", allow_retry=False)
            agent = with_tool_choice(agent, tool.id, run_config)
        elif answered := _answered_tool(history):
            agent = without_forced_tool(agent, answered)
        messages = await to_model_input(history, newest)
        result = agents.Runner.run_streamed(agent, messages, context=agent_context, run_config=run_config)
        async with aclosing(approvals.run_events(agent_context, result)) as events:
            async for event in events:
                yield event

    async def action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        """Take the user's decision on a tool call, and resume the run after the last one. See ``approvals``."""
        if action.type != approvals.ACTION:
            async for event in super().action(thread, action, sender, context):
                yield event
            return
        if sender is None:
            return
        agent = await self._agent_for(context)
        newest = newest_user_message(await load_history(self.store, thread.id, context))
        options = self._chatkit_resources.composer.options(None, newest)
        agent_context = AgentContext(thread=thread, store=self.store, request_context=context)
        resumed = approvals.resume(agent, agent_context, action, sender, run_config=with_model(None, options.model))
        async with aclosing(resumed) as events:
            async for event in events:
                yield event

    async def sync_action(
        self, thread: ThreadMetadata, action: Action[str, Any], sender: WidgetItem | None, context: ChatContext
    ) -> SyncCustomActionResponse:
        if action.type == approvals.ACTION:  # the widgets' actions are streamed
            return SyncCustomActionResponse()
        return await super().sync_action(thread, action, sender, context)

    async def _agent_for(self, context: ChatContext) -> agents.Agent[Any]:
        agent = self._agent
        if not isinstance(agent, agents.Agent):
            # In a separate task, because the operator's code may cancel the task that it runs in.
            agent, error = await asyncio.create_task(outcome(_call(agent, context)))
            if error:
                raise error
        if not isinstance(agent, agents.Agent):
            raise TypeError(f"the agents' function returned {type(agent).__name__}, not an Agents SDK agent")
        return agent


def _answered_tool(history: list[ThreadItem]) -> str:
    """Return the name of the client tool with whose output a turn continues, if it does."""
    return next((item.name for item in history[-1:] if isinstance(item, ClientToolCallItem)), "")


async def _call(function: Callable[[ChatContext], Any], context: ChatContext) -> Any:
    """Call ``function`` in a thread, because one that is not async may block."""
    result = await asyncio.to_thread(function, context)
    return await result if inspect.isawaitable(result) else result


class WorkflowServer(DefaultServer):
    """Runs the ``run_workflow`` function of a module exported from Agent Builder."""

    def __init__(self, store: SqlStore, run_workflow: Callable[[Any], Awaitable[Any]], input_type: type[BaseModel]) -> None:
        super().__init__(store)
        self._run_workflow = run_workflow
        self._input_type = input_type

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        self._chatkit_resources.titles.set(thread, input_user_message, context)
        history = await load_history(self.store, thread.id, context)
        newest = newest_user_message(history)
        earlier, to_answer, text, files = history, newest, "", []
        if input_user_message is not None:
            earlier, to_answer = [item for item in history if item.id != input_user_message.id], None
            text = await to_model_text(input_user_message)
            files = await to_model_files(history, input_user_message)
        run = exported_workflow.WorkflowRun(
            lambda: AgentContext(thread=thread, store=self.store, request_context=context),
            await to_model_input(earlier, to_answer),
            self._chatkit_resources.composer.options(input_user_message, newest),
            text,
            files,
            answered_tool=_answered_tool(history),
        )
        called = False
        async with aclosing(run.events(self._run_workflow(self._input_type(input_as_text=text)))) as events:
            async for event in events:
                yield event
                called = isinstance(event, ThreadItemDoneEvent) and isinstance(event.item, ClientToolCallItem)
        if called:
            return  # the page sends the output in the next turn; what run_workflow returned is not a reply
        if run.tool:
            log.warning("CHATKIT_COMPOSER lists the tool %s, which no agent of the workflow has or enables", run.tool)
        if remaining := _remaining_text(run.result, shown=list(run.shown_texts.values())):
            yield assistant_message(thread, remaining)


def _remaining_text(result: Any, shown: list[str]) -> str:
    """Return the text of a workflow's result, unless the user has already seen it in ``shown``."""
    if isinstance(result, dict) and isinstance(result.get("output_text"), str):
        text: str = result["output_text"]
        return "" if text in shown else text
    if shown or result is None:
        return ""
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, indent=2, default=str)
