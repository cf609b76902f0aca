"""The embedded world and its tiny CLIP."""

import csv
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adapt.embedded import world
from adapt.embedded.camera import demosaic
from adapt.embedded.captions import captioned, words
from adapt.embedded.filters import blur, from_bytes, luma, resample
from adapt.embedded.generators import (
    FAMILIES,
    FUNCTIONS,
    HELD_OUT,
    SEEN,
    SELECTION,
    TEST_EDITS,
    codebook,
    detail_energy,
    patches,
)
from adapt.embedded.tokenizer import END, START, TINY, UNKNOWN, tokenize, vocabulary
from adapt.errors import Refusal


def digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


def read_rows(manifest: Path) -> list[dict]:
    with manifest.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return world.make_world(tmp_path_factory.mktemp("world") / "small", 7, (6, 3, 6))


@pytest.fixture(scope="module")
def groups():
    """Test scenes of another seed than any reported one, in display values."""
    found = [world.make_group(900, "test", index) for index in range(24)]
    return [{key: from_bytes(pixels) for key, pixels in group.items()} for group in found]


def test_bytes_depend_on_the_seed_only(tmp_path, small):
    again = world.make_world(tmp_path / "again", 7, (6, 3, 6))
    other = world.make_world(tmp_path / "other", 8, (6, 3, 6))
    assert digest(again.parent) == digest(small.parent) != digest(other.parent)


def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path):
    one, two = (world.make_world(tmp_path / str(n), 3, (60, 1, 1), processes=n).parent for n in (1, 2))
    assert digest(one) == digest(two)


def test_two_callers_at_once_leave_one_whole_world(tmp_path, small):
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: world.make_world(tmp_path / "w", 7, (6, 3, 6)), range(2))
    assert first == second
    assert digest(first.parent) == digest(small.parent)
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_a_world_is_kept_and_another_one_is_refused(small):
    before = small.stat().st_mtime_ns
    assert world.make_world(small.parent, 7, (6, 3, 6)) == small
    assert small.stat().st_mtime_ns == before
    with pytest.raises(Refusal, match="choose another folder"):
        world.make_world(small.parent, 8, (6, 3, 6))
    with pytest.raises(Refusal, match="'huge' is unknown"):
        world.make_world(small.parent, 7, (6, 3, 6), trace="huge")


def test_cache_folder_names_the_parameters(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path))
    manifest = world.embedded_manifest(seed=4, scenes=(2, 1, 1))
    assert manifest == tmp_path / f"world-v{world.VERSION}-subtle-seed4-2-1-1" / "manifest.csv"
    assert manifest.is_file()


def test_manifest(small):
    rows = read_rows(small)
    splits = {}
    for row in rows:
        splits.setdefault(row["group"], set()).add(row["split"])
        assert row["set"] == row["source"] == "embedded"
        assert row["family"] == ("real" if row["generator"] == "real" else FAMILIES[row["generator"]])
        assert row["generator"] == "real" or not row["edit"]
    assert len(splits) == 15
    assert all(len(found) == 1 for found in splits.values())
    for group in splits:
        members = [row for row in rows if row["group"] == group]
        assert sum(row["generator"] == "real" and not row["edit"] for row in members) == 1
    where = {name: {row["split"] for row in rows if name in (row["generator"], row["edit"])} for name in
             (*FUNCTIONS, *TEST_EDITS)}  # fmt: skip
    assert all(where[name] == {"train", "val", "test"} for name in SEEN)
    assert all(where[name] == {"val"} for name in SELECTION)
    assert all(where[name] == {"test"} for name in (*HELD_OUT, *TEST_EDITS))
    assert {*SEEN, *SELECTION, *HELD_OUT} == set(FUNCTIONS) == set(FAMILIES)


def test_container_tells_nothing(small):
    for row in read_rows(small):
        with Image.open(small.parent / row["path"]) as image:
            assert (image.format, image.size, image.mode, image.info) == ("PNG", (96, 96), "RGB", {})


@pytest.mark.parametrize("generator", [*SEEN, *HELD_OUT])
def test_detail_energy_is_given_back(groups, generator):
    energies = [[detail_energy(luma(group[name, ""])) for name in (generator, "real")] for group in groups]
    assert 0.7 < np.median([fake / real for fake, real in energies]) < 1.0


def period_of_gradients(image, period):
    """Strength of a period in the mean size of the horizontal differences, relative to their mean."""
    profile = np.abs(np.diff(image, axis=-1)).mean((0, 1))[: 92 // period * period]
    return np.abs(np.fft.rfft(profile))[len(profile) // period] / profile.sum()


def fullness(image):
    """High when detail is everywhere, low when it sits at edges."""
    fine = image - blur(image, 0.7)
    return np.median(np.abs(fine)) / fine.std()


def in_codebook(image):
    """How much better the words explain 4 x 4 patches at one place of the grid than at the others."""
    detail = luma(image - blur(image, 1.5))
    shares = []
    for y, x in np.ndindex(4, 4):  # the grid may start anywhere
        rows = patches(detail[y : y + 88, x : x + 88])
        rows = rows - rows.mean(1, keepdims=True)
        shares.append(((rows @ codebook().T) ** 2).max(1).sum() / (rows**2).sum())
    return max(shares) - np.median(shares)


def haar_evenness(image):
    """High when no wavelet coefficient is weak: where detail was near zero it has been drawn anew."""
    found = []
    for y, x in np.ndindex(2, 2):  # the grid may start anywhere
        part = image[:, y : y + 94, x : x + 94]
        detail = part - resample(part, 47, "box").repeat(2, -1).repeat(2, -2)
        found.append(np.abs(detail).mean() ** 2 / (detail**2).mean())
    return max(found)


@pytest.mark.parametrize(
    ("generator", "statistic"),
    [
        ("grid", lambda image: period_of_gradients(image, 2)),
        ("transposed", lambda image: period_of_gradients(image, 4)),
        ("latent", fullness),
        ("codebook", in_codebook),
        ("wavelet", haar_evenness),
    ],
)
def test_trace_is_there(groups, generator, statistic):
    differences = [statistic(group[generator, ""]) - statistic(group["real", ""]) for group in groups]
    assert np.mean(np.array(differences) > 0) > 0.8


@pytest.mark.parametrize("generator", SEEN)
def test_planted_traces_are_stronger(generator):
    change = {}
    for trace in world.TRACES:
        found = [world.make_group(901, "train", index, trace) for index in range(4)]
        change[trace] = np.mean([abs(from_bytes(g[generator, ""]) - from_bytes(g["real", ""])).mean() for g in found])
    assert change["planted"] > 1.5 * change["subtle"]


def test_demosaic_keeps_the_samples_and_a_linear_ramp():
    y, x = np.mgrid[:12, :12] / 20
    ramp = 0.2 + x + 0.5 * y
    image = demosaic(ramp)
    np.testing.assert_allclose(image[:, 2:-2, 2:-2], np.broadcast_to(ramp[2:-2, 2:-2], (3, 8, 8)), atol=1e-12)
    noise = np.random.default_rng(0).uniform(size=(8, 8))
    assert (demosaic(noise)[0, ::2, ::2] == noise[::2, ::2]).all()
    assert (demosaic(noise)[2, 1::2, 1::2] == noise[1::2, 1::2]).all()


@pytest.mark.parametrize("kernel", ["box", "bilinear", "cubic", "lanczos"])
def test_resample_keeps_constants_and_orientation(kernel):
    constant = np.full((3, 12, 12), 0.3)
    np.testing.assert_allclose(resample(constant, 7, kernel), 0.3)
    rows = np.broadcast_to(np.arange(12.0)[:, None], (12, 12))
    small = resample(rows, 6, kernel)
    np.testing.assert_allclose(small[2:4], np.broadcast_to([[4.5], [6.5]], (2, 6)), atol=0.05)


def test_captions_are_made_of_the_vocabulary():
    assert set(words()) == set(vocabulary())
    texts = [text for seed in range(30) for _, text in captioned(np.random.default_rng(seed))]
    ids = tokenize(texts)
    assert ids.shape == (120, 16)
    assert not (ids == UNKNOWN).any()
    assert (ids == END).sum(1).eq(1).all()  # no caption is cut
    assert ids[:, 0].eq(START).all()


def test_tokenizer_handles_case_unknown_and_long_texts():
    ids = tokenize(["A PHOTO, of xyzzy", "photo " * 40])
    a, photo, of = (vocabulary()[word] for word in ("a", "photo", "of"))
    assert ids[0, :6].tolist() == [START, a, photo, of, UNKNOWN, END]
    assert ids[0, 6:].eq(0).all()
    assert ids[1, -1] == END


def test_tiny_loads_through_open_clip_and_knows_its_captions():
    open_clip = pytest.importorskip("open_clip")
    import torch

    assert sum(path.stat().st_size for path in TINY.iterdir()) <= 6_000_000
    model = open_clip.create_model(f"local-dir:{TINY}", require_pretrained=True).eval()
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    pairs = [next(captioned(np.random.default_rng([902, index]), 1)) for index in range(64)]
    mean, std = (torch.tensor(model.visual.preprocess_cfg[key]) for key in ("mean", "std"))
    pixels = torch.from_numpy(np.stack([pixels for pixels, _ in pairs]))
    with torch.no_grad():
        images = model.encode_image(((pixels / 255 - mean) / std).permute(0, 3, 1, 2), normalize=True)
        texts = model.encode_text(tokenize([text for _, text in pairs]), normalize=True)
    assert images.shape == texts.shape == (64, 128)
    found = (images @ texts.T).argmax(1) == torch.arange(64)
    assert found.float().mean() > 0.5  # chance is 1/64
