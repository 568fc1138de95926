"""Active runs are found and stopped by their user only."""

from __future__ import annotations

import time
from urllib.parse import quote

import pytest
import requests

from chatkit.backends.selfhosted.chat import demo
from tests.support.active_runs import begin, reply, state, stop
from tests.support.applications import Start
from tests.support.chat import Caller, deltas, errors, user_input
from tests.support.fake_openai import FakeOpenAI
from tests.support.responses_api import asked, streaming_until_cancelled
from tests.support.waiting import wait_for


class TestStop:
    def test_call_of_the_model_ends(self, start: Start, fake_openai: FakeOpenAI) -> None:
        caller = start("simple")
        ended: list[float] = []
        fake_openai.behaviour = streaming_until_cancelled(ended)
        thread_id, run_id, reader = begin(caller)
        reader.close()
        time.sleep(0.5)
        assert not ended, "it goes on without its reader"
        assert stop(Caller(caller.url), run_id).status_code == 404
        stopped = time.monotonic()
        answer = stop(caller, run_id)
        assert answer.json() == {"status": "success", "data": {"id": run_id, "stopped": True}}
        wait_for(lambda: bool(ended))
        assert ended[0] - stopped < 4, "long before its end"
        wait_for(lambda: state(caller, thread_id) is None)
        assert reply(caller, thread_id).startswith("word word")
        assert stop(caller, run_id).status_code == 404
        assert errors(caller.say(thread_id, "Go on")) == []
        told = [text for role, text in asked(fake_openai.received[-1].body) if role == "user"]
        assert (told[0], told[-1], len(told)) == ("Hello", "Go on", 3), "and that the user has stopped the response"

    def test_stream_of_a_stopped_run_ends(self, start: Start) -> None:
        caller = start("tests.support.servers_under_test:Speaking")
        stream = caller.stream("threads.create", input=user_input("Hello"))
        thread_id = next(stream).thread.id
        while not deltas([next(stream)]):
            pass
        headers = {"Authorization": f"Bearer {caller.secret}"}
        found = requests.get(f"{caller.url}/api/chatkit/threads/{thread_id}/run", headers=headers, timeout=30).json()["data"]
        assert requests.delete(f"{caller.url}/api/chatkit/runs/{found['id']}", headers=headers, timeout=30).ok
        assert errors(list(stream)) == []
        assert len(reply(caller, thread_id)) < 500

    def test_no_other_request_uses_up_its_limit(self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 60 * (time.time() // 60) + 1
        monkeypatch.setattr("limits.storage.memory.time.time", lambda: now)
        monkeypatch.setattr(demo, "SECONDS_PER_WORD", 1)
        caller = start(OPENAI_API_KEY="", CHATKIT_MAX_REQUESTS_PER_MINUTE="2")
        thread_id, run_id, reader = begin(caller, words=1)
        reader.close()
        headers = {"Authorization": f"Bearer {caller.secret}"}
        url = f"{caller.url}/api/chatkit/threads/{thread_id}/run"
        followed = [caller.http.get(url, headers=headers, timeout=30).status_code for _ in range(21)]
        assert followed == [200] * 20 + [429]
        listed = [caller.post("threads.list").status_code for _ in range(20)]
        assert listed == [200] * 19 + [429], "the message was a request as well"
        assert stop(caller, run_id).status_code == 200

    @pytest.mark.parametrize("id_", ["run_unknown", "run_\0", "x" * 3000])
    def test_unknown_ids(self, start: Start, database: str, id_: str) -> None:
        caller = start(OPENAI_API_KEY="", DATABASE_URL=database)
        headers = {"Authorization": f"Bearer {caller.secret}"}
        quoted = quote(id_)
        for method, path in (("DELETE", f"runs/{quoted}"), ("GET", f"threads/{quoted}/run")):
            response = requests.request(method, f"{caller.url}/api/chatkit/{path}", headers=headers, timeout=30)
            assert (response.status_code, response.json()["code"]) == (404, "not_found")
            response = requests.request(method, f"{caller.url}/api/chatkit/{path}", timeout=30)
            assert (response.status_code, response.json()["code"]) == (401, "client_secret_missing")
