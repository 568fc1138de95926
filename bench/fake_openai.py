"""A fake of OpenAI's Responses API: ``python -m bench.fake_openai PORT``.

The model ``speaks`` streams ten words, ``speaks-long`` half a megabyte in three seconds. Other requests get no response.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress

from tests.support.responses_api import Events, says, whole

SECONDS_PER_WORD = 0.15  # a turn takes 1.5 s, as a short one of a real model does
MODELS: dict[str, Events] = {
    "speaks": says("one two three four five six seven eight nine ten", pause=SECONDS_PER_WORD),
    "speaks-long": says(" ".join(["x" * 4_096] * 128), pause=3 / 128),
}


async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError, asyncio.IncompleteReadError):
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if head.startswith(b"get "):  # the models, at the start of a process
            writer.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n{"data":[]}')
            writer.close()
            return
        body = await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
        events = MODELS.get(json.loads(body)["model"]) if b"/v1/responses" in head.split(b"\r\n")[0] else None
        if events is None:
            await reader.read()  # until the client disconnects
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
            for number, event in enumerate(whole(events)):
                if isinstance(event, float):
                    await asyncio.sleep(event)
                else:
                    data = json.dumps({"sequence_number": number, **event})
                    writer.write(f"event: {event['type']}\ndata: {data}\n\n".encode())
                    await writer.drain()
    writer.close()


async def serve(port: int) -> None:
    server = await asyncio.start_server(connection, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
