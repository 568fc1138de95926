"""Agents with an MCP server that is started with them."""

from __future__ import annotations

import os
import sys
from typing import Any

from agents import Agent, Runner, function_tool
from agents.mcp import MCPServerStdio

from tests.support.service import PROJECT


@function_tool
async def weather(city: str) -> str:
    """The weather in a city."""
    return f"Sun in {city}"


@function_tool(needs_approval=True)
async def book(city: str) -> str:
    """Book a journey to a city."""
    return f"{city} is booked"


stdio = MCPServerStdio(
    {"command": sys.executable, "args": ["-m", "tests.support.mcp_server"], "cwd": PROJECT},
    require_approval=os.environ.get("TEST_MCP_APPROVAL", "never"),  # type: ignore[arg-type]
    client_session_timeout_seconds=30,
)
local = Agent(name="Local", model="gpt-test", tools=[weather, book], mcp_servers=[stdio])
handing_over = Agent(name="Handing over", model="gpt-first", handoffs=[local])
managing = Agent(name="Managing", model="gpt-boss", tools=[local.as_tool("clerk", "Ask the clerk.")])


@function_tool
def ask_local() -> str:
    """Ask the other agent."""
    return Runner.run_sync(local, "Who is Ada?").final_output_as(str)


async def _instructions(context: Any, agent: Agent[Any]) -> str:
    await stdio.list_prompts()
    await stdio.list_resources()
    await stdio.list_resource_templates()
    prompt, resource = await stdio.get_prompt("manners", {"tone": "kind"}), await stdio.read_resource("crm://greeting")
    return f"{prompt.messages[0].content.text} {resource.contents[0].text}"  # type: ignore[union-attr]


prompted = Agent(name="Prompted", model="gpt-test", instructions=_instructions, mcp_servers=[stdio])


@function_tool
def ask_prompted() -> str:
    """Ask the agent that gets its instructions from the MCP server."""
    return Runner.run_sync(prompted, "Who is Ada?").final_output_as(str)


asking_prompted = Agent(name="Asking", model="gpt-first", tools=[ask_prompted])
asking = Agent(name="Asking", model="gpt-first", tools=[ask_local])


def local_for_user(user: str) -> Agent[Any]:
    return local.clone(instructions=f"You serve {user}.")
