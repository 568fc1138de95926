"""What the service does where a server does nothing itself: dictation, and actions of widgets."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from chatkit.types import AudioInput
from sqlalchemy import create_engine, text

from chatkit.backends.selfhosted.chat.attachments import Attachments
from chatkit.backends.selfhosted.chat.composer import Composer
from chatkit.backends.selfhosted.chat.defaults import Resources
from chatkit.backends.selfhosted.chat.demo import DemoServer
from chatkit.backends.selfhosted.chat.drafts import Drafts
from chatkit.backends.selfhosted.chat.openai_client import make_openai_client
from chatkit.backends.selfhosted.chat.runs import Runs
from chatkit.backends.selfhosted.chat.server import guarded
from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.backends.selfhosted.chat.titles import Titles
from chatkit.backends.selfhosted.database.engine import open_database
from chatkit.settings import Settings
from chatkit.web import errors
from tests.support import jumping_loop
from tests.support.applications import Start
from tests.support.chat import texts
from tests.support.fake_openai import FakeOpenAI, failing
from tests.support.fake_server import Handler, responding, silent
from tests.support.hosted import COMPLETE
from tests.support.leaks import Recorder
from tests.support.responses_api import asked, says, streaming
from tests.support.store import ADA, IMAGE_URLS

SERVERS = "tests.support.servers_under_test"
PLAIN = f"{SERVERS}:Plain"

ACTION = {"type": "press", "payload": {"button": "red"}}


def test_defaults(start: Start, fake_openai: FakeOpenAI, tmp_path: Path) -> None:
    """The service's defaults take the place of the SDK's, which raise an exception or do nothing."""
    caller = start(f"{SERVERS}:Plain")
    fake_openai.behaviour = streaming(says("Hello"), says("You pressed it"))
    thread_id, _ = caller.create("Hello")
    assert caller.thread(thread_id).title is None, "titles are its own business"
    assert caller.post("threads.sync_custom_action", thread_id=thread_id, action=ACTION).json() == {}
    assert texts(list(caller.stream("threads.custom_action", thread_id=thread_id, action=ACTION))) == ["You pressed it"]
    assert str(fake_openai.received[1].body["input"]).count("acted on the page: press with {'button': 'red'}") == 2
    message = caller.items(thread_id).data[0]
    assert caller.post("items.feedback", thread_id=thread_id, item_ids=[message.id], kind="positive").status_code == 200
    with create_engine(f"sqlite:///{tmp_path}/chatkit.db").connect() as connection:
        kept = connection.execute(text("SELECT id FROM chat_items WHERE feedback = 'positive'")).scalars().all()
    assert kept == [message.id]


def test_widget_action_is_passed_to_the_model(start: Start, fake_openai: FakeOpenAI) -> None:
    caller = start("simple")
    fake_openai.behaviour = streaming(says("Hello"), says("You pressed it"))
    thread_id, _ = caller.create("Hello")
    action = {"type": "press", "payload": {"button": "red"}}
    assert caller.post("threads.sync_custom_action", thread_id=thread_id, action=action).json() == {}
    events = list(caller.stream("threads.custom_action", thread_id=thread_id, action=action))
    assert texts(events) == ["You pressed it"]
    reports = [
        text for _, text in asked(fake_openai.received[1].body) if "acted on the page: press with {'button': 'red'}" in text
    ]
    assert len(reports) == 2
    assert [item.type for item in caller.items(thread_id, order="asc").data] == ["user_message", *["assistant_message"] * 2]


@pytest.mark.parametrize("agent", ["simple", PLAIN])
def test_dictation(start: Start, fake_openai: FakeOpenAI, agent: str) -> None:
    caller = start(agent)
    fake_openai.behaviour = responding(200, {"text": "Hello there"})
    response = caller.post("input.transcribe", audio_base64="aGVsbG8=", mime_type="audio/webm;codecs=opus")
    assert (response.status_code, response.json()) == (200, {"text": "Hello there"})
    assert fake_openai.received[0].path == "/v1/audio/transcriptions"
    assert b"gpt-transcribe" in fake_openai.received[0].body


@pytest.mark.parametrize(
    ("mime_type", "extension"),
    [
        ("audio/webm;codecs=opus", "webm"),
        ('audio/webm; codecs="opus"', "webm"),
        ("audio/ogg; codecs=opus", "ogg"),
        ("audio/mp4;codecs=mp4a.40.2", "mp4"),
        ("audio/mp4 ; codecs=opus", "mp4"),
        ("audio/x-m4a", "m4a"),
        ("audio/wav", "wav"),
        ("audio/x-wav", "wav"),
        ("audio/wave", "wav"),
        ("audio/vnd.wave;codec=1", "wav"),
        ("Audio/MPEG", "mpeg"),
    ],
)
def test_media_types_that_browsers_record(start: Start, fake_openai: FakeOpenAI, mime_type: str, extension: str) -> None:
    """OpenAI tells the format by the name of the file."""
    caller = start("simple", CHATKIT_TRANSCRIPTION_MODEL="gpt-other-transcribe")
    fake_openai.behaviour = responding(200, {"text": "Hello there"})
    assert caller.post("input.transcribe", audio_base64="aGVsbG8=", mime_type=mime_type).json() == {"text": "Hello there"}
    (received,) = fake_openai.received
    assert f'filename="audio.{extension}"'.encode() in received.body
    assert b"gpt-other-transcribe" in received.body


UNAVAILABLE = (503, "openai_unavailable")


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        (failing(400, "audio_too_short", X_Request_Id="req_7"), (400, "request_refused")),
        (failing(401, "invalid_api_key", X_Request_Id="req_7"), (401, "openai_authentication_failed")),
        (failing(429, "rate_limit_exceeded", X_Request_Id="req_7"), (429, "openai_rate_limited")),
        (failing(500, "server_error", X_Request_Id="req_7"), UNAVAILABLE),
        (responding(200, b"{"), UNAVAILABLE),
        (responding(200, b"text", Content_Type="text/plain"), UNAVAILABLE),
        (responding(200, {"text": 7}), UNAVAILABLE),
        (responding(200, {}), UNAVAILABLE),
        (Handler.hang_up, UNAVAILABLE),
    ],
    ids=["400", "401", "429", "500", "invalid json", "text", "text is not a string", "no text", "connection closed"],
)
def test_failing_dictation(start: Start, fake_openai: FakeOpenAI, recorder: Recorder, behaviour: Any, expected: Any) -> None:
    caller = start("simple")
    fake_openai.behaviour = behaviour
    before = len(recorder.lines)
    response = caller.post("input.transcribe", audio_base64="aGVsbG8=", mime_type="audio/webm")
    assert (response.status_code, response.json()["code"]) == expected
    (line,) = [line for line in recorder.lines[before:] if "transcription failed" in line]
    if expected != UNAVAILABLE:
        assert re.search(rf"OpenAI answered {response.status_code} \(request req_7, [a-z_]{{10,}}\)", line)


@pytest.mark.parametrize("mime_type", ["audio/webm\r\nX-Injected: yes", "text/html", "audio/" + "x" * 60_000, ""])
def test_invalid_media_type_of_a_dictation_is_refused(start: Start, fake_openai: FakeOpenAI, mime_type: str) -> None:
    """The media type becomes a header in the request to OpenAI."""
    caller = start("simple")
    assert caller.post("input.transcribe", audio_base64="aGVsbG8=", mime_type=mime_type).status_code == 400
    assert fake_openai.received == []


@pytest.mark.parametrize("audio", ["", "!!!!", "===="])
def test_dictation_without_audio_is_refused(start: Start, fake_openai: FakeOpenAI, audio: str) -> None:
    """Characters that are not base64 are skipped."""
    response = start("simple").post("input.transcribe", audio_base64=audio, mime_type="audio/webm")
    expected = {"status": "error", "message": "This recording can't be transcribed", "code": "request_refused"}
    assert (response.status_code, response.json()) == (400, expected)
    assert fake_openai.received == []


def test_dictation_takes_a_minute_at_most(fake_openai: FakeOpenAI, tmp_path: object) -> None:
    fake_openai.behaviour = silent(5)
    variables = {"CHATKIT_BACKEND": "selfhosted", "CHATKIT_API_BASE": fake_openai.url, "CHATKIT_TURN_SECONDS": "300"}
    store = SqlStore(open_database(f"sqlite:///{tmp_path}/chatkit.db"), IMAGE_URLS)

    async def dictate() -> float:
        client = make_openai_client(Settings.load({**COMPLETE, **variables}))
        composer, titles = Composer({"models": [], "tools": []}), Titles(store, None)
        attachments = Attachments(store.attachments, None, "a key")
        runs = Runs(store.active_runs)
        resources = Resources(store, attachments, Drafts(store), runs, composer, titles, 300, client, "gpt-transcribe")
        server = guarded(DemoServer, resources)
        loop = asyncio.get_running_loop()
        started = loop.time()
        with pytest.raises(errors.OpenAIUnavailable):
            await server.transcribe(AudioInput(data=b"audio", mime_type="audio/webm"), ADA)
        return loop.time() - started

    assert 59 < jumping_loop.run(dictate()) < 61
