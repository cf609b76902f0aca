"""Sources at the hub: every row of a remote table becomes a whole group or a reason, killed or not, alone or shared."""

import csv
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zoo
from fault_server import FaultServer, raw, status
from hub_server import COMMIT, hub

from adapt.data import download as downloads
from adapt.data import download_state
from adapt.data.images import read_bytes
from adapt.data.manifest import Manifest
from adapt.data.parts import Part
from adapt.data.sources import community_forensics, elsa_d3, openfake
from adapt.data.sources import hub as room
from adapt.errors import Refusal

CODECS = ("BMP", "GIF", "JPEG", "TIFF", "PNG")
MODELS = ("DeepFloyd/IF", "CompVis/sd-1-4", "stabilityai/sd-2-1", "stabilityai/sdxl")
FILES = (5, 4, 5)  # rows of each
# Row -> reason of its real image; or number of the fake that lacks, and why.
DEAD = {1: "http-404", 3: "not-an-image", 6: "connection", 7: "duplicate-url", 10: "bad-url"}
FLAWS = {2: (2, "member-missing"), 4: (1, "truncated"), 11: (3, "member-missing"), 12: (0, "same-bytes-two-groups")}
TWIN = 8  # the real image of row 5 under another URL


def real(row: int) -> bytes:
    return zoo.save(zoo.picture(seed=5 if row == TWIN else row), "JPEG")


def fake(row: int, k: int) -> bytes:
    row = 9 if (row, k) == (12, 0) else row
    data = zoo.save(zoo.picture(seed=100 + 10 * row + k), CODECS[(row + k) % 5])
    return data[:-600] if (row, k) == (4, 1) else data


def cell(row: int, k: int) -> dict | None:
    if FLAWS.get(row) == (k, "member-missing"):
        return None if row == 2 else {"bytes": None, "path": "gone.png"}
    return {"bytes": fake(row, k), "path": f"{row}.{k}"}


def place(row: int) -> tuple[int, int]:
    file = next(i for i in range(3) if row < sum(FILES[: i + 1]))
    return file, row - sum(FILES[:file])


def name(row: int) -> str:
    return "elsa-validation-{:05d}-{:06d}".format(*place(row))


def elsa_table(rows: range, server: FaultServer) -> pa.Table:
    """The true schema: strings, int64, and images as bytes beside a path."""
    urls = [None if row == 10 else server.url(f"/{0 if row == 7 else row}") for row in rows]
    columns = {"id": [f"id{row}" for row in rows]}
    columns |= {f"{kind}_prompt": [f"{kind} {row}" for row in rows] for kind in ("original", "positive", "negative")}
    columns["url"] = urls
    for k, model in enumerate(MODELS):
        columns[f"model_gen{k}"] = [model] * len(rows)
        columns |= {f"{what}_gen{k}": [48] * len(rows) for what in ("width", "height", "num_inference_steps")}
        columns[f"filepath_gen{k}"] = [f"{row}.{k}" for row in rows]
        columns[f"image_gen{k}"] = [cell(row, k) for row in rows]
    return pa.table(columns)


def write_elsa(folder: Path, server: FaultServer) -> Path:
    (folder / "data").mkdir(parents=True)
    for i in range(3):
        table = elsa_table(range(sum(FILES[:i]), sum(FILES[: i + 1])), server)
        pq.write_table(table, folder / f"data/val-{i:05d}-of-00003.parquet", row_group_size=2)
    return folder


@pytest.fixture(scope="module")
def server():
    with FaultServer() as server:
        yield server


@pytest.fixture(scope="module")
def folder(server, tmp_path_factory):
    return write_elsa(tmp_path_factory.mktemp("hub") / "ELSA_D3", server)


@pytest.fixture(autouse=True)
def fresh(server, monkeypatch):
    server.counts.clear()
    server.pages = {f"/{row}": status(200, real(row)) for row in range(14)}
    server.pages |= {"/1": status(404), "/3": status(200, b"<html>sorry</html>"), "/6": raw()}
    monkeypatch.setattr(downloads, "BACKOFF", 0.01)
    local = partial(downloads.download, allow_private=True, progress=False)
    monkeypatch.setattr(elsa_d3, "download", local)


def prepare(folder: Path, output: Path, **options) -> dict[str, dict[str, dict]]:
    """Run the source; group -> generator -> row of the manifest, with the image's bytes."""
    path = elsa_d3.Source(repo=str(folder), output=output / "manifest.csv", **options).prepare()
    return read(path) if path else {}


def read(path: Path) -> dict[str, dict[str, dict]]:
    groups: dict = {}
    rows = Manifest.read(path)
    for i in range(len(rows)):
        row = {column: rows[column][i] for column in rows.columns}
        row["bytes"] = read_bytes(row.pop("file"))
        assert hashlib.sha256(row["bytes"]).hexdigest() == row["sha256"]
        groups.setdefault(row["group"], {})[row["generator"]] = row
    assert len(rows) == sum(map(len, groups.values()))
    return groups


def lost(output: Path) -> dict[str, str]:
    with (output / "manifest.lost.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["group"] for row in rows}) == len(rows)
    return {row["group"]: row["reason"] for row in rows}


def expected(members: str) -> tuple[dict[int, list[int]], dict[int, str]]:
    """Row -> fakes of its group, and row -> reason, by the rules alone."""
    groups, reasons, seen = {}, {}, set()
    for row in range(14):
        there = [k for k in range(4) if (cell(row, k) or {}).get("bytes")]
        digest = hashlib.sha256(json.dumps([0, name(row)]).encode()).digest()
        chosen = {"pair": [0], "random": [there[int.from_bytes(digest[:8], "big") % len(there)]], "all": [0, 1, 2, 3]}
        chosen = chosen[members]
        bytes_of = {real(row), *(fake(row, k) for k in chosen)}
        flaw = FLAWS[row][1] if row in FLAWS and FLAWS[row][0] in chosen else ""
        if flaw == "same-bytes-two-groups" and not bytes_of & seen:
            flaw = ""
        reasons[row] = DEAD.get(row) or flaw or ("same-bytes-two-groups" if bytes_of & seen else "")
        if not reasons[row]:
            groups[row] = chosen
            seen |= bytes_of
    return groups, {name(row): reason for row, reason in reasons.items() if reason}


@pytest.mark.parametrize("members", ["pair", "random", "all"])
def test_every_row_is_a_whole_group_or_a_reason(folder, tmp_path, members):
    found = prepare(folder, tmp_path, members=members)
    groups, reasons = expected(members)
    assert found.keys() == {name(row) for row in groups} and lost(tmp_path) == reasons
    assert len(groups) >= 4 and len(groups) + len(reasons) == 14
    for row, chosen in groups.items():
        images = {MODELS[k]: fake(row, k) for k in chosen} | {"real": real(row)}
        members = found[name(row)]
        assert {generator: member["bytes"] for generator, member in members.items()} == images
        assert members["real"]["caption"] == f"original {row}" and members["real"]["url"].endswith(f"/{row}")
        assert {member["caption"] for g, member in members.items() if g != "real"} == {f"positive {row}"}
        assert {member["set"] for member in members.values()} == {"elsa_d3"}
    kinds = {zoo.Image.open(io.BytesIO(m["bytes"])).format for group in found.values() for m in group.values()}
    assert members == "pair" or kinds >= set(CODECS)


def test_the_second_run_asks_nothing(folder, server, tmp_path):
    first = prepare(folder, tmp_path)
    asked = server.counts.copy()
    assert asked["/6"] == 3 and max(asked.values()) == 3 and asked["/1"] == asked["/0"] == 1
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if "manifest." not in file.name}
    assert prepare(folder, tmp_path) == first and server.counts == asked
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert not list(tmp_path.glob("manifest.parts/downloads-0-of-1/??/*"))  # they lie in the tar files now


def test_a_limit_counts_complete_groups_and_can_be_raised(folder, server, tmp_path, monkeypatch):
    monkeypatch.setattr(elsa_d3, "BLOCK", (2, 3))
    everything = prepare(folder, tmp_path / "all")
    server.counts.clear()
    first = prepare(folder, tmp_path / "some", limit=2)
    assert list(first) == [name(0), name(5)] == list(everything)[:2]
    assert server.count("/13") == 0  # no farther than needed
    assert list(prepare(folder, tmp_path / "some", limit=3)) == list(everything)[:3]
    assert prepare(folder, tmp_path / "some") == everything and lost(tmp_path / "some") == lost(tmp_path / "all")
    assert server.count("/6") == 3 and all(n == 1 for path, n in server.counts.items() if path != "/6")


def test_two_jobs_make_what_one_makes(folder, tmp_path):
    alone = prepare(folder, tmp_path / "alone", members="pair")
    assert prepare(folder, tmp_path / "two", members="pair", shard=1, num_shards=2) == {}
    together = prepare(folder, tmp_path / "two", members="pair", shard=0, num_shards=2)
    plain = [
        {group: {g: row["sha256"] for g, row in members.items()} for group, members in found.items()}
        for found in (alone, together)
    ]
    assert plain[0] == plain[1] and len(plain[0]) > 5
    assert {g: r["split"] for m in alone.values() for g, r in m.items()}.keys() >= {"real"}
    with pytest.raises(Refusal, match=r"--num_shards 4: .* 3 files"):
        prepare(folder, tmp_path / "four", shard=0, num_shards=4)


def test_limits_are_shared_evenly(folder, tmp_path):
    prepare(folder, tmp_path, members="pair", limit=3, shard=0, num_shards=2)
    found = prepare(folder, tmp_path, members="pair", limit=3, shard=1, num_shards=2)
    files = Counter(int(group.split("-")[2]) % 2 for group in found)
    assert files == {0: 1, 1: 1} or files == {0: 1, 1: 2}


def test_dead_links_are_asked_again_only_when_wished(folder, server, tmp_path):
    prepare(folder, tmp_path, members="pair")
    assert lost(tmp_path)[name(6)] == "connection"
    server.pages |= {path: status(200, real(int(path[1:]))) for path in ("/1", "/6")}
    server.counts.clear()
    assert name(6) not in prepare(folder, tmp_path, members="pair")
    assert not server.counts
    found = prepare(folder, tmp_path, members="pair", retry_dead=True)
    assert found[name(6)]["real"]["bytes"] == real(6) and server.counts == {"/6": 1}
    assert name(6) not in lost(tmp_path) and lost(tmp_path)[name(1)] == "http-404"


def test_placeholders_found_later_take_their_groups_along(folder, server, tmp_path, monkeypatch):
    monkeypatch.setattr(elsa_d3, "BLOCK", (2, 2))
    monkeypatch.setattr(download_state, "PLACEHOLDER_URLS", 3)
    server.pages |= {f"/{row}": status(200, zoo.save(zoo.picture(seed=77), "PNG")) for row in (0, 5, 9)}
    found = prepare(folder, tmp_path, limit=2)
    assert found.keys() == {name(13)}  # row 0 was a group before row 9 came
    assert {r for g, r in lost(tmp_path).items() if g in (name(9),)} == {"placeholder"}
    with (tmp_path / "manifest.lost.csv").open(newline="") as file:
        dropped = [row for row in csv.DictReader(file) if row["group"] == name(0)]
    assert [row["reason"] for row in dropped] == ["placeholder"] * 5
