"""A journal gives back every whole line, whatever a kill, a full disk or damage has left of others."""

import contextlib
import errno
import json
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from adapt.errors import Refusal
from adapt.journal import Journal, entries

GOOD = [{"n": 0}, {"n": 1, "text": "\u00e9\n"}, {"n": 2}]
LINES = [json.dumps(entry).encode() + b"\n" for entry in GOOD]
BAD = [b"torn", b"", b"[1]", b"3", b'"text"', b"null", b"\xff\xfe{}", b"[" * 100_000, bytes(9)]


def values(path: Path, bad: str, **more) -> list[dict]:
    return [entry.value for entry in entries(path, bad, **more)]


def whole(path: Path, bad: str = "end") -> int:
    return max((entry.end for entry in entries(path, bad)), default=0)


def journal(path: Path, bad: str = "end", **more) -> Journal:
    return Journal(path, f"{path} is in use", lambda: whole(path, bad), **more)


def test_what_is_appended_is_read_back_at_its_place(tmp_path) -> None:
    path = tmp_path / "new" / "a.jsonl"
    assert values(path, "refuse") == []
    with journal(path) as log:
        log.append(GOOD[0])
        log.append(GOOD[1], to_disk=False)
    with journal(path) as log:
        log.append(GOOD[2])
    assert path.read_bytes() == b"".join(LINES)
    for start, end, value in entries(path, "refuse"):
        assert json.loads(path.read_bytes()[start:end]) == value
    assert values(path, "refuse") == GOOD


@pytest.mark.parametrize("line", BAD, ids=range(len(BAD)))
def test_what_becomes_of_a_bad_line(tmp_path, line) -> None:
    path, line = tmp_path / "a.jsonl", line + b"\n"
    path.write_bytes(LINES[0] + line + LINES[1])
    assert values(path, "end") == GOOD[:1] and values(path, "skip") == GOOD[:2]
    with pytest.raises(Refusal, match=r"a\.jsonl: line 2 is damaged.*: begin anew"):
        values(path, "refuse", remedy="begin anew")
    path.write_bytes(LINES[0] + LINES[1] + line + line)
    assert values(path, "end") == values(path, "skip") == values(path, "refuse") == GOOD[:2]


def test_every_torn_end_is_cut_and_never_continued(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    for length in range(len(LINES[1])):
        for bad in ("end", "skip", "refuse"):
            path.write_bytes(LINES[0] + LINES[1][:length])
            assert values(path, bad) == GOOD[:1]
            with journal(path, bad) as log:
                log.append(GOOD[2])
            assert path.read_bytes() == LINES[0] + LINES[2]


def test_a_line_that_is_being_written_is_no_damage(tmp_path, monkeypatch) -> None:
    """A reader that has met half a line must not take the other half, written since, for a line of its own."""
    path = tmp_path / "a.jsonl"
    path.touch()
    pieces = iter([LINES[0], LINES[1][:5], LINES[1][5:], LINES[2]])
    growing = SimpleNamespace(readline=lambda _: next(pieces, b""))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda *_: contextlib.nullcontext(growing))
        assert values(path, "refuse") == GOOD[:1]


def test_check_and_longest_make_a_line_bad(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(LINES))

    def no_ones(value: dict) -> None:
        if value["n"] == 1:
            raise ValueError("one")

    assert values(path, "skip", check=no_ones) == [GOOD[0], GOOD[2]]
    assert values(path, "skip", check=lambda value: value["text"]) == [GOOD[1]]
    assert values(path, "skip", longest=len(LINES[0])) == [GOOD[0], GOOD[2]]
    with pytest.raises(Refusal, match="line 2"):
        values(path, "refuse", check=no_ones)


def test_the_first_line_is_written_where_nothing_stands(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    for left in (b"", b"torn", b"torn\n"):
        path.write_bytes(left)
        journal(path, first=GOOD[0]).close()
        assert path.read_bytes() == LINES[0]
    journal(path, first=GOOD[1]).close()
    assert path.read_bytes() == LINES[0]


def test_two_writers_are_refused_and_a_failed_start_holds_nothing(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"mine")

    def refuse() -> int:
        raise Refusal("no journal")

    with pytest.raises(Refusal, match="no journal"):
        Journal(path, "in use", refuse)
    assert path.read_bytes() == b"mine"  # nothing is cut before it is known to be a journal
    with journal(path), pytest.raises(Refusal, match="is in use"):
        journal(path)
    journal(path).close()


class HalfWritten:
    """A file on a disk that is full after `room` more bytes."""

    def __init__(self, file, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: memoryview) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self.file.write(data[: self.room])
        self.room -= written
        return written

    def __getattr__(self, name: str):
        return getattr(self.file, name)


def test_a_full_disk_is_refused_and_half_a_line_is_not_continued(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    with journal(path) as log:
        log.append(GOOD[0])
        file, log._file = log._file, HalfWritten(log._file, 7)
        with pytest.raises(Refusal, match="disk full"):
            log.append(GOOD[1])
        assert path.read_bytes() == LINES[0] + LINES[1][:7]
        log._file = file
        log.append(GOOD[2])
    assert path.read_bytes() == LINES[0] + LINES[2]


def test_lines_and_the_name_of_a_new_file_are_on_the_disk(tmp_path, monkeypatch) -> None:
    path, synced, real = tmp_path / "a.jsonl", [], os.fsync

    def fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        synced.append("folder" if stat.S_ISDIR(status.st_mode) else status.st_size)
        assert path.exists()
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with journal(path) as log:
        assert synced == ["folder"]
        log.append(GOOD[0])
        log.append(GOOD[1], to_disk=False)
        assert synced == ["folder", len(LINES[0])]
        log.sync()
    assert synced == ["folder", len(LINES[0]), len(LINES[0] + LINES[1])]


def test_a_failed_fsync_is_a_refusal_and_the_line_does_not_count(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.jsonl"

    def broken(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with journal(path) as log:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", broken)
            with pytest.raises(Refusal, match="cannot write"):
                log.append(GOOD[0])
        log.append(GOOD[1])
    assert values(path, "refuse") == [GOOD[1]]
