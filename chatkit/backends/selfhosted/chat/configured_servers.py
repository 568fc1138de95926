"""Selects the ChatKit server.

It is the agent or server named by ``CHATKIT_AGENT``, a plain agent if only an API key is set, or the demo.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import logging
import os
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import Any, get_type_hints

import agents
import openai
from agents.mcp.server import _MCPServerWithClientSession
from agents.models import _openai_shared
from agents.sandbox import SandboxAgent
from pydantic import BaseModel

import chatkit.agents
from chatkit.agents import ThreadItemConverter
from chatkit.backends.selfhosted.chat import exported_workflow, tracing
from chatkit.backends.selfhosted.chat.assistants import AgentServer, WorkflowServer
from chatkit.backends.selfhosted.chat.composer import keep_providers, load_providers
from chatkit.backends.selfhosted.chat.defaults import Resources
from chatkit.backends.selfhosted.chat.demo import DemoServer
from chatkit.backends.selfhosted.chat.events import own_server_events
from chatkit.backends.selfhosted.chat.history import attachment_to_message_content, to_agent_input
from chatkit.backends.selfhosted.chat.mcp_connections import list_tools_if_connected
from chatkit.backends.selfhosted.chat.model_output import join_halves
from chatkit.backends.selfhosted.chat.server import GuardedServer, guarded
from chatkit.server import ChatKitServer
from chatkit.settings import PROJECT, Settings, SettingsError

log = logging.getLogger(__name__)

Shape = tuple[Any, ...]
"""The class of a server, and the arguments of its constructor after the store."""


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
    _use_default_key(resources.openai_client)
    if settings.state_claims and any(isinstance(server, WorkflowServer) for server in servers.values()):
        log.warning(
            "CHATKIT_STATE_CLAIMS reaches the tools of an exported workflow, and not its state: branches on a state variable "
            "take the default; see docs/moving-from-agent-builder.md"
        )
    return servers


def _create(shape: Shape, variable: str, resources: Resources) -> GuardedServer:
    server, *arguments = shape
    if server.process is not ChatKitServer.process or server._process_streaming is not ChatKitServer._process_streaming:
        raise SettingsError(f"{variable}: {server.__name__} overrides process(), in place of which this service has its own.")
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
    tracing.configure(settings)
    if client is not None:
        agents.set_default_openai_client(client, use_for_tracing=bool(settings.tracing))
        # Exported workflows create their own clients, for guardrails and files, which read only this variable.
        os.environ.setdefault("OPENAI_API_KEY", client.api_key)
    exported_workflow.install_runner()
    _MCPServerWithClientSession.list_tools = list_tools_if_connected  # type: ignore[method-assign, assignment]
    keep_providers()
    load_providers()
    join_halves()
    # Operators' servers import these from OpenAI's package. Ours also handles events on which OpenAI's version fails, see
    # agent_events(), knows the images and attachments of this service, and gives models messages that every API takes.
    chatkit.agents.stream_agent_response = own_server_events
    ThreadItemConverter.to_agent_input = to_agent_input  # type: ignore[method-assign, assignment]
    ThreadItemConverter.attachment_to_message_content = attachment_to_message_content  # type: ignore[method-assign, assignment]


def _use_default_key(client: openai.AsyncOpenAI | None) -> None:
    """Let agents use the key of ``agents.set_default_openai_key()``, which the Agents SDK ignores if it has a client."""
    key = _openai_shared.get_default_openai_key()
    if key and client is not None and _openai_shared.get_default_openai_client() is client:
        _openai_shared.set_default_openai_client(client.with_options(api_key=key))


def _load(name: str, variable: str = "CHATKIT_AGENT") -> tuple[Shape, str]:
    """Load the agent or server ``package.module:name`` and describe it. ``variable`` is the setting, for errors."""
    module_name, _, attribute = name.partition(":")
    if str(PROJECT) not in sys.path:
        sys.path.insert(0, str(PROJECT))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        where = _position(error)
        raise SettingsError(f"{variable}: the module {module_name} can't be imported ({_summary(error)}{where}).") from error
    if not hasattr(module, attribute):
        raise SettingsError(f"{variable}: the module {module_name} has no {attribute}.")
    value = getattr(module, attribute)
    if inspect.isclass(value) and issubclass(value, ChatKitServer):
        return (value,), f"the server {name}"
    if isinstance(value, SandboxAgent):
        raise SettingsError(
            f"{variable}: {name} is a SandboxAgent, whose runs need a RunConfig with a sandbox: start them in a subclass of "
            "ChatKitServer; see docs/agents.md."
        )
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
    if _approves_everything(inspect.unwrap(value).__globals__.get("approval_request")):
        raise SettingsError(
            f"{variable}: approval_request in {value.__module__} approves everything, because Agent Builder's export leaves it "
            "to you; see docs/moving-from-agent-builder.md."
        )
    return (WorkflowServer, value, input_type), f"the exported workflow {name}"


def _approves_everything(function: Any) -> bool:
    """Return whether ``function`` does nothing but return ``True``."""
    try:
        (definition,) = ast.parse(inspect.getsource(function)).body
    except (TypeError, OSError, SyntaxError, ValueError):
        return False
    match definition:
        case (
            ast.FunctionDef(body=[*_, ast.Return(ast.Constant(True))])
            | ast.AsyncFunctionDef(body=[*_, ast.Return(ast.Constant(True))])
        ):
            return len(definition.body) == 1 + (ast.get_docstring(definition) is not None)
    return False


def _summary(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _position(error: Exception) -> str:
    """Return the file and line of an operator's code that raised ``error``. It is empty if no such code was run."""
    paths = sysconfig.get_paths()
    libraries = (paths["stdlib"], paths["purelib"], paths["platlib"], f"{PROJECT / 'chatkit'}{os.sep}", "<")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(libraries)]
    return f", {Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else ""


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
