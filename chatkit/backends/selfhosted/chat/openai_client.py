"""The OpenAI client of the chat: what it adds to each call."""

from __future__ import annotations

import hashlib

import openai
from openai._models import FinalRequestOptions

from chatkit.backends.selfhosted.chat.context import current_context

MODEL_CALLS = ("/responses", "/chat/completions")


class ChatClient(openai.AsyncOpenAI):
    """Sends a ``safety_identifier`` with each call of a model for a user, unless the call has one."""

    async def _prepare_options(self, options: FinalRequestOptions) -> FinalRequestOptions:  # called before each attempt
        options = await super()._prepare_options(options)
        context, body = current_context.get(), options.json_data
        if context and options.url in MODEL_CALLS and isinstance(body, dict) and "safety_identifier" not in body:
            options.json_data = {**body, "safety_identifier": safety_identifier(context.user)}
        return options


def safety_identifier(user: str) -> str:
    """Return a hash of ``user`` (a ``User.id``), of 64 characters, which is OpenAI's maximum.

    The hash has no key: an identifier has to stay the same, or OpenAI could not tell a user whom it has warned about from
    others; with a key derived from ``SECRET_KEY``, it would change at each rotation.
    """
    return hashlib.sha256(user.encode()).hexdigest()
