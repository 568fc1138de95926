"""Traces of agents in OpenAI's dashboard, see ``CHATKIT_TRACING``."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import agents
from agents.tracing.processors import default_exporter

from chatkit.settings import Settings

FLUSH_SECONDS = 2.0


def configure(settings: Settings) -> None:
    """Turn tracing on or off. Traces have the users' messages, so they are sent to the gateway that the models' calls go to."""
    agents.set_tracing_disabled(not settings.tracing)
    default_exporter().endpoint = f"{settings.api_base}/v1/traces/ingest"


async def send_at_shutdown() -> None:
    """Run until cancelled, then send the traces that the SDK has collected since it last did, some seconds ago."""
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.to_thread(agents.flush_traces), FLUSH_SECONDS)
