"""Agents with MCP servers that are not at the top level of the module."""

from __future__ import annotations

import sys
from typing import Any

from agents import Agent
from agents.mcp import MCPServerStdio
from chatkit.store import Store

from tests.support.agents_under_test import weather
from tests.support.servers_under_test import Plain
from tests.support.service import PROJECT

AGENTS: dict[str, list[Agent[Any]]] = {}


def new_agent(user: str) -> Agent[Any]:
    command = {"command": sys.executable, "args": ["-m", "tests.support.mcp_server"], "cwd": PROJECT}
    server = MCPServerStdio(command, client_session_timeout_seconds=30)  # type: ignore[arg-type]
    return Agent(name="Local", model="gpt-test", tools=[weather], mcp_servers=[server])


def of_dictionary(user: str) -> Agent[Any]:
    return AGENTS["local"][0]


class OfClass(Plain):
    agent = new_agent("")


class OfInstance(Plain):
    def __init__(self, store: Store[Any]) -> None:
        super().__init__(store)
        self.agent = new_agent("")  # type: ignore[misc]
