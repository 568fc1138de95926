"""Uploads to the deployed service."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from chatkit.settings import MAX_ATTACHMENT_BYTES
from tests.support.attachments import OFFERED, PDF, announce, attach, put
from tests.support.chat import Caller, texts
from tests.support.images import PNG
from tests.support.service import Service
from tests.support.waiting import wait_for


@pytest.fixture(scope="module")
def service(shared_database: str) -> Iterator[Service]:
    with Service(
        CHATKIT_BACKEND="selfhosted", DATABASE_URL=shared_database, OPENAI_API_KEY="", WEB_CONCURRENCY="2", **OFFERED
    ) as it:
        yield it


@pytest.mark.parametrize("shared_database", ["sqlite", "postgresql"], indirect=True, scope="module")
def test_all_files_of_a_message_at_once(service: Service) -> None:
    """They exceed what one address may have in memory: they wait, and nothing is refused."""
    caller = Caller(service.url)
    data = PNG + bytes(MAX_ATTACHMENT_BYTES - len(PNG))
    announced = [announce(caller, f"{number}.png", "image/png", len(data)).json() for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        uploads = [pool.submit(put, one["upload_descriptor"], data) for one in announced]
        assert announce(caller, "a.png", "image/png", 9).status_code == 200
    assert [upload.result().status_code for upload in uploads] == [204] * 6
    thread_id, events = caller.create("Look", announced[0]["id"])
    assert texts(events)[0].endswith("You attached 0.png.")
    (shown,) = caller.items(thread_id).data[1].attachments
    assert requests.get(str(shown.preview_url), timeout=30).content == data


@pytest.mark.parametrize("shared_database", ["sqlite", "postgresql"], indirect=True, scope="module")
def test_upload_is_not_in_the_log(service: Service) -> None:
    caller = Caller(service.url)
    attachment_id = attach(caller, "a.pdf", "application/pdf", PDF)
    wait_for(lambda: f"PUT /api/chatkit/attachments/{attachment_id} 204" in service.log_so_far())
    assert "token=" not in service.log_so_far()
