"""Attachments: what may be uploaded and sent, what models get, and what is deleted with what."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import AsyncMock

import psycopg
import pytest
from chatkit.types import FileAttachment, ImageAttachment
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from chatkit.backends.selfhosted.chat.attachment_store import StoredAttachments
from chatkit.backends.selfhosted.chat.attachments import model_part
from chatkit.backends.selfhosted.chat.runs import Runs
from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.backends.selfhosted.database.engine import open_database
from chatkit.backends.selfhosted.sessions import KEEP_UNSENT_SECONDS, SessionStore
from chatkit.identity.user import User
from chatkit.settings import MAX_ATTACHMENT_BYTES
from tests.support.agents_under_test import REMARK, seen
from tests.support.applications import MakeApp, Start, served
from tests.support.attachments import OFFERED, PDF, announce, attach, refusal
from tests.support.chat import Caller, texts, user_input
from tests.support.chat_completions import completing, writes
from tests.support.fake_openai import FakeOpenAI
from tests.support.identity_provider import SECRET, shared
from tests.support.images import PNG, data_url, get
from tests.support.postgres import new_postgres_database
from tests.support.responses_api import asked, says, streaming
from tests.support.waiting import wait_for

MIB = 1024 * 1024
TEXTS = ["text/x-python", *(f"application/{kind}" for kind in ("json", "xml", "yaml", "x-yaml", "ld+json", "atom+xml"))]
CDN = "https://cdn.platform.openai.com"


def of_composer(**attachments: Any) -> dict[str, str]:
    return {"CHATKIT_COMPOSER": json.dumps({"attachments": {"enabled": True, **attachments}})}


def stored(rows: Callable[[str], list[Any]]) -> list[tuple[str, bool]]:
    """The names of all attachments, and whether each has a content."""
    joined = "chat_attachments LEFT JOIN chat_attachment_contents c ON c.attachment_id = id"
    found = rows(f"SELECT chat_attachments.data, c.data FROM {joined} ORDER BY created_at, id")
    return sorted((json.loads(data)["name"], content is not None) for data, content in found)


def given(fake_openai: FakeOpenAI) -> list[dict[str, Any]]:
    """The parts of the last message that the model got."""
    parts: list[dict[str, Any]] = fake_openai.received[-1].body["input"][-1]["content"]
    return parts


class TestMessage:
    def test_image(self, attaching: Caller, fake_openai: FakeOpenAI, rows: Callable[[str], list[Any]]) -> None:
        attachment_id = attach(attaching, "a.png", "image/png", PNG)
        thread_id, events = attaching.create("What is it?", attachment_id)
        assert texts(events) == ["I see"]
        assert given(fake_openai) == [
            {"type": "input_text", "text": "What is it?"},
            {"type": "input_image", "detail": "auto", "image_url": data_url(PNG)},
        ]
        sent = next(event.item for event in events if event.type == "thread.item.done")
        assert sent.type == "user_message"
        for message in (sent, attaching.items(thread_id).data[1]):
            (attachment,) = message.attachments
            assert (attachment.id, attachment.name, attachment.mime_type) == (attachment_id, "a.png", "image/png")
            assert (attachment.type, attachment.thread_id) == ("image", thread_id)
            assert (attachment.upload_descriptor, attachment.metadata) == (None, None)
            preview = get(str(attachment.preview_url), Origin=CDN)
            assert (preview.status_code, preview.content, preview.headers["Content-Type"]) == (200, PNG, "image/png")
        (item,) = rows("SELECT data FROM chat_items WHERE data LIKE '%user_message%'")
        assert "token" not in item[0], "a URL that is stored would expire"
        assert rows("SELECT thread_id, item_id FROM chat_attachments") == [(thread_id, sent.id)]

    def test_file(self, attaching: Caller, fake_openai: FakeOpenAI) -> None:
        thread_id, _ = attaching.create("Read", attach(attaching, "a.pdf", "application/pdf", PDF))
        file = {"type": "input_file", "filename": "a.pdf", "file_data": data_url(PDF, "application/pdf")}
        assert given(fake_openai) == [{"type": "input_text", "text": "Read"}, file]
        (attachment,) = attaching.items(thread_id).data[1].attachments
        assert (attachment.type, attachment.thread_id) == ("file", thread_id)
        attaching.say(thread_id, "And now?")
        assert fake_openai.received[-1].body["input"][0]["content"][1] == file, "also with later messages"

    def test_without_words(self, attaching: Caller, fake_openai: FakeOpenAI) -> None:
        thread_id, _ = attaching.create("", attach(attaching, "a.txt", "text/plain", b"Hello"))
        assert given(fake_openai) == [{"type": "input_text", "text": "The file a.txt:\n\nHello"}]
        assert attaching.thread(thread_id).title == "a.txt"

    @pytest.mark.parametrize(
        "workflow", ["two_agents_workflow", "going_on_workflow", "rephrasing_workflow", "remarking_workflow"]
    )
    def test_exported_workflow(self, start: Start, fake_openai: FakeOpenAI, workflow: str) -> None:
        """Each of its agents gets the files once, also with the messages that an earlier agent has returned."""
        caller = start(workflow, **OFFERED)
        fake_openai.behaviour = streaming(says("One"), says("Two"))
        files = attach(caller, "a.png", "image/png", PNG), attach(caller, "a.txt", "text/plain", b"Hello")
        for words in ("Look", ""):
            fake_openai.received.clear()
            if words:
                thread_id, _ = caller.create(words, *files)
            else:
                caller.say(thread_id, words, attach(caller, "b.png", "image/png", PNG))
            assert fake_openai.received
            for request in fake_openai.received:
                users = [
                    item
                    for item in request.body["input"]
                    if item.get("role") == "user" and item["content"] not in ("Shorter", REMARK)
                ]
                last = users[-1]
                words_sent = words or workflow == "rephrasing_workflow"
                files_sent = ["input_image", "input_text"] if words else ["input_image"]
                expected = [*(["input_text"] if words_sent else []), *files_sent]
                assert [part["type"] for part in last["content"]] == expected

    def test_exported_workflow_with_a_session(self, start: Start, fake_openai: FakeOpenAI) -> None:
        caller = start("workflow_with_a_session", **OFFERED)
        fake_openai.behaviour = streaming(says("One"), says("Two"))
        _, events = caller.create("Look", attach(caller, "a.png", "image/png", PNG))
        assert texts(events) == ["One", "Two"]
        assert len(fake_openai.received) == 2
        image = {"type": "input_image", "detail": "auto", "image_url": data_url(PNG)}
        for request in fake_openai.received:
            users = [item["content"] for item in request.body["input"] if item.get("role") == "user"]
            assert users[0] == [{"type": "input_text", "text": "Look"}, image]
            assert "input_image" not in json.dumps(users[1:])

    def test_exported_workflow_with_the_same_words_again(self, start: Start, fake_openai: FakeOpenAI) -> None:
        caller = start("going_on_workflow", **OFFERED)
        fake_openai.behaviour = streaming(says("One"), says("Two"))
        thread_id, _ = caller.create("Look")
        caller.say(thread_id, "Look", attach(caller, "a.png", "image/png", PNG))
        assert len(fake_openai.received) == 4
        for request in fake_openai.received[2:]:
            contents = [item["content"] for item in request.body["input"] if item.get("role") == "user"]
            assert ["image_url" in json.dumps(content) for content in contents][:2] == [False, True]

    def test_chat_completions(self, start: Start, fake_openai: FakeOpenAI) -> None:
        """The Agents SDK converts the parts for the other API."""
        caller = start("chat_completions", **OFFERED)
        fake_openai.behaviour = completing(writes("I see"))
        caller.create("Look", attach(caller, "a.png", "image/png", PNG), attach(caller, "a.pdf", "application/pdf", PDF))
        content = fake_openai.received[-1].body["messages"][-1]["content"]
        assert [part["type"] for part in content] == ["text", "image_url", "file"]

    def test_is_sent_once(self, attaching: Caller) -> None:
        attachment_id = attach(attaching, "a.png", "image/png", PNG)
        thread_id, _ = attaching.create("Look", attachment_id)
        response = attaching.post("threads.add_user_message", thread_id=thread_id, input=user_input("Again", [attachment_id]))
        assert refusal(response)[:2] == (400, "invalid_request_body")

    def test_that_was_not_uploaded(self, attaching: Caller, fake_openai: FakeOpenAI) -> None:
        attachment_id = announce(attaching, "a.png", "image/png", len(PNG)).json()["id"]
        response = attaching.post("threads.create", input=user_input("Look", [attachment_id]))
        assert refusal(response)[:2] == (400, "invalid_request_body")
        assert fake_openai.received == []

    def test_of_another_user_is_unknown(self, attaching: Caller) -> None:
        theirs = attach(Caller(attaching.url), "a.png", "image/png", PNG)
        for attachment_id in (theirs, "atc_unknown"):
            response = attaching.post("threads.create", input=user_input("Look", [attachment_id]))
            assert refusal(response) == (404, "not_found", "Not found")

    def test_number(self, start: Start, fake_openai: FakeOpenAI) -> None:
        fake_openai.behaviour = streaming(says("I see"))
        caller = start("simple", **of_composer(maxCount=2))
        files = [attach(caller, f"{number}.png", "image/png", PNG) for number in range(3)]
        for attached in (files, [files[0], files[0]]):
            response = caller.post("threads.create", input=user_input("Look", attached))
            assert refusal(response)[:2] == (400, "invalid_request_body")
        assert texts(caller.create("Look", *files[:2])[1]) == ["I see"]

    def test_number_per_thread(self, attaching: Caller, change: Callable[[str], None]) -> None:
        files = [attach(attaching, f"{number}.png", "image/png", PNG) for number in range(4)]
        thread_id, _ = attaching.create("Look", files[0])
        change(
            "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 98) "
            "INSERT INTO chat_attachments (id, user_id, thread_id, item_id, created_at, size, data) "
            "SELECT id || n, user_id, thread_id, item_id, created_at, size, data FROM numbers, chat_attachments "
            f"WHERE id = '{files[0]}'"
        )
        attaching.say(thread_id, "Look", files[1])
        response = attaching.post("threads.add_user_message", thread_id=thread_id, input=user_input("Look", [files[2]]))
        expected = "This conversation can't keep more files. Please begin a new one"
        assert refusal(response) == (400, "request_refused", expected)
        assert attaching.say(thread_id, "Without")
        assert attaching.create("Another one", files[2], files[3])

    def test_size(self, attaching: Caller, change: Callable[[str], None]) -> None:
        files = [attach(attaching, f"{number}.png", "image/png", PNG) for number in range(3)]
        for file, size in zip(files, (7_500_000, 7_500_000, 1), strict=True):
            change(f"UPDATE chat_attachments SET size = {size} WHERE id = '{file}'")
        response = attaching.post("threads.create", input=user_input("Look", files))
        expected = "These files are too large together. Please send them in several messages"
        assert refusal(response) == (400, "request_refused", expected)
        assert texts(attaching.create("Look", *files[:2])[1]) == ["I see"]

    def test_can_be_sent_again_after_a_failure(self, attaching: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
        attachment_id = attach(attaching, "a.png", "image/png", PNG)

        async def fail(*_: Any) -> None:
            raise OperationalError("INSERT", {}, Exception("disk full"))

        with monkeypatch.context() as patched:
            patched.setattr(SqlStore, "add_thread_item", fail)
            assert attaching.create("Look", attachment_id)[1][-1].type == "error"
        assert texts(attaching.create("Look", attachment_id)[1]) == ["I see"]

    def test_is_part_of_one_message(
        self, attaching: Caller, monkeypatch: pytest.MonkeyPatch, rows: Callable[[str], list[Any]]
    ) -> None:
        """Two requests may pass the check at the same time."""
        attachment_id = attach(attaching, "a.png", "image/png", PNG)
        monkeypatch.setattr(StoredAttachments, "check_sendable", AsyncMock(return_value=1))
        first, events = attaching.create("One", attachment_id)
        message = next(event.item for event in events if event.type == "thread.item.done")
        assert attaching.create("Two", attachment_id)[1][-1].type == "error"
        again = attaching.post("threads.add_user_message", thread_id=first, input=user_input("Three", [attachment_id]))
        assert again.status_code == 404
        assert rows("SELECT thread_id, item_id FROM chat_attachments") == [(first, message.id)]
        assert rows("SELECT count(*) FROM chat_items WHERE data LIKE '%user_message%'") == [(1,)]

    def test_is_deleted_while_it_is_sent(
        self, attaching: Caller, monkeypatch: pytest.MonkeyPatch, rows: Callable[[str], list[Any]]
    ) -> None:
        attachment_id = attach(attaching, "a.png", "image/png", PNG)
        load = StoredAttachments.load

        async def load_and_delete(self: StoredAttachments, attachment_id: str, context: Any) -> Any:
            loaded = await load(self, attachment_id, context)
            await self.delete(attachment_id, context)
            return loaded

        monkeypatch.setattr(StoredAttachments, "load", load_and_delete)
        assert attaching.create("Look", attachment_id)[1][-1].type == "error"
        assert (stored(rows), rows("SELECT * FROM chat_items")) == ([], [])

    def test_thread_is_deleted_while_it_is_sent(self, attaching: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
        thread_id, _ = attaching.create("One")
        attachment_id = attach(attaching, "a.png", "image/png", PNG)
        load = StoredAttachments.load

        async def delete_and_load(self: StoredAttachments, attachment_id: str, context: Any) -> Any:
            response = await asyncio.to_thread(attaching.post, "threads.delete", thread_id=thread_id)
            assert response.status_code == 200
            return await load(self, attachment_id, context)

        async def check_nothing(self: Runs) -> None:
            """Leave the run alone. The deletion has stopped it, and the process may notice that first."""

        monkeypatch.setattr(StoredAttachments, "load", delete_and_load)
        monkeypatch.setattr(Runs, "_check", check_nothing)
        response = attaching.post("threads.add_user_message", thread_id=thread_id, input=user_input("Two", [attachment_id]))
        assert refusal(response)[:2] == (404, "not_found")

    def test_nul(self, attaching: Caller) -> None:
        response = attaching.post("threads.create", input=user_input("Look", ["atc_\0"]))
        assert refusal(response)[:2] == (404, "not_found")

    def test_words_are_kept_with_many_files(self, attaching: Caller, fake_openai: FakeOpenAI) -> None:
        """Files do not count as words of the conversation."""
        files = [attach(attaching, f"{number}.pdf", "application/pdf", PDF) for number in range(10)]
        thread_id, _ = attaching.create("Compare these", *files)
        attaching.say(thread_id, "Which is cheapest?")
        first, *_, last = fake_openai.received[-1].body["input"]
        assert [part["type"] for part in first["content"]] == ["input_text", *["input_file"] * 10]
        assert last["content"][0]["text"] == "Which is cheapest?"

    def test_newest_whose_words_fit(self, attaching: Caller, fake_openai: FakeOpenAI) -> None:
        """A text counts as what the model gets of it, an image as 6,000 characters, and another file as 30,000."""
        note = len("input_text" + "The file a.txt:\n\n")
        for size, shown in ((19_000, True), (19_001, False)):
            thread_id, _ = attaching.create("One", attach(attaching, "a.txt", "text/plain", b"x" * (size - note)))
            pdf, image = attach(attaching, "a.pdf", "application/pdf", PDF), attach(attaching, "a.png", "image/png", PNG)
            attaching.say(thread_id, "Two", pdf, image)
            large = [attach(attaching, "a.txt", "text/plain", b"x" * (50_000 - note)) for _ in range(9)]
            attaching.say(thread_id, "Three", *large)
            part = fake_openai.received[-1].body["input"][0]["content"][1]
            assert part["text"].startswith("The file a.txt" if shown else "(a file named a.txt")

    @pytest.mark.parametrize(
        ("media_type", "extension", "content"),
        [("text/plain", ".txt", [b"x" * 1_000_000] * 10), ("image/png", ".png", [PNG + bytes(1_500_000 - len(PNG))] * 10)],
        ids=["characters", "bytes"],
    )
    def test_largest_message(
        self, attaching: Caller, fake_openai: FakeOpenAI, media_type: str, extension: str, content: list[bytes]
    ) -> None:
        """The model gets all its files."""
        names = [f"{number}{extension}".rjust(255, "n") for number in range(10)]
        attaching.create(
            "Compare", *(attach(attaching, name, media_type, data) for name, data in zip(names, content, strict=True))
        )
        parts = given(fake_openai)[1:]
        assert len(parts) == 10
        assert not any("not shown to you" in part.get("text", "") for part in parts)

    def test_retry_gets_it_again(self, attaching: Caller, fake_openai: FakeOpenAI) -> None:
        thread_id, _ = attaching.create("Look", attach(attaching, "a.png", "image/png", PNG))
        message = attaching.items(thread_id).data[1]
        list(attaching.stream("threads.retry_after_item", thread_id=thread_id, item_id=message.id))
        assert given(fake_openai)[1]["image_url"] == data_url(PNG)

    def test_newest_that_fit(self, attaching: Caller, fake_openai: FakeOpenAI) -> None:
        """20,010,000 bytes. An image takes a third more than it has, and 37 for the rest of its part."""
        large = [PNG + bytes(7_500_000 - len(PNG))] * 2
        for size, shown in ((7_416, True), (7_417, False)):
            old = PNG + bytes(size - len(PNG))
            thread_id, _ = attaching.create("One", attach(attaching, "old.png", "image/png", old))
            attaching.say(thread_id, "Two", *(attach(attaching, "new.png", "image/png", data) for data in large))
            first, *_, last = fake_openai.received[-1].body["input"]
            assert [part["type"] for part in last["content"]] == ["input_text", "input_image", "input_image"]
            note = {"type": "input_text", "text": "(a file named old.png, image/png, not shown to you)"}
            assert first["content"][1] == (
                {"type": "input_image", "detail": "auto", "image_url": data_url(old)} if shown else note
            )


class TestAnnouncement:
    def test_off_by_default(self, start: Start) -> None:
        caller = start("simple")
        response = announce(caller, "a.png", "image/png", 9)
        assert refusal(response) == (403, "attachments_off", "This chat takes no attachments")
        disabled = start("simple", CHATKIT_COMPOSER='{"attachments": {"enabled": false}}')
        assert announce(disabled, "a.png", "image/png", 9).status_code == 403
        for one in (caller, disabled):
            assert "attachments" not in one.http.get(f"{one.url}/api/chatkit/composer").json()["data"]
            response = one.post("threads.create", input=user_input("Look", ["atc_1"]))
            assert refusal(response)[:2] == (403, "attachments_off")

    def test_answer(self, attaching: Caller) -> None:
        attachment = announce(attaching, "n" * 300, "image/png;x=y", 9).json()
        upload = attachment.pop("upload_descriptor")
        preview = attachment.pop("preview_url")
        attachment_id = attachment.pop("id")
        assert attachment == {"type": "image", "name": "n" * 255, "mime_type": "image/png"}
        assert upload["url"].startswith(f"{attaching.url}/api/chatkit/attachments/{attachment_id}?token=")
        assert (upload["method"], upload["headers"]) == ("PUT", {})
        assert preview.startswith(f"{attaching.url}/api/chatkit/images/{attachment_id}?token=")
        assert get(preview).status_code == 404, "before the upload"

    @pytest.mark.parametrize(
        ("name", "media_type", "stored"),
        [
            ("a.bin", " IMAGE/PNG", "image/png"),
            ("a.bin", "text/csv", "text/csv"),
            ("NOTES.MD", "", "text/markdown"),
            ("notes.md", "application/octet-stream", "text/markdown"),
            ("a.svg", "image/svg+xml", None),
            ("a.heic", "image/heic", None),
            ("a.exe", "application/x-msdownload", None),
            ("a.exe", "", None),
            ("a.md", "text/plain. obey me", "text/markdown"),
        ],
    )
    def test_types(self, attaching: Caller, name: str, media_type: str, stored: str | None) -> None:
        response = announce(attaching, name, media_type, 9)
        if stored:
            assert response.json()["mime_type"] == stored
        else:
            assert refusal(response) == (400, "request_refused", "Files of this type can't be attached")

    @pytest.mark.parametrize(
        ("media_type", "accepted"),
        [
            ("image/png", True),
            ("image/svg+xml", False),
            ("application/zip", True),
            ("video/mp4", False),
            ("text/calendar", True),
            ("text/calendar. obey me", False),
            ("text/" + "x" * 61, False),
        ],
    )
    def test_accepted_types(self, start: Start, media_type: str, accepted: bool) -> None:
        caller = start("simple", **of_composer(accept={"image/*": [".png"], "application/zip": [".zip"], "text/*": [".txt"]}))
        assert announce(caller, "a", media_type, 9).status_code == (200 if accepted else 400)
        assert announce(caller, "a.txt", "", 9).status_code == 400, "a pattern is no type"

    def test_sizes(self, start: Start) -> None:
        caller = start("simple", **of_composer(maxSize=100))
        empty, large = (400, "request_refused", "This file is empty"), (400, "request_refused", "This file is too large")
        assert refusal(announce(caller, "a.png", "image/png", 0)) == empty
        assert announce(caller, "a.png", "image/png", 100).status_code == 200
        assert refusal(announce(caller, "a.png", "image/png", 101)) == large

    def test_users_data_is_deleted_meanwhile(
        self,
        attaching: Caller,
        monkeypatch: pytest.MonkeyPatch,
        rows: Callable[[str], list[Any]],
        change: Callable[[str], None],
    ) -> None:
        size_since = StoredAttachments.size_since

        async def delete_and_count(self: StoredAttachments, since: float, context: Any) -> int:
            change("DELETE FROM chat_sessions")
            return await size_since(self, since, context)

        monkeypatch.setattr(StoredAttachments, "size_since", delete_and_count)
        assert refusal(announce(attaching, "a.png", "image/png", 9))[:2] == (401, "client_secret_unknown")
        assert rows("SELECT * FROM chat_attachments") == []

    def test_bytes_per_day(self, attaching: Caller, change: Callable[[str], None]) -> None:
        assert announce(attaching, "a.png", "image/png", 60).status_code == 200
        change(f"UPDATE chat_attachments SET size = {200 * MIB - 100}")
        assert announce(attaching, "a.png", "image/png", 100).status_code == 200
        expected = (429, "request_refused", "You have attached too much. Please try again tomorrow")
        assert refusal(announce(attaching, "a.png", "image/png", 1)) == expected
        assert announce(Caller(attaching.url), "a.png", "image/png", 100).status_code == 200, "another user"
        change(f"UPDATE chat_attachments SET created_at = created_at - 86340 WHERE size = {200 * MIB - 100}")
        assert refusal(announce(attaching, "a.png", "image/png", 1)) == expected, "a minute less than a day ago"
        change(f"UPDATE chat_attachments SET created_at = created_at - 60 WHERE size = {200 * MIB - 100}")
        assert announce(attaching, "a.png", "image/png", 1).status_code == 200

    def test_shown_to_the_frontend(self, start: Start) -> None:
        options = {"enabled": True, "maxSize": 100, "maxCount": 2, "accept": {"image/*": [".png"]}}
        url = start("simple", **of_composer(**options)).url
        assert get(f"{url}/api/chatkit/composer").json()["data"]["attachments"] == options
        defaults = get(f"{start('simple', **OFFERED).url}/api/chatkit/composer").json()["data"]["attachments"]
        assert (defaults["enabled"], defaults["maxSize"], defaults["maxCount"]) == (True, MAX_ATTACHMENT_BYTES, 10)
        assert defaults["accept"]["image/jpeg"] == [".jpg", ".jpeg"]


class TestDeletion:
    def test_before_it_is_sent(self, attaching: Caller, rows: Callable[[str], list[Any]]) -> None:
        attachment_id = attach(attaching, "a.png", "image/png", PNG)
        assert Caller(attaching.url).post("attachments.delete", attachment_id=attachment_id).status_code == 404
        assert attaching.post("attachments.delete", attachment_id=attachment_id).status_code == 200
        assert rows("SELECT * FROM chat_attachment_contents") == []
        assert attaching.post("attachments.delete", attachment_id=attachment_id).status_code == 404

    def test_after_it_was_sent(self, attaching: Caller, fake_openai: FakeOpenAI) -> None:
        attachment_id = attach(attaching, "a.pdf", "application/pdf", PDF)
        thread_id, _ = attaching.create("Look", attachment_id)
        assert attaching.post("attachments.delete", attachment_id=attachment_id).status_code == 200
        attaching.say(thread_id, "Again")
        first = fake_openai.received[-1].body["input"][0]["content"]
        assert first[1]["text"] == "(a file named a.pdf, application/pdf, not shown to you)"

    def test_with_the_messages_that_a_retry_deletes(
        self, attaching: Caller, rows: Callable[[str], list[Any]], maintain: Callable[[], None]
    ) -> None:
        thread_id, _ = attaching.create("One", attach(attaching, "1.png", "image/png", PNG))
        first = attaching.items(thread_id).data[-1]
        attaching.say(thread_id, "Two", attach(attaching, "2.png", "image/png", PNG))
        other, _ = attaching.create("Three", attach(attaching, "3.png", "image/png", PNG))
        list(attaching.stream("threads.retry_after_item", thread_id=thread_id, item_id=first.id))
        maintain()
        assert stored(rows) == [("1.png", True), ("3.png", True)]
        attaching.post("threads.delete", thread_id=other)
        maintain()
        assert stored(rows) == [("1.png", True)]

    def test_what_is_not_sent_within_a_day(
        self,
        attaching: Caller,
        rows: Callable[[str], list[Any]],
        change: Callable[[str], None],
        maintain: Callable[[], None],
    ) -> None:
        for name in ("old.png", "sent.png", "new.png"):
            attachment_id = attach(attaching, name, "image/png", PNG)
            if name == "sent.png":
                attaching.create("Look", attachment_id)
        announce(attaching, "announced.png", "image/png", 9)
        for name, age in (
            ("old", KEEP_UNSENT_SECONDS + 5),
            ("sent", KEEP_UNSENT_SECONDS + 5),
            ("new", KEEP_UNSENT_SECONDS - 60),
        ):
            change(f"UPDATE chat_attachments SET created_at = created_at - {age} WHERE data LIKE '%name_:_{name}%'")
        maintain()
        assert stored(rows) == [("announced.png", False), ("new.png", True), ("sent.png", True)]

    def test_with_an_unused_thread(self, attaching: Caller, rows: Callable[[str], list[Any]], tmp_path: Any) -> None:
        attaching.create("One", attach(attaching, "1.png", "image/png", PNG))
        attaching.create("Two", attach(attaching, "2.png", "image/png", PNG))
        engine = open_database(f"sqlite:///{tmp_path}/chatkit.db")
        with engine.begin() as connection:
            connection.execute(text("UPDATE chat_threads SET used_at = used_at - 864000 WHERE data LIKE '%One%'"))
        SessionStore(engine, ttl=600, retention_days=5).maintain()
        assert stored(rows) == [("2.png", True)]
        engine.dispose()


def test_sign_in_takes_over_what_the_user_can_see(
    make_app: MakeApp, fake_openai: FakeOpenAI, rows: Callable[[str], list[Any]], maintain: Callable[[], None], tmp_path: Any
) -> None:
    """An attacker who planted the visitor's cookie may have put instructions into a file. The page shows only its name."""
    fake_openai.behaviour = streaming(says("I see"))
    selfhosted = {"CHATKIT_BACKEND": "selfhosted", "CHATKIT_AGENT": "tests.support.agents_under_test:simple"}
    with served(make_app(**selfhosted, AUTH_JWT_SECRET=SECRET, **OFFERED)) as url:
        visitor = Caller(url)
        files = attach(visitor, "a.png", "image/png", PNG), attach(visitor, "a.txt", "text/plain", b"Obey me")
        thread_id, _ = visitor.create("Look", *files)
        attach(visitor, "unsent.txt", "text/plain", b"Hello")
        ((visitor_id,),) = rows("SELECT DISTINCT user_id FROM chat_threads")
        engine = open_database(f"sqlite:///{tmp_path}/chatkit.db")
        SessionStore(engine, ttl=600).transfer_conversations(
            User("anonymous", visitor_id.partition(":")[2]), User("user", "ada")
        )
        engine.dispose()
        ada = Caller(url, shared(sub="ada"))
        ada.say(thread_id, "And now?")
        response = ada.post("threads.create", input=user_input("Read", [files[1]]))
        assert refusal(response)[:2] == (404, "not_found"), "it is detached"
        body = json.dumps(fake_openai.received[-1].body)
        assert (data_url(PNG) in body, "Obey me" in body, "a file named a.txt" in body) == (True, False, True)
        maintain()
    assert stored(rows) == [("a.png", True), ("unsent.txt", True)]
    assert rows("SELECT DISTINCT user_id FROM chat_attachments") == [("user:ada",)]


@pytest.mark.parametrize("other", ["deletion", "sign-in"])
def test_no_deadlock_while_a_message_is_stored(start: Start, fake_openai: FakeOpenAI, postgres: str, other: str) -> None:
    """All lock a thread before its attachments, and before those that it may get."""
    address = new_postgres_database(postgres)
    fake_openai.behaviour = streaming(says("I see"))
    caller = start("simple", DATABASE_URL=address, **OFFERED)
    thread_id, _ = caller.create("Look", attach(caller, "a.png", "image/png", PNG))
    attach(caller, "unsent.png", "image/png", PNG)
    engine = open_database(address)

    def sign_in() -> None:
        SessionStore(engine, ttl=600).transfer_conversations(User("anonymous", user.partition(":")[2]), User("user", "ada"))

    def delete() -> None:
        assert caller.post("threads.delete", thread_id=thread_id).status_code == 200

    with psycopg.connect(address) as message, ThreadPoolExecutor(1) as pool:
        ((user,),) = message.execute("SELECT user_id FROM chat_threads").fetchall()
        message.execute("UPDATE chat_threads SET used_at = used_at")
        waiting = pool.submit(delete if other == "deletion" else sign_in)
        with psycopg.connect(address, autocommit=True) as watching:
            blocked = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            wait_for(lambda: watching.execute(blocked).fetchall())
        message.execute("UPDATE chat_attachments SET size = size")
        message.commit()
        waiting.result(30)
    engine.dispose()


@pytest.mark.parametrize(
    ("media_type", "content", "part"),
    [
        *((kind, b"x", {"type": "input_text", "text": "The file a:\n\nx"}) for kind in TEXTS),
        ("text/plain", "ä".encode(), {"type": "input_text", "text": "The file a:\n\nä"}),
        ("application/json", b"\xef\xbb\xbf{}", {"type": "input_text", "text": "The file a:\n\n{}"}),
        ("text/csv", b"\xff\0", {"type": "input_text", "text": "The file a:\n\n\ufffd"}),
        ("text/plain", b"x" * 50_000, {"type": "input_text", "text": f"The file a:\n\n{'x' * 50_000}"}),
        (
            "text/plain",
            b"x" * (50_000 + 1),
            {"type": "input_text", "text": f"The file a (the first 50000 characters):\n\n{'x' * 50_000}"},
        ),
        ("application/zip", b"PK", {"type": "input_file", "filename": "a", "file_data": data_url(b"PK", "application/zip")}),
        ("image/webp", PNG, {"type": "input_image", "detail": "auto", "image_url": data_url(PNG)}),
        ("image/png", None, {"type": "input_text", "text": "(a file named a, image/png, not shown to you)"}),
    ],
)
def test_part_for_the_model(media_type: str, content: bytes | None, part: dict[str, Any]) -> None:
    assert model_part(FileAttachment(id="atc_1", name="a\0", mime_type=media_type), content) == part


def test_own_server_with_a_store_of_its_own(start: Start, fake_openai: FakeOpenAI) -> None:
    """Its URLs are kept as they are, and its converter gives the model what it wants."""
    fake_openai.behaviour = streaming(says("I see"))
    caller = start("tests.support.servers_under_test:OwnFiles", **OFFERED)
    attachment = announce(caller, "a.png", "image/png", 9).json()
    assert attachment["upload_descriptor"]["url"] == "https://files.example.com/1"
    thread_id, events = caller.create("Look", attachment["id"])
    assert texts(events) == ["I see"]
    assert asked(fake_openai.received[-1].body) == [("user", "Looka.png is at the store")]
    (shown,) = caller.items(thread_id).data[1].attachments
    assert isinstance(shown, ImageAttachment)
    assert str(shown.preview_url) == "https://files.example.com/1/preview"


def test_own_store_is_not_asked_to_delete_what_another_user_has(start: Start) -> None:
    """OpenAI's package asks it before the database, and it may not know whose an attachment is."""
    caller = start("tests.support.servers_under_test:OwnFiles", **OFFERED)
    attachment_id = announce(caller, "a.png", "image/png", 9).json()["id"]
    assert Caller(caller.url).post("attachments.delete", attachment_id=attachment_id).status_code == 404
    assert seen == []
    assert caller.post("attachments.delete", attachment_id=attachment_id).status_code == 200
    assert seen == [attachment_id]


def test_own_server_reads_the_content(start: Start, fake_openai: FakeOpenAI) -> None:
    fake_openai.behaviour = streaming(says("I see"))
    caller = start("tests.support.servers_under_test:ReadsFiles", **OFFERED)
    caller.create("Look", attach(caller, "a.txt", "text/plain", b"Hello"))
    assert asked(fake_openai.received[-1].body) == [("user", "Look5 bytes")]


def test_demo_names_what_it_got(start: Start) -> None:
    caller = start(OPENAI_API_KEY="", **OFFERED)
    _, events = caller.create("Look", attach(caller, "a.txt", "text/plain", b"Hello"))
    assert texts(events)[0].endswith("You attached a.txt.")
