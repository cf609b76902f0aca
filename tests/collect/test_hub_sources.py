"""Sources at the hub: every row of a remote table becomes a whole group or a reason, killed or not."""

import csv
import hashlib
import io
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import traceback
from collections import Counter
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zoo
from fault_server import FaultServer, raw, status
from hub_server import COMMIT, hub

from adapt.collect import download as downloads
from adapt.collect import download_state
from adapt.collect.builder import Part
from adapt.collect.sources import community_forensics, elsa_d3, openfake
from adapt.collect.sources import hub_tables as room
from adapt.data.images import read_bytes
from adapt.data.manifest import Manifest
from adapt.errors import Refusal

CODECS = ("BMP", "GIF", "JPEG", "TIFF", "PNG")
MODELS = ("DeepFloyd/IF", "CompVis/sd-1-4", "stabilityai/sd-2-1", "stabilityai/sdxl")
FILES = (5, 4, 5)  # rows of each
# Row -> reason of its real image; or number of the fake that lacks, and why.
DEAD = {1: "http-404", 3: "not-an-image", 6: "connection", 7: "duplicate-url", 10: "bad-url"}
FLAWS = {2: (2, "member-missing"), 4: (1, "truncated"), 11: (3, "member-missing"), 12: (0, "same-bytes-two-groups")}
TWIN = 8  # the real image of row 5 under another URL


def real(row: int) -> bytes:
    return zoo.save(zoo.picture(96, 64, seed=5 if row == TWIN else row), "JPEG")


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
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert prepare(folder, tmp_path) == first and server.counts == asked
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
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
    alone = prepare(folder, tmp_path / "alone", members="pair", split="train")
    assert prepare(folder, tmp_path / "two", members="pair", split="train", shard=1, num_shards=2) == {}
    together = prepare(folder, tmp_path / "two", members="pair", split="train", shard=0, num_shards=2)
    plain = [
        {group: {g: row["sha256"] for g, row in members.items()} for group, members in found.items()}
        for found in (alone, together)
    ]
    assert plain[0] == plain[1] and len(plain[0]) > 5
    with (tmp_path / "two/manifest.lost.csv").open(newline="") as file:  # row 7 has the URL of row 0, the other job's
        twin = [row["reason"] for row in csv.DictReader(file) if row["group"] == name(7)]
    assert twin == ["same-bytes-two-groups"] * 2
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
    server.pages |= {f"/{row}": status(200, zoo.save(zoo.picture(96, 64, seed=77), "PNG")) for row in (0, 5, 9)}
    found = prepare(folder, tmp_path, limit=2)
    assert found.keys() == {name(8), name(12)}  # row 0 was a group before row 9 came, and counted then
    with (tmp_path / "manifest.lost.csv").open(newline="") as file:
        reasons = Counter((row["group"], row["reason"]) for row in csv.DictReader(file))
    assert reasons[name(0), "placeholder"] == 5 and reasons[name(9), "placeholder"] == 1


def test_a_folder_whose_files_changed_is_refused(folder, server, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    prepare(copy, tmp_path, limit=1)
    table = elsa_table(range(10, 14), server)
    pq.write_table(table, copy / "data/val-00002-of-00003.parquet")
    with pytest.raises(Refusal, match=r"commit=.* choose another --output"):
        prepare(copy, tmp_path, limit=1)


def test_other_columns_are_refused_by_name(folder, server, tmp_path):
    def change(title, make):
        copy = shutil.copytree(folder, tmp_path / title)
        for file in copy.rglob("*.parquet"):
            pq.write_table(make(pq.read_table(file)), file)
        return copy

    with pytest.raises(Refusal, match=r"no column url; it has id, original_prompt.*image_gen3.*--revision"):
        prepare(change("url", lambda table: table.drop_columns("url")), tmp_path / "1")
    with pytest.raises(Refusal, match="no column model_gen2; it has id"):
        prepare(change("model", lambda table: table.drop_columns("model_gen2")), tmp_path / "2")
    names = [f"image_gen{k}" for k in range(4)]
    with pytest.raises(Refusal, match="no column image_gen0; it has id"):
        prepare(change("images", lambda table: table.drop_columns(names)), tmp_path / "3")
    fewer = change("fewer", lambda table: table.drop_columns(["image_gen3", "model_gen3"]))
    found = prepare(fewer, tmp_path / "4")
    assert {len(members) for members in found.values()} == {4} and name(11) in found  # which only lacked the fourth
    last = copy_with_one_other_file(folder, tmp_path / "last")
    with pytest.raises(Refusal, match=r"val-00002-of-00003.parquet has no column image_gen1"):
        prepare(last, tmp_path / "5")
    file = last / "data/val-00002-of-00003.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(Refusal, match=r"cannot read .*val-00002-of-00003.parquet \(ArrowInvalid"):
        prepare(last, tmp_path / "6")


def copy_with_one_other_file(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    file = to / "data/val-00002-of-00003.parquet"
    pq.write_table(pq.read_table(file).drop_columns("image_gen1"), file)
    return to


EVENTS = [(Part, "_write"), (Part, "_append"), (download_state.State, "append"), (shutil, "rmtree")]
EVENTS += [(Path, "replace"), (Path, "write_bytes")]


def child(folder: Path, output: Path, kill: int = 0) -> tuple[int, int]:
    """Prepare in a process of its own that kills itself before event `kill // 2`, or after it where `kill` is odd.

    Status and number of events.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        number = itertools.count(1)

        def counted(function):
            def call(*args, **kwargs):
                count = next(number)
                if kill == 2 * count:
                    os.kill(os.getpid(), signal.SIGKILL)
                done = function(*args, **kwargs)
                if kill == 2 * count + 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                return done

            return call

        try:
            for owner, title in EVENTS:
                setattr(owner, title, counted(getattr(owner, title)))
            elsa_d3.Source(repo=str(folder), output=output / "manifest.csv", members="random").prepare()
            os.write(write_end, str(next(number) - 1).encode())
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        said = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), int(said or 0)


def test_killed_at_twenty_points_it_ends_as_if_never_killed(folder, server, tmp_path, monkeypatch):
    monkeypatch.setattr(elsa_d3, "BLOCK", (6, 6))
    monkeypatch.setattr(downloads, "BACKOFF", 0.001)
    whole, reasons = prepare(folder, tmp_path / "whole", members="random"), lost(tmp_path / "whole")
    code, events = child(folder, tmp_path / "count")  # the libraries are loaded by now, once for all children
    assert code == 0 and events > 60
    statuses = []
    for kill in random.Random(0).sample(range(2, 2 * events + 2), 20):
        output = tmp_path / str(kill)
        server.counts.clear()
        statuses.append(child(folder, output, kill)[0])
        assert not (output / "manifest.csv").exists() or read(output / "manifest.csv") == whole
        assert child(folder, output)[0] == 0
        assert read(output / "manifest.csv") == whole, kill
        assert {g: "connection" if r == "interrupted" else r for g, r in lost(output).items()} == reasons, kill
        assert max(server.counts.values()) <= 3, kill
        with tarfile.open(next(output.glob("*.shards/*.tar"))) as tar:
            keys = Counter(member.name.split(".")[0] for member in tar if not member.name.endswith(".json"))
        assert set(keys.values()) == {2} and len(keys) == len(whole), kill
        shutil.rmtree(output)
    assert set(statuses) <= {-signal.SIGKILL, 0} and statuses.count(0) <= 2  # runs differ by a few events


CARD = """---
configs:
- config_name: core
  default: true
  data_files:
  - split: train
    path: data/train-*
- config_name: reddit
  data_files:
  - split: test
    path: data/train-00001-*
---
"""
DRIVER = """
import json, sys, time
from functools import partial
from pathlib import Path
from adapt.collect import download
from adapt.collect.sources import elsa_d3, hub, openfake
from adapt.errors import Refusal

download.BACKOFF = 0.01
elsa_d3.download = partial(download.download, allow_private=True, progress=False)
job, out = sys.argv[1], Path(sys.argv[2])

def refused(make):
    try:
        make()
    except Refusal as refusal:
        return str(refusal)
    return "not refused"

def elsa(repo, revision="main", **options):
    return elsa_d3.Source(repo=repo, revision=revision, output=out / "manifest.csv", members="pair", **options)

if job == "elsa":
    elsa("me/elsa", limit=int(sys.argv[3])).prepare()
else:
    table = hub.Table.open("me/big", hub.pin("me/big", "main", out), "train")
    print(json.dumps([place for place, _ in table.scan(["n"], (0, 7))]))
    Path(out, "scanned").touch()
    while not Path(out, "go on").exists():
        time.sleep(0.01)
    print(json.dumps([(place, row["image"]["path"]) for place, row in table.pick([(1, 4), (0, 1)], ["image"])]))
    print(json.dumps([
        refused(lambda: hub.pin("me/none", "main", out)),
        refused(lambda: hub.pin("me/big", "v9", out)),
        refused(lambda: elsa("me/gated").prepare()),
        refused(lambda: hub.Table.open("me/big", table.files[0].split("@")[1][:40], "train", config="none")),
        refused(lambda: hub.Table.open("me/big", table.files[0].split("@")[1][:40], "validation")),
        refused(lambda: hub.Table.open("me/big", table.files[0].split("@")[1][:40], "train", num_shards=3)),
    ]))
"""


@pytest.fixture(scope="module")
def big(tmp_path_factory) -> Path:
    """Two files of 8 rows in row groups of 2, each row with 400 kB that do not compress."""
    folder = tmp_path_factory.mktemp("big")
    (folder / "data").mkdir()
    (folder / "README.md").write_text(CARD)
    for file in range(2):
        noise = random.Random(file).randbytes(8 * 400_000)
        cells = [{"bytes": noise[n * 400_000 :][:400_000], "path": f"{file}/{n}"} for n in range(8)]
        table = pa.table({"n": list(range(8)), "image": cells})
        pq.write_table(table, folder / f"data/train-{file:05d}-of-00002.parquet", row_group_size=2)
    return folder


def start(server, tmp_path: Path, *arguments: object) -> subprocess.Popen:
    root = Path(__file__).parents[2]
    env = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    env |= {"PYTHONPATH": str(root), "HF_HUB_DISABLE_TELEMETRY": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", DRIVER, *map(str, arguments)], env=env, **pipes)


def test_of_a_hub_only_what_is_wanted_is_fetched_and_refusals_are_one_line(big, tmp_path):
    with hub({"me/big": big, "me/gated": big}, gated=("me/gated",)) as server:
        with start(server, tmp_path, "big", tmp_path) as run:
            while run.poll() is None and not (tmp_path / "scanned").exists():
                time.sleep(0.01)
            footers = 4 * 2**16  # two files, their ends read at each opening, and once for the columns
            assert server.sent < footers + 10_000
            before = server.sent
            (tmp_path / "go on").touch()
            out, err = run.communicate(timeout=60)
        assert run.returncode == 0, err
        assert 2 * 800_000 < server.sent - before < 2 * 800_000 + footers  # of eight row groups two
    pinned, scanned, picked, refusals = out.splitlines()[0], *out.splitlines()[1:3], json.loads(out.splitlines()[-1])
    assert COMMIT in pinned and "--revision" in pinned
    assert json.loads(scanned) == [[0, 7], *([1, n] for n in range(8))]
    assert json.loads(picked) == [[[0, 1], "0/1"], [[1, 4], "1/4"]]
    wanted = ["no data set me/none", "me/big has no revision v9: name", "me/gated is gated: accept its terms"]
    wanted += ["--subset none: me/big has core, reddit", "--hub_split validation: me/big has the splits train"]
    wanted += ["--num_shards 3: train of me/big has 2 files"]
    for refusal, words in zip(refusals, wanted, strict=True):
        assert refusal.startswith(words) and "\n" not in refusal


def test_a_continued_run_stays_at_its_commit(folder, tmp_path):
    with hub({"me/elsa": folder}) as server:
        for limit, commit in ((2, COMMIT), (4, "f" * 40)):
            server.asked.clear()
            server.commits.append(commit)  # main moves on
            with start(server, tmp_path, "elsa", tmp_path, limit) as run:
                assert run.wait(60) == 0, run.stderr.read()
            assert {path.split("/")[5] for _, path, _ in server.asked if "/resolve/" in path} == {COMMIT}
    found = read(tmp_path / "manifest.csv")
    local = prepare(folder, tmp_path / "local", members="pair", limit=4)
    assert found.keys() == local.keys() and len(found) == 4
    for group, members in found.items():
        assert {g: row["bytes"] for g, row in members.items()} == {g: r["bytes"] for g, r in local[group].items()}


def test_a_hub_out_of_reach_is_one_line(tmp_path):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "adapt", "prepare", "elsa_d3", "--output", tmp_path / "manifest.csv"]
    for offline, words in (("0", "cannot read elsaEU/ELSA_D3 (ConnectError"), ("1", "elsaEU/ELSA_D3: the hub is")):
        env = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": offline, "HF_HOME": str(tmp_path)}
        env["PYTHONPATH"] = str(root)
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith(f"error: {words}") and done.stderr.count("\n") == 1


def test_without_datasets_the_extra_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(Refusal, match=r"pip install 'adapt-aigi\[data\]'"):
        prepare(folder, tmp_path)
    with pytest.raises(Refusal, match="--output: name the manifest"):
        elsa_d3.Source()


def write_forensics(folder: Path) -> Path:
    """Five generators and real images in two files; a cell that is no image, an empty one, a strange label, a twin."""
    (folder / "data").mkdir(parents=True)
    for file in range(2):
        rows = []
        for n in range(12):
            fake, data = n % 3 != 0, zoo.save(zoo.picture(seed=1000 + 12 * file + n), CODECS[n % 5])
            row = {"image_name": f"{file}-{n}", "format": CODECS[n % 5], "resolution": "48x32", "mode": "RGB"}
            row |= {"image_data": data, "model_name": f"org/model-{n % 2}" if fake else "", "nsfw_flag": False}
            row |= {"prompt": f"prompt {n}", "real_source": "" if fake else "coco", "subset": "Systematic"}
            rows.append(row | {"split": "train", "label": int(fake)})
        if file == 1:
            rows[1]["image_data"], rows[2]["image_data"], rows[4]["label"] = b"nothing", None, 7
            rows[5]["image_data"] = zoo.save(zoo.picture(seed=1001), CODECS[1])  # row 1 of the first file
        pq.write_table(
            pa.Table.from_pylist(rows), folder / f"data/train-{file:05d}-of-00002.parquet", row_group_size=4
        )
    return folder


def forensics(folder: Path, output: Path, **options) -> dict:
    source = community_forensics.Source(repo=str(folder), output=output / "manifest.csv", **options)
    return read(source.prepare()) if options.get("shard", 0) == options.get("num_shards", 1) - 1 else source.prepare()


def test_images_in_cells_keep_their_bytes(tmp_path, monkeypatch):
    folder = write_forensics(tmp_path / "hub")
    everything = forensics(folder, tmp_path / "all")
    assert len(everything) == 24 - 4 and all(len(members) == 1 for members in everything.values())
    assert sorted(lost(tmp_path / "all").values()) == [
        *("bad-label: 7", "member-missing", "not-an-image", "same-bytes-two-groups")
    ]
    for group, members in everything.items():
        file, n = (int(part) for part in group.split("-")[1:])
        [(generator, row)] = members.items()
        assert row["bytes"] == zoo.save(zoo.picture(seed=1000 + 12 * file + n), CODECS[n % 5])
        assert generator == ("real" if n % 3 == 0 else f"org/model-{n % 2}")
        assert (row["source"], row["caption"]) == ("Systematic" if n % 3 else "coco", f"prompt {n}")
    some = forensics(folder, tmp_path / "some", per_class=5, real=3)
    counts = Counter(generator for members in some.values() for generator in members)
    assert counts == {"real": 3, "org/model-0": 5, "org/model-1": 5} and some.keys() < everything.keys()
    forensics(folder, tmp_path / "two", num_shards=2)
    together = forensics(folder, tmp_path / "two", shard=1, num_shards=2)
    assert {g: [r["sha256"] for r in m.values()] for g, m in together.items()} == {
        g: [r["sha256"] for r in m.values()] for g, m in everything.items()
    }
    assert {row["split"] for members in everything.values() for row in members.values()} > {"train"}

    commit, stop = Part.commit, 0
    for stop in range(1, 18, 4):  # and a run that is cut short there continues without a gap

        def cut(part, rows, *rest, left=[stop], **named):  # noqa: B006 (counts down over the calls)
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
            return commit(part, rows, *rest, **named)

        monkeypatch.setattr(Part, "commit", cut)
        with pytest.raises(KeyboardInterrupt):
            forensics(folder, tmp_path / str(stop), per_class=5, real=3)
        monkeypatch.setattr(Part, "commit", commit)
        assert forensics(folder, tmp_path / str(stop), per_class=5, real=3) == some


def test_evaluation_splits_of_the_hub_are_test_splits(tmp_path):
    folder = write_forensics(tmp_path / "hub")
    for file in folder.rglob("*.parquet"):
        file.rename(file.with_name(file.name.replace("train", "CompEval")))
    found = forensics(folder, tmp_path, hub_split="CompEval")
    assert {row["split"] for members in found.values() for row in members.values()} == {"test"}


def test_openfake_by_subset(tmp_path):
    folder = tmp_path / "hub"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    for file in range(2):
        rows = [{"image": {"bytes": zoo.save(zoo.picture(seed=10 * file + n), "PNG"), "path": None}} for n in range(6)]
        for n, row in enumerate(rows):
            row |= {"prompt": f"p{n}", "label": ("real", "fake", "Fake")[n % 3], "model": ("", "flux", "x")[n % 3]}
            row |= {"type": "base", "release_date": "2025-01"}
        pq.write_table(pa.Table.from_pylist(rows), folder / f"data/train-{file:05d}-of-00002.parquet")

    def openfakes(output, **options):
        return read(openfake.Source(repo=str(folder), output=tmp_path / output / "manifest.csv", **options).prepare())

    found = openfakes("core")
    assert Counter(g for m in found.values() for g in m) == {"real": 4, "flux": 4}
    assert Counter(lost(tmp_path / "core").values()) == {"bad-label: Fake": 4}
    reddit = [r for m in openfakes("reddit", subset="reddit", hub_split="test").values() for r in m.values()]
    assert {(row["set"], row["split"]) for row in reddit} == {("openfake-reddit", "test")} and len(reddit) == 4
    with pytest.raises(Refusal, match=r"--subset inpainting: .* has core, reddit"):
        openfakes("none", subset="inpainting")


def test_a_refused_command_does_not_stand_in_the_way_of_the_corrected_one(folder, tmp_path):
    """A mistyped split, by one job or by each of two, and a table of which columns are missing."""

    def elsa(output, **options):
        return prepare(folder, output, members="pair", **options)

    with pytest.raises(Refusal, match=r"--hub_split tain: .* has the splits"):
        elsa(tmp_path / "one", hub_split="tain")
    assert not list((tmp_path / "one/manifest.parts").glob("*.jsonl"))
    whole = elsa(tmp_path / "one")
    for shard in (0, 1):
        with pytest.raises(Refusal, match=r"--hub_split tain: .* has the splits"):
            elsa(tmp_path / "two", hub_split="tain", shard=shard, num_shards=2)
        found = elsa(tmp_path / "two", shard=shard, num_shards=2)
    assert found.keys() == whole.keys()
    copy = shutil.copytree(folder, tmp_path / "copy")
    for file in copy.rglob("*.parquet"):
        pq.write_table(pq.read_table(file).drop_columns("url"), file)
    with pytest.raises(Refusal, match="has no column url"):
        prepare(copy, tmp_path / "columns", members="pair")
    assert elsa(tmp_path / "columns").keys() == whole.keys()
    tables = write_forensics(tmp_path / "hub")
    with pytest.raises(Refusal, match=r"--hub_split Eval: .* has the splits"):
        forensics(tables, tmp_path / "cf", hub_split="Eval")
    some = forensics(tables, tmp_path / "cf", per_class=2)
    with pytest.raises(Refusal, match="per_class=2, not 3"):  # what is committed binds as before
        forensics(tables, tmp_path / "cf", per_class=3)
    assert forensics(tables, tmp_path / "cf", per_class=2) == some


def test_offline_is_told_apart(tmp_path):
    with pytest.raises(Refusal, match="HF_HUB_OFFLINE: unset it, or give --repo a folder"):
        room.pin("elsaEU/ELSA_D3", "main", tmp_path / "manifest.csv")  # conftest.py switches the hub off
