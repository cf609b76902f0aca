import csv
from pathlib import Path

import numpy as np
import pytest

import adapt.data.families as module
from adapt.data.families import read_families
from adapt.data.manifest import Manifest
from adapt.errors import Refusal

DEFAULT = Path(module.__file__).with_name("families.csv")


def table(folder, *rows: tuple[str, str], header: str = "generator,family") -> Path:
    path = folder / "families.csv"
    path.write_text("\n".join([header, *(f"{generator},{family}" for generator, family in rows)]) + "\n")
    return path


def manifest(folder, *rows: tuple[str, str]) -> Manifest:
    columns = {
        "path": [f"{n}.png" for n in range(len(rows))],
        "group": [str(n) for n in range(len(rows))],
        "generator": [generator for generator, _ in rows],
        "split": ["test"] * len(rows),
        "family": [family for _, family in rows],
    }
    return Manifest.of(columns, folder)


def test_the_built_in_table_is_sound():
    with DEFAULT.open(newline="") as file:
        rows = list(csv.DictReader(file))
    families = read_families()
    assert len(families.table) == len(rows)  # no generator twice, however it is spelt
    assert [families.of(row["generator"]) for row in rows] == [row["family"] for row in rows]
    fakes = ("gan", "latent_diffusion", "pixel_diffusion", "autoregressive", "commercial")
    assert families.names == ("real", *fakes, "super_resolution", "autoencoder", "other")


def test_well_known_generators_have_their_family():
    families = read_families()
    known = {
        "real": "real",
        "ProGAN": "gan",
        "stable_diffusion_v1_4": "latent_diffusion",
        "CompVis/stable-diffusion-v1-4": "latent_diffusion",
        "DeepFloyd/IF-II-L-v1.0": "pixel_diffusion",
        "ADM": "pixel_diffusion",
        "glide": "pixel_diffusion",
        "VAR": "autoregressive",
        "midjourney-v5": "commercial",
        "dalle3": "commercial",
        "firefly": "commercial",
        "srgan_x2": "super_resolution",
        "taef2": "autoencoder",
    }
    assert {generator: families.of(generator) for generator in known} == known


def test_numbers_follow_names():
    families = read_families()
    numbers = families.numbers(["real", "ProGAN", "never heard of", "real"])
    np.testing.assert_array_equal(numbers, [0, 1, len(families.names) - 1, 0])
    assert [families.names[n] for n in numbers] == ["real", "gan", "other", "real"]


def test_unknown_generators_are_other_and_are_listed_once():
    families = read_families()
    assert families.of("never heard of") == "other"
    assert families.unknown(["zzz", "real", "ProGAN", "aaa", "zzz"]) == ["zzz", "aaa"]


def test_spelling_does_not_matter_but_letters_do():
    families = read_families()
    assert families.of("style gan_2") == families.of("StyleGAN2") == "gan"
    assert families.of("StyleGAN22") == "other"


def test_names_without_letters_do_not_collide(tmp_path):
    families = read_families(table(tmp_path, ("???", "a"), ("!!!", "b")))
    assert (families.of("???"), families.of("!!!"), families.of("...")) == ("a", "b", "other")


def test_a_users_table_overrides_and_adds(tmp_path):
    families = read_families(table(tmp_path, ("progan", "old_gan"), ("mine", "new_kind"), ("real", "real")))
    assert families.of("ProGAN") == "old_gan"
    assert families.of("StyleGAN") == "gan"
    assert families.of("REAL") == "other"  # only the exact word is a camera image
    assert families.names[0] == "real" and families.names[-2:] == ("new_kind", "other")
    assert len(set(families.names)) == len(families.names)


def test_other_may_be_chosen_and_stays_last(tmp_path):
    families = read_families(table(tmp_path, ("ProGAN", "other"), ("mine", "zebra")))
    assert families.of("ProGAN") == "other"
    assert families.names.index("other") == len(families.names) - 1
    assert families.unknown(["ProGAN"]) == []


def test_the_manifests_column_stands_between_the_two(tmp_path):
    rows = manifest(tmp_path, ("real", ""), ("ProGAN", "mid"), ("StyleGAN", "mid"), ("BigGAN", ""))
    families = read_families(table(tmp_path, ("StyleGAN", "top")), rows)
    assert [families.of(name) for name in ("ProGAN", "StyleGAN", "BigGAN")] == ["mid", "top", "gan"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("x", "a"), ("y", "b"), ("X ", "b")], "is in 'a' and in 'b'"),
        ([("real", "gan")], "generator 'real' in family 'gan'"),
        ([("mine", "real")], "generator 'mine' in family 'real'"),
        ([("mine", "")], "empty cell"),
        ([("", "gan")], "empty cell"),
    ],
)
def test_refusals_name_the_file_and_the_values(tmp_path, rows, said):
    with pytest.raises(Refusal, match=said) as caught:
        read_families(table(tmp_path, *rows))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_same_pair_twice_is_no_contradiction(tmp_path):
    assert read_families(table(tmp_path, ("x", "a"), ("x", "a"))).of("x") == "a"


def test_a_manifest_that_contradicts_itself_is_refused(tmp_path):
    with pytest.raises(Refusal, match="the manifest: generator 'x' is in 'a' and in 'b'"):
        read_families(manifest=manifest(tmp_path, ("x", "a"), ("x", "b")))


def test_missing_table_and_wrong_columns(tmp_path):
    with pytest.raises(Refusal, match=r"no table of families .*none\.csv"):
        read_families(tmp_path / "none.csv")
    with pytest.raises(Refusal, match="columns generator, kind instead of generator,family"):
        read_families(table(tmp_path, ("x", "a"), header="generator,kind"))
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(Refusal, match="columns none instead"):
        read_families(tmp_path / "empty.csv")
