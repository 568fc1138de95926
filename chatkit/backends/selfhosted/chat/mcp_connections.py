"""Connections to the MCP servers of the agents, for as long as the process serves.

The Agents SDK fails a run whose agent has an MCP server that is not connected. Here, such an agent runs without that server's
tools.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine
from functools import lru_cache, partial
from typing import Any

from agents import Agent, RunContextWrapper
from agents._run_state_agent_identity import _iter_agent_graph
from agents.mcp import MCPServer
from agents.mcp._logging import get_mcp_server_log_name
from agents.mcp.server import _MCPServerWithClientSession

CONNECT_SECONDS = 10
RETRY_SECONDS = 15
CLEANUP_SECONDS = 5
_OTHER_REQUESTS = ("list_prompts", "get_prompt", "list_resources", "list_resource_templates", "read_resource")

log = logging.getLogger(__name__)


class McpConnection:
    """Keeps an MCP server connected. While it is not, agents run without its tools."""

    def __init__(self, server: MCPServer) -> None:
        self._server = server
        self._name = get_mcp_server_log_name(server.name)  # without the credentials of an address
        self._list_tools = partial(type(server).list_tools, server)
        self._call_tool = partial(type(server).call_tool, server)
        self._reported = False
        self._connected, self._lost = asyncio.Event(), asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None  # that of the connection
        server.list_tools = partial(self._in_loop, self._list_connected_tools)  # type: ignore[method-assign]
        server.call_tool = partial(self._in_loop, self._call_and_watch)  # type: ignore[method-assign]
        for name in _OTHER_REQUESTS:
            setattr(server, name, partial(self._in_loop, partial(getattr(type(server), name), server)))

    async def run(self) -> None:
        """Connect the server, and again when the connection is lost, until cancelled."""
        self._loop = asyncio.get_running_loop()
        while True:
            # A task of its own, because MCP's client cancels the task that it runs in when the connection is lost.
            connection = asyncio.create_task(self._stay_connected())
            try:
                await asyncio.wait([connection])
            finally:
                connection.cancel()
                await asyncio.wait([connection])
            if connection.cancelled() or (error := connection.exception()) is None:
                self._report("the connection was lost")
            else:
                self._report(type(error).__name__)
            await asyncio.sleep(RETRY_SECONDS)

    async def _stay_connected(self) -> None:
        server: Any = self._server
        self._invalidate_tools_cache()
        async with asyncio.timeout(CONNECT_SECONDS):
            await server.connect()
        log.info("The MCP server %s is connected", self._name)
        self._lost.clear()
        self._connected.set()
        self._reported = False
        try:
            await self._lost.wait()
        finally:
            self._connected.clear()
            async with asyncio.timeout(CLEANUP_SECONDS):
                await server.cleanup()

    async def _in_loop(self, method: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any, **named: Any) -> Any:
        """Await ``method`` in the connection's loop. A tool that is not async may run an agent in another one."""
        work = method(*arguments, **named)
        if self._loop in (None, asyncio.get_running_loop()):
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def _list_connected_tools(self, *arguments: Any, **named: Any) -> Any:
        """Replace the server's ``list_tools``."""
        if not self._connected.is_set():
            return []
        try:
            return await self._list_tools(*arguments, **named)
        except Exception as error:  # noqa: BLE001  whatever it is, the agent runs without these tools
            self._report(type(error).__name__)
            self._connected.clear()
            self._lost.set()
            return []

    async def _call_and_watch(self, *arguments: Any, **named: Any) -> Any:
        """Replace the server's ``call_tool``.

        After an error, ``list_tools``, which precedes each call of the model, asks the server also with ``cache_tools_list``,
        and so notices if the connection is lost.
        """
        try:
            return await self._call_tool(*arguments, **named)
        except BaseException:  # a connection that is lost may cancel the call
            self._invalidate_tools_cache()
            raise

    def _invalidate_tools_cache(self) -> None:
        if invalidate := getattr(self._server, "invalidate_tools_cache", None):  # an operator's class may have no cache
            invalidate()

    async def wait(self, *arguments: Any) -> None:
        """Wait until the server lists its tools. ``arguments`` are those of ``list_tools``."""
        while True:
            await self._connected.wait()
            await self._list_connected_tools(*arguments)  # notices that the connection is lost
            if self._connected.is_set():
                return

    def _report(self, reason: str) -> None:
        """Log once that there is no connection. The text of an error may contain the server's address, with a key."""
        if not self._reported:
            log.error("The MCP server %s can't be used (%s); agents run without it", self._name, reason)
            self._reported = True


_list_tools_of_sdk = _MCPServerWithClientSession.list_tools


async def list_tools_if_connected(server: _MCPServerWithClientSession, *arguments: Any, **named: Any) -> Any:
    """Replace the Agents SDK's ``list_tools``: a server that was not found, and that nothing else connected, has no tools."""
    if server.session is None:
        _report_unknown(get_mcp_server_log_name(server.name))
        return []
    return await _list_tools_of_sdk(server, *arguments, **named)


@lru_cache(maxsize=100)  # one line for each server
def _report_unknown(name: str) -> None:
    log.error(
        "The MCP server %s was not found at the start and is not connected; agents answer without it. "
        "Create it at the top level of the module in CHATKIT_AGENT",
        name,
    )


async def wait_for(agent: Agent[Any], names: Collection[str], context: Any) -> None:
    """Wait until those MCP servers of ``agent`` and its other agents are connected that have one of ``names`` in the log.

    Raises:
        TimeoutError: one is not after ``CONNECT_SECONDS``.
    """
    async with asyncio.timeout(CONNECT_SECONDS):
        for owner in _iter_agent_graph(agent):
            for server in owner.mcp_servers:
                connection = getattr(getattr(server.list_tools, "func", None), "__self__", None)
                if isinstance(connection, McpConnection) and get_mcp_server_log_name(server.name) in names:
                    await connection.wait(RunContextWrapper(context), owner)
