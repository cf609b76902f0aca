"""Download images from hosts nobody vouches for: every URL ends as one whole, decodable file or as one reason.

    report = download([("cat-1", "https://example.org/cat.jpg")], Path("images"))
    report.counts  # {"ok": 1}; report.outcomes() tells key, URL, reason and file of each

Files hold the bytes that were sent and are named by their SHA-256: nothing is re-encoded. What was asked, and what
came of it, stands in an append-only file of JSON lines, so a killed run continues and no URL is asked too often. The
address guard judges the address that is connected to, so neither DNS nor a redirect leads into a local network.

One slow host can fill the window of waiting URLs and hold up the others: shuffle long lists. A host that only refuses
(429, or 503 with Retry-After) is left alone for the rest of the run; a line names it. Decoding uses one core;
for more, start several processes on parts of the list, each with a folder of its own.
"""

import asyncio
import contextlib
import hashlib
import json
import math
import os
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from adapt.collect.builder import EXTENSIONS
from adapt.collect.download_state import Outcome, State, is_transient, read_outcomes
from adapt.collect.url_rules import MAX_PAUSE, is_public, opted_out, parse_url, seconds_to_wait, short
from adapt.data.images import Unreadable, decode, opened
from adapt.errors import Refusal
from adapt.files import atomic, writing
from adapt.lock import Lock
from adapt.progress import bar
from adapt.stop import Stopped

MAX_REDIRECTS = 5
BACKOFF = 1.0  # seconds: the n-th retry waits up to BACKOFF * 2**n, drawn at random
WINDOW = 16  # URLs in flight or waiting for their host, for each of `concurrency`
IN_MEMORY = 2**20  # bytes of a body before it moves to a temporary file: 64 bodies at once stay small
SYNC_SECONDS = 1
REFUSALS = 6  # in a row end a host's turn: after pauses of 2 to 32 s, or of at most 10 minutes if it asks for them
REMEMBERED = 4096  # hosts without a request in flight whose refusals or pauses are known: 4 MB
SHOWN = 20  # hosts whose turn ended, one line each
_LATER = "left for a later run with --again (of elsa_d3: --retry_dead)"
REDIRECTS = {301, 302, 303, 307, 308}


@dataclass(frozen=True)
class Report:
    """`counts`: reason -> (key, URL) pairs in the whole state file, most frequent first. `asked`: requests of this
    run, redirects not counted."""

    folder: Path
    state: Path
    counts: dict[str, int]
    asked: int

    def outcomes(self) -> Iterator[Outcome]:
        """Every finished (key, URL) of the state file, in order of first appearance; nothing is held in memory."""
        return read_outcomes(self.state, self.folder)


def download(
    urls: Iterable[tuple[str, str]],
    folder: str | os.PathLike,
    *,
    state: str | os.PathLike | None = None,
    concurrency: int = 64,
    per_host: int = 8,
    total_timeout: float = 30,
    read_timeout: float = 10,
    max_bytes: int = 2**25,
    min_side: int = 64,
    retries: int = 3,
    again: bool = False,
    allow_private: bool = False,
    respect_robots: bool = True,
    user_agent: str = "adapt/0.1",
    progress: bool = True,
) -> Report:
    """Fetch every (key, URL) that `state` (default: `folder`/download.jsonl) does not know as finished.

    A URL is asked at most `retries` times in all, killed runs included; with `again`, those whose failure may pass
    (`is_transient`) get as many again. `total_timeout` and `read_timeout` are seconds for a request with its
    redirects and for a single read; waiting for a host's turn or its Retry-After is not counted. A host that refuses
    `REFUSALS` times in a row, or for more than `MAX_PAUSE` seconds, is asked nothing more in this run: its other URLs
    end as its refusal (http-429, http-503), which may pass, and a printed line counts them. `max_bytes` counts
    bytes after any Content-Encoding. A picture with a side below `min_side` pixels is refused: an icon, a tracking
    pixel. `respect_robots` heeds X-Robots-Tag and TDM-Reservation headers (no robots.txt is read: nothing is
    crawled). Put a contact into `user_agent`. `allow_private` switches the address guard off, for tests. Proxies of
    the environment are not used: behind one the guard would not see the target.

    SIGINT raises KeyboardInterrupt and SIGTERM ends with status 143, both with a state that continues.
    """
    try:
        import aiohttp  # noqa: F401
        import tenacity  # noqa: F401
    except ImportError as error:
        raise Refusal(f"downloads need {error.name}: run `pip install 'adapt-aigi[data]'`") from error
    limits = {"concurrency": concurrency, "per_host": per_host, "max_bytes": max_bytes, "retries": retries}
    limits |= {"total_timeout": total_timeout, "read_timeout": read_timeout, "min_side": min_side}
    for name, value in limits.items():
        if value <= 0:
            raise Refusal(f"{name} is {value}: give a number above 0")
    folder = Path(folder)
    path = folder / "download.jsonl" if state is None else Path(state)
    busy = f"{folder} is in use by another download: wait for it or choose another folder"
    with Lock(folder / ".lock", busy), contextlib.closing(State(path)) as record:
        for leftover in folder.glob("??/.*.tmp"):  # half-written by a download that was killed
            leftover.unlink(missing_ok=True)
        flags = {"again": again, "allow_private": allow_private, "respect_robots": respect_robots}
        job = _Download(record, folder, **limits, **flags, user_agent=user_agent, progress=progress)
        asyncio.run(job.run(urls))
        if job.terminated:
            raise Stopped
        _drop_placeholders(record, folder)
        return Report(folder, path, record.index.counts(), record.asked)


class _Failed(Exception):
    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class _Ended(_Failed):
    """The turn of the host has ended: not asked, and not to be tried again in this run."""


class _Private(OSError):
    """An address the guard refuses. Connecting knows no other kind of error, and the text must be constant: only
    then it survives when every address of a host is refused."""


def _may_pass(error: BaseException) -> bool:
    """Whether to ask again in this run."""
    return isinstance(error, _Failed) and not isinstance(error, _Ended) and is_transient(error.reason)


def _parse(url: str, base=None):
    """`parse_url`, where a URL that is none of ours is one of the reasons."""
    try:
        return parse_url(url, base)
    except ValueError as error:
        raise _Failed("bad-url") from error


def _drop_placeholders(state: State, folder: Path) -> None:
    """Book the rows first and delete afterwards: a kill between the two leaves files to delete, not rows to fix."""
    paths = []
    for digest in state.index.placeholders():
        for key, url, reason, path in state.index.with_digest(digest):
            paths.append(path)
            if reason == "ok":
                state.append(json.loads(key), url, reason="placeholder")
    state.sync()
    for path in set(paths):
        (folder / path).unlink(missing_ok=True)


@dataclass
class _Host:
    slots: asyncio.Semaphore
    users: int = 0
    ready: float = 0.0  # monotonic seconds before which the host asked to be left alone
    refusals: int = 0  # in a row
    refused: float = -math.inf  # monotonic seconds of the last of them
    over: asyncio.Event = field(default_factory=asyncio.Event)  # its turn has ended
    reason: str = ""  # why
    too_long: bool = False  # the pause that it asked for
    left: int = 0  # URLs that were not asked for that

    def answer(self, status: int, headers: Mapping[str, str], asked: float) -> None:
        """Heed what the host says to a request of the moment `asked`.

        Requests that were in flight at a refusal are refused with it: together they count once.
        """
        if self.reason:
            return
        now, pause = time.monotonic(), 0.0
        if status != 200:
            pause = seconds_to_wait(headers.get("Retry-After", ""), time.time(), math.inf)
        if status != 429 and not (status == 503 and "Retry-After" in headers):
            self.refusals = 0
        elif asked >= self.refused:
            self.refusals, self.refused = self.refusals + 1, now
            self.too_long = pause > MAX_PAUSE
            pause = max(pause, BACKOFF * 2**self.refusals)
            if self.too_long or self.refusals >= REFUSALS:
                self.reason = f"http-{status}"
                self.over.set()
        self.ready = max(self.ready, now + min(pause, MAX_PAUSE))


@dataclass
class _Download:
    """One run over a list of URLs; see `download` for the settings."""

    state: State
    folder: Path
    concurrency: int
    per_host: int
    max_bytes: int
    min_side: int
    retries: int
    total_timeout: float
    read_timeout: float
    again: bool
    allow_private: bool
    respect_robots: bool
    user_agent: str
    progress: bool

    def __post_init__(self) -> None:
        self.slots = asyncio.Semaphore(self.concurrency)
        self.hosts: dict[str, _Host] = {}  # those that are asked
        self.idle: dict[str, _Host] = {}  # those that were, and said something that holds
        self.forgotten = [0, 0]  # hosts whose turn ended, and their URLs, behind the bound of `idle`
        self.counts: Counter[str] = Counter()
        # Two threads: one decodes while the other waits for the disk. More would decode no faster (see images.py).
        self.judges = ThreadPoolExecutor(2, "judge")
        self.publishing = [threading.Lock() for _ in range(16)]  # two URLs with the same bytes share a file
        self.terminated = False

    async def run(self, urls: Iterable[tuple[str, str]]) -> None:
        """Ask for everything; returns early, with `terminated`, after a SIGTERM."""
        import aiohttp

        loop, me = asyncio.get_running_loop(), asyncio.current_task()

        def terminate() -> None:
            if not self.terminated:
                self.terminated = True
                me.cancel()

        main = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGTERM)
        if main:
            loop.add_signal_handler(signal.SIGTERM, terminate)
        # getaddrinfo waits in a thread: with the loop's few, one dead name server would stop everything.
        loop.set_default_executor(ThreadPoolExecutor(32, "dns"))
        total = len(urls) if isinstance(urls, Sized) else None
        self.bar = bar(self.progress, total=total, unit="url", desc="downloading")
        syncing = asyncio.create_task(self._sync_often())
        try:
            async with aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0, ttl_dns_cache=300, resolver=aiohttp.ThreadedResolver(), socket_factory=self._socket
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(sock_connect=self.read_timeout, sock_read=self.read_timeout),
                # identity: a picture gains nothing by gzip. */*: who lists formats is sent re-encoded pictures.
                headers={"User-Agent": self.user_agent, "Accept": "*/*", "Accept-Encoding": "identity"},
                middlewares=(_asked_once,),
            ) as self.session:
                await self._all(urls)
        except asyncio.CancelledError:
            if not self.terminated:
                raise
        except BaseExceptionGroup as group:  # one task met a full disk, say, and the others were cancelled
            raise group.exceptions[0] from None
        finally:
            syncing.cancel()
            self.judges.shutdown(cancel_futures=True)
            self.bar.close()
            self._say_who_refused()
            if main:
                loop.remove_signal_handler(signal.SIGTERM)
                signal.signal(signal.SIGTERM, before)

    async def _all(self, urls: Iterable[tuple[str, str]]) -> None:
        window = asyncio.Semaphore(WINDOW * self.concurrency)
        async with asyncio.TaskGroup() as group:
            for number, (key, given) in enumerate(urls):
                if number % 1000 == 0:
                    await asyncio.sleep(0)  # a long list of finished URLs must not keep signals waiting
                try:
                    url = _parse(given)
                    name, reason = str(url), ""
                except _Failed as failed:
                    name, reason = short(given), failed.reason
                asks = self.state.index.claim(key, name, self.again)
                if asks is None:
                    self.bar.update()
                    continue
                if not reason and self.state.index.is_duplicate(key, name):
                    reason = "duplicate-url"
                if not reason and asks >= self.retries:
                    reason = "interrupted"
                if reason:
                    self._finish(key, name, reason=reason)
                    continue
                await window.acquire()
                task = group.create_task(self._one(key, url, self.retries - asks))
                task.add_done_callback(lambda _: window.release())

    async def _sync_often(self) -> None:
        while True:
            await asyncio.sleep(SYNC_SECONDS)
            await asyncio.get_running_loop().run_in_executor(self.judges, self.state.sync)

    def _finish(self, key: str, url: str, reason: str, **file) -> None:
        self.state.append(key, url, reason=reason, **file)
        self.counts[reason] += 1
        self.bar.set_postfix(dict(self.counts.most_common(5)), refresh=False)
        self.bar.update()

    async def _one(self, key: str, url, tries: int) -> None:
        """Ask for a URL until there is an outcome."""
        from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

        file = {}
        try:
            async for attempt in AsyncRetrying(
                stop=stop_after_attempt(tries),
                wait=wait_random_exponential(multiplier=BACKOFF, max=MAX_PAUSE),
                retry=retry_if_exception(_may_pass),
                reraise=True,
            ):
                with attempt:
                    file = await self._fetch(key, url)
        except _Failed as failed:
            self._finish(key, str(url), reason=failed.reason)
        else:
            self._finish(key, str(url), reason="ok", **file)

    async def _fetch(self, key: str, url) -> dict:
        """One request with its redirects. What the state is to hold about the file; raises `_Failed`."""
        target, left = url, self.total_timeout
        for hop in range(MAX_REDIRECTS + 1):
            async with self._turn(target.raw_host) as host:
                if hop == 0:
                    self.state.ask(key, str(url))
                start = time.monotonic()
                with _failures():
                    async with asyncio.timeout(left), self.session.get(target, allow_redirects=False) as response:
                        host.answer(response.status, response.headers, start)
                        self._check(response)
                        whole = response.content_length is not None or "Transfer-Encoding" in response.headers
                        moved = response.status in REDIRECTS
                        body = None if moved else await self._body(response)
                left -= time.monotonic() - start
                if body is not None:
                    loop = asyncio.get_running_loop()
                    file = await loop.run_in_executor(self.judges, self._judge, body, whole)
                    if isinstance(file, str):
                        raise _Failed(file)
                    return file
            target = _parse(response.headers["Location"], target)
        raise _Failed("redirects")

    def _check(self, response) -> None:
        """Refuse by status and headers."""
        status, headers = response.status, response.headers
        if self.respect_robots and opted_out(headers, self.user_agent):
            raise _Failed("opted-out")
        if status != 200 and not (status in REDIRECTS and "Location" in headers):
            raise _Failed(f"http-{status}")
        if status == 200 and (response.content_length or 0) > self.max_bytes:
            raise _Failed("too-many-bytes")

    async def _body(self, response) -> IO[bytes]:
        body, size = tempfile.SpooledTemporaryFile(IN_MEMORY), 0  # noqa: SIM115 (closed by whom it is handed to)
        try:
            async for piece in response.content.iter_any():
                size += len(piece)
                if size > self.max_bytes:
                    raise _Failed("too-many-bytes")
                with writing(Path(tempfile.gettempdir())):
                    body.write(piece)
        except BaseException:
            body.close()
            raise
        return body

    def _judge(self, body: IO[bytes], whole: bool) -> dict | str:
        """Decode, then publish; a reason where that fails. Raised, it would keep the bytes alive in its traceback.

        `whole`: the length was announced, so a cut picture was cut at its source.
        """
        with body:
            body.seek(0)
            data = body.read()
        try:
            with opened(data) as image:
                kind = EXTENSIONS[image.format]
            width, height = decode(data).size
            if min(width, height) < self.min_side:  # tracking pixels, icons
                raise Unreadable("too-small")
        except Unreadable as error:
            return "broken-body" if error.reason == "truncated" and not whole else error.reason
        digest = hashlib.sha256(data).hexdigest()
        path = f"{digest[:2]}/{digest}.{kind}"
        with self.publishing[int(digest[0], 16)]:
            if not (self.folder / path).exists():
                with atomic(self.folder / path) as temporary:
                    temporary.write_bytes(data)
        return {"path": path, "sha256": digest, "bytes": len(data), "width": width, "height": height}

    @contextlib.asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[_Host]:
        """Wait for a place at the host, for its pause to end, and for a place in the whole; raises `_Ended`."""
        host = self.hosts.get(name) or self.idle.pop(name, None) or _Host(asyncio.Semaphore(self.per_host))
        self.hosts[name] = host
        host.users += 1
        try:
            async with host.slots:
                while not host.reason and (pause := host.ready - time.monotonic()) > 0:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(host.over.wait(), pause)
                async with self.slots if not host.reason else contextlib.nullcontext():
                    if host.reason:
                        host.left += 1
                        raise _Ended(host.reason)
                    yield host
        finally:
            host.users -= 1
            if not host.users:
                self._left(name, self.hosts.pop(name))

    def _left(self, name: str, host: _Host) -> None:
        """Nobody asks the host now: keep what it said, within bounds."""
        if host.refusals or host.reason or host.ready > time.monotonic():
            self.idle[name] = host
        if len(self.idle) > REMEMBERED:
            oldest = self.idle.pop(next(iter(self.idle)))
            self.forgotten[0] += oldest.left > 0
            self.forgotten[1] += oldest.left

    def _say_who_refused(self) -> None:
        """One line for each host whose turn ended before all of its URLs were asked."""
        ended = [(name, host) for name, host in (self.hosts | self.idle).items() if host.left]
        ended.sort(key=lambda found: -found[1].left)
        for name, host in ended[:SHOWN]:
            pause = f", the last for more than {MAX_PAUSE} s" if host.too_long else ""
            print(
                f"{name}: {host.refusals} refusals in a row{pause} ({host.reason}); "
                f"{host.left} of its links are {_LATER}"
            )
        hosts, links = self.forgotten
        hosts, links = hosts + len(ended[SHOWN:]), links + sum(host.left for _, host in ended[SHOWN:])
        if hosts:
            print(f"{hosts} more hosts that refused: {links} of their links are {_LATER}")

    def _socket(self, address) -> socket.socket:
        """The guard: aiohttp connects this socket to this address and to no other."""
        family, kind, protocol, _, (ip, *_) = address
        if not (self.allow_private or is_public(ip)):
            raise _Private("private-address")
        return socket.socket(family, kind, protocol)


async def _asked_once(request, handler: Callable):
    """aiohttp repeats a GET by itself when a connection breaks; a request that nobody counted must not happen."""
    with _failures():
        return await handler(request)


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except Refusal:
        raise
    except Exception as error:
        reason = _reason(error)
        if not reason:
            raise
        raise _Failed(reason) from error


def _reason(error: Exception) -> str:
    """Our word for an exception of a request; empty for one that is none of the host's doing."""
    import aiohttp

    match error:
        case TimeoutError():
            return "timeout"
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError():
            return "tls"
        case aiohttp.ClientConnectorDNSError():
            return "dns"
        case aiohttp.ClientConnectorError():
            return "private-address" if isinstance(error.os_error, _Private) else "connect"
        case aiohttp.InvalidURL():
            return "bad-url"
        case aiohttp.ClientPayloadError():
            return "broken-body"
        case aiohttp.ClientResponseError():
            return "broken-http"
        case aiohttp.ClientError() | OSError():
            return "connection"
        case ValueError():  # a parser's, met by what a host sent
            return "broken-http"
    return ""
