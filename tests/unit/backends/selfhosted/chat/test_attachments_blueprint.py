"""Uploads of attachments: their signed URLs, and what they may bring."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import requests

from chatkit.backends.selfhosted.chat.attachments import upload_urls
from chatkit.backends.selfhosted.chat.images import image_urls
from chatkit.settings import MAX_ATTACHMENT_BYTES
from tests.support.attachments import announce, attach, put, refusal
from tests.support.chat import Caller, texts
from tests.support.fake_openai import FakeOpenAI
from tests.support.images import PNG, data_url, get
from tests.support.leaks import Recorder
from tests.support.service import SECRET_KEY

CDN = "https://cdn.platform.openai.com"


def announced(caller: Caller, media_type: str = "image/png", size: int = len(PNG)) -> dict[str, Any]:
    upload: dict[str, Any] = announce(caller, "a", media_type, size).json()["upload_descriptor"]
    return upload


def test_upload_may_be_repeated(attaching: Caller, rows: Callable[[str], list[Any]]) -> None:
    upload = announced(attaching, size=len(PNG) + 1)
    for last in (b"1", b"2"):
        assert put(upload, PNG + last).status_code == 204
    assert rows("SELECT data FROM chat_attachment_contents") == [(PNG + b"2",)]


def test_form(attaching: Caller, rows: Callable[[str], list[Any]]) -> None:
    """ChatKit's documentation does not say whether an upload is the file or a form with it."""
    upload = announced(attaching)
    response = requests.put(upload["url"], files={"file": ("a.png", PNG, "image/png")}, timeout=30)
    assert response.status_code == 204
    assert rows("SELECT data FROM chat_attachment_contents") == [(PNG,)]
    response = requests.put(upload["url"], files={"file": ("a.png", PNG + b"1", "image/png")}, timeout=30)
    assert refusal(response)[:2] == (400, "invalid_request_body")
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    assert refusal(requests.put(upload["url"], data=b"--x--", headers=form, timeout=30))[:2] == (400, "invalid_request_body")


@pytest.mark.parametrize("size", [len(PNG) - 1, len(PNG) + 1])
def test_upload_has_the_announced_size(attaching: Caller, size: int, rows: Callable[[str], list[Any]]) -> None:
    assert refusal(put(announced(attaching, size=size), PNG))[:2] == (400, "invalid_request_body")
    assert rows("SELECT * FROM chat_attachment_contents") == []


@pytest.mark.parametrize("media_type", ["image/png", "application/pdf"])
def test_upload_has_the_announced_type(attaching: Caller, media_type: str) -> None:
    response = put(announced(attaching, media_type, 6), b"<html>")
    assert refusal(response) == (400, "request_refused", "This file is damaged")


def test_largest_upload(attaching: Caller) -> None:
    data = PNG + bytes(MAX_ATTACHMENT_BYTES - len(PNG))
    attachment_id = attach(attaching, "a.png", "image/png", data)
    assert texts(attaching.create("Look", attachment_id)[1]) == ["I see"]
    assert refusal(announce(attaching, "a.png", "image/png", len(data) + 1))[1] == "request_refused"
    assert put(announced(attaching), data + b"1").status_code == 400, "not the announced size"
    assert put(announced(attaching), data + bytes(16 * 1024 + 1)).status_code == 413
    form = {"file": ("a.png", data, "image/png")}
    assert requests.put(announced(attaching, size=len(data))["url"], files=form, timeout=30).status_code == 204


def test_without_a_valid_url_a_body_is_small(attaching: Caller) -> None:
    url = f"{attaching.url}/api/chatkit/attachments/atc_1?token=x"
    assert requests.put(url, data=bytes(16 * 1024), timeout=30).status_code == 404
    assert requests.put(url, data=bytes(16 * 1024 + 1), timeout=30).status_code == 413


def test_urls_that_are_not_valid(attaching: Caller, monkeypatch: pytest.MonkeyPatch, rows: Callable[[str], list[Any]]) -> None:
    """Unknown, forged, expired and foreign URLs are alike, and so is that of another purpose."""
    attachment = announce(attaching, "a.png", "image/png", len(PNG)).json()
    upload, preview = attachment["upload_descriptor"], attachment["preview_url"]
    path, token = upload["url"].split("?token=")
    other = announced(attaching)["url"].split("?token=")[1]
    body, _, signature = token.rpartition(".")
    forged = image_urls(SECRET_KEY).make(attaching.url, attachment["id"], "anonymous:x").partition("?token=")[2]
    of_another_user = upload_urls(SECRET_KEY).make(attaching.url, attachment["id"], "anonymous:x").partition("?token=")[2]
    shown = preview.partition("?token=")[2]
    wrong = ["", token[:-1], f"{body}.{signature[::-1]}", other, shown, forged, of_another_user, "%00"]
    responses = [put({**upload, "url": f"{path}?token={one}"}, PNG) for one in wrong]
    assert get(f"{preview.partition('?')[0]}?token={token}").status_code == 404, "nor does it show the image"
    now = time.time()
    with monkeypatch.context() as patched:
        patched.setattr("chatkit.backends.selfhosted.chat.signed_urls.time.time", lambda: now + 1201)
        responses.append(put(upload, PNG))
    assert {(response.status_code, response.json()["code"]) for response in responses} == {(404, "not_found")}
    assert rows("SELECT * FROM chat_attachment_contents") == []
    with monkeypatch.context() as patched:
        patched.setattr("chatkit.backends.selfhosted.chat.signed_urls.time.time", lambda: now + 599)
        assert put(upload, PNG).status_code == 204


def test_nothing_is_changed_after_the_message(attaching: Caller, fake_openai: FakeOpenAI) -> None:
    attachment = announce(attaching, "a.png", "image/png", len(PNG)).json()
    put(attachment["upload_descriptor"], PNG)
    thread_id, _ = attaching.create("Look", attachment["id"])
    assert refusal(put(attachment["upload_descriptor"], PNG))[:2] == (404, "not_found")
    attaching.say(thread_id, "Again")
    assert fake_openai.received[-1].body["input"][0]["content"][1]["image_url"] == data_url(PNG)


@pytest.mark.parametrize("origin", [CDN, "http://localhost:3000", "null"])
def test_frame_of_another_origin(attaching: Caller, origin: str, recorder: Recorder) -> None:
    upload = announced(attaching)
    asks = {"Origin": origin, "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "content-type"}
    preflight = attaching.http.options(upload["url"], headers=asks)
    allowed = {name: preflight.headers[f"Access-Control-Allow-{name}"] for name in ("Origin", "Methods", "Headers")}
    assert allowed == {"Origin": origin, "Methods": "PUT", "Headers": "content-type"}
    response = put({**upload, "headers": {**upload["headers"], "Origin": origin}}, PNG)
    assert (response.status_code, response.headers["Access-Control-Allow-Origin"]) == (204, origin)
    assert "Set-Cookie" not in response.headers
    assert not any("token" in line for line in recorder.lines if "chatkit.access" in line)
