"""The limits that the pages name are those of the code."""

from __future__ import annotations

import pytest

from chatkit.backends.selfhosted.chat import (
    active_run_store,
    approvals,
    attachments,
    blueprint,
    defaults,
    history,
    images,
    images_blueprint,
    mcp_connections,
    model_shutdowns,
    pages,
    run_states,
    runs,
    server,
    titles,
)
from chatkit.endpoints.sessions import MAX_BODY_BYTES
from chatkit.identity import bearer_tokens, caller
from chatkit.limits.concurrency import ADDRESS_DIVISOR, MAX_CONCURRENT, MAX_CONCURRENT_PER_USER
from chatkit.settings import MAX_ATTACHMENT_BYTES, MAX_MESSAGE_ATTACHMENTS
from chatkit.web import asgi, logs, request_body, worker
from tests.support.service import PROJECT

KIB, MIB, MB = 1024, 1024 * 1024, 1_000_000


def shares(total: float, unit: str = "") -> str:
    """The columns of an address and of a process."""
    return f"| {total / ADDRESS_DIVISOR:,g}{unit} | {total:,g}{unit} |"


TURNS, REQUESTS = MAX_CONCURRENT_PER_USER["turns"], MAX_CONCURRENT_PER_USER["requests"]
SMALL, LARGE, SENDING = (
    size / MIB for size in (asgi.SMALL_BODIES_BYTES, asgi.LARGE_BODIES_BYTES, images_blueprint.MAX_SENDING_BYTES)
)
TOOL_OUTPUT = blueprint.MAX_BYTES["threads.add_client_tool_output"] / KIB
BODIES = (MAX_BODY_BYTES / KIB, blueprint.MAX_MESSAGE_BYTES / KIB, request_body.MAX_CHAT_BYTES / MIB)

LIMITS = {
    "security.md": [
        f"| {TURNS}; with Redis, in all processes together {shares(MAX_CONCURRENT['turns'])}",
        f"| other requests of the chat | {REQUESTS} {shares(MAX_CONCURRENT['requests'])}",
        f"| | {asgi.STARTING_VIEWS_PER_ADDRESS} | {asgi.STARTING_VIEWS} |",
        f"counted for at most {1000 * asgi.START_SECONDS:.0f} ms",
        f"or {server.START_SECONDS} s after the agent is called "
        f"| | {blueprint.MAX_STARTS_PER_ADDRESS} | {blueprint.MAX_STARTS} |",
        f"the first {asgi.SMALL_BODY_BYTES / KIB:g} KiB of each | {shares(SMALL, ' MiB')}",
        f"what they have beyond that | {shares(LARGE, ' MiB')}",
        f"| {BODIES[0]:g} KiB; in the chat {BODIES[1]:g} KiB, {TOOL_OUTPUT:g} KiB of a client tool's output, {BODIES[2]:g} MiB",
        f"| | {asgi.UPLOADS_PER_ADDRESS} | {asgi.UPLOADS} |",
        f"| {MAX_MESSAGE_ATTACHMENTS} and {attachments.MAX_MESSAGE_BYTES / MB:g} MB, {attachments.MAX_ATTACHMENTS} |",
        f"files that are stored in a day | {attachments.MAX_BYTES_PER_DAY / MIB:g} MiB |",
        f"| {pages.MAX_PAGE} of them (a server of your own may load more), and about {pages.MAX_PAGE_BYTES / MIB:g} MiB |",
        f"| {images.MAX_IMAGE_BYTES / MIB:g} MiB; {images.MAX_IMAGES} |",
        f"images in memory while they are sent | {shares(SENDING, ' MiB')}",
        f"| {server.MAX_TITLE} characters, {server.MAX_FEEDBACK_ITEMS} items, {server.MAX_ANSWERS} answers |",
        f"| {run_states.MAX_STATE_BYTES / MIB:g} MiB, one per thread; "
        f"the reason for a rejection {approvals.MAX_REASON:,} characters |",
        f"after {worker.WRITE_SECONDS} s without reading",
        f"waits {runs.TAKEOVER_SECONDS} s at most: 503",
        f"| {asgi.AGENT_THREADS} threads |",
        f"| {worker.HEAD_SECONDS} s, {asgi.BODY_SECONDS} s ({asgi.UPLOAD_SECONDS} s), {asgi.BODY_IDLE_SECONDS} s |",
        f"| 10 s, {defaults.TRANSCRIPTION_SECONDS} s, `CHATKIT_TURN_SECONDS` |",
        f"| {mcp_connections.CONNECT_SECONDS} s, then again every {mcp_connections.RETRY_SECONDS} s; "
        f"{mcp_connections.CLEANUP_SECONDS} s |",
        f"{logs.MAX_MESSAGE:,} characters per message, {logs.MAX_TRACEBACK:,} per traceback",
    ],
    "agents.md": [
        f"the newest {history.MAX_ITEMS} items of a conversation, at most {history.MAX_CHARACTERS:,} characters",
        f"there may be {history.MAX_FILE_CHARACTERS:,} characters besides the conversation, "
        f"where an image counts as {history.IMAGE_CHARACTERS:,} and a file that is no text as {history.FILE_CHARACTERS:,}.",
        f"The newest {history.MAX_FILE_BYTES // MB} MB of images and attached files are included",
        f"(a page ends after about {pages.MAX_PAGE_BYTES / MIB:g} MiB",
        f"`maxSize` | {MAX_ATTACHMENT_BYTES / MIB:g} MiB, which is the maximum",
        f"`maxCount` | {MAX_MESSAGE_ATTACHMENTS}, which is the maximum",
        f"texts as text (the first {attachments.MAX_TEXT:,} characters of each)",
        f"The files of a message may have {attachments.MAX_MESSAGE_BYTES / MB:g} MB together",
        f"together, and a conversation may have {attachments.MAX_ATTACHMENTS}.",
        f"A user can store {attachments.MAX_BYTES_PER_DAY / MIB:g} MiB per day.",
        f"may have {images.MAX_IMAGE_BYTES / MIB:g} MiB, and a conversation may have {images.MAX_IMAGES} of them",
        f"valid for {images.URL_SECONDS / 3600:g} to {2 * images.URL_SECONDS / 3600:g} hours",
        f"It may have {run_states.MAX_STATE_BYTES / MIB:g} MiB",
        f"waits up to {mcp_connections.CONNECT_SECONDS} seconds for it",
        f"tried again every {mcp_connections.RETRY_SECONDS} seconds",
        f"at most {asgi.JSON_SECONDS} s, and `handle_stream_cancelled` {server.CLOSING_SECONDS} s",
        f"the first {titles.MAX_INPUT:,} characters of the message and {titles.TITLE_SECONDS} seconds; "
        f"the title has at most {titles.MAX_GENERATED_TITLE} characters",
        f"within {model_shutdowns.WARN_DAYS} days",
    ],
    "api.md": [
        f"a comment every {asgi.HEARTBEAT_SECONDS} seconds",
        f"the limit is {BODIES[0]:g} KiB; in the chat {BODIES[1]:g} KiB, {TOOL_OUTPUT:g} KiB for a client tool's output, "
        f"and {BODIES[2]:g} MiB for dictation",
        f"valid for {attachments.UPLOAD_SECONDS / 60:g} to {2 * attachments.UPLOAD_SECONDS / 60:g} minutes",
    ],
    "architecture.md": [f"whose heartbeat is {active_run_store.STALE_SECONDS} seconds old"],
    "sign-in.md": [
        f"may have {caller.MAX_TOKEN / KIB:g} KiB",
        f"a string of 1 to {bearer_tokens.MAX_SUBJECT} printable ASCII characters",
    ],
}


@pytest.mark.parametrize(("page", "words"), [(page, words) for page, all_ in LIMITS.items() for words in all_])
def test_page_names_the_limit(page: str, words: str) -> None:
    assert words in " ".join((PROJECT / "docs" / page).read_text().split())
