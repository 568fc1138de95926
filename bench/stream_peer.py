"""OpenAI's starter design, for comparison: FastAPI, their server package, an in-memory store, no users."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Any

from chatkit.server import ChatKitServer, StreamingResult
from chatkit.store import NotFoundError, Store
from chatkit.types import (
    AssistantMessageContent,
    AssistantMessageContentPartAdded,
    AssistantMessageContentPartDone,
    AssistantMessageContentPartTextDelta,
    AssistantMessageItem,
    Page,
    ThreadItemAddedEvent,
    ThreadItemDoneEvent,
    ThreadItemUpdatedEvent,
    ThreadMetadata,
    ThreadStreamEvent,
    UserMessageItem,
)
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse

WORDS = "one two three four five six seven eight nine ten"
SECONDS_PER_WORD = float(os.environ["BENCH_SECONDS_PER_WORD"])


class MemoryStore(Store[None]):
    def __init__(self) -> None:
        self.threads: dict[str, ThreadMetadata] = {}
        self.items: dict[str, dict[str, Any]] = defaultdict(dict)

    async def load_thread(self, thread_id: str, context: None) -> ThreadMetadata:
        return self.threads[thread_id]

    async def save_thread(self, thread: ThreadMetadata, context: None) -> None:
        self.threads[thread.id] = thread

    async def load_thread_items(self, thread_id: str, after: str | None, limit: int, order: str, context: None) -> Page[Any]:
        items = list(self.items[thread_id].values())
        return Page(data=items[::-1][:limit] if order == "desc" else items[:limit])

    async def add_thread_item(self, thread_id: str, item: Any, context: None) -> None:
        self.items[thread_id][item.id] = item

    save_item = add_thread_item

    async def load_item(self, thread_id: str, item_id: str, context: None) -> Any:
        return self.items[thread_id][item_id]

    async def delete_thread_item(self, thread_id: str, item_id: str, context: None) -> None:
        del self.items[thread_id][item_id]

    async def load_threads(self, limit: int, after: str | None, order: str, context: None) -> Page[ThreadMetadata]:
        return Page(data=list(self.threads.values())[:limit])

    async def delete_thread(self, thread_id: str, context: None) -> None:
        del self.threads[thread_id]

    async def save_attachment(self, attachment: Any, context: None) -> None:
        raise NotFoundError

    async def load_attachment(self, attachment_id: str, context: None) -> Any:
        raise NotFoundError

    async def delete_attachment(self, attachment_id: str, context: None) -> None:
        raise NotFoundError


class Server(ChatKitServer[None]):
    async def respond(
        self, thread: ThreadMetadata, input_user_message: UserMessageItem | None, context: None
    ) -> AsyncGenerator[ThreadStreamEvent]:
        thread.title = thread.title or "A title"
        item = AssistantMessageItem(
            id=self.store.generate_item_id("message", thread, context),
            thread_id=thread.id,
            created_at=datetime.now(),  # noqa: DTZ005
            content=[],
        )
        yield ThreadItemAddedEvent(item=item)
        part = AssistantMessageContentPartAdded(content_index=0, content=AssistantMessageContent(text=""))
        yield ThreadItemUpdatedEvent(item_id=item.id, update=part)
        for word in WORDS.split(" "):
            yield ThreadItemUpdatedEvent(
                item_id=item.id, update=AssistantMessageContentPartTextDelta(content_index=0, delta=f" {word}")
            )
            await asyncio.sleep(SECONDS_PER_WORD)
        whole = AssistantMessageContent(text=WORDS)
        yield ThreadItemUpdatedEvent(item_id=item.id, update=AssistantMessageContentPartDone(content_index=0, content=whole))
        yield ThreadItemDoneEvent(item=item.model_copy(update={"content": [whole]}))


app = FastAPI()
server = Server(MemoryStore())


@app.post("/api/chatkit")
async def chat(request: Request) -> Response:
    result = await server.process(await request.body(), None)
    if isinstance(result, StreamingResult):
        return StreamingResponse(result, media_type="text/event-stream")
    return Response(result.json, media_type="application/json")


@app.get("/healthz")
async def alive() -> dict[str, bool]:
    return {"alive": True}
