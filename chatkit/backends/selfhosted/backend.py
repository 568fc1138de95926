"""The self-hosted backend: sessions and the chat, in one database."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

import openai
from agents.models.openai_responses import ResponsesWebSocketError

import chatkit.logger
from chatkit.backends.interface import Session
from chatkit.backends.selfhosted.chat import attachments_blueprint, images_blueprint, runs_blueprint, tracing
from chatkit.backends.selfhosted.chat.attachments import Attachments
from chatkit.backends.selfhosted.chat.blueprint import blueprint
from chatkit.backends.selfhosted.chat.composer import Composer
from chatkit.backends.selfhosted.chat.configured_servers import make_servers
from chatkit.backends.selfhosted.chat.defaults import Resources
from chatkit.backends.selfhosted.chat.discovery import discover
from chatkit.backends.selfhosted.chat.drafts import Drafts
from chatkit.backends.selfhosted.chat.images import image_urls
from chatkit.backends.selfhosted.chat.mcp_connections import McpConnection
from chatkit.backends.selfhosted.chat.model_shutdowns import configured_models, warn_of_shutdowns
from chatkit.backends.selfhosted.chat.openai_client import make_openai_client
from chatkit.backends.selfhosted.chat.runs import Runs
from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.backends.selfhosted.chat.titles import Titles
from chatkit.backends.selfhosted.chat.usage import UsageStore
from chatkit.backends.selfhosted.database.engine import UNAVAILABLE, describe, open_database
from chatkit.backends.selfhosted.sessions import SessionStore
from chatkit.identity.user import User
from chatkit.limits.concurrency import ChatConcurrency
from chatkit.limits.rate import Limits, redis_client
from chatkit.settings import MAX_SESSION_TTL, Settings
from chatkit.web import logs

MAINTENANCE_SECONDS = 30

# OpenAI's package adds a handler to the logger "chatkit", which is ours too: with LOG_LEVEL set, each line would appear twice.
chatkit.logger.logger.handlers.clear()
logging.getLogger("chatkit").setLevel(logging.NOTSET)


def _shorten_database_errors(record: logging.LogRecord) -> bool:
    """Log an unavailable database in one line; OpenAI's server logs each exception in a stream with its traceback."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, UNAVAILABLE):
        record.msg, record.args = "database_unavailable: %s during a response: %s", (type(error).__name__, describe(error))
        record.exc_info = None
    return True


chatkit.logger.logger.addFilter(_shorten_database_errors)
logs.quoting_errors.update({openai.APIError, ResponsesWebSocketError})  # their texts quote the key and the request


class SelfhostedBackend:
    """Implements ``Backend``.

    Raises:
        SettingsError: the database can't be opened or an agent can't be loaded.
    """

    def __init__(self, settings: Settings, limits: Limits) -> None:
        engine = open_database(settings.database_url, settings.database_connections)
        self._sessions = SessionStore(engine, settings.session_ttl or MAX_SESSION_TTL, settings.retention_days)
        self._keeps_conversations = settings.auth_keep_conversations
        client = make_openai_client(settings)
        keys = settings.secret_key, settings.secret_key_fallbacks
        store = SqlStore(engine, image_urls(*keys))
        self._attachments = Attachments(store.attachments, settings.composer.get("attachments"), *keys)
        composer = Composer(settings.composer, dictation=client is not None)
        titles = Titles(store, settings.title_model)
        runs = Runs(store.active_runs)
        resources = Resources(
            store,
            self._attachments,
            Drafts(store),
            runs,
            composer,
            titles,
            settings.turn_seconds,
            client,
            settings.transcription_model,
        )
        servers = make_servers(settings, resources)
        concurrency = ChatConcurrency(redis_client(settings), settings.turn_seconds)
        usage = UsageStore(engine, store.transactions.submit, settings.tokens_per_day)
        self.blueprints = [
            blueprint(
                servers,
                self._sessions,
                limits,
                concurrency,
                settings.agent_headers,
                composer,
                usage,
                outlives_client=settings.on_disconnect == "continue",
            ),
            runs_blueprint.blueprint(runs, self._sessions, limits, concurrency),
            images_blueprint.blueprint(store, limits),
            attachments_blueprint.blueprint(self._attachments, limits),
        ]
        discovered = discover(settings, servers)
        connections = [McpConnection(server) for server in discovered.mcp_servers]
        self.background: list[Callable[[], Awaitable[None]]] = [
            self._maintain,
            runs.watch,
            usage.finish_at_shutdown,
            *(connection.run for connection in connections),
        ]
        if settings.tracing:
            self.background.append(tracing.send_at_shutdown)
        if client is not None:
            models = configured_models(settings, discovered.agents)
            self.background.append(partial(warn_of_shutdowns, client, models))

    def issue(self, user: User) -> Session:
        return self._sessions.issue(user)

    def end(self, session_id: str, user: User) -> None:
        self._sessions.end(session_id, user)

    def take_over(self, visitor: User, user: User) -> bool:
        if self._keeps_conversations:
            self._sessions.transfer_conversations(visitor, user)
        return self._keeps_conversations

    def is_upload(self, path: str, query: str) -> bool:
        return self._attachments.is_upload(path, query)

    def missing(self) -> list[str]:
        return self._sessions.missing()

    async def _maintain(self) -> None:
        while True:
            await asyncio.to_thread(self._sessions.maintain)
            await asyncio.sleep(MAINTENANCE_SECONDS)
