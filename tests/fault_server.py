"""A web server on this machine that misbehaves on demand and remembers every request."""

import asyncio
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

Page = Callable[["Visit"], Awaitable[None]]


@dataclass
class Visit:
    """One request: `number` counts those for its path, from 1. A page that sets `open` keeps the connection."""

    path: str
    host: str
    headers: dict[str, str]
    number: int
    writer: asyncio.StreamWriter
    at: float = field(default_factory=time.monotonic)
    open: bool = False

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()


class FaultServer:
    """`pages` maps a path to what it does, `otherwise` does the rest; `visits` are all requests in order.

    `on_visit` is called with the number of requests so far, before an answer. `most` holds the largest number of
    requests that were answered at the same time, in all and by host.
    """

    def __init__(self, address: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.address, self.pages, self.visits = address, {}, []
        self.otherwise: Page = status(404)
        self.on_visit: Callable[[int], None] = lambda number: None
        self.counts: Counter[str] = Counter()
        self.now: dict[str, int] = {}
        self.most: dict[str, int] = {}

    def __enter__(self) -> "FaultServer":
        ready = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run(ready)))
        self.thread.start()
        ready.wait()
        return self

    def __exit__(self, *_) -> None:
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join()

    def url(self, path: str, host: str = "", scheme: str = "http") -> str:
        return f"{scheme}://{host or self.address}:{self.port}{path}"

    def count(self, path: str) -> int:
        return self.counts[path]

    async def _run(self, ready: threading.Event) -> None:
        self.loop, self.stop, self.tasks = asyncio.get_running_loop(), asyncio.Event(), set()
        server = await asyncio.start_server(self._connected, self.address, 0, backlog=512, ssl=self.tls)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self.stop.wait()
        server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        path, host = head[0].split(" ")[1], headers.get("host", "").partition(":")[0]
        self.counts[path] += 1
        visit = Visit(path, host, headers, self.counts[path], writer)
        self.visits.append(visit)
        self.on_visit(len(self.visits))
        for name in ("all", host):
            self.now[name] = self.now.get(name, 0) + 1
            self.most[name] = max(self.most.get(name, 0), self.now[name])
        try:
            await self.pages.get(path, self.otherwise)(visit)
        finally:
            for name in ("all", host):
                self.now[name] -= 1
        return visit.open


def head(code: int = 200, **headers: object) -> bytes:
    """Status line and headers; `Content_Length=5` becomes `Content-Length: 5`."""
    lines = [f"HTTP/1.1 {code} Word", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def status(code: int, body: bytes = b"", **headers: object) -> Page:
    """A complete answer, after which the connection stays open."""

    async def page(visit: Visit) -> None:
        await visit.send(head(code, **{"Content_Length": len(body)} | headers) + body)
        visit.open = True

    return page


def raw(*parts: bytes, pause: float = 0.0) -> Page:
    """These bytes as they are, then the end of the connection."""

    async def page(visit: Visit) -> None:
        for part in parts:
            await visit.send(part)
            await asyncio.sleep(pause)

    return page


def endless(start: bytes, part: bytes, pause: float = 0.0) -> Page:
    async def page(visit: Visit) -> None:
        await visit.send(start)
        while True:
            await visit.send(part)
            await asyncio.sleep(pause)

    return page


def reset(*parts: bytes) -> Page:
    """These bytes, then RST in place of the proper end."""

    async def page(visit: Visit) -> None:
        for part in parts:
            await visit.send(part)
        await asyncio.sleep(0.05)
        visit.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return page


def in_turn(*pages: Page) -> Page:
    """The n-th request gets the n-th page, later ones the last."""

    async def page(visit: Visit) -> None:
        await pages[min(visit.number, len(pages)) - 1](visit)

    return page


def redirect(location: str, code: int = 302) -> Page:
    return status(code, Location=location)
