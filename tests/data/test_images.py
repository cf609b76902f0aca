import hashlib
import io
import os
import pickle
import stat
import subprocess
import sys
import tarfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zoo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from adapt.data import images
from adapt.data.images import MAX_ASPECT, MAX_PIXELS, MIN_SIDE, Unreadable, decode, read_bytes, read_image
from adapt.errors import Refusal

PNG = zoo.files()["rgb.png"][0]


def reason(call, *arguments) -> str:
    with pytest.raises(Unreadable) as caught:
        call(*arguments)
    return caught.value.reason


@pytest.mark.parametrize("name", zoo.files())
def test_every_file_of_the_zoo_gives_its_pixels_or_its_reason(name):
    data, expected = zoo.files()[name]
    if isinstance(expected, str):
        assert reason(decode, data) == expected
        return
    image = decode(data)
    assert (image.mode, image.info) == ("RGB", {})
    if isinstance(expected, tuple):
        assert image.size == expected
    else:
        np.testing.assert_array_equal(np.asarray(image), expected)


LOSSY = ["rgb.jpg", "cmyk.jpg", "progressive.jpg", "animated.gif", "lossy.webp", "lab.tiff"]
LOSSY += ["film.avif", "animated.avif", "orientation6.avif", "lossy.jp2", "sycc.jp2"]


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_files_stay_close_to_the_picture(name):
    image = np.asarray(decode(zoo.files()[name][0])).astype(float)
    assert np.abs(image - zoo.picture()).mean() < 25  # the inverted or shuffled picture is 60 or more away


def test_an_oriented_jpeg_is_turned_and_not_mirrored():
    image = np.asarray(decode(zoo.files()["orientation6.jpg"][0])).astype(float)
    assert np.abs(image - zoo.picture()).mean() < 25 < np.abs(image[:, ::-1] - zoo.picture()).mean()


def test_pixel_limit_is_exact(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", zoo.W * zoo.H)
    assert decode(PNG).size == (zoo.W, zoo.H)
    monkeypatch.setattr(images, "MAX_PIXELS", zoo.W * zoo.H - 1)
    assert reason(decode, PNG) == "too-large"


def run(program: str) -> str:
    """What a fresh Python prints; it must print nothing to stderr."""
    here = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's record of the peak")
def test_bombs_are_refused_in_little_memory():
    peak = run(
        "import zoo\nfrom adapt.data.images import Unreadable, decode\n"
        "for name, (data, expected) in zoo.files().items():\n"
        "    try: decode(data)\n"
        "    except Unreadable: pass\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    assert int(peak) < 300 * 1024  # KiB


def test_a_worker_forked_while_a_thread_decodes_does_not_wait_for_it():
    printed = run(
        "import os, threading, zoo\nfrom adapt.data import images\n"
        "held, done = threading.Event(), threading.Event()\n"
        "def hold():\n"
        "    with images._lock: held.set(); done.wait()\n"
        "threading.Thread(target=hold).start()\nheld.wait()\nworker = os.fork()\n"
        "if not worker:\n"
        "    images.decode(zoo.files()['rgb.png'][0]); os._exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]))\ndone.set()"
    )
    assert int(printed) == 7


edits = st.lists(
    st.tuples(st.sampled_from(["set", "cut", "drop", "double"]), st.floats(0, 1), st.integers(0, 255)),
    min_size=1,
    max_size=8,
)


def mutated(data: bytes, changes: list) -> bytes:
    data = bytearray(data)
    for what, place, value in changes:
        at = int(place**2 * len(data))  # headers are where the harm is
        if what == "set":
            data[at : at + 1] = bytes([value])
        elif what == "cut":
            del data[at + value :]
        elif what == "drop":
            del data[at : at + value]
        else:
            data[at:at] = data[at : at + value]
    return bytes(data)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from(sorted(zoo.files())), changes=edits)
def test_damaged_files_give_an_image_within_limits_or_a_reason(name, changes):
    try:
        image = decode(mutated(zoo.files()[name][0], changes))
    except Unreadable as unreadable:
        assert unreadable.reason in Unreadable.__doc__
    else:
        short, long = sorted(image.size)
        assert image.mode == "RGB"
        assert short >= MIN_SIDE and long <= MAX_ASPECT * short and short * long <= MAX_PIXELS


def test_half_read_images_are_never_accepted(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(Refusal, match="LOAD_TRUNCATED_IMAGES"):
        decode(zoo.files()["half.jpg"][0])


def test_lack_of_memory_is_not_booked_to_the_file(monkeypatch):
    monkeypatch.setattr(images, "_to_rgb", lambda image: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        decode(PNG)


def test_pillow_and_warnings_are_left_as_they_were():
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(lambda _: decode(PNG).size, range(64)))
    assert set(sizes) == {(zoo.W, zoo.H)}
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)) == before


def test_source_metadata_is_not_carried_into_a_new_file():
    again = zoo.save(decode(zoo.files()["comment.jpg"][0]), "JPEG")
    assert "comment" not in Image.open(io.BytesIO(again)).info


def test_unreadable_survives_the_way_back_from_a_worker():
    assert pickle.loads(pickle.dumps(Unreadable("truncated"))).reason == "truncated"


def test_bytes_are_checked_against_the_digest(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(PNG)
    digest = hashlib.sha256(PNG).hexdigest()
    assert read_image(file, digest.upper()).size == (zoo.W, zoo.H)
    file.write_bytes(zoo.files()["text.png"][0])  # the same pixels
    assert reason(read_image, file, digest) == "sha256-mismatch"


def test_files_that_are_not_files(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(PNG)
    (tmp_path / "loop").symlink_to("loop")
    assert reason(read_bytes, tmp_path / "none.png") == "missing"
    assert reason(read_bytes, tmp_path / "file" / "a.png") == "missing"
    assert reason(read_bytes, str(tmp_path / "a\0b.png")) == "missing"
    assert reason(read_bytes, tmp_path) == "not-a-file"
    assert reason(read_bytes, tmp_path / "fifo") == "not-a-file"
    assert reason(read_bytes, tmp_path / "loop") == "io-error"
    monkeypatch.setattr(images, "MAX_BYTES", len(PNG))
    assert read_bytes(tmp_path / "file") == PNG
    monkeypatch.setattr(images, "MAX_BYTES", len(PNG) - 1)
    assert reason(read_bytes, tmp_path / "file") == "too-many-bytes"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_forbidden_file_says_so(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(PNG)
    file.chmod(stat.S_IWUSR)
    assert reason(read_bytes, file) == "no-access"


def shard(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_members_of_an_archive_are_read_byte_for_byte(tmp_path):
    members = {"a.png": PNG, "./b/ü\udcff.jpg": b"jpeg", "empty.png": b"", "long/" + "x" * 200: b"abc"}
    tar = shard(tmp_path / "s.tar", members)
    for name, data in members.items():
        assert read_bytes(f"{tar}::{name}") == data
    assert read_bytes(f"{tar}::b/ü\udcff.jpg") == members["./b/ü\udcff.jpg"]
    np.testing.assert_array_equal(np.asarray(read_image(f"{tar}::a.png")), zoo.picture())
    assert reason(read_bytes, f"{tar}::c.png") == "missing"
    assert reason(read_bytes, f"{tmp_path}/none.tar::a.png") == "missing"


def test_an_archive_that_was_replaced_is_listed_again(tmp_path):
    tar = shard(tmp_path / "s.tar", {"a.png": b"old"})
    assert read_bytes(f"{tar}::a.png") == b"old"
    shard(tar, {"first": bytes(3000), "a.png": b"new"})
    assert read_bytes(f"{tar}::a.png") == b"new"


def test_damaged_archives(tmp_path):
    tar = shard(tmp_path / "s.tar", {"a": bytes(2000), "b": bytes(2000)})
    tar.write_bytes(tar.read_bytes()[:4500])
    assert read_bytes(f"{tar}::a") == bytes(2000)
    assert reason(read_bytes, f"{tar}::b") in ("truncated", "missing")
    (tmp_path / "text.tar").write_text("not an archive")
    assert reason(read_bytes, f"{tmp_path}/text.tar::a") == "bad-archive"
    packed = shard(tmp_path / "packed.tar", {"a": b"1"}, "w:gz")
    assert reason(read_bytes, f"{packed}::a") == "bad-archive"


def test_links_inside_an_archive_are_not_followed(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("a"), io.BytesIO())
    assert reason(read_bytes, f"{tmp_path}/s.tar::link.png") == "missing"
