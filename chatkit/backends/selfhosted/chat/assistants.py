"""Assistants: the agent named by ``CHATKIT_AGENT``, a plain agent if only an API key is set, or the demo."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import logging
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_type_hints

import agents
import openai
from pydantic import BaseModel

from chatkit.backends.selfhosted.chat import exported_workflow
from chatkit.backends.selfhosted.chat.context import ChatContext, current_context
from chatkit.backends.selfhosted.chat.demo import DemoAssistant
from chatkit.backends.selfhosted.chat.events import KEEP_REFUSED_MESSAGE, agent_events, assistant_message, outcome
from chatkit.backends.selfhosted.chat.history import newest_user_message, to_model_input, to_model_text
from chatkit.backends.selfhosted.chat.turn import Assistant, Turn
from chatkit.settings import PROJECT, Settings, SettingsError
from chatkit.types import ThreadStreamEvent
from chatkit.web import logs

if TYPE_CHECKING:
    import httpx2

log = logging.getLogger(__name__)


@dataclass
class AgentAssistant(Assistant):
    """Runs an Agents SDK agent, or the agent that a function returns for the user of the request."""

    agent: agents.Agent[Any] | Callable[[ChatContext], Any]

    async def respond(self, turn: Turn) -> AsyncGenerator[ThreadStreamEvent]:
        agent = self.agent
        if not isinstance(agent, agents.Agent):
            # In a separate task, because the operator's code may cancel the task that it runs in.
            agent, error = await asyncio.create_task(outcome(_call(agent, turn.context)))
            if error:
                raise error
        if not isinstance(agent, agents.Agent):
            raise TypeError(f"the agents' function returned {type(agent).__name__}, not an Agents SDK agent")
        context = turn.agent_context()
        history = await turn.history()
        # After a client tool call, the message to answer is still the user's last one.
        messages = await to_model_input(history, newest_user_message(history))
        result = agents.Runner.run_streamed(agent, messages, context=context, error_handlers=KEEP_REFUSED_MESSAGE)
        async with aclosing(agent_events(context, result)) as events:
            async for event in events:
                yield event


async def _call(function: Callable[[ChatContext], Any], context: ChatContext) -> Any:
    """Call ``function`` in a thread, because one that is not async may block."""
    result = await asyncio.to_thread(function, context)
    return await result if inspect.isawaitable(result) else result


@dataclass
class WorkflowAssistant(Assistant):
    """Runs the ``run_workflow`` function of a module exported from Agent Builder."""

    run_workflow: Callable[[Any], Awaitable[Any]]
    input_type: type[BaseModel]

    async def respond(self, turn: Turn) -> AsyncGenerator[ThreadStreamEvent]:
        history = await turn.history()
        earlier, to_answer, text = history, newest_user_message(history), ""
        if turn.message is not None:
            earlier, to_answer = [item for item in history if item.id != turn.message.id], None
            text = await to_model_text(turn.message)
        run = exported_workflow.WorkflowRun(turn.agent_context, await to_model_input(earlier, to_answer))
        async with aclosing(run.events(self.run_workflow(self.input_type(input_as_text=text)))) as events:
            async for event in events:
                yield event
        if remaining := _remaining_text(run.result, shown=list(run.shown_texts.values())):
            yield assistant_message(turn.thread, turn.store, turn.context, remaining)


def _remaining_text(result: Any, shown: list[str]) -> str:
    """Return the text of a workflow's result, unless the user has already seen it in ``shown``."""
    if isinstance(result, dict) and isinstance(result.get("output_text"), str):
        text: str = result["output_text"]
        return "" if text in shown else text
    if shown or result is None:
        return ""
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, indent=2, default=str)


def make_openai_client(settings: Settings) -> openai.AsyncOpenAI | None:
    """Create the OpenAI client that all of the chat uses, or ``None`` without an API key."""
    if not settings.openai_api_key:
        return None
    client = openai.AsyncOpenAI(
        api_key=settings.openai_api_key,
        base_url=f"{settings.api_base}/v1",
        timeout=settings.turn_seconds,
        http_client=openai.DefaultAsyncHttpxClient(event_hooks={"request": [_on_openai_request]}),
    )
    _ = client.responses, client.audio  # imports their modules now; doing so in the first turn would block the event loop
    return client


async def _on_openai_request(request: httpx2.Request) -> None:
    """Add the request id to a call to OpenAI, and end the start of the turn: from here on it waits for the network.

    The hook runs for each attempt, in the context of the task that makes the call.
    """
    if context := current_context.get():
        context.started()
    if request_id := logs.request_id.get():
        request.headers["X-Client-Request-Id"] = request_id


def make_assistants(settings: Settings, client: openai.AsyncOpenAI | None) -> dict[str | None, Assistant]:
    """Create the configured assistants, by agent name; the key ``None`` is the default.

    Raises:
        SettingsError: an agent named by ``CHATKIT_AGENT`` or ``CHATKIT_AGENTS`` can't be loaded.
    """
    _prepare_agents_sdk(settings, client)
    assistants: dict[str | None, Assistant] = {None: _default_assistant(settings)}
    for name, agent in settings.agents.items():
        assistants[name], found = _load(agent, "CHATKIT_AGENTS")
        log.info("Users whose %s is %r are answered by %s", settings.agent_claim, name, found)
    return assistants


def _default_assistant(settings: Settings) -> Assistant:
    assistant: Assistant
    if settings.agent:
        assistant, found = _load(settings.agent)
    elif settings.openai_api_key:
        plain = agents.Agent(name="Assistant", instructions=settings.instructions, model=settings.model)
        assistant = AgentAssistant(plain)
        found = f"a plain assistant on {settings.model or 'the default model of the Agents SDK'}"
    else:
        assistant, found = DemoAssistant(), "the demo, because neither CHATKIT_AGENT nor OPENAI_API_KEY is set"
    log.info("The chat is answered by %s", found)
    return assistant


def _prepare_agents_sdk(settings: Settings, client: openai.AsyncOpenAI | None) -> None:
    """Apply the settings to the Agents SDK, whose configuration is global."""
    agents.set_tracing_disabled(not settings.tracing)
    if client is not None:
        agents.set_default_openai_client(client, use_for_tracing=bool(settings.tracing))
        # Exported workflows create their own clients, for guardrails and files, which read only this variable.
        os.environ.setdefault("OPENAI_API_KEY", client.api_key)
    exported_workflow.install_runner()


def _load(name: str, variable: str = "CHATKIT_AGENT") -> tuple[Assistant, str]:
    """Load the assistant ``package.module:name`` and describe it. ``variable`` is the setting, for errors."""
    module_name, _, attribute = name.partition(":")
    if str(PROJECT) not in sys.path:
        sys.path.insert(0, str(PROJECT))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise SettingsError(f"{variable}: the module {module_name} can't be imported ({reason}).") from error
    if not hasattr(module, attribute):
        raise SettingsError(f"{variable}: the module {module_name} has no {attribute}.")
    value = getattr(module, attribute)
    if isinstance(value, agents.Agent):
        return AgentAssistant(value), f"the Agents SDK agent {value.name!r} ({name})"
    if not inspect.isroutine(value):
        raise SettingsError(
            f"{variable}: {name} is of type {type(value).__name__}; it has to be an Agents SDK Agent, a function from the "
            "user to one, or the run_workflow that Agent Builder exported."
        )
    required = [
        parameter
        for parameter in inspect.signature(value).parameters.values()
        if parameter.default is parameter.empty and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    found = f"the agents that the function {name} returns for each user"
    if len(required) == 2:
        return AgentAssistant(lambda context: value(context.user, context.claims)), found
    if len(required) != 1:
        raise SettingsError(
            f"{variable}: the function {name} takes {len(required)} arguments; it has to take the user, the user and their "
            "claims, or Agent Builder's workflow_input."
        )
    input_type = _workflow_input(value, required[0].name, module)
    if input_type is None:
        return AgentAssistant(lambda context: value(context.user)), found
    if not inspect.iscoroutinefunction(value):
        raise SettingsError(f"{variable}: {name} takes a workflow's input and is no async function; export it again.")
    return WorkflowAssistant(value, input_type), f"the exported workflow {name}"


def _workflow_input(function: Any, parameter: str, module: Any) -> type[BaseModel] | None:
    """Return the type of ``parameter`` if it is a workflow's input model."""
    try:
        declared = get_type_hints(function).get(parameter)
    except NameError:
        declared = None
    if declared is None and parameter == "workflow_input":
        declared = getattr(module, "WorkflowInput", None)
    if inspect.isclass(declared) and issubclass(declared, BaseModel) and "input_as_text" in declared.model_fields:
        return declared
    return None
