"""OpenAI's error texts may quote the key and the request. They reach neither the log nor a response."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from tests.support.chat import Caller, user_input
from tests.support.fake_openai import API_KEY, WORKFLOW_ID, FakeOpenAI, issue_session
from tests.support.fake_server import Behaviour, responding, sending
from tests.support.responses_api import says, streaming
from tests.support.service import Service

TEXT = "quoted-by-OpenAI-7"
ERROR = {"error": {"message": f"Incorrect key: {TEXT}", "type": f"a {TEXT}", "code": f"{TEXT} code", "param": TEXT}}
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
NOT = b"HTTP/1.1 400 No\r\nContent-Type: application/json\r\n"

FAILURES: dict[str, Behaviour] = {
    **{f"error, {status}": responding(status, ERROR, X_Request_Id="req_7") for status in (400, 401, 403, 404, 429, 500)},
    "text": responding(400, TEXT.encode(), Content_Type="text/plain"),
    "request id": responding(400, ERROR, X_Request_Id=f"{TEXT} 1"),
    "Retry-After": responding(429, ERROR, Retry_After=TEXT),
    "redirect": responding(302, Location=f"/{TEXT}"),
    "unknown encoding": responding(400, ERROR, Content_Encoding=TEXT),
    "wrong encoding": responding(400, ERROR, Content_Encoding="gzip"),
    "reason phrase": sending(f"HTTP/1.1 400 {TEXT}\r\nContent-Length: 0\r\n\r\n".encode()),
    "invalid status": sending(f"HTTP/1.1 {TEXT} No\r\n\r\n".encode()),
    "not http": sending(f"{TEXT}\r\n\r\n".encode()),
    "invalid header": sending(NOT + f"Incorrect key {TEXT}\r\nContent-Length: 0\r\n\r\n".encode()),
    "invalid length": sending(NOT + f"Content-Length: {TEXT}\r\n\r\n".encode()),
    "invalid chunks": sending(NOT + f"Transfer-Encoding: chunked\r\n\r\n{TEXT}\r\n".encode()),
    "truncated response": sending(OK + f'Content-Length: 500\r\n\r\n{{"text": "{TEXT}'.encode()),
    "success, invalid json": responding(200, f'{{"text": "{TEXT}'.encode()),
    "success, text": responding(200, TEXT.encode(), Content_Type="text/plain"),
    "success, array": responding(200, f'["{TEXT}"]'.encode()),
    "success, nested": responding(200, {"text": {"a": TEXT}, "id": [TEXT], "client_secret": {"a": TEXT}}),
}


@pytest.fixture(autouse=True)
def well_behaved(shared_openai: FakeOpenAI) -> None:
    shared_openai.behaviour = issue_session


def variables(shared_openai: FakeOpenAI) -> dict[str, str]:
    return {"OPENAI_API_KEY": API_KEY, "CHATKIT_API_BASE": shared_openai.url, "WEB_CONCURRENCY": "1"}


def test_hosted_sessions(shared_openai: FakeOpenAI) -> None:
    with Service(**variables(shared_openai), CHATKIT_WORKFLOW_ID=WORKFLOW_ID) as service:
        browser = requests.Session()
        url = f"{service.url}/api/chatkit/sessions"
        created = browser.post(url, timeout=10).json()["data"]
        responses = []
        for behaviour in FAILURES.values():
            shared_openai.behaviour = behaviour
            responses += [browser.post(url, timeout=15), browser.delete(f"{url}/{created['session_id']}", timeout=15)]
    assert {response.status_code for response in responses[::2]} == {401, 429, 500, 503}
    assert not any(TEXT in response.text for response in responses)
    assert [line for line in service.log.splitlines() if TEXT in line] == []
    # The texts were left out, and not the whole log lines.
    assert "OpenAI answered 404 (request req_7)" in service.log


def test_dictation(shared_openai: FakeOpenAI, tmp_path_factory: pytest.TempPathFactory) -> None:
    database = f"sqlite:///{tmp_path_factory.mktemp('db')}/chatkit.db"
    with Service(**variables(shared_openai), CHATKIT_BACKEND="selfhosted", DATABASE_URL=database) as service:
        caller = Caller(service.url)
        responses = []
        for behaviour in FAILURES.values():
            shared_openai.behaviour = behaviour
            responses.append(caller.post("input.transcribe", audio_base64="aGVsbG8=", mime_type="audio/webm"))
    assert all(response.status_code >= 400 for response in responses)
    assert not any(TEXT in response.text for response in responses)
    assert [line for line in service.log.splitlines() if TEXT in line] == []
    assert service.log.count("transcription failed") > 10


def test_own_server(shared_openai: FakeOpenAI, tmp_path_factory: pytest.TempPathFactory) -> None:
    more = {
        "DATABASE_URL": f"sqlite:///{tmp_path_factory.mktemp('db')}/chatkit.db",
        "CHATKIT_BACKEND": "selfhosted",
        "CHATKIT_AGENT": "tests.support.servers_under_test:AsksOpenAI",
    }
    with Service(**variables(shared_openai), **more) as service:
        caller = Caller(service.url)
        shared_openai.behaviour = streaming(says("Hello"))
        thread_id, _ = caller.create("Hello")
        methods: list[tuple[str, dict[str, Any]]] = [
            ("threads.add_user_message", {"thread_id": thread_id, "input": user_input("Hello")}),
            ("threads.sync_custom_action", {"thread_id": thread_id, "action": {"type": "press"}}),
            ("items.feedback", {"thread_id": thread_id, "item_ids": ["msg_1"], "kind": "positive"}),
            ("input.transcribe", {"audio_base64": "aGVsbG8=", "mime_type": "audio/webm"}),
        ]
        responses = []
        for name in ("error, 401", "text", "not http"):
            shared_openai.behaviour = FAILURES[name]
            for then in ("", "raise another", "raise a group"):
                responses += [
                    caller.send({"type": type_, "params": params, "metadata": {"then": then}}) for type_, params in methods
                ]
    assert all(response.status_code >= 400 or "stream.error" in response.text for response in responses)
    assert not any(TEXT in response.text for response in responses)
    assert [line for line in service.log.splitlines() if TEXT in line] == []
    assert service.log.count('"message": "unhandled exception"') == 3 * 2 * 3
    assert service.log.count('"message": "the assistant failed"') == 3 * 2
    assert service.log.count("in _ask_openai") >= 3 * 2 * 4, "the traceback without the texts"
