import csv
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import zoo
from PIL import Image, ImageCms
from sklearn.metrics import roc_auc_score

from adapt.audit.duplicates import near_partners, perceptual_hash, pixel_digest, similar_partners, twins
from adapt.audit.record import finding_of, keep_finding
from adapt.audit.shortcuts import (
    FACTORS,
    TOGETHER,
    Facts,
    _aucs,
    _folds,
    balance,
    examine,
    predict,
    remedies,
    shortcuts,
    worst,
)
from adapt.collect.align import align
from adapt.commands import audit as recipe
from adapt.data.manifest import Manifest
from adapt.errors import Refusal
from adapt.evaluation.jackknife import leave_out
from adapt.evaluation.replicates import ALL
from adapt.training.report import require_classes

GROUPS = 40
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
TABLES = [[1 + (7 * i) % 60 for i in range(64)], [2 + (5 * i) % 60 for i in range(64)]]


def scene(seed: int, width: int = 64, height: int = 64, noise: int = 6) -> Image.Image:
    """A smooth random picture with a little noise: unlike any other seed's."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray((smooth * 0.9 + rng.integers(0, noise + 1, (height, width, 3))).astype(np.uint8))


def write(folder: Path, rows: list[tuple]) -> Manifest:
    """Rows of (path, group, generator, split, bytes)."""
    for path, *_, data in rows:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    names = ("path", "group", "generator", "split")
    return Manifest.of({name: [row[i] for row in rows] for i, name in enumerate(names)}, folder)


def dataset(folder: Path, real, fake, paired: bool = True, groups: int = GROUPS) -> Manifest:
    """`real` and `fake` are (pattern of the name, Pillow format, options, sizes to draw from[, mode])."""
    rows = []
    for g, (f, (generator, kind)) in itertools.product(range(groups), enumerate([("real", real), ("gan", fake)])):
        pattern, container, options, sizes, *mode = kind
        size = np.random.default_rng([g, f]).choice(sizes)
        picture = scene(2 * g + f, size, size).convert(*mode or ["RGB"])
        group = f"g{g}" if paired else f"{generator}{g}"
        # a random number, for a running one that differed in length would be a leak of its own
        name = pattern.format(int(np.random.default_rng([g, f, 1]).integers(10**8, 10**9)))
        rows.append((name, group, generator, ("train", "val", "test")[g % 3], zoo.save(picture, container, **options)))
    return write(folder, rows)


def audited(manifest: Manifest, **settings):
    facts = examine(manifest)
    cells, findings = shortcuts(manifest, facts, resamples=200, **settings)
    return {cell.factor: cell for cell in cells if cell.generator == cell.set == ALL}, findings


PNG = ("images/{}.png", "PNG", {}, [64])
LEAKS = {
    "format": (("images/{}.x", "JPEG", {}, [64]), ("images/{}.x", "PNG", {}, [64])),
    "dimensions": (("images/{}.png", "PNG", {}, [56, 72, 90, 110]), ("images/{}.png", "PNG", {}, [80])),
    "JPEG quality": tuple(("images/{}.jpg", "JPEG", {"quality": quality}, [64]) for quality in (75, 95)),
    "file name": (("images/photo{}.png", *PNG[1:]), ("images/gan_{}.png", *PNG[1:])),
}
OTHERS = {
    "byte size": tuple(("images/{}.webp", "WEBP", {"quality": quality}, [64]) for quality in (95, 30)),
    "chroma subsampling": tuple(("images/{}", "JPEG", {"subsampling": s}, [64]) for s in ("4:4:4", "4:2:0")),
    "JPEG tables": (("images/{}", "JPEG", {"qtables": TABLES}, [64]), ("images/{}", "JPEG", {}, [64])),
    "EXIF": (("images/{}.png", "PNG", {"exif": zoo.exif(1)}, [64]), PNG),
    "ICC profile": (("images/{}.png", "PNG", {"icc_profile": PROFILE}, [64]), PNG),
    "pixel mode": (PNG, (*PNG, "RGBA")),
}


@pytest.mark.parametrize("factor", LEAKS)
def test_a_planted_leak_is_found_and_gone_after_align(tmp_path, factor):
    manifest = dataset(tmp_path / "in", *LEAKS[factor], paired=factor == "format")
    before, findings = audited(manifest, allow=("folder", "history"))
    assert before[factor].value > 0.95
    assert before[TOGETHER].value > 0.95
    assert findings[factor] == findings[TOGETHER] == "SHORTCUT"
    aligned = align(manifest, tmp_path / "out", size="resize64", codec="jpeg", quality=60)
    after, findings = audited(aligned, allow=("folder", "history"))
    assert before.keys() < after.keys()
    assert after[factor].low <= 0.5
    assert after[TOGETHER].low <= 0.5
    assert "SHORTCUT" not in findings.values()
    # what cannot be undone is still said: JPEG before, and how much was scaled away
    lasting = factor in ("format", "dimensions", "JPEG quality")
    assert findings["history"] == ("allowed" if lasting else "clean")
    assert (after["history"].value > 0.9) == lasting
    assert any(line.startswith("history (allowed)") for line in remedies(after.values(), findings, [])) == lasting


@pytest.mark.parametrize("factor", OTHERS)
def test_a_planted_leak_is_found(tmp_path, factor):
    found, findings = audited(dataset(tmp_path, *OTHERS[factor]))
    assert found[factor].value > 0.95
    assert findings[factor] == "SHORTCUT"


def test_names_after_a_digest_say_nothing_and_equal_files_are_clean(tmp_path):
    found, findings = audited(dataset(tmp_path, PNG, PNG, groups=300))  # so many tell it of byte counts, too
    assert set(findings.values()) == {"clean"}
    assert found["format"].value == found["folder"].value == 0.5


def test_a_folder_for_each_class_counts_only_if_asked(tmp_path):
    manifest = dataset(tmp_path, ("0_real/{}.png", *PNG[1:]), ("1_fake/{}.png", *PNG[1:]))
    found, findings = audited(manifest)
    assert found["folder"].value == 1
    assert findings["folder"] == "allowed"
    assert findings[TOGETHER] == "clean"
    assert audited(manifest, allow=())[1][TOGETHER] == "SHORTCUT"
    with pytest.raises(Refusal, match="colour"):
        audited(manifest, allow=("colour",))


def test_byte_counts_of_files_written_alike_come_from_the_picture(tmp_path):
    rows = []
    for g in range(GROUPS):
        for generator, noise in (("real", 40), ("gan", 2)):
            data = zoo.save(scene(2 * g + (noise == 2), noise=noise), "PNG")
            rows.append((f"{generator[0]}{g:03d}.png", f"g{g}", generator, "train", data))
    found, findings = audited(write(tmp_path, rows), allow=("file name",))
    assert found["byte size"].value > 0.95
    assert findings["byte size"] == findings["bytes per pixel"] == "content"
    assert findings[TOGETHER] == "clean"


def test_a_leak_of_one_generator_among_four_is_found(tmp_path):
    rows = []
    for g, (m, generator) in itertools.product(range(GROUPS), enumerate(("real", "a", "b", "c", "d"))):
        kind = "WEBP" if generator == "c" else "PNG"
        data = zoo.save(scene(5 * g + m), kind, **({"lossless": True} if kind == "WEBP" else {}))
        rows.append((f"{np.random.default_rng([g, m]).integers(10**8, 10**9)}", f"g{g}", generator, "train", data))
    manifest = write(tmp_path, rows)
    cells, findings = shortcuts(manifest, examine(manifest), resamples=200)
    found = {(cell.set, cell.generator): cell.value for cell in cells if cell.factor == "format"}
    assert found["", "c"] == 1
    assert found["", "a"] == found["", "b"] == found["", "d"] == 0.5
    assert findings["format"] == "SHORTCUT"
    assert worst(cells, "format").generator == "c"


def test_permuted_labels_are_at_chance(tmp_path):
    manifest = dataset(tmp_path, LEAKS["format"][0], ("images/fake{}.png", "PNG", {}, [64, 70]))
    facts = examine(manifest)
    assert shortcuts(manifest, facts, resamples=50)[1][TOGETHER] == "SHORTCUT"
    for seed in range(4):
        columns = {name: manifest[name] for name in ("path", "group", "split")}
        columns["generator"] = np.random.default_rng(seed).permutation(manifest["generator"])
        permuted = Manifest.of(columns, tmp_path)
        cells, findings = shortcuts(permuted, facts, resamples=200)
        assert "SHORTCUT" not in findings.values()
        assert all(cell.low <= 0.55 and cell.value < 0.68 for cell in cells)


def noted(
    groups: int, fakes: int, seed: int, shifts: dict[str, float], together: bool = True
) -> tuple[Manifest, Facts]:
    """Facts of files that were never written: columns of normal noise, `shifts` higher for fakes; others constant."""
    rng = np.random.default_rng([groups, fakes, seed])
    labels = np.array(["real", *(f"gan{k}" for k in range(fakes))] * groups, object)
    n = len(labels)
    group = np.repeat(np.arange(groups), fakes + 1) if together else np.arange(n)
    words = {"path": [f"{i}.png" for i in range(n)], "group": group.astype(str), "generator": labels}
    words |= {"split": ["train"] * n, **dict.fromkeys(("set", "edit"), [""] * n)}
    manifest = Manifest({name: np.array(list(values), object) for name, values in words.items()})
    columns = {name: np.zeros(n) for name in itertools.chain(*FACTORS.values())}
    columns |= {name: rng.normal(size=n) + shift * manifest.fake for name, shift in shifts.items()}
    nothing = np.full(n, "", object)
    return manifest, Facts(columns | {"lossless": np.zeros(n)}, nothing, nothing, nothing)


@pytest.mark.parametrize("together", [True, False])
def test_a_factor_of_auc_70_is_hardly_ever_clean_however_few_groups(together):
    told = []
    for seed, groups in itertools.product(range(30), (12, 40)):
        told.append(shortcuts(*noted(groups, 1, seed, {"aspect": 0.742}, together), resamples=100)[1]["aspect"])
    assert told.count("clean") <= 1 and told.count("cannot tell") > 45
    many = [shortcuts(*noted(300, 1, s, {"aspect": 0.742}, together), resamples=100)[1] for s in range(5)]
    assert [findings["aspect"] for findings in many].count("SHORTCUT") >= 4


def test_a_factor_at_chance_is_clean_with_many_groups_and_never_a_shortcut():
    """Five factors that vary and three generators: 25 comparisons of noise, of which none may raise an alarm."""
    noise = dict.fromkeys(("log_bytes_per_pixel", "aspect", "jpeg_quality", "has_exif", "has_icc"), 0.0)
    varying = {name for name, columns in FACTORS.items() if set(columns) & set(noise)}
    for groups, least in ((40, 0), (400, 34)):
        told = []
        for seed in range(8):
            cells, findings = shortcuts(*noted(groups, 3, seed, noise), resamples=100)
            assert {findings[name] for name in FACTORS if name not in varying} == {"clean"}  # constant: 40 suffice
            told += [findings[name] for name in varying]
            assert "SHORTCUT" not in findings.values()
            lines = remedies(cells, findings, [])
            assert len(lines) <= 1 and (lines == ["nothing to do"]) == ("cannot tell" not in findings.values())
        assert told.count("clean") >= least and len(told) == 40
    assert "n is too small, the interval of a comparison" in lines[0] or lines == ["nothing to do"]


def test_a_generator_in_few_groups_makes_nothing_clean_that_varies():
    manifest, facts = noted(60, 2, 0, {"aspect": 0.0})
    group = np.where(manifest["generator"] == "gan1", "few", manifest["group"]).astype(object)
    cells, findings = shortcuts(Manifest(manifest.columns | {"group": group}), facts, resamples=100)
    assert [np.isnan(cell.low) for cell in cells if cell.factor == "format"] == [False, False, True]
    assert findings["format"] == "clean" and findings["aspect"] == "cannot tell"
    row = next(row for row in recipe.factor_table(cells, findings) if row[0] == "aspect")
    own = [cell for cell in cells if cell.factor == "aspect" and not np.isnan(cell.low)]
    far = max(own, key=lambda cell: max(cell.high - 0.5, 0.5 - cell.low))
    assert row[2].endswith(f"[{far.low:.3f}, {far.high:.3f}]") and row[4] == "cannot tell"
    assert not far.harmless  # the row shows why


def test_no_group_is_divided_so_that_nothing_is_known_by_heart():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(200), 4).astype(str)
    label = np.repeat(rng.random(200) < 0.5, 4)
    group_number = np.repeat(rng.permutation(200), 4).astype(float)  # says which group, nothing else
    folds = _folds(groups, label, 0)
    assert all(len(set(folds[groups == group])) == 1 for group in groups)
    assert np.bincount(folds).tolist() == [160] * 5
    shares = [label[folds == fold].mean() for fold in range(5)]
    assert max(shares) - min(shares) < 0.06
    assert abs(roc_auc_score(label, predict([group_number], label, folds)) - 0.5) < 0.1
    by_row = predict([group_number], label, np.arange(800) % 5)
    assert roc_auc_score(label, by_row) > roc_auc_score(label, predict([group_number], label, folds)) + 0.05
    text = label.astype(str).astype(object)
    assert roc_auc_score(label, predict([text], label, folds)) == 1


def test_aucs_equal_those_of_resampled_rows():
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 30, 200).astype(str).astype(object)
    fake, p = rng.random(200) < 0.4, rng.integers(0, 6, 200) / 5
    counts, column = leave_out(np.full(200, "", object), groups, 20, 0)
    rows = np.flatnonzero(rng.random(200) < 0.7)
    got = _aucs(p[rows], fake[rows], counts, column[rows])
    for resample in range(len(counts)):
        drawn = np.repeat(rows, counts[resample, column[rows]])
        assert got[resample] == pytest.approx(roc_auc_score(fake[drawn], p[drawn]))


def test_similar_partners_are_those_of_all_pairs():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(60, 8))
    vectors = np.concatenate([base + 0.2 * rng.normal(size=base.shape) for _ in range(40)]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    group, kind = rng.integers(0, 300, len(vectors)), rng.integers(0, 4, len(vectors))
    other, cosine = similar_partners(vectors, group, kind, 0.98)
    expected = []
    for row in range(len(vectors)):
        allowed = (group[:row] != group[row]) & (kind[:row] != kind[row])
        near = np.where(allowed, vectors[:row] @ vectors[row], -1) if row else np.array([-1.0])
        expected.append(int(near.argmax()) if near.max() >= 0.98 else -1)
    assert list(other) == expected
    assert 0.1 < np.mean(other >= 0) < 0.9
    assert cosine[other >= 0].min() >= 0.98


def test_crops_are_found_by_their_features(tmp_path):
    rows = [(f"{n}.png", f"g{n}", ("real", "gan")[n % 2], "train", zoo.save(scene(n), "PNG")) for n in range(8)]
    crop = scene(2).crop((1, 1, 63, 63))
    rows.append(("crop.png", "other", "real", "test", zoo.save(crop, "PNG")))
    write(tmp_path, rows).write(tmp_path / "m.csv")
    config = recipe.Config(
        manifest=(str(tmp_path / "m.csv"),),
        output_dir=tmp_path / "out",
        embedding="tiny",
        similarity=0.995,
        resamples=50,
    )
    with pytest.raises(SystemExit):
        recipe.main(config)
    found = [row for row in read(tmp_path / "out" / "duplicates.csv")[1:] if row[0] == "embedding"]
    assert [(row[2], row[6]) for row in found] == [("crop.png", "2.png")]
    assert 0 < float(found[0][1]) < 0.005


def test_near_partners_are_those_of_all_pairs():
    rng = np.random.default_rng(2)
    hashes = rng.integers(0, 2**63, 60, dtype=np.uint64)
    flipped = []
    for code in np.repeat(hashes, 5):
        bits = rng.choice(64, rng.integers(0, 8), replace=False)
        flipped.append(code ^ np.uint64(sum(1 << int(bit) for bit in bits)))
    hashes = np.concatenate([hashes, np.array(flipped, np.uint64), np.repeat(hashes[:1], 30)])
    group, kind = rng.integers(0, 40, len(hashes)), rng.integers(0, 4, len(hashes))
    other, distance = near_partners(hashes, group, kind, 4)
    found = 0
    for i, code in enumerate(hashes):
        pairs = [((int(code) ^ int(hashes[j])).bit_count(), j) for j in range(i)]
        pairs = [(d, j) for d, j in pairs if d <= 4 and group[i] != group[j] and kind[i] != kind[j]]
        assert (distance[i], other[i]) == (min(pairs) if pairs else (5, -1))
        found += bool(pairs)
    assert found > 100


@pytest.mark.parametrize("kinds", [1, 4])
def test_copies_of_one_picture_are_compared_by_hash_and_not_each_with_each(monkeypatch, kinds):
    """A million pairs of rows come to one of hashes; the partner of a row is the first of another kind."""
    compared = []
    count = np.bitwise_count
    monkeypatch.setattr(np, "bitwise_count", lambda bits: compared.append(bits.size) or count(bits))
    hashes = np.array([5, 4] + [5] * 20_000, np.uint64)
    group, kind = np.arange(len(hashes)), np.arange(len(hashes)) % kinds
    other, distance = near_partners(hashes, group, kind)
    assert sum(compared) <= 5 * 2 * 2  # bands x hashes x hashes
    if kinds == 1:
        assert (other == -1).all()
        return
    rows = np.arange(6, len(hashes))
    assert (distance[rows] == 0).all()
    np.testing.assert_array_equal(other[rows], np.where(kind[rows] == 0, 2, 0))
    assert other[1] == 0 and distance[1] == 1 and other[0] == -1


def test_the_hash_survives_compression_and_scaling_and_nothing_else():
    scenes = [scene(seed, 96, 80) for seed in range(30)]
    codes = [perceptual_hash(image) for image in scenes]
    for image, code in zip(scenes, codes, strict=True):
        jpeg = Image.open(zoo.io.BytesIO(zoo.save(image, "JPEG", quality=50)))
        half, double = (image.resize((w, w * 5 // 6), Image.Resampling.BICUBIC) for w in (48, 192))
        assert all((perceptual_hash(other) ^ code).bit_count() <= 4 for other in (jpeg, half, double))
    apart = [(a ^ b).bit_count() for a, b in itertools.combinations(codes, 2)]
    assert min(apart) > 12
    assert 28 < np.mean(apart) < 36
    assert perceptual_hash(Image.new("RGB", (64, 64), "grey")) is None


def test_the_same_picture_in_two_places_is_found(tmp_path):
    def of(seed):
        return scene(seed, 80, 80)

    half = of(3).resize((40, 40), Image.Resampling.LANCZOS)
    manifest = write(
        tmp_path,
        [
            ("0.png", "a", "real", "train", zoo.save(of(0), "PNG")),
            ("1.png", "b", "real", "train", zoo.save(of(1), "PNG")),
            ("2.png", "c", "gan", "train", zoo.save(of(2), "PNG")),
            ("3.png", "d", "real", "train", zoo.save(of(3), "PNG")),
            ("4.bmp", "e", "real", "test", zoo.save(of(0), "BMP")),  # same pixels, another container and split
            ("5.jpg", "f", "real", "val", zoo.save(of(1), "JPEG", quality=60)),  # compressed again
            ("6.png", "g", "real", "train", zoo.save(half, "PNG")),  # same split and label: no leak
            ("7.jpg", "c", "real", "train", zoo.save(of(2), "JPEG", quality=60)),  # a fake's own photograph
            ("8.png", "h", "gan", "train", zoo.save(half, "PNG", compress_level=1)),  # scaled, another label
            ("9.webp", "i", "real", "test", zoo.save(of(9), "WEBP", lossless=True)),  # no relation
            ("10.png", "c", "real", "train", zoo.save(of(2), "PNG", compress_level=1)),  # a fake's very pixels
            ("11.png", "j", "real", "test", zoo.save(np.zeros((64, 64, 3), np.uint8), "PNG")),
            ("12.png", "k", "gan", "train", zoo.save(np.full((64, 64, 3), 3, np.uint8), "PNG")),  # even pictures
            ("13.png", "l", "real", "test", b"not an image"),
            ("14.png", "m", "gan", "train", b"not an image either"),
        ],
    )
    facts = examine(manifest)
    assert list(facts.reason[13:]) == ["not-an-image"] * 2
    found = twins(manifest, facts.pixels, facts.hashes)
    assert [(twin.kind, twin.row, twin.other) for twin in found] == [
        ("pixels", 4, 0),
        ("near", 5, 1),
        ("pixels", 8, 6),
        ("pixels", 10, 2),
    ]
    assert facts.pixels[4] == pixel_digest(of(0))
    lines = remedies([], {}, found)
    assert [line.split(": ")[1].split(";")[0] for line in lines] == ["3 rows", "1 rows"]


def test_balance_counts_every_row_once(planted):
    manifest = Manifest.read(planted)
    facts = examine(manifest)
    header, *rows = balance(manifest, facts)
    numbers = np.array([[int(cell) for cell in row[2:]] for row in rows])
    assert header[2:5] + header[7:] == ["real", "processed real", "fake", "unreadable"]
    assert numbers[:, [0, 1, 2, 5]].sum() == len(manifest)
    assert numbers[:, 2].sum() == manifest.fake.sum()
    assert numbers[:, 3].sum() == len(manifest.groups())


def read(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_the_recipe_says_what_to_do_and_every_run_says_it_again(tmp_path, monkeypatch, capsys):
    dirty, clean = dataset(tmp_path / "dirty", *LEAKS["format"]), dataset(tmp_path / "clean", PNG, PNG)
    (tmp_path / "dirty" / "images").joinpath(Path(dirty["path"][0]).name).write_bytes(b"")
    for name, manifest in (("dirty", dirty), ("clean", clean)):
        manifest.write(tmp_path / name / "manifest.csv")

    def config(name):  # of files only: 40 groups cannot tell of what varies in pixels, see test_pixels.py
        manifest, out = tmp_path / name / "manifest.csv", tmp_path / f"audit-{name}"
        return recipe.Config(manifest=(str(manifest),), output_dir=out, resamples=50, pixels=0)

    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    assert finding_of(dirty).startswith("NONE")
    with pytest.raises(SystemExit) as end:
        recipe.main(config("dirty"))
    assert end.value.code == 1
    assert re.fullmatch(r"FOUND on [0-9-]{10}: .*format: AUC 1\.000.*", finding_of(dirty))
    assert "file name" not in finding_of(dirty)  # allowed: no model of this package sees names
    out = tmp_path / "audit-dirty"
    page = (out / "table.md").read_text()
    assert "**Shortcuts or leaks found.**" in page
    assert "- format: AUC 1.000; run \\`adapt align\\`: one decoder" in page
    assert f"- {dirty['path'][0]}: not-an-image" in page
    header, *rows = read(out / "audit.csv")
    row = dict(zip(header, next(row for row in rows if row[2] == "format"), strict=True))
    assert (float(row["value"]), row["n_real"], row["n_fake"]) == (1.0, str(GROUPS - 1), str(GROUPS))
    assert row["finding"] == "SHORTCUT"
    record = json.loads((out / "provenance.json").read_text())
    assert record["clean"] is False
    assert record["unreadable"] == [[dirty["path"][0], "not-an-image"]]
    with Image.open(out / "figures" / "shortcuts.png") as picture:
        assert picture.size[0] > 500

    keep_finding(dirty, ["cannot tell of aspect: n is too small"])  # as a record of another version says it
    assert re.fullmatch(r"CANNOT TELL on [0-9-]{10}: cannot tell of aspect: n is too small", finding_of(dirty))
    keep_finding(dirty, ["format: AUC 1.000; run it", "cannot tell of aspect: n is too small"])
    assert finding_of(dirty).startswith("FOUND on ")

    recipe.main(config("clean"))  # status 0
    assert finding_of(clean).startswith("clean on ")
    require_classes(clean)
    assert "audit" not in capsys.readouterr().err
    require_classes(dirty)
    assert "audit: FOUND" in capsys.readouterr().err
    next((tmp_path / "cache" / "audits").glob(f"{clean.digest}*")).write_text("{")
    assert finding_of(clean).startswith("NONE")
    assert "**Clean.**" in (tmp_path / "audit-clean" / "table.md").read_text()
    assert read(tmp_path / "audit-clean" / "duplicates.csv")[1:] == []


def test_several_processes_find_what_one_finds(tmp_path):
    manifest = dataset(tmp_path, *LEAKS["format"]).select(np.arange(12))
    (tmp_path / manifest["path"][3]).write_bytes(b"")
    one, two = examine(manifest), examine(manifest, processes=2)
    assert one.columns.keys() == two.columns.keys()
    for name in one.columns:
        np.testing.assert_array_equal(one.columns[name], two.columns[name])
    assert list(one.reason) == list(two.reason) == [""] * 3 + ["not-an-image"] + [""] * 8
    assert list(one.hashes) == list(two.hashes)
    assert one.pixels[3] == "" and one.hashes[3] is None


def test_one_class_alone_is_refused(tmp_path):
    manifest = dataset(tmp_path, PNG, PNG)
    reals = manifest.select(~manifest.fake)
    with pytest.raises(Refusal, match="rows of both"):
        shortcuts(reals, examine(reals))
