"""The server's own limits: titles, and the time of a dictation."""

from __future__ import annotations

import asyncio

import pytest
from chatkit.types import AudioInput

from chatkit.backends.selfhosted.chat.assistants import make_openai_client
from chatkit.backends.selfhosted.chat.server import ChatServer
from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.backends.selfhosted.database.engine import open_database
from chatkit.settings import Settings
from chatkit.web import errors
from tests.support import jumping_loop
from tests.support.applications import Start
from tests.support.hosted import COMPLETE
from tests.support.responses_api import says, streaming
from tests.support.store import ADA
from tests.support.upstream import Upstream, silent


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("a" * 60, "a" * 60),
        ("a" * 61, "a" * 60 + "…"),
        ("a" * 30 + " " + "b" * 30, "a" * 30 + "…"),
        ("a" * 30 + " \n " + "b" * 29, "a" * 30 + " " + "b" * 29),
    ],
)
def test_a_title_has_sixty_characters_of_the_first_message(start: Start, upstream: Upstream, text: str, title: str) -> None:
    upstream.behaviour = streaming(says("Hello"))
    caller = start("simple")
    thread_id, _ = caller.create(text)
    assert caller.thread(thread_id).title == title


def test_a_dictation_takes_a_minute_at_most(upstream: Upstream, tmp_path: object) -> None:
    upstream.behaviour = silent(5)
    variables = {"CHATKIT_BACKEND": "selfhosted", "CHATKIT_API_BASE": upstream.url, "CHATKIT_TURN_SECONDS": "300"}
    store = SqlStore(open_database(f"sqlite:///{tmp_path}/chatkit.db"))

    async def dictate() -> float:
        client = make_openai_client(Settings.load({**COMPLETE, **variables}))
        server = ChatServer(store, {}, turn_seconds=300, openai_client=client)
        loop = asyncio.get_running_loop()
        started = loop.time()
        with pytest.raises(errors.OpenAIUnavailable):
            await server.transcribe(AudioInput(data=b"audio", mime_type="audio/webm"), ADA)
        return loop.time() - started

    assert 59 < jumping_loop.run(dictate()) < 61
