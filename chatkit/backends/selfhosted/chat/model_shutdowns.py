"""Warns at start-up of configured models that OpenAI shuts down."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from typing import Any

import agents
import openai
from agents.models import get_default_model

from chatkit.settings import Settings

WARN_DAYS = 60
LIST_SECONDS = 60

log = logging.getLogger(__name__)


def configured_models(settings: Settings, found: Iterable[agents.Agent[Any]]) -> dict[str, list[str]]:
    """Return the names of OpenAI's models that the chat may call, each with what names it.

    Args:
        settings: the settings.
        found: the operator's agents, see ``discovery``. Others are not known.
    """
    named = [("CHATKIT_TITLE_MODEL", settings.title_model), ("CHATKIT_TRANSCRIPTION_MODEL", settings.transcription_model)]
    named += [("CHATKIT_COMPOSER", model["id"]) for model in settings.composer["models"]]
    if not settings.agent:
        source = "CHATKIT_MODEL" if settings.model else "the default of the Agents SDK"
        named.append((source, settings.model or get_default_model()))
    for agent in found:
        if agent.model is None or isinstance(agent.model, str):
            named.append((f"the agent {agent.name}", agent.model or get_default_model()))
    sources: defaultdict[str, list[str]] = defaultdict(list)
    for source, model in named:
        if model and source not in sources[model.removeprefix("openai/")]:
            sources[model.removeprefix("openai/")].append(source)
    return dict(sources)


async def warn_of_shutdowns(client: openai.AsyncOpenAI, models: Mapping[str, list[str]]) -> None:
    """Log a warning for each of ``models`` that has been shut down or will be within ``WARN_DAYS``.

    Args:
        client: asks OpenAI.
        models: see ``configured_models``.
    """
    today = datetime.now(UTC).date()
    try:
        async with asyncio.timeout(LIST_SECONDS):
            listed = (await client.models.list(extra_headers={"Connection": "close"})).data  # the first turn may be far off
        for model in listed:
            ends = date.fromisoformat(model.shutdown_date[:10]) if model.id in models and model.shutdown_date else None
            if ends and (ends - today).days <= WARN_DAYS:
                verb = "shuts down" if ends > today else "shut down"
                log.warning(
                    "OpenAI %s the model %s on %s. It is named by: %s", verb, model.id, ends, ", ".join(models[model.id])
                )
    except openai.AuthenticationError:
        log.warning("OPENAI_API_KEY: OpenAI rejects the key; it is wrong or revoked")
    except Exception as error:  # noqa: BLE001  only the warning is lost
        # The error's text is not logged: it quotes the key and the response.
        log.info("OpenAI's models could not be listed (%s)", type(error).__name__)
