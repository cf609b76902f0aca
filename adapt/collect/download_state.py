"""What a download asked for and what came of it: an append-only file of JSON lines, and an index of it."""

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from adapt.errors import Refusal
from adapt.files import FULL, disk_full
from adapt.journal import Journal, entries

TRANSIENT = {"timeout", "dns", "connect", "connection", "broken-http", "broken-body", "interrupted"}
TRANSIENT |= {"http-408", "http-425", "http-429"}  # and every http-5xx
MAX_LINE = 2**20  # bytes of a record
PLACEHOLDER_HOSTS = 3  # "image removed" pictures: the same bytes from this many hosts,
PLACEHOLDER_URLS = 10  # or under this many URLs of one host


@dataclass(frozen=True)
class Outcome:
    """What became of one (key, URL). `reason` is `ok`, with `path` (of the file) and `sha256`, or one of:

    bad-url, duplicate-url (another key has it), private-address, tls, redirects, opted-out, http-404 (any status but
    200), too-many-bytes, placeholder, those of `Unreadable`; and, for which a later run may ask again: timeout, dns,
    connect, connection (lost), broken-http, broken-body, http-5xx, http-408, -425, -429, interrupted (killed at
    every try).
    """

    key: str
    url: str
    reason: str
    path: Path | None = None
    sha256: str = ""


def read_outcomes(state: Path, folder: Path) -> Iterator[Outcome]:
    """The outcomes that the file `state` of a download into `folder` tells."""
    with contextlib.closing(Index()) as index:
        index.load(state)
        for key, url, reason, path, sha256 in index.finished():
            file = folder / path if reason == "ok" else None
            yield Outcome(json.loads(key), url, reason, file, sha256 if reason == "ok" else "")


def is_transient(reason: str) -> bool:
    """Whether the failure may pass: such URLs are retried, all others never asked again."""
    return reason in TRANSIENT or reason.startswith("http-5")


class State:
    """The append-only file of JSON lines, and its index. A line is with the system before what it announces is done,
    so `kill -9` forgets no request; a power cut may forget those of the last second."""

    def __init__(self, path: Path) -> None:
        self.path, self.asked, self.index = path, 0, Index()
        busy = f"{path} is in use by another download: wait for it or name another state file"
        try:
            self.journal = Journal(path, busy, lambda: self.index.load(path))
        except BaseException:
            self.index.close()
            raise

    def close(self) -> None:
        with contextlib.closing(self.index), self.journal:
            self.sync()

    def sync(self) -> None:
        self.journal.sync()

    def append(self, key: str, url: str, **what) -> None:
        record = {"key": key, "url": url, **what}
        self.journal.append(record, to_disk=False)
        self.index.apply(record)

    def ask(self, key: str, url: str) -> None:
        self.append(key, url, ask=1)
        self.asked += 1


class Index:
    """The state by URL and key. SQLite keeps it in a nameless file of its own, so memory does not grow with it."""

    def __init__(self) -> None:
        self.base = sqlite3.connect("")
        self.base.execute("PRAGMA journal_mode = OFF")
        self.base.execute(
            "CREATE TABLE rows (url TEXT, key TEXT, host TEXT, asks INTEGER DEFAULT 0, seen INTEGER DEFAULT 0,"
            " reason TEXT, path TEXT, sha256 TEXT, UNIQUE (url, key))"
        )

    def close(self) -> None:
        self.base.close()

    def _do(self, query: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        try:
            return self.base.execute(query, values)
        except sqlite3.OperationalError as error:
            if disk_full(error):
                where = " while writing the index of a download, in the folder that $SQLITE_TMPDIR or $TMPDIR names"
                raise Refusal(FULL.format(where)) from error
            raise

    def load(self, path: Path) -> int:
        """Take in a state file; returns the length of its whole lines. The torn end of a killed run is left out."""
        if path.exists() and not path.is_file():
            raise Refusal(f"{path} is no file: name another one for the state of the download")
        remedy, whole = "name another state file", 0
        for record in entries(path, "refuse", remedy=remedy, check=self.apply, longest=MAX_LINE):
            whole = record.end
        if not whole and path.exists():
            with path.open("rb") as file:
                data = file.read(MAX_LINE)
            torn = data.startswith(b'{"key": ') and b"\n" not in data and len(data) < MAX_LINE
            if data and not torn:
                raise Refusal(f"{path} is no state of a download: {remedy}")
        return whole

    def apply(self, record: dict) -> None:
        """A record either counts a request ("ask") or tells how it ended ("reason")."""
        key, url = json.dumps(record["key"]), record["url"]
        if "ask" in record:
            self._do(
                "INSERT INTO rows (url, key, host, asks) VALUES (?, ?, ?, 1)"
                " ON CONFLICT (url, key) DO UPDATE SET asks = asks + 1",
                (url, key, _host(url)),
            )
        else:
            self._do(
                "INSERT INTO rows (url, key, host, reason, path, sha256) VALUES (?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (url, key) DO UPDATE SET asks = 0, reason = excluded.reason,"
                " path = coalesce(excluded.path, path), sha256 = coalesce(excluded.sha256, sha256)",
                (url, key, _host(url), record["reason"], record.get("path"), record.get("sha256")),
            )

    def claim(self, key: str, url: str, again: bool) -> int | None:
        """Requests that count against the row, or None where it is finished or was met before in this run."""
        at = (url, json.dumps(key))
        found = self._do("SELECT asks, seen, reason FROM rows WHERE url = ? AND key = ?", at).fetchone()
        asks, seen, reason = found or (0, 0, None)
        if seen or (reason and not (again and is_transient(reason))):
            return None
        self._do(
            "INSERT INTO rows (url, key, host, seen) VALUES (?, ?, ?, 1)"
            " ON CONFLICT (url, key) DO UPDATE SET seen = 1",
            (*at, _host(url)),
        )
        return asks

    def is_duplicate(self, key: str, url: str) -> bool:
        query = "SELECT 1 FROM rows WHERE url = ? AND key != ? AND reason IS NOT 'duplicate-url' LIMIT 1"
        return self._do(query, (url, json.dumps(key))).fetchone() is not None

    def finished(self) -> Iterator[tuple]:
        query = "SELECT key, url, reason, path, sha256 FROM rows WHERE reason IS NOT NULL ORDER BY rowid"
        return self._do(query)

    def counts(self) -> dict[str, int]:
        query = (
            "SELECT reason, COUNT(*) AS n FROM rows WHERE reason IS NOT NULL GROUP BY reason ORDER BY n DESC, reason"
        )
        return dict(self._do(query))

    def placeholders(self) -> list[str]:
        """Digests that came from too many hosts, or under too many URLs of one. What was dropped still counts."""
        query = (
            "SELECT sha256 FROM rows WHERE sha256 IS NOT NULL GROUP BY sha256 HAVING COUNT(DISTINCT host) >= ?"
            " UNION SELECT sha256 FROM rows WHERE sha256 IS NOT NULL GROUP BY sha256, host HAVING COUNT(*) >= ?"
        )
        return [digest for (digest,) in self._do(query, (PLACEHOLDER_HOSTS, PLACEHOLDER_URLS))]

    def with_digest(self, digest: str) -> list[tuple[str, str, str, str]]:
        query = "SELECT key, url, reason, path FROM rows WHERE sha256 = ?"
        return self._do(query, (digest,)).fetchall()


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # a bad-url stands in the state as it was given
        return ""
