"""An MCP server of the tests: ``python -m tests.support.mcp_server [port]``, over stdio, or over HTTP on ``port``."""

from __future__ import annotations

import sys

from mcp import MCPError
from mcp.server.mcpserver import MCPServer

server = MCPServer("crm")


@server.tool()
def find_customer(who: str) -> str:
    """Find a customer."""
    return f"{who} is customer 7"


@server.tool()
def refuse(protocol: bool) -> str:
    """Fail, with a result or with an error of the protocol."""
    raise MCPError(-32000, "not now") if protocol else ValueError("not now")


@server.prompt()
def manners(tone: str) -> str:
    """How to speak."""
    return f"Be {tone}."


@server.resource("crm://greeting")
def greeting() -> str:
    """The greeting of the day."""
    return "Say hello."


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run()
