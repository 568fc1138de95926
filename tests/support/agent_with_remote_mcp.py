"""An agent with an MCP server over HTTP."""

from __future__ import annotations

import os

from agents import Agent
from agents.mcp import MCPServerStreamableHttp

from tests.support.agents_under_test import weather

http = MCPServerStreamableHttp(
    {"url": f"http://127.0.0.1:{os.environ['TEST_MCP_PORT']}/mcp?key=key-in-the-address"},
    client_session_timeout_seconds=30,
)
remote = Agent(name="Remote", model="gpt-test", tools=[weather], mcp_servers=[http])
