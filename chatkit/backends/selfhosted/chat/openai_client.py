"""The OpenAI client of the chat: what it adds to each call, and its connections."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import httpx2
import openai
from openai._models import FinalRequestOptions

from chatkit.backends.selfhosted.chat.context import current_context
from chatkit.settings import Settings
from chatkit.web import logs

if TYPE_CHECKING:
    import ssl

MODEL_CALLS = ("/responses", "/chat/completions")


def make_openai_client(settings: Settings) -> openai.AsyncOpenAI | None:
    """Create the OpenAI client that all of the chat uses, or ``None`` without an API key."""
    if not settings.openai_api_key:
        return None
    client = ChatClient(
        api_key=settings.openai_api_key,
        base_url=f"{settings.api_base}/v1",
        timeout=settings.turn_seconds,
        http_client=HttpClient(event_hooks={"request": [_on_openai_request]}),
    )
    _ = client.responses, client.audio  # imports their modules now; doing so in the first turn would block the event loop
    return client


async def _on_openai_request(request: httpx2.Request) -> None:
    """Add the request id to a call to OpenAI, and end the start of the turn: from here on it waits for the network.

    The hook runs for each attempt, in the context of the task that makes the call.
    """
    if context := current_context.get():
        context.started()
    if request_id := logs.request_id.get():
        request.headers["X-Client-Request-Id"] = request_id


class ChatClient(openai.AsyncOpenAI):
    """Sends a ``safety_identifier`` with each call of a model for a user, unless the call has one."""

    async def _prepare_options(self, options: FinalRequestOptions) -> FinalRequestOptions:  # called before each attempt
        options = await super()._prepare_options(options)
        context, body = current_context.get(), options.json_data
        if context and options.url in MODEL_CALLS and isinstance(body, dict) and "safety_identifier" not in body:
            options.json_data = {**body, "safety_identifier": safety_identifier(context.user)}
        return options


class HttpClient(openai.DefaultAsyncHttpxClient):
    """Has other connections for each event loop, because a loop can't use those of another one.

    There are several when a tool that is not async, and so has a thread, calls ``Runner.run_sync``.
    """

    def __init__(self, **options: Any) -> None:
        self._options_of_all = {"verify": _ssl_context(), **options}
        super().__init__(**self._options_of_all)
        self._first_loop: asyncio.AbstractEventLoop | None = None  # the service's
        self._clients_of_others: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx2.AsyncClient] = WeakKeyDictionary()

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        loop = asyncio.get_running_loop()
        self._first_loop = self._first_loop or loop
        if loop is self._first_loop:
            return await super().send(request, **options)
        if loop not in self._clients_of_others:
            # A connection that is kept could not be closed any more when its loop has ended, and would keep the loop.
            limits = httpx2.Limits(max_keepalive_connections=0)
            self._clients_of_others[loop] = openai.DefaultAsyncHttpxClient(**self._options_of_all, limits=limits)
        return await self._clients_of_others[loop].send(request, **options)


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    """Read the certificate authorities once, because that blocks an event loop for tens of milliseconds."""
    return httpx2.create_ssl_context()


def safety_identifier(user: str) -> str:
    """Return a hash of ``user`` (a ``User.id``), of 64 characters, which is OpenAI's maximum.

    The hash has no key: an identifier has to stay the same, or OpenAI could not tell a user whom it has warned about from
    others; with a key derived from ``SECRET_KEY``, it would change at each rotation.
    """
    return hashlib.sha256(user.encode()).hexdigest()
