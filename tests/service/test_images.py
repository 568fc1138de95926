"""A generated image through gunicorn, also after a restart and in several processes."""

from __future__ import annotations

import base64
import os

import pytest
import requests

from tests.support.chat import Caller
from tests.support.fake_openai import API_KEY, FakeOpenAI
from tests.support.responses_api import draws, says, streaming
from tests.support.service import Service


@pytest.mark.slow
def test_large_image(database: str, fake_openai: FakeOpenAI) -> None:
    variables = {
        "CHATKIT_BACKEND": "selfhosted",
        "DATABASE_URL": database,
        "CHATKIT_AGENT": "tests.support.agents_under_test:simple",
        "OPENAI_API_KEY": API_KEY,
        "CHATKIT_API_BASE": fake_openai.url,
        "WEB_CONCURRENCY": "2",
    }
    data = b"\x89PNG\r\n\x1a\n" + os.urandom(10_000_000)
    fake_openai.behaviour = streaming([*draws(base64.b64encode(data).decode()), *says("Here")])
    with Service(**variables) as service:
        caller = Caller(service.url)
        thread_id, _ = caller.create("Draw")
        (url,) = [item.image.url for item in caller.items(thread_id).data if item.type == "generated_image"]
        assert requests.get(url, timeout=30).content == data
    with Service(**variables, PORT=str(service.port)) as service:
        with requests.get(url, timeout=30, stream=True) as response:
            assert response.headers["Content-Length"] == str(len(data))
            assert b"".join(response.iter_content(100_000)) == data
        log = service.stop()
    token = url.partition("token=")[2]
    assert f"/api/chatkit/images/{url.partition('?')[0].rpartition('/')[2]} 200" in log
    assert token not in log
