"""The self-hosted chat: ChatKit's protocol, spoken by OpenAI's own server package, over this service's sessions."""

from __future__ import annotations

import logging

from flask import Blueprint

import chatkit.logger
from chatkit.conversation.assistants import make_assistants, make_openai_client
from chatkit.conversation.chat_server import ChatServer
from chatkit.conversation.endpoint import blueprint
from chatkit.conversation.storage import SqlStore
from chatkit.issuers.selfhosted import SelfhostedIssuer
from chatkit.limits.concurrency import ChatConcurrency
from chatkit.limits.rate import Limits, redis_client
from chatkit.settings import Settings

# OpenAI's package logs to "chatkit", the name of ours too, and would write each line a second time when LOG_LEVEL is set.
chatkit.logger.logger.handlers.clear()
logging.getLogger("chatkit").setLevel(logging.NOTSET)


def make_blueprint(settings: Settings, issuer: SelfhostedIssuer, limits: Limits) -> Blueprint:
    """The chat's endpoint, with the assistants and the storage that ``settings`` ask for.

    Raises:
        SettingsError: when an agent can't be had.
    """
    client = make_openai_client(settings)
    server = ChatServer(
        SqlStore(issuer.engine),
        make_assistants(settings, client),
        turn_seconds=settings.turn_seconds,
        openai_client=client,
    )
    concurrency = ChatConcurrency(redis_client(settings), settings.turn_seconds)
    return blueprint(server, issuer, limits, concurrency)
