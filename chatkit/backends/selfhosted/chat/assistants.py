"""Selects the ChatKit server.

It is the agent or server named by ``CHATKIT_AGENT``, a plain agent if only an API key is set, or the demo.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import logging
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, get_type_hints

import agents
import openai
from agents._run_state_agent_identity import _iter_agent_graph
from agents.mcp import MCPServer
from agents.mcp.server import _MCPServerWithClientSession
from pydantic import BaseModel

import chatkit.agents
from chatkit.actions import Action
from chatkit.agents import AgentContext, ThreadItemConverter
from chatkit.backends.selfhosted.chat import approvals, exported_workflow
from chatkit.backends.selfhosted.chat.composer import has_tool, keep_providers, with_model, with_tool_choice
from chatkit.backends.selfhosted.chat.context import ChatContext, current_context
from chatkit.backends.selfhosted.chat.defaults import DefaultServer, Resources
from chatkit.backends.selfhosted.chat.demo import DemoServer
from chatkit.backends.selfhosted.chat.events import assistant_message, outcome, own_server_events
from chatkit.backends.selfhosted.chat.history import (
    assistant_message_as_text,
    include_images,
    load_history,
    newest_user_message,
    to_model_input,
    to_model_text,
)
from chatkit.backends.selfhosted.chat.mcp_connections import list_tools_if_connected
from chatkit.backends.selfhosted.chat.openai_client import ChatClient, HttpClient
from chatkit.backends.selfhosted.chat.server import GuardedServer, guarded
from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.errors import CustomStreamError
from chatkit.server import ChatKitServer
from chatkit.settings import PROJECT, Settings, SettingsError
from chatkit.types import (
    ClientToolCallItem,
    SyncCustomActionResponse,
    ThreadItemDoneEvent,
    ThreadMetadata,
    ThreadStreamEvent,
    UserMessageItem,
    WidgetItem,
)
from chatkit.web import logs

if TYPE_CHECKING:
    import httpx2

log = logging.getLogger(__name__)

Shape = tuple[Any, ...]
"""The class of a server, and the arguments of its constructor after the store."""


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
        async for event in approvals.discard(agent_context, history):
            yield event
        # After a client tool call, the message to answer is still the user's last one.
        newest = newest_user_message(history)
        options = self._chatkit_resources.composer.options(input_user_message, newest)
        if tool := options.tool_choice:
            if not await has_tool(agent, tool.id, agent_context):
                log.warning(
                    "CHATKIT_COMPOSER lists the tool %s, which the agent %s does not have or enable", tool.id, agent.name
                )
                raise CustomStreamError("This tool can't be used here.", allow_retry=False)
            agent = with_tool_choice(agent, tool.id)
        messages = await to_model_input(history, newest)
        result = agents.Runner.run_streamed(agent, messages, context=agent_context, run_config=with_model(None, options.model))
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
        earlier, to_answer, text = history, newest, ""
        if input_user_message is not None:
            earlier, to_answer = [item for item in history if item.id != input_user_message.id], None
            text = await to_model_text(input_user_message)
        run = exported_workflow.WorkflowRun(
            lambda: AgentContext(thread=thread, store=self.store, request_context=context),
            await to_model_input(earlier, to_answer),
            self._chatkit_resources.composer.options(input_user_message, newest),
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


def make_openai_client(settings: Settings) -> openai.AsyncOpenAI | None:
    """Create the OpenAI client that all of the chat uses, or ``None`` without an API key."""
    if not settings.openai_api_key:
        return None
    client = ChatClient(
        api_key=settings.openai_api_key,
        base_url=f"{settings.api_base}/v1",
        timeout=settings.turn_seconds,
        http_client=HttpClient(event_hooks={"request": [_on_openai_request]}),
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


def make_servers(settings: Settings, resources: Resources) -> dict[str | None, GuardedServer]:
    """Create the configured servers, by agent name; the key ``None`` is the default.

    Raises:
        SettingsError: one named by ``CHATKIT_AGENT`` or ``CHATKIT_AGENTS`` can't be loaded or created.
    """
    _prepare_agents_sdk(settings, resources.openai_client)
    servers: dict[str | None, GuardedServer] = {None: _create(_default_shape(settings), "CHATKIT_AGENT", resources)}
    for name, agent in settings.agents.items():
        shape, found = _load(agent, "CHATKIT_AGENTS")
        servers[name] = _create(shape, "CHATKIT_AGENTS", resources)
        log.info("Users whose %s is %r are answered by %s", settings.agent_claim, name, found)
    return servers


def find_agents(settings: Settings, servers: Mapping[str | None, GuardedServer]) -> list[agents.Agent[Any]]:
    """Return the agents of the configured modules and ``servers``, as far as they can be found.

    Agents to hand over to and agents that are used as tools are included.
    """
    values = [value for value in _values(settings, servers) if isinstance(value, agents.Agent)]
    return list({id(agent): agent for value in values for agent in _iter_agent_graph(value)}.values())


def find_mcp_servers(settings: Settings, servers: Mapping[str | None, GuardedServer]) -> list[MCPServer]:
    """Return the MCP servers of the configured modules and ``servers``, and those of ``find_agents``."""
    found = [value for value in _values(settings, servers) if isinstance(value, MCPServer)]
    found += [server for agent in find_agents(settings, servers) for server in agent.mcp_servers]
    return list(dict.fromkeys(found))


def _values(settings: Settings, servers: Mapping[str | None, GuardedServer]) -> Iterator[Any]:
    """Yield what is in the namespaces of the configured modules and servers, and in lists and dictionaries there."""
    names = filter(None, (settings.agent, *settings.agents.values()))
    pending: deque[Any] = deque(vars(sys.modules[name.partition(":")[0]]) for name in names)
    for name, server in servers.items():
        if name or settings.agent:  # an operator's
            pending += [vars(server), *(dict(vars(class_)) for class_ in type(server).__mro__)]
    seen: dict[int, Any] = {}
    while pending:
        value = pending.popleft()
        if not isinstance(value, dict | list | tuple | set | frozenset):
            yield value
        elif id(value) not in seen:
            seen[id(value)] = value
            pending += list(value.values() if isinstance(value, dict) else value)


def _create(shape: Shape, variable: str, resources: Resources) -> GuardedServer:
    server, *arguments = shape
    try:
        created = guarded(server, resources, *arguments)
    except Exception as error:
        raise SettingsError(
            f"{variable}: {server.__name__} can't be created with the store as its only argument ({_summary(error)})."
        ) from error
    if getattr(created, "store", None) is not resources.store:  # another store might not separate users
        raise SettingsError(f"{variable}: {server.__name__} has to pass the store that it is given to super().__init__().")
    return created


def _default_shape(settings: Settings) -> Shape:
    shape: Shape
    if settings.agent:
        shape, found = _load(settings.agent)
    elif settings.openai_api_key:
        plain = agents.Agent(name="Assistant", instructions=settings.instructions, model=settings.model)
        shape = AgentServer, plain
        found = f"a plain assistant on {settings.model or 'the default model of the Agents SDK'}"
    else:
        shape, found = (DemoServer,), "the demo, because neither CHATKIT_AGENT nor OPENAI_API_KEY is set"
    log.info("The chat is answered by %s", found)
    return shape


def _prepare_agents_sdk(settings: Settings, client: openai.AsyncOpenAI | None) -> None:
    """Apply the settings to the Agents SDK, whose configuration is global."""
    agents.set_tracing_disabled(not settings.tracing)
    if client is not None:
        agents.set_default_openai_client(client, use_for_tracing=bool(settings.tracing))
        # Exported workflows create their own clients, for guardrails and files, which read only this variable.
        os.environ.setdefault("OPENAI_API_KEY", client.api_key)
    exported_workflow.install_runner()
    _MCPServerWithClientSession.list_tools = list_tools_if_connected  # type: ignore[method-assign, assignment]
    keep_providers()
    # Operators' servers import these from OpenAI's package. Ours also handles events on which OpenAI's version fails, see
    # agent_events(), knows the images of this service, and gives models messages that every API takes.
    chatkit.agents.stream_agent_response = own_server_events
    ThreadItemConverter.to_agent_input = include_images  # type: ignore[method-assign, assignment]
    ThreadItemConverter.assistant_message_to_input = assistant_message_as_text  # type: ignore[method-assign, assignment]


def _load(name: str, variable: str = "CHATKIT_AGENT") -> tuple[Shape, str]:
    """Load the agent or server ``package.module:name`` and describe it. ``variable`` is the setting, for errors."""
    module_name, _, attribute = name.partition(":")
    if str(PROJECT) not in sys.path:
        sys.path.insert(0, str(PROJECT))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise SettingsError(f"{variable}: the module {module_name} can't be imported ({_summary(error)}).") from error
    if not hasattr(module, attribute):
        raise SettingsError(f"{variable}: the module {module_name} has no {attribute}.")
    value = getattr(module, attribute)
    if inspect.isclass(value) and issubclass(value, ChatKitServer):
        return (value,), f"the server {name}"
    if isinstance(value, agents.Agent):
        return (AgentServer, value), f"the Agents SDK agent {value.name!r} ({name})"
    if not inspect.isroutine(value):
        raise SettingsError(
            f"{variable}: {name} is of type {type(value).__name__}; it has to be an Agents SDK Agent, a function that "
            "takes the user and returns one, the run_workflow that Agent Builder exported, or a subclass of ChatKitServer."
        )
    required = [
        parameter
        for parameter in inspect.signature(value).parameters.values()
        if parameter.default is parameter.empty and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    found = f"the agents that the function {name} returns for each user"
    if len(required) == 2:
        return (AgentServer, lambda context: value(context.user, context.claims)), found
    if len(required) != 1:
        raise SettingsError(
            f"{variable}: the function {name} takes {len(required)} arguments; it has to take the user, the user and their "
            "claims, or Agent Builder's workflow_input."
        )
    input_type = _workflow_input(value, required[0].name, module)
    if input_type is None:
        return (AgentServer, lambda context: value(context.user)), found
    if not inspect.iscoroutinefunction(value):
        raise SettingsError(f"{variable}: {name} takes a workflow's input, but is not an async function; export it again.")
    return (WorkflowServer, value, input_type), f"the exported workflow {name}"


def _summary(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


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
