"""What users may choose in ChatKit's composer: a model, and a tool for the message."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

from agents import (
    Agent,
    Model,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    OpenAIResponsesWSModel,
    RunConfig,
    RunContextWrapper,
)
from agents.run_internal import run_loop
from agents.run_internal.turn_preparation import get_model_settings

from chatkit.errors import CustomStreamError
from chatkit.types import InferenceOptions, ThreadItem, UserMessageItem
from chatkit.web.errors import InvalidRequestBody

log = logging.getLogger(__name__)

_PROVIDERS = ("litellm/", "any-llm/")  # the Agents SDK's prefixes of models that are not OpenAI's


class Composer:
    """The options of ``CHATKIT_COMPOSER``.

    Args:
        options: ``models``, ``tools`` and ``attachments``, as in ChatKit's option ``composer``.
        dictation: whether the service can transcribe.
    """

    def __init__(self, options: Mapping[str, Any], *, dictation: bool = False) -> None:
        self.shown = {kind: listed for kind, listed in options.items() if listed}
        """The options that are not empty and whether there is dictation, for the frontend."""
        if dictation:
            self.shown["dictation"] = {"enabled": True}
        self._models = {model["id"] for model in options["models"] if not model.get("disabled")}
        self._tools = {tool["id"] for tool in options["tools"]}

    def check(self, options: InferenceOptions) -> None:
        """Raise ``InvalidRequestBody`` if ``options`` has a model or tool that is not listed."""
        if options.model is not None and options.model not in self._models:
            raise InvalidRequestBody("the model is not listed in CHATKIT_COMPOSER")
        if options.tool_choice is not None and options.tool_choice.id not in self._tools:
            raise InvalidRequestBody("the tool is not listed in CHATKIT_COMPOSER")

    def options(self, message: UserMessageItem | None, newest: ThreadItem | None) -> InferenceOptions:
        """Return the choices for a turn. Those that are no longer listed are left out: a retry repeats an earlier message.

        Args:
            message: the turn's message.
            newest: the thread's newest user message. A turn without a message continues with its model.
        """
        source = message or newest
        chosen = source.inference_options if isinstance(source, UserMessageItem) else InferenceOptions()
        tool = chosen.tool_choice if message is not None else None
        return InferenceOptions(
            model=chosen.model if chosen.model in self._models else None,
            tool_choice=tool if tool is not None and tool.id in self._tools else None,
        )


async def has_tool(agent: Agent[Any], tool: str, context: Any) -> bool:
    """Return whether ``agent`` has ``tool``, and has it enabled in a run with ``context``. MCP servers may have any."""
    named = [own for own in agent.tools if tool == getattr(own, "qualified_name", own.name)]
    if not named:
        return bool(agent.mcp_servers)
    return bool(await agent.clone(tools=named, mcp_servers=[]).get_all_tools(RunContextWrapper(context)))


def with_tool_choice(agent: Agent[Any], tool: str, run_config: RunConfig | dict[str, Any] | None) -> Agent[Any]:
    """Return a copy of ``agent`` that calls ``tool`` first in a run with ``run_config``.

    The agents that it hands over to are not changed.
    """
    # The SDK gives a model its default settings only while the agent has none of its own.
    settings = get_model_settings(agent, _run_config(run_config))
    return agent.clone(model_settings=settings.resolve(ModelSettings(tool_choice=tool)), reset_tool_choice=True)


def without_forced_tool(agent: Agent[Any], answered: str) -> Agent[Any]:
    """Return ``agent``, or a copy that is not forced to call the client tool ``answered``, which the page has just answered.

    Within a run, the SDK resets the choice after a call, to prevent an infinite loop. The output of a client tool begins a new
    run, and the page sends it without the user. Agents that do not end a run with a tool call can't wait for a client tool, and
    are not changed.
    """
    forced = agent.model_settings.tool_choice in ("required", answered)
    if not forced or not agent.reset_tool_choice or agent.tool_use_behavior == "run_llm_again":
        return agent
    return agent.clone(model_settings=replace(agent.model_settings, tool_choice=None))


class _Chosen(str):
    """The name of the model that the user chose, in ``RunConfig.model``."""

    __slots__ = ()


def _run_config(given: RunConfig | dict[str, Any] | None) -> RunConfig:
    return RunConfig(**given) if isinstance(given, dict) else given or RunConfig()


def with_model(run_config: RunConfig | dict[str, Any] | None, model: str | None) -> RunConfig | dict[str, Any] | None:
    """Return ``run_config`` with ``model`` for all agents of the run, unless it is ``None``. See ``keep_providers``.

    Raises:
        CustomStreamError: ``run_config`` has a model that can't be replaced.
    """
    if not model:
        return run_config
    given = _run_config(run_config).model
    chosen: Model | str
    if isinstance(given, Model):
        chosen = _renamed(given, model)
    else:
        _check_provider(given, model)
        chosen = _Chosen(model)
    if isinstance(run_config, RunConfig):
        return replace(run_config, model=chosen)
    # Not a RunConfig: the SDK closes the connections of a run only if it has made the RunConfig.
    return {**(run_config or {}), "model": chosen}


_get_model = run_loop.get_model


def keep_providers() -> None:
    """Let agents keep the provider of their model when the user chooses a model.

    The Agents SDK takes a name in ``RunConfig.model`` for one of its own provider, whatever the agent's model is: a
    conversation with the model of another provider would be sent to OpenAI.
    """
    run_loop.get_model = _model_of


def _model_of(agent: Agent[Any], run_config: RunConfig) -> Model:
    if isinstance(run_config.model, _Chosen):
        if isinstance(agent.model, Model):
            return _renamed(agent.model, run_config.model)
        _check_provider(agent.model, run_config.model)
    return _get_model(agent, run_config)


def load_providers() -> None:
    """Import what the Agents SDK needs for models with the prefix of another provider, where that is installed.

    The SDK would import it with the first message, on the event loop, which takes seconds.
    """
    for name in ("litellm_provider", "any_llm_provider"):
        try:
            import_module(f"agents.extensions.models.{name}")
        except ImportError:
            pass  # not installed
        except Exception:
            log.exception("the Agents SDK's %s can't be imported", name)


def _check_provider(own: str | None, name: str) -> None:
    """Raise ``CustomStreamError`` if the model ``own`` has a prefix of another provider than ``name``."""
    prefix = next((prefix for prefix in _PROVIDERS if own and own.startswith(prefix)), "")
    if not name.startswith(prefix):
        raise _unchangeable(name, f"model with the prefix {prefix}")


def _renamed(model: Model, name: str) -> Model:
    """Return a copy of ``model`` that asks the same provider for the model ``name``."""
    # A copy of a model with a WebSocket would share the connection.
    if not isinstance(model, OpenAIChatCompletionsModel | OpenAIResponsesModel) or isinstance(model, OpenAIResponsesWSModel):
        raise _unchangeable(name, type(model).__name__)
    renamed = copy.copy(model)
    renamed.model = str(name)
    return renamed


def _unchangeable(name: str, own: str) -> CustomStreamError:
    log.error("CHATKIT_COMPOSER lists the model %s, which a %s can't be changed to", name, own)
    return CustomStreamError("This model can't be used here.", allow_retry=False)
