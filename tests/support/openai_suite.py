"""Runs the tests of OpenAI's ChatKit package against this service's store, server and events.

They come with the package's source distribution, which ``make test`` downloads. It lacks two of their helpers, a store and a
request context, which ours replace.
"""

from __future__ import annotations

import asyncio
import copy
import importlib
import inspect
import re
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib import metadata
from types import ModuleType
from typing import Any, cast

import pytest
from chatkit.server import ChatKitServer, NonStreamingResult, StreamingResult
from chatkit.types import FeedbackKind, ThreadMetadata, ThreadStreamEvent, UserMessageItem, is_streaming_req
from sqlalchemy import Engine

from chatkit.backends.selfhosted.chat.attachments import Attachments
from chatkit.backends.selfhosted.chat.composer import Composer
from chatkit.backends.selfhosted.chat.context import ChatContext
from chatkit.backends.selfhosted.chat.defaults import Resources
from chatkit.backends.selfhosted.chat.drafts import Drafts
from chatkit.backends.selfhosted.chat.runs import Runs
from chatkit.backends.selfhosted.chat.server import GuardedServer, guarded, handle, read_request
from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.backends.selfhosted.chat.titles import Titles
from chatkit.web.buffer import Buffer
from tests.support.service import PROJECT
from tests.support.store import IMAGE_URLS

DOWNLOADED = PROJECT / ".openai-chatkit"
TESTS = DOWNLOADED / f"openai_chatkit-{metadata.version('openai-chatkit')}" / "tests"


# Collecting their tests


@dataclass(frozen=True)
class Case:
    """One of their tests, with one set of arguments."""

    name: str
    function: Callable[..., Any]
    in_class: type[Any] | None
    arguments: dict[str, Any]

    def run(self) -> None:
        if self.in_class is None:
            _run(self.function, self.arguments)
            return
        instance = self.in_class()
        instance.setup_method(self.function)
        try:
            _run(getattr(instance, self.function.__name__), self.arguments)
        finally:
            instance.teardown_method(self.function)


def _run(test: Callable[..., Any], arguments: dict[str, Any]) -> None:
    result = test(**arguments)
    if inspect.isawaitable(result):
        asyncio.run(cast(Any, result))


@cache
def load(name: str) -> ModuleType:
    """Import the module ``name`` of their tests."""
    if not TESTS.is_dir():
        raise RuntimeError(f"{TESTS} is missing: run `make {DOWNLOADED.name}/downloaded`.")
    sys.modules.update({"helpers": ModuleType("helpers"), "helpers.mock_store": _STORE, "tests._types": _TYPES})
    pytest.register_assert_rewrite(name)
    sys.path.insert(0, str(TESTS))
    try:
        module = importlib.import_module(name)
    finally:
        sys.path.remove(str(TESTS))
    sys.modules[f"tests.{name}"] = module  # their modules import each other by this name
    return module


def cases(module: ModuleType) -> Iterator[Case]:
    for name, value in vars(module).items():
        if inspect.isfunction(value) and name.startswith("test_"):
            yield from _with_arguments(name, value, None)
        if inspect.isclass(value) and name.startswith("Test") and not inspect.isabstract(value):
            for method_name, method in inspect.getmembers(value, inspect.isfunction):
                if method_name.startswith("test_"):
                    yield from _with_arguments(f"{name}.{method_name}", method, value)


def _with_arguments(name: str, function: Callable[..., Any], in_class: type[Any] | None) -> Iterator[Case]:
    every: list[dict[str, Any]] = [{}]
    for mark in getattr(function, "pytestmark", []):
        if mark.name == "parametrize":
            names = mark.args[0].split(",")
            rows = mark.args[1] if len(names) > 1 else [(value,) for value in mark.args[1]]
            every = [{**arguments, **dict(zip(names, row, strict=True))} for arguments in every for row in rows]
    for number, arguments in enumerate(every):
        yield Case(f"{name}[{number}]" if arguments else name, function, in_class, arguments)


# Replacements for their store, context and server


class _Unbounded(Buffer):
    """A buffer that never blocks its writer and works on any event loop."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Unbounded)  # their tests compare contexts, each of which gets its own buffer

    __hash__ = None  # type: ignore[assignment]

    def put(self, chunk: bytes) -> None:
        self.chunks.append(chunk)

    async def room(self) -> None:
        pass


class RequestContext(ChatContext):
    def __init__(self, user_id: str) -> None:
        super().__init__(user_id, _Unbounded())


def _with_a_buffer(context: ChatContext) -> Any:
    """A copy of ``context``, which their tests use for several requests, with its own buffer."""
    own = copy.copy(context)
    object.__setattr__(own, "buffer", _Unbounded())
    return own


_TYPES = ModuleType("tests._types")
_TYPES.RequestContext = RequestContext  # type: ignore[attr-defined]
_STORE = ModuleType("helpers.mock_store")
_STORE.SQLiteStore = SqlStore  # type: ignore[attr-defined]  # replaced for each test, see store_class()


def store_class(engine: Engine) -> type[SqlStore]:
    """Return ``SqlStore`` with the constructor that their tests call."""

    class Store(SqlStore):
        def __init__(self, db_path: str) -> None:
            super().__init__(engine, IMAGE_URLS)
            self.db_path = db_path
            self._begun: set[str] = set()

        async def save_thread(self, thread: ThreadMetadata, context: ChatContext) -> None:
            # Their threads have fixed ids. Ours are registered by generate_thread_id(); others count as deleted.
            if thread.id not in self._begun:
                context.threads[thread.id] = []
            self._begun.add(thread.id)
            await super().save_thread(thread, context)

    return Store


class _Server(ChatKitServer[ChatContext]):
    """Their server, as an operator's own: with their callbacks, and called as they call it."""

    def __init__(
        self,
        store: SqlStore,
        theirs: ModuleType,
        responder: Any,
        handle_feedback: Any,
        callbacks: Mapping[str, Any],
    ) -> None:
        # With an attachment store of its own, attachments need not have been uploaded to this service.
        super().__init__(store, callbacks.get("file_store") or theirs.InMemoryFileStore())
        self._theirs = theirs
        self._responder = responder
        self._handle_feedback = handle_feedback
        if callback := callbacks.get("action_callback"):
            self.action = callback  # type: ignore[method-assign]
        if callback := callbacks.get("sync_action_callback"):
            self.sync_action = _coroutine(callback)  # type: ignore[method-assign]
        if callback := callbacks.get("transcribe_callback"):
            self.transcribe = _coroutine(callback)  # type: ignore[method-assign]

    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: ChatContext
    ) -> AsyncIterator[ThreadStreamEvent]:
        if self._responder is None:
            return
        try:
            async for event in self._responder(thread, input_user_message, context):
                yield event
        except asyncio.CancelledError:
            # Their responder raises it to simulate a disconnect. In the service, that cancels the task, so do it here.
            cast(asyncio.Task[Any], asyncio.current_task()).cancel()
            await asyncio.sleep(0)

    async def add_feedback(self, thread_id: str, item_ids: list[str], feedback: FeedbackKind, context: ChatContext) -> None:
        if self._handle_feedback is not None:
            self._handle_feedback(thread_id, item_ids, feedback, context)

    async def process(self, request: Any, context: ChatContext) -> StreamingResult | NonStreamingResult:
        chat_request = read_request(request)
        if is_streaming_req(chat_request):
            return StreamingResult(self._stream(chat_request, context))
        own = _with_a_buffer(context)
        await handle(cast(GuardedServer, self), chat_request, own)
        return NonStreamingResult(_in_local_time(b"".join(own.buffer.chunks)))

    async def _stream(self, chat_request: Any, context: ChatContext) -> AsyncGenerator[bytes]:
        own, failure = _with_a_buffer(context), None
        try:
            await handle(cast(GuardedServer, self), chat_request, own)
        except BaseException as error:  # noqa: BLE001  raised after the events before it
            failure = error
        for chunk in own.buffer.chunks:
            yield _in_local_time(chunk)
        if failure is not None:
            raise failure

    async def process_streaming(self, request: Any, context: ChatContext | None = None) -> Any:
        result = await self.process(request.model_dump_json(), context or self._theirs.DEFAULT_CONTEXT)
        return await self._theirs.decode_streaming_result(result)

    async def process_non_streaming(self, request: Any, context: ChatContext | None = None) -> Any:
        return await self.process(request.model_dump_json(), context or self._theirs.DEFAULT_CONTEXT)


def _in_local_time(sent: bytes) -> bytes:
    """Replace UTC with naive local times, because their tests compare what is sent with what is in memory."""

    def local(sent_time: re.Match[bytes]) -> bytes:
        moment = datetime.fromisoformat(sent_time[1].decode()).astimezone()
        return b'"created_at":"' + moment.replace(tzinfo=None).isoformat().encode() + b'"'

    return re.sub(rb'"created_at":"([^"]+Z)"', local, sent)


def _coroutine(callback: Callable[..., Any]) -> Callable[..., Any]:
    async def call(*arguments: Any, **named: Any) -> Any:
        return callback(*arguments, **named)

    return call


def server_maker(theirs: ModuleType) -> Callable[..., Any]:
    """Return the replacement for their ``make_server``."""

    def make(responder: Any = None, handle_feedback: Any = None, **callbacks: Any) -> Any:
        store: SqlStore = theirs.SQLiteStore("")
        composer = Composer({"models": [], "tools": [{"id": "web_search"}, {"id": "retrieval"}]})  # those of their tests
        resources = Resources(
            store,
            Attachments(store.attachments, {"maxSize": 1000, "maxCount": 10, "accept": {"*/*": []}}, "a key"),
            Drafts(store),
            Runs(store.active_runs),
            composer,
            Titles(store, None),
            turn_seconds=60,
            openai_client=None,
            transcription_model="",
        )
        return nullcontext(guarded(_Server, resources, theirs, responder, handle_feedback, callbacks))

    return make
