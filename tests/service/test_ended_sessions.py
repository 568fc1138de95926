"""The end of a session, which every process knows of. tests/unit/endpoints/test_sessions.py has the other tests."""

from __future__ import annotations

from pathlib import Path

import requests

from tests.support.chat import Caller, texts, user_input
from tests.support.endpoint import ENDPOINT
from tests.support.fake_openai import FakeOpenAI, cancelled
from tests.support.hosted import COMPLETE
from tests.support.service import Service


def test_ten_newest_sessions_of_a_browser_are_known_to_every_process(fake_openai: FakeOpenAI) -> None:
    variables = {**COMPLETE, "CHATKIT_API_BASE": fake_openai.url}
    browser = requests.Session()
    with Service(**variables) as first, Service(**variables) as second:
        ids = [browser.post(f"{first.url}{ENDPOINT}", timeout=10).json()["data"]["session_id"] for _ in range(12)]
        statuses = [browser.delete(f"{second.url}{ENDPOINT}/{session_id}", timeout=10).status_code for session_id in ids]
    assert statuses == [404] * 2 + [200] * 10
    assert cancelled(fake_openai) == [f"/v1/chatkit/sessions/{session_id}/cancel" for session_id in ids[2:]]
    assert len(str(browser.cookies.get_dict())) < 1000


def test_secret_of_an_ended_session_is_refused(tmp_path: Path) -> None:
    with Service(CHATKIT_BACKEND="selfhosted", DATABASE_URL=f"sqlite:///{tmp_path}/chatkit.db", WEB_CONCURRENCY="2") as service:
        caller = Caller(service.url)
        other_session = caller.secret
        issued = caller.http.post(f"{service.url}{ENDPOINT}", timeout=10).json()["data"]
        caller.secret = issued["client_secret"]
        thread_id, _ = caller.create("progress")

        def logout() -> requests.Response:
            return caller.http.delete(f"{service.url}{ENDPOINT}/{issued['session_id']}", timeout=10)

        stream = caller.stream("threads.add_user_message", thread_id=thread_id, input=user_input("Hello"))
        first = next(stream)
        assert logout().status_code == 200
        assert texts([first, *stream]), "a turn that has started is finished"

        refused = caller.post("threads.list")
        assert (refused.status_code, refused.json()["code"]) == (401, "client_secret_expired")
        assert logout().status_code == 200
        caller.secret = other_session
        assert caller.post("threads.list").status_code == 200, "other sessions of the user stay valid"
    assert f'"session_id": "{issued["session_id"]}"' in service.log
