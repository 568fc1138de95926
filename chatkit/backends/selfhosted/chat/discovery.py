"""Finds the operator's agents and their MCP servers, which are used before the first response."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agents import Agent
from agents._run_state_agent_identity import _iter_agent_graph
from agents.mcp import MCPServer

from chatkit.backends.selfhosted.chat.server import GuardedServer
from chatkit.settings import Settings


@dataclass(frozen=True)
class Discovered:
    """What is in the configured modules and servers, as far as it can be found. Nothing is in a list twice."""

    agents: list[Agent[Any]]
    """With those to hand over to, and those that are used as tools."""
    mcp_servers: list[MCPServer]
    """With those of ``agents``."""


def discover(settings: Settings, servers: Mapping[str | None, GuardedServer]) -> Discovered:
    """Search the namespaces of the configured modules and ``servers``, and lists and dictionaries there."""
    values = list(_values(settings, servers))
    found = [agent for value in values if isinstance(value, Agent) for agent in _iter_agent_graph(value)]
    agents = list({id(agent): agent for agent in found}.values())  # an agent can't be hashed
    mcp_servers = [value for value in values if isinstance(value, MCPServer)]
    mcp_servers += [server for agent in agents for server in agent.mcp_servers]
    return Discovered(agents, list(dict.fromkeys(mcp_servers)))


def _values(settings: Settings, servers: Mapping[str | None, GuardedServer]) -> Iterator[Any]:
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
