"""A reader of the conversations that OpenAI stores for hosted sessions."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import requests

from chatkit.backends.hosted.sessions_api import api_session, json_object, reference
from chatkit.settings import Settings
from chatkit.web.http_client import CallFailed, call

log = logging.getLogger(__name__)

PAGE = 100  # the API's maximum
CALL_SECONDS = 60
MAX_PAGE_BYTES = 64 * 1024 * 1024  # an item with text has some kilobytes
MAX_ATTEMPTS = 8  # they wait three minutes together, more than a limit per minute needs
MAX_WAIT_SECONDS = 60  # between two attempts, if OpenAI does not say how long
MAX_RETRY_AFTER_SECONDS = 600


class ReadFailed(Exception):
    """A list could not be read. The message is for the operator and contains no secrets."""


class AccessDenied(ReadFailed):
    """OpenAI does not accept the key."""


class Unavailable(ReadFailed):
    """OpenAI did not answer any attempt, or answered with errors of its own or that there are too many requests."""


class ThreadsApi:
    """Reads threads and their items, page by page.

    Args:
        wait: called with the number of seconds to wait before another attempt.
    """

    def __init__(self, settings: Settings, wait: Callable[[float], None] = time.sleep) -> None:
        self._http = api_session(settings, 1)
        self._url = f"{settings.api_base}/v1/chatkit/threads"
        self._wait = wait

    def threads(self, user: str | None = None) -> Iterator[Any]:
        """Yield the threads of the project, or of one user, oldest first.

        Each should be a ``ThreadResource`` of OpenAI's API description; nothing in it has been checked.

        Raises:
            ReadFailed: the list can't be read.
        """
        return self._list(self._url, {} if user is None else {"user": user})

    def items(self, thread_id: str) -> Iterator[Any]:
        """Yield the items of a thread, oldest first. See ``threads``."""
        return self._list(f"{self._url}/{quote(thread_id, safe='')}/items", {})

    def _list(self, url: str, params: dict[str, Any]) -> Iterator[Any]:
        after: str | None = None
        while True:
            page = self._page(url, {**params, "limit": PAGE, "order": "asc", "after": after})
            yield from page["data"]
            if not page["has_more"]:
                return
            last = page.get("last_id")
            if not isinstance(last, str) or last == after:
                raise ReadFailed("OpenAI's list has more pages, but does not say after which element")
            after = last

    def _page(self, url: str, params: dict[str, Any]) -> dict[str, Any]:
        """Return a page. Repeat the request while OpenAI is busy, and after broken responses."""
        request = self._http.prepare_request(requests.Request("GET", url, params=params))
        for attempt in range(1, MAX_ATTEMPTS + 1):
            error: type[ReadFailed] = Unavailable
            seconds = min(2.0**attempt, MAX_WAIT_SECONDS)
            try:
                status, headers, body = call(self._http, request, seconds=CALL_SECONDS, max_bytes=MAX_PAGE_BYTES)
            except CallFailed:
                summary = "OpenAI does not answer"
            else:
                page = json_object(body)
                summary = f"OpenAI answered {status}{reference(headers, page)}"
                if status == 200 and len(body) > MAX_PAGE_BYTES:
                    raise ReadFailed(f"{summary} with more than {MAX_PAGE_BYTES} bytes")
                if status == 200 and isinstance(page.get("data"), list) and isinstance(page.get("has_more"), bool):
                    return _without_lone_surrogates(page) if b"\\ud" in body.lower() else page
                if status in (401, 403):
                    raise AccessDenied(f"{summary}: OPENAI_API_KEY is not valid, or may not read this project's conversations")
                if status in (404, 410) and url == self._url and params["after"] is None:
                    raise ReadFailed(f"{summary}: it may no longer serve the conversations of hosted workflows")
                if status not in (200, 408, 429) and status < 500:
                    raise ReadFailed(summary)
                if status == 200:  # cut, or not a list
                    error = ReadFailed
                seconds = _retry_after(headers) or seconds
            if attempt < MAX_ATTEMPTS:
                log.warning("%s; trying again in %.0f s", summary, seconds)
                self._wait(seconds)
        raise error(f"{summary}, {MAX_ATTEMPTS} times in a row")


def _retry_after(headers: Any) -> float | None:
    """Return the number of seconds that OpenAI asks to wait, at most ``MAX_RETRY_AFTER_SECONDS``."""
    value = headers.get("Retry-After", "")
    return min(float(value), MAX_RETRY_AFTER_SECONDS) if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value) else None


def _without_lone_surrogates(page: dict[str, Any]) -> dict[str, Any]:
    """Replace lone surrogates, which can't be encoded, by question marks."""
    replaced: dict[str, Any] = json.loads(json.dumps(page, ensure_ascii=False).encode(errors="replace"))
    return replaced
