"""Approval of tool calls by the user.

A run whose model calls a tool with ``needs_approval`` is paused: its state is stored, and each of these calls is shown in a
widget with two buttons. When the user has decided on all of them, the run is resumed, in any process. A new response in the
thread discards the run. Items are stored here with the run, and then shown.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any, cast

import pydantic_core
from agents import (
    Agent,
    ModelBehaviorError,
    RunConfig,
    Runner,
    RunResultStreaming,
    RunState,
    ToolApprovalItem,
    UserError,
)

from chatkit.actions import Action
from chatkit.agents import AgentContext, ResponseStreamConverter
from chatkit.backends.selfhosted.chat import mcp_connections, run_states
from chatkit.backends.selfhosted.chat.composer import with_tool_choice
from chatkit.backends.selfhosted.chat.context import ChatContext
from chatkit.backends.selfhosted.chat.events import agent_events, close_workflow
from chatkit.backends.selfhosted.chat.paused_run_store import PausedRun
from chatkit.backends.selfhosted.chat.rows import new_id
from chatkit.backends.selfhosted.chat.run_states import LoadedState
from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.errors import CustomStreamError
from chatkit.types import (
    ClientToolCallItem,
    ThreadItemDoneEvent,
    ThreadItemReplacedEvent,
    ThreadMetadata,
    ThreadStreamEvent,
    WidgetItem,
)
from chatkit.widgets import DynamicWidgetRoot

ACTION = "chatkit.approval"
"""The type of the action that the buttons send."""
MAX_REASON = 1000  # characters

log = logging.getLogger(__name__)


async def discard(store: SqlStore, thread_id: str, context: ChatContext) -> list[WidgetItem]:
    """Discard the thread's paused run, because a new response begins. Return its widgets, which say so and are stored.

    A run whose last decision is stored is not paused any more.
    """
    return await store.paused_runs.discard(thread_id, _superseded, context)


async def run_events(
    context: AgentContext[ChatContext],
    result: RunResultStreaming,
    *,
    converter: ResponseStreamConverter | None = None,
    rejected_calls: Collection[str] = (),
) -> AsyncGenerator[ThreadStreamEvent]:
    """Stream a run as ``agent_events`` does, also what a tool or an error handler ends it with.

    If it needs the user's approval, pause it.

    Args:
        context: a context for this run only.
        result: the run.
        converter: converts images and citations.
        rejected_calls: see ``agent_events``.

    Raises:
        CustomStreamError: the state is too large to be kept.
    """
    client_tool_call = None
    streamed = agent_events(context, result, converter=converter, show_tool_output=True, rejected_calls=rejected_calls)
    async with aclosing(streamed) as events:
        async for event in events:
            if result.interruptions and isinstance(event, ThreadItemDoneEvent) and isinstance(event.item, ClientToolCallItem):
                client_tool_call = event  # has to be the thread's last item
            else:
                yield event
    if result.interruptions:
        async for event in _pause(context, result):
            yield event
    if client_tool_call:
        yield client_tool_call


async def resume(
    agent: Agent[Any] | Sequence[Agent[Any]],
    context: AgentContext[ChatContext],
    action: Action[str, Any],
    sender: WidgetItem,
    *,
    converter: ResponseStreamConverter | None = None,
    **run_options: Any,
) -> AsyncGenerator[ThreadStreamEvent]:
    """Store the user's decision on the call that ``sender`` shows. After the last decision, resume and stream the run.

    A decision on a call that is not pending changes nothing.

    Args:
        agent: the agent that the run began with, or all agents that it may have begun with, which differ in their names.
        context: a context for this response.
        action: an action of type ``ACTION``.
        sender: the widget.
        converter: converts images and citations.
        run_options: for ``Runner.run_streamed``, such as ``session``, ``hooks`` and ``run_config``.

    Raises:
        CustomStreamError: the agent has changed and can't resume the run, or an MCP server is away, and the call stays pending.
    """
    store = cast(SqlStore, context.store)
    agents, run_config = [agent] if isinstance(agent, Agent) else agent, run_options.get("run_config")
    prepared = await _prepare(agents, context, sender, run_config)
    widget, run = await _decide(store, action, sender, context.request_context)
    begun = context.request_context.usage.begun
    try:
        yield _replaced(context, widget)
        if run is None or prepared is None:
            return
        async with aclosing(_resumed(run, *prepared, context, converter, run_options)) as events:
            async for event in events:
                yield event
    except BaseException as error:
        if run is not None and context.request_context.usage.begun == begun:
            reason = "because the assistant has changed" if isinstance(error, _AgentChangedError) else "please ask again"
            for closed in await _not_carried_out(run, f"Not carried out, {reason}.", context):
                if isinstance(error, Exception):  # not if the response was cancelled
                    yield _replaced(context, closed)
        raise


class _AgentChangedError(CustomStreamError):
    def __init__(self) -> None:
        super().__init__("The assistant has changed in the meantime. Please ask again.", allow_retry=False)


async def _resumed(
    run: PausedRun,
    agent: Agent[Any],
    state: LoadedState,
    context: AgentContext[ChatContext],
    converter: ResponseStreamConverter | None,
    run_options: dict[str, Any],
) -> AsyncGenerator[ThreadStreamEvent]:
    """Stream a run on whose calls the user has decided.

    Raises:
        _AgentChangedError: the agent does not fit the run, of which nothing was executed.
    """
    try:
        run_state, rejected_calls = await _restore(run, state, agent, context)
    except Exception as error:  # noqa: BLE001  the SDK raises many kinds for a state that does not fit
        reason = error
    else:
        result = Runner.run_streamed(agent, run_state, **run_options)
        begun = context.request_context.usage.begun
        try:
            streamed = run_events(context, result, converter=converter, rejected_calls=rejected_calls)
            async with aclosing(streamed) as events:
                async for event in events:
                    yield event
            return
        except (ModelBehaviorError, UserError) as error:
            if error.__cause__ or context.request_context.usage.begun > begun:
                raise  # a call may have been executed
            reason = error  # the agent no longer has its tool
    log.error("A paused run can't be resumed by the agent %s, which has changed (%s)", agent.name, type(reason).__name__)
    raise _AgentChangedError


async def _not_carried_out(run: PausedRun, outcome: str, context: AgentContext[ChatContext]) -> list[WidgetItem]:
    """Store in the widgets of approved calls that none was executed. Return them."""
    approved = [item_id for item_id, decision in run.decisions.items() if decision["approved"]]
    paused_runs = cast(SqlStore, context.store).paused_runs
    try:
        return await paused_runs.change_widgets(
            context.thread.id, approved, lambda item: _close(item, outcome), context.request_context
        )
    except Exception as error:  # noqa: BLE001  the response has another error
        log.warning("that a call was not carried out could not be stored (%s)", type(error).__name__)
        return []


async def _prepare(
    agents: Sequence[Agent[Any]],
    context: AgentContext[ChatContext],
    sender: WidgetItem,
    run_config: RunConfig | dict[str, Any] | None,
) -> tuple[Agent[Any], LoadedState] | None:
    """Return what the thread's paused run is to be resumed with, if the call that ``sender`` shows is pending.

    This comes before the decision, and waits for the MCP servers of the run: if it fails, the call stays pending.

    Raises:
        CustomStreamError: an MCP server stays away.
    """
    store = cast(SqlStore, context.store)
    run = await store.paused_runs.load(context.thread.id, context.request_context)
    if run is None or run.decisions.get(sender.id, sender) is not None:
        return None
    state = await run_states.load(run.state, store, context.thread.id, context.request_context)
    agent = next((agent for agent in agents if agent.name == state.agent), agents[0])
    if state.tool_choice not in (None, agent.model_settings.tool_choice):
        # The run began with a copy, which the SDK tells from the agent when that is handed over to.
        agent = with_tool_choice(agent, state.tool_choice, run_config)
    try:
        await mcp_connections.wait_for(agent, state.mcp_servers, context)
    except TimeoutError:
        raise CustomStreamError(
            "The tool can't be reached at the moment. Please decide again later.", allow_retry=False
        ) from None
    return agent, state


async def _pause(context: AgentContext[ChatContext], result: RunResultStreaming) -> AsyncIterator[ThreadStreamEvent]:
    """Store an interrupted run, and stream a widget for each call that waits for a decision."""
    for closed in close_workflow(context):
        yield closed
    run_state = result.to_state()
    state = await asyncio.to_thread(run_states.dump, run_state)
    if state is None:
        raise CustomStreamError("This needs your approval, but is too large to be kept until then.", allow_retry=False)
    store = cast(SqlStore, context.store)
    widgets = [_widget(context.thread, call) for call in run_state.get_interruptions()]
    run = PausedRun(state, {widget.id: None for widget in widgets})
    for other in await store.paused_runs.pause(run, context.thread.id, widgets, _superseded, context.request_context):
        yield _replaced(context, other)
    for widget in widgets:
        context.request_context.stored[widget.id] = widget.model_copy(deep=True)
        yield ThreadItemDoneEvent(item=widget)


async def _decide(
    store: SqlStore, action: Action[str, Any], sender: WidgetItem, context: ChatContext
) -> tuple[WidgetItem, PausedRun | None]:
    """Store a decision. Return the widget as it is now, and the run if it is to be resumed."""
    payload = action.payload if isinstance(action.payload, dict) else {}
    approved = payload.get("approved") is True
    reason = str(payload.get("reason") or "")[:MAX_REASON]
    outcome = "Approved." if approved else f"Rejected: {reason}" if reason else "Rejected."

    def decided(item: WidgetItem) -> WidgetItem:
        return _close(item, outcome)

    def not_pending(item: WidgetItem) -> WidgetItem:
        return _close(item, "This can no longer be decided.") if _is_pending(item) else item

    return await store.paused_runs.decide(sender, {"approved": approved, "reason": reason}, decided, not_pending, context)


async def _restore(
    run: PausedRun, state: LoadedState, agent: Agent[Any], context: AgentContext[ChatContext]
) -> tuple[RunState[Any], list[str]]:
    """Return the state of ``run`` with the user's decisions, and the ids of the calls that the user has rejected."""
    rejected_calls = []
    restored = await RunState.from_string(agent, state.json, context_deserializer=lambda _: context, strict_context=True)
    for call, decision in zip(restored.get_interruptions(), run.decisions.values(), strict=True):
        if decision["approved"]:
            restored.approve(call)
        else:
            reason = f" The user's reason: {decision['reason']}" if decision["reason"] else ""
            restored.reject(call, rejection_message=f"The user rejected this call.{reason}")
            rejected_calls.append(call.call_id or "")
    return restored, rejected_calls


def _replaced(context: AgentContext[ChatContext], stored: WidgetItem) -> ThreadItemReplacedEvent:
    context.request_context.stored[stored.id] = stored.model_copy(deep=True)
    return ThreadItemReplacedEvent(item=stored)


def _widget(thread: ThreadMetadata, call: ToolApprovalItem) -> WidgetItem:
    name = call.qualified_name or call.name or "a tool"
    if label := _field(call.raw_item, "server_label"):
        name = f"{name} ({label})"
    children: list[dict[str, Any]] = [{"type": "Title", "value": f"Allow {_plain(name)}?", "size": "sm"}]
    arguments = call.arguments if call.arguments is not None else _described(call.raw_item)
    for argument, value in _parsed(arguments).items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        children.append({"type": "Caption", "value": _plain(argument)})
        children.append({"type": "Text", "value": _plain(text)})
    children.append({"type": "Input", "name": "reason", "placeholder": "Reason for rejecting (optional)"})
    card = {
        "type": "Card",
        "asForm": True,
        "children": children,
        "confirm": {"label": "Approve", "action": {"type": ACTION, "payload": {"approved": True}}},
        "cancel": {"label": "Reject", "action": {"type": ACTION, "payload": {"approved": False}}},
    }
    return WidgetItem(
        id=new_id("message"),
        thread_id=thread.id,
        created_at=datetime.now(),  # noqa: DTZ005  as in the SDK's own items
        widget=DynamicWidgetRoot.model_validate(card),
        copy_text=f"{_plain(name)} {_plain(arguments)}",
    )


def _described(raw_item: Any) -> str:
    """Return as JSON what a call does that has no arguments: the commands of a shell, or the change of a file."""
    call = pydantic_core.to_jsonable_python(raw_item, exclude_none=True, fallback=str)
    return json.dumps(call.get("action") or call.get("operation") or call, ensure_ascii=False)


def _parsed(arguments: str) -> dict[str, Any]:
    try:
        parsed = json.loads(arguments)
    except ValueError:
        parsed = arguments
    return parsed if isinstance(parsed, dict) else {"": parsed} if parsed else {}


def _plain(text: str) -> str:
    """Escape characters that are invisible or change the direction of text, so that the user sees what is approved."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\u{ord(c):04x}" for c in text)


def _field(raw_item: Any, name: str) -> Any:
    return raw_item.get(name) if isinstance(raw_item, dict) else getattr(raw_item, name, None)


def _is_pending(item: WidgetItem) -> bool:
    """Whether ``item`` is a widget of ``_widget`` that still has its buttons."""
    match item.widget.model_dump():
        case {"confirm": {"action": {"type": type_}}}:
            return bool(type_ == ACTION)
    return False


def _superseded(item: WidgetItem) -> WidgetItem:
    return _close(item, "Not carried out, because the conversation went on.")


def _close(item: WidgetItem, outcome: str) -> WidgetItem:
    """Return the widget without buttons and with a last line that says what became of the call."""
    card = item.widget.model_dump()
    children = [child for child in card["children"] if child["type"] != "Input"]
    children.append({"type": "Text", "value": outcome, "weight": "semibold"})
    return item.model_copy(update={"widget": DynamicWidgetRoot.model_validate({"type": "Card", "children": children})})
