import io

import numpy as np
import pytest
import zoo
from PIL import Image
from sklearn.metrics import roc_auc_score

from adapt.audit.metadata import describe, metadata_logits
from adapt.data.images import Unreadable
from adapt.data.jpeg import jpeg_tables
from adapt.data.manifest import Manifest
from adapt.errors import Refusal


def described(tmp_path, data: bytes) -> dict[str, float]:
    (tmp_path / "x").write_bytes(data)
    return describe(tmp_path / "x")


def jpeg(**options) -> bytes:
    return zoo.save(zoo.picture(), "JPEG", **options)


def test_every_jpeg_quality_is_found_exactly(tmp_path):
    lum = Image.fromarray(zoo.picture()).convert("L")
    for quality in range(1, 101):
        data = jpeg(quality=quality)
        assert described(tmp_path, data)["jpeg_quality"] == quality
        assert described(tmp_path, zoo.save(lum, "JPEG", quality=quality))["jpeg_quality"] == quality
        tables = Image.open(io.BytesIO(data)).quantization
        np.testing.assert_array_equal(jpeg_tables(quality), [tables[0], tables[1]])


def test_foreign_tables_give_the_nearest_quality(tmp_path):
    tables = [jpeg_tables(70)[0].tolist(), jpeg_tables(70)[1].tolist()]
    tables[0][5] += 1
    assert described(tmp_path, jpeg(qtables=tables))["jpeg_quality"] == 70


@pytest.mark.parametrize(("sampling", "code"), [("4:4:4", 0), ("4:2:2", 1), ("4:2:0", 2)])
def test_chroma_sampling(tmp_path, sampling, code):
    assert described(tmp_path, jpeg(subsampling=sampling))["subsampling"] == code


def test_header_of_each_format(tmp_path):
    kinds = {"rgb.png": "png", "rgb.jpg": "jpeg", "pages.mpo.jpg": "jpeg", "rgb.webp": "webp"}
    kinds |= {"palette.gif": "gif", "rgb.bmp": "bmp", "rgb.tiff": "tiff"}
    for name, kind in kinds.items():
        data = zoo.files()[name][0]
        row = described(tmp_path, data)
        assert [key for key, value in row.items() if key.startswith("is_") and value] == [f"is_{kind}"]
        assert (row["width"], row["height"], row["aspect"]) == (zoo.W, zoo.H, zoo.W / zoo.H)
        assert row["log_bytes"] == pytest.approx(np.log(len(data)))
        assert np.isnan(row["jpeg_quality"]) == (kind != "jpeg")
        assert row["has_exif"] == 0
        assert all(type(value) is float for value in row.values())
    assert described(tmp_path, zoo.files()["orientation6.jpg"][0])["has_exif"] == 1
    assert described(tmp_path, zoo.files()["orientation6.png"][0])["has_exif"] == 1


def test_no_file_of_the_zoo_raises_anything_but_unreadable(tmp_path):
    for data, expected in zoo.files().values():
        try:
            row = described(tmp_path, data)
        except Unreadable:
            assert isinstance(expected, str)
        else:
            assert row["width"] >= 16


def dataset(folder, real: tuple, fake: tuple, count: int = 40) -> Manifest:
    """`count` real and fake images, half of them in train; `real` and `fake` are (Pillow format, options)."""
    columns = {name: [] for name in ("path", "group", "generator", "split")}
    for number in range(count):
        for seed, (generator, (kind, options)) in enumerate([("real", real), ("gan", fake)]):
            name = f"{generator}{number}.bin"
            data = zoo.save(zoo.picture(seed=2 * number + seed), kind, **options)
            (folder / name).write_bytes(data)
            row = (name, f"g{number}", generator, "train" if number % 2 else "test")
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
    return Manifest.of(columns, folder)


PLAIN = ("PNG", {"compress_level": 0})  # stored: every picture has the same number of bytes


@pytest.mark.parametrize(
    ("real", "fake"),
    [
        (("JPEG", {}), PLAIN),
        (("JPEG", {"quality": 90}), ("JPEG", {"quality": 80})),
        (("JPEG", {"subsampling": "4:4:4"}), ("JPEG", {})),
        (("PNG", {"compress_level": 0, "exif": zoo.exif(1)}), PLAIN),
    ],
)
def test_a_planted_leak_is_found(tmp_path, real, fake):
    manifest = dataset(tmp_path, real, fake)
    test = (manifest["split"] == "test").astype(bool)
    assert roc_auc_score(manifest.fake[test], metadata_logits(manifest)[test]) == 1


def test_equal_files_leave_nothing_to_find(tmp_path):
    manifest = dataset(tmp_path, PLAIN, PLAIN)
    logits = metadata_logits(manifest)
    np.testing.assert_allclose(logits, 0, atol=1e-9)
    assert roc_auc_score(manifest.fake, logits) == 0.5


def test_logits_are_finite_and_unreadable_rows_are_nan(tmp_path):
    manifest = dataset(tmp_path, ("JPEG", {}), PLAIN, count=10)
    (tmp_path / "gan0.bin").write_bytes(b"")
    (tmp_path / "real3.bin").unlink()
    logits = metadata_logits(manifest)
    lost = np.isin(manifest["path"].astype(str), ["gan0.bin", "real3.bin"])
    np.testing.assert_array_equal(np.isnan(logits), lost)
    assert (np.sign(logits[~lost]) == np.where(manifest.fake[~lost], 1, -1)).all()


def test_names_play_no_part(tmp_path):
    manifest = dataset(tmp_path, ("JPEG", {}), PLAIN, count=10)
    before = metadata_logits(manifest)
    columns = {name: manifest[name].copy() for name in ("path", "group", "generator", "split")}
    for row, path in enumerate(manifest["path"]):
        columns["path"][row] = f"{len(manifest) - row:03d}.jpeg"
        (tmp_path / path).rename(tmp_path / columns["path"][row])
    np.testing.assert_array_equal(metadata_logits(Manifest.of(columns, tmp_path)), before)


def test_a_train_split_of_one_class_is_refused(tmp_path):
    manifest = dataset(tmp_path, PLAIN, PLAIN, count=4)
    with pytest.raises(Refusal, match="real and fake images in split train"):
        metadata_logits(manifest.select(~((manifest["split"] == "train") & manifest.fake).astype(bool)))
