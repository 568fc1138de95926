"""A fake of OpenAI's sessions API over TLS: ``python -m bench.fake_sessions_api PORT SECONDS CERT KEY``."""

from __future__ import annotations

import asyncio
import json
import secrets
import ssl
import sys
import time


async def serve(port: int, seconds: float, cert: str, key: str) -> None:
    """Return a new session after ``seconds``; below ``/drip``, send a byte per second instead."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
                if b"/drip/" in head.split(b"\r\n")[0]:
                    await drip(writer)
                await asyncio.sleep(seconds)
                session = {"id": f"cksess_{secrets.token_hex(24)}", "client_secret": f"ek_{secrets.token_hex(48)}"}
                body = json.dumps({**session, "object": "chatkit.session", "expires_at": int(time.time()) + 600}).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
                )
        except (asyncio.IncompleteReadError, OSError):
            writer.close()

    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n")
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(1)

    server = await asyncio.start_server(connection, "127.0.0.1", port, ssl=context, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4]))
