"""The commands of the table of data sets, each run on a miniature of the layout that it is for."""

import csv
import importlib
import io
import json
import os
import re
import shlex
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zoo
from PIL import Image

from adapt import cli
from adapt.collect.sources import genimage, hub, real_fake, table, tree, webdataset
from adapt.commands import prepare
from adapt.data.manifest import Manifest
from adapt.data.rows import SPLITS
from adapt.errors import Refusal

ROOT = Path(__file__).parents[2]
PNG = zoo.save(zoo.picture(), "PNG")


def make(*names: str) -> None:
    """Image files in the current folder, whose bytes differ."""
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG + os.fsencode(name))


def write(path: str, *lines: tuple[str, ...], delimiter: str = ",") -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(lines)


def mask(name: str, changed: str = "part", black: bool = False) -> bytes:
    """A mask of the size of `PNG`'s picture as a file's bytes; under a name it is written, too."""
    with Image.open(io.BytesIO(PNG)) as image:
        pixels = np.zeros(image.size[::-1], np.uint8)
    pixels[: {"none": 0, "part": 5, "all": None}[changed]] = 255
    data = zoo.save(Image.fromarray(255 - pixels if black else pixels), "PNG")
    if name:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(data)
    return data


def parquet(folder: str, columns: dict, types: dict | None = None) -> None:
    """One Parquet file as a set at the hub has it, with the types of its columns in its metadata."""
    from datasets import Dataset, Features
    from datasets import Image as Picture

    images = {name for name, cells in columns.items() if isinstance(cells[0], bytes)}
    cells = {name: [{"bytes": cell, "path": None} for cell in column] if name in images else column
             for name, column in columns.items()}  # fmt: skip
    features = Dataset.from_dict({name: cells[name] for name in columns if name not in images}).features
    kinds = {name: Picture() if name in images else (types or {}).get(name, features.get(name)) for name in columns}
    Path(folder).mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(cells, features=Features(kinds)).to_parquet(f"{folder}/test-00000-of-00001.parquet")


def pairs(*folders: str, names: tuple[str, ...] = ("0_real", "1_fake"), of: int = 3) -> None:
    make(*(f"{folder}/{name}/{i}.png" for folder in folders for name in names for i in range(of)))


def forensynths() -> None:
    pairs("data/ForenSynths/train/car", "data/ForenSynths/train/train", "data/ForenSynths/val/car")
    pairs("data/ForenSynths/test/progan/car", "data/ForenSynths/test/biggan")


def ufd() -> None:
    root = "data/diffusion_datasets"
    make(f"{root}/imagenet/0_real/1.png", f"{root}/laion/0_real/1.png")
    make(f"{root}/guided/1_fake/1.png", f"{root}/dalle/1_fake/1.png")


def aigibench() -> None:
    root = "data/AIGIBench"
    pairs(*(f"{root}/train/{name}" for name in ("car", "cat", "chair", "horse", "sdv1.4")))
    pairs(f"{root}/val/car", f"{root}/test/ProGAN", f"{root}/test/Midjourney-V6")


def wildrf() -> None:
    pairs("data/WildRF/train", "data/WildRF/val", "data/WildRF/test/reddit", "data/WildRF/test/twitter")


def rrdataset() -> None:
    pairs(*(f"data/RRDataset_final/{kind}" for kind in ("original", "redigital", "transfer")), names=("real", "ai"))


def archives() -> None:
    for archive in genimage.ARCHIVES:
        pairs(f"data/GenImage/{archive}/train", f"data/GenImage/{archive}/val", names=("nature", "ai"), of=2)


def diffusion_forensics() -> None:
    for split in SPLITS:
        root = f"data/DiffusionForensics/images/{split}"
        make(
            f"{root}/imagenet/real/n01440764/1.png", f"{root}/imagenet/adm/0/1.png", f"{root}/lsun_bedroom/real/2.png"
        )
        make(*[f"{root}/lsun_bedroom/{name}/3.png" for name in ("adm", "iddpm")])


def drct() -> None:
    for split in ("train2017", "val2017"):
        make(*(f"data/DRCT/MSCOCO/{split}/{split}_{i:012d}.jpg" for i in range(4)))
        for generator in ("stable-diffusion-v1-4", "sdxl-turbo"):
            make(*(f"data/DRCT/DRCT-2M/images/{generator}/{split}/{split}_{i:012d}.png" for i in range(4)))


def bfree() -> None:
    for i in range(40):
        make(f"data/B-Free/COCO_real_512/{i:08d}.png", f"data/B-Free/SD2.1_selfconditioned/{i:08d}.png")
        make(f"data/B-Free/SD2.1_inpainted_samecat/{i:08d}.png")
    make("data/B-Free/mask/00000000.png")


def truefake() -> None:
    make("data/TrueFake/PreSocial/Real/FORLAB/1.png", "data/TrueFake/PreSocial/Fake/FLUX.1/animals/1.png")
    make("data/TrueFake/PostSocial/Telegram/Real/FORLAB/1.png")
    make("data/TrueFake/PostSocial/Telegram/Fake/FLUX.1/animals/1.png")


def wildfake() -> None:
    make("data/WildFake/Images/Real/coco/1.png", "data/WildFake/Images/Diffusion_based/DALLE/Advanced/DALLE3/1.png")
    make("data/WildFake/Images/GAN_based/StyleGAN/1.png")


def spai() -> None:
    for name in ("raise", "dalle3", "flux"):
        make(*(f"data/{name}/{i}.png" for i in range(3)))
        write(f"{name}.csv", ("image", "class", "split"), *((f"{name}/{i}.png", "1", "test") for i in range(3)))


def ntire() -> None:
    for shard in ("shard_0", "shard_1"):
        make(*(f"data/ntire/{shard}/images/{i}.jpg" for i in range(4)))  # the same names in each
        lines = [(str(i), f"{i}.jpg", str(i % 2)) for i in range(4)]
        write(f"data/ntire/{shard}/labels.csv", ("", "image_name", "label"), *lines)


def artifact() -> None:
    for generator, target in (("coco", 0), ("stylegan2", 6), ("glide", 1)):
        make(*(f"data/ArtiFact/{generator}/part1/{i}.png" for i in range(2)))
        lines = [(f"{i}.png", f"part1/{i}.png", target, "x") for i in range(2)]
        write(f"data/ArtiFact/{generator}/metadata.csv", ("filename", "image_path", "target", "category"), *lines)


def deepfake_eval() -> None:
    make(*(f"data/dfe/image-data/{i}.png" for i in range(5)))
    kinds = (("Real", "Train"), ("Fake", "Train"), ("Real", "Test"), ("Fake", "Test"), ("Unknown", "Test"))
    lines = [(f"{i}.png", *kind) for i, kind in enumerate(kinds)]
    write("data/dfe/image-metadata-publish.csv", ("Filename", "Ground Truth", "Finetuning Set"), *lines)


def opensdi() -> None:
    from datasets import ClassLabel

    cells = [zoo.save(zoo.picture(seed=i), "PNG") for i in range(4)]
    masks = [mask("", changed) for changed in ("none", "part", "all", "none")]
    columns = {"key": list("abcd"), "image": cells, "mask": masks, "label": [0, 1, 1, 1]}
    parquet("nebula/OpenSDI_test", columns, {"label": ClassLabel(names=["real", "fake"])})


def so_fake() -> None:
    cells = [zoo.save(zoo.picture(seed=i), "PNG") for i in range(4)]
    columns = {"id": list("abcd"), "image": cells, "label": ["real", "full_synthetic", "tampered", "tampered"]}
    columns |= {"mask": [mask("", changed) for changed in ("none", "all", "part", "part")]}
    parquet("saberzl/So-Fake-OOD", columns | {"generator": ["", "gpt-4o", "flux", "a\nb"]})


def nist16() -> None:
    root = "data/NC2016_Test0613"
    for i in range(2):
        make(f"{root}/probe/NC2016_{i}.png")
        mask(f"{root}/mask/manipulation/NC2016_{i}_gt.png", black=True)
    make(f"{root}/probe/NC2016_9.png")
    lines = [("manipulation", f"probe/NC2016_{i}.png", f"mask/manipulation/NC2016_{i}_gt.png", "Y") for i in range(2)]
    header = ("TaskID", "ProbeFileName", "ProbeMaskFileName", "IsTarget")
    name = f"{root}/reference/manipulation/NC2016-manipulation-ref.csv"
    write(name, header, *lines, ("manipulation", "probe/NC2016_9.png", "", "N"), delimiter="|")


def commercial() -> None:
    made = ("real", "dalle2", "dalle3", "firefly", "midjourney-v5")
    names = [(f"{generator}/r{i}.png", generator) for generator in made for i in range(2)]
    make(*(f"data/{name}" for name, _ in names))
    write("commercial_tools.csv", ("filename", "typ"), *names)


# set -> its miniature, and what the manifest must hold: set/generator/edit and splits -> images, and what is lost
Counts = dict[tuple[str, ...], int]
MINIATURES: dict[str, tuple[Callable[[], None], set[tuple[str, str, str]], dict[str, int]]] = {
    "ForenSynths": (
        forensynths,
        {(f"ForenSynths/{top}", name, split) for top in ("progan", "biggan") for name in ("real", top)
         for split in SPLITS if top == "progan" or split == "test"},
        {},
    ),
    "UniversalFakeDetect": (
        ufd,
        {(f"diffusion_datasets/{reals}", name, "test") for reals, fake in (("imagenet", "guided"), ("laion", "dalle"))
         for name in ("real", fake)},
        {},
    ),
    "AIGIBench": (
        aigibench,
        {(f"AIGIBench/{top}", name, split)
         for top, splits in (("ProGAN", SPLITS), ("sdv1.4", ("train",)), ("Midjourney-V6", ("test",)))
         for name in ("real", top) for split in splits},
        {},
    ),
    "WildRF": (
        wildrf,
        {(f"WildRF{site}", name, split)
         for site, split in (("", "train"), ("", "val"), ("/reddit", "test"), ("/twitter", "test"))
         for name in ("real", "wildrf-fake")},
        {},
    ),
    "Chameleon": (
        lambda: pairs("data/Chameleon/test"),
        {("Chameleon", name, "test") for name in ("real", "Chameleon-fake")},
        {},
    ),
    "ITW-SM": (
        lambda: pairs("data/itw-sm"),
        {("itw-sm", name, "test") for name in ("real", "itw-sm-fake")},
        {},
    ),
    "RRDataset": (
        rrdataset,
        {(f"RRDataset_final/{kind}", name, "test")
         for kind in ("original", "redigital", "transfer") for name in ("real", kind)},
        {},
    ),
    "GenImage": (
        archives,
        {(f"genimage/{made}", name, split) for made in genimage.ARCHIVES.values() for name in ("real", made)
         for split in ("train", "test")},
        {},
    ),
    "DiffusionForensics": (
        diffusion_forensics,
        {(f"images/{of}", name, split) for of, made in (("imagenet", ("adm",)), ("lsun_bedroom", ("adm", "iddpm")))
         for name in ("real", *made) for split in SPLITS},
        {},
    ),
    "DRCT-2M + MSCOCO": (
        drct,
        {("DRCT", name, split) for name in ("real", "stable-diffusion-v1-4", "sdxl-turbo")
         for split in ("train", "test")},
        {},
    ),
    "B-Free, training": (
        bfree,
        {("B-Free", name, split) for name in ("real", "selfconditioned", "inpainted_samecat")
         for split in SPLITS},
        {"not-in-layout": 1},
    ),
    "TrueFake": (truefake, set(), {}),
    "WildFake": (wildfake, set(), {}),
    "MNW": (
        lambda: make("data/MNW/AI_Images/Adobe_Firefly_4/1.jpg", "data/MNW/AI_media_in_the_wild/Image/2.jpg"),
        {("MNW", "Adobe_Firefly_4", "test")},
        {"not-in-layout": 1},
    ),
    "commercial_tools.csv": (
        commercial,
        {("commercial_tools", name, "test") for name in ("real", "dalle2", "dalle3", "firefly", "midjourney-v5")},
        {},
    ),
    "SPAI": (spai, set(), {}),
    "NTIRE 2026": (ntire, set(), {}),
    "ArtiFact": (artifact, set(), {}),
    "Deepfake-Eval-2024": (
        deepfake_eval,
        {("image-metadata-publish", name, split) for name in ("real", "image-metadata-publish-fake")
         for split in ("train", "test")},
        {"other-label": 1},
    ),
    "OpenSDI": (opensdi, {("OpenSDI_test", name, "test") for name in ("real", "sd3")}, {"mask-empty": 1}),
    "So-Fake": (
        so_fake,
        {("So-Fake-OOD", name, "test") for name in ("real", "gpt-4o", "flux")},
        {"bad-label": 1},
    ),
    "NIST16": (nist16, {("NC2016-manipulation-ref", "real", "test")}, {}),
}  # fmt: skip
MADE = {  # where splits are drawn, which generators each set has is all that is known
    "TrueFake": {(f"TrueFake{site}", name) for site in ("", "/Telegram") for name in ("real", "FLUX.1")},
    "WildFake": {("Images", "real"), ("Images/Diffusion", "DALLE"), ("Images/GAN", "StyleGAN")},
    "SPAI": {("here", "real"), ("here", "dalle3"), ("here", "flux")},
    "NTIRE 2026": {("ntire", "real"), ("ntire", "ntire-fake")},
    "ArtiFact": {("artifact", "real"), ("artifact", "stylegan2"), ("artifact", "glide")},
}  # fmt: skip
ELSEWHERE = {  # sets whose own tests run them, on miniatures with a server or on folders of any kind
    *("ELSA_D3", "Synthbuster + RAISE-1k", "AID layout, your own", "B-Free, viral set", "SynthWildX"),
    *("Community Forensics", "OpenFake", "other sets of the hub", "WebDataset tar files"),
    "CASIA, Columbia, COVERAGE, IMD2020; BR-Gen and others by patterns",
}


def documented() -> dict[str, list[str]]:
    """Set -> the words behind `adapt prepare` in the table of data sets."""
    found = {}
    for line in (ROOT / "adapt/collect/README.md").read_text(encoding="utf-8").splitlines():
        cells = line.split(" | ")
        if line.startswith("| ") and len(cells) > 4 and cells[1].startswith("`"):
            found[cells[0][2:]] = shlex.split(re.sub(r"`|\[--matched\]", "", cells[1]))
    return found


COMMANDS = documented()


def test_every_set_of_the_table_is_run() -> None:
    assert COMMANDS.keys() == MINIATURES.keys() | ELSEWHERE


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_parses(name) -> None:
    source, *words = COMMANDS[name]
    module = importlib.import_module(f"adapt.collect.sources.{source}")
    assert isinstance(cli.parse(module.Source, words), module.Source)


@pytest.mark.parametrize("name", MINIATURES)
def test_the_command_reads_the_layout(name, tmp_path, monkeypatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    miniature, expected, missing = MINIATURES[name]
    miniature()
    source, *words = COMMANDS[name]
    words = [file for word in words for file in ([word] if "*" not in word else sorted(map(str, here.glob(word))))]
    words = [word for word in words if not word.startswith("test_image")]  # a folder's one split is `test`
    words = [word for word in words if word not in ("--hub_split", "sd3")] if name == "So-Fake" else words
    if name == "OpenSDI":
        del words[words.index("--hub_split") : words.index("--hub_split") + 2]
    module = importlib.import_module(f"adapt.collect.sources.{source}")
    path = cli.parse(module.Source, words).prepare()
    found = Manifest.read(path)
    triples = set(zip(found["set"], found["generator"], found["split"], strict=True))
    if name in MADE:
        assert {triple[:2] for triple in triples} == MADE[name]
    elif name == "GenImage":  # val is drawn from train
        assert {triple for triple in triples if triple[2] != "val"} >= {t for t in expected if t[2] == "test"}
        assert {triple[:2] for triple in triples} == {triple[:2] for triple in expected}
    else:
        assert triples == expected | {t for t in triples if t[2] == "val" and (*t[:2], "train") in expected}
    with path.with_suffix(".lost.csv").open() as file:
        lost = Counter(row["reason"] for row in csv.DictReader(file))
    assert lost == missing


def test_masks_of_tables_and_of_the_hub_stand_beside_their_images(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    nist16()
    words = COMMANDS["NIST16"][1:]
    found = Manifest.read(cli.parse(table.Source, words).prepare())
    edits = dict(zip(found["path"], zip(found["edit"], found["mask"] != "", strict=True), strict=True))
    assert edits == {"probe/NC2016_0.png": ("nist16", True), "probe/NC2016_1.png": ("nist16", True),
                     "probe/NC2016_9.png": ("", False)}  # fmt: skip
    with Image.open(found.mask_files[np.flatnonzero(found["mask"] != "")[0]]) as image:
        pixels = np.asarray(image)
    assert (pixels[:5] == 255).all() and not pixels[5:].any()  # white where it was changed
    so_fake()
    path = hub.Source(repo="saberzl/So-Fake-OOD", output=Path("s/m.csv"), split="test", set="s").prepare()
    found = Manifest.read(path)
    assert dict(zip(found["generator"], found["mask"] != "", strict=True)) == {
        "real": False, "gpt-4o": False, "flux": True,
    }  # fmt: skip


# --- what must be refused or said ------------------------------------------------------------------------------------


def test_two_archives_of_one_generator_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    pairs("G/SD/imagenet_ai_0419_sdv4/val", "G/SD/imagenet_ai_0424_sdv5/val", names=("nature", "ai"))
    with pytest.raises(Refusal, match=r"SD/imagenet_ai_0419_sdv4 and SD/imagenet_ai_0424_sdv5 .* generator 'SD'"):
        genimage.Source(folder=Path("G")).prepare()
    pairs("H/imagenet_DALLE2/val", "H/imagenet_glide/val", names=("nature", "ai"))
    assert set(Manifest.read(genimage.Source(folder=Path("H")).prepare())["generator"]) == {"real", "DALLE2", "glide"}


def test_object_classes_are_progan_s_only_where_they_stand_for_generators(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    pairs(*(f"progan_train/{name}" for name in ("airplane", "bird", "train", "tvmonitor")))
    found = Manifest.read(real_fake.Source(folder=Path("progan_train")).prepare())
    assert set(found["generator"]) == {"real", "progan"} and set(found["set"]) == {"progan_train/progan"}
    assert "airplane, bird, train, tvmonitor: classes of ProGAN's training images" in capsys.readouterr().out
    pairs("mine/cat", "mine/sdxl")  # two folders of one's own
    assert set(Manifest.read(real_fake.Source(folder=Path("mine")).prepare())["generator"]) == {"real", "cat", "sdxl"}
    pairs("other/train/cat")
    named = real_fake.Source(folder=Path("other"), generator="sdxl", split="train")
    assert set(Manifest.read(named.prepare())["generator"]) == {"real", "sdxl"}
    assert "ProGAN" not in capsys.readouterr().out


def test_names_of_training_and_test_that_do_not_meet_are_said_and_mended(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    pairs("set/train/stylegan_2", "set/train/sdxl", "set/test/StyleGAN2x", "set/test/sdxl")
    source = real_fake.Source(folder=Path("set"))
    prepare.main(source)
    said = capsys.readouterr().out
    assert "that only training has: stylegan_2; that only the test has, and that count as unseen: StyleGAN2x" in said
    prepare.main(real_fake.Source(folder=Path("set"), rename=("stylegan_2=StyleGAN2x",)))
    assert "unseen" not in capsys.readouterr().out
    found = Manifest.read(Path("set/manifest.csv"))
    assert found.seen(["StyleGAN2x"])[0] == "train" and "stylegan_2" not in found["generator"]
    for pair, message in {
        "x=y": "--rename x=y: the generators are real, StyleGAN2x, sdxl, stylegan_2",
        "sdxl": "--rename sdxl: write OLD=NEW",
        "sdxl=real": "--rename sdxl=real: a new name makes no fake real",
    }.items():
        with pytest.raises(Refusal, match=message):
            real_fake.Source(folder=Path("set"), rename=(pair,)).prepare()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give a pattern of each class"),
        ({"photo": ("{kind}/{id}",)}, r"\{kind\} is no field; the fields are \{id\}, \{tool\}"),
        ({"photo": ("{set}/{set}",)}, r"\{set\} stands twice"),
        ({"photo": ("x/{id}",), "generated": ("b/{id}",)}, r"--photo x/\{id\}: no image under .* there are 'a/1.png'"),
        ({"photo": ("{split}/{id}",)}, r"'a/1.png': 'a' is no split; say which it is, such as --as_split a=train"),
        ({"photo": ("a/{id}",), "as_split": ("a=b",)}, "--as_split a=b: write WORD=SPLIT, such as val=test"),
    ],
)
def test_trees_refuse(tmp_path, monkeypatch, options, message) -> None:
    monkeypatch.chdir(tmp_path)
    make("t/a/1.png", "t/b/1.png")
    with pytest.raises(Refusal, match=message):
        tree.Source(folder=Path("t"), **options).prepare()


def test_a_group_of_a_tree_is_a_scene(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    drct()
    words = COMMANDS["DRCT-2M + MSCOCO"][1:]
    found = Manifest.read(cli.parse(tree.Source, words).prepare())
    assert {len(rows) for rows in found.groups()} == {3}
    for rows in found.groups():
        assert sorted(found["generator"][rows]) == ["real", "sdxl-turbo", "stable-diffusion-v1-4"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--table: name the table of images, or those of one class"),
        ({"fakes": ("t.csv",)}, "--fakes t.csv: write NAME=TABLE"),
        ({"fakes": ("a=t.csv",), "reals": (Path("t.csv"),)}, "t.csv is named twice: say once what it holds"),
        ({"table": (Path("t.csv"),)}, "name the column of generators"),
        ({"table": (Path("t.csv"),), "generator_from": "path:0"}, "--generator_from path:0: write path:N"),
        ({"reals": (Path("t.csv"),), "folder": Path(), "beside": "images"}, "both say what paths are relative to"),
        ({"reals": (Path("t.csv"),), "edit": "splice"}, "--edit splice: name the column of masks"),
    ],
)
def test_tables_of_one_class_refuse(tmp_path, monkeypatch, options, message) -> None:
    monkeypatch.chdir(tmp_path)
    write("t.csv", ("image",), ("1.png",))
    with pytest.raises(Refusal, match=message):
        table.Source(path="image", **options).prepare()


def test_a_label_that_cannot_be_printed_costs_its_row(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    make("1.png", "2.png", "3.png")
    write("t.csv", ("f", "g"), ("1.png", "real"), ("2.png", "sd\nxl"), ("3.png", "sdxl"))
    path = table.Source(table=(Path("t.csv"),), path="f", generator="g", split="test").prepare()
    assert set(Manifest.read(path)["generator"]) == {"real", "sdxl"}
    assert "bad-label" in path.with_suffix(".lost.csv").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "pic"}, r"--image pic: set has the columns a \(image\), b \(image\), y \(int64, cat, dog\)"),
        ({}, "--image: set has the columns"),
        ({"image": "a"}, "--real_label real 0: set names the values of y cat, dog; name those of camera images"),
        ({"image": "a", "label": "-"}, "--label: set has the columns .* or say what all rows are with --fakes NAME"),
        ({"image": "a", "label": "b"}, "--label b: set has the columns"),
        ({"reals": True, "fakes": "x"}, "--reals: all rows are camera images, so leave out --fakes"),
        ({"fakes": "real"}, "--fakes real: name what made the fakes"),
    ],
)
def test_columns_that_do_not_fit_are_refused_with_the_schema(tmp_path, monkeypatch, options, message) -> None:
    from datasets import ClassLabel

    monkeypatch.chdir(tmp_path)
    columns = {"a": [PNG], "b": [PNG], "y": [0]}
    parquet("set", {"label" if name == "y" else name: cells for name, cells in columns.items()},
            {"label": ClassLabel(names=["cat", "dog"])})  # fmt: skip
    message = re.sub(r"\by\b", "label", message)
    with pytest.raises(Refusal, match=message):
        hub.Source(repo="set", output=Path("out/m.csv"), **options).prepare()


def test_a_set_of_the_hub_by_named_columns(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = [zoo.save(zoo.picture(seed=i), "JPEG") for i in range(6)]
    labels = [False, True, True, False, True, True]
    columns = {"picture": cells, "is_fake": labels, "scene": list("aaabbc")}
    parquet("set", columns | {"by": ["", "x", "y", "", "x", ""]})
    options = {"repo": "set", "label": "is_fake", "generator": "by", "group": "scene", "split": "test", "set": "s"}
    path = hub.Source(output=Path("one/m.csv"), real_label=("false",), **options).prepare()
    found = Manifest.read(path)
    assert sorted(zip(found["group"], found["generator"], strict=True)) == [
        ("s/a", "real"), ("s/a", "x"), ("s/a", "y"), ("s/b", "real"), ("s/b", "x"), ("s/c", "s-fake"),
    ]  # fmt: skip
    few = hub.Source(output=Path("two/m.csv"), real_label=("false",), fake_label=("maybe",), **options).prepare()
    assert set(Manifest.read(few)["generator"]) == {"real"}
    assert few.with_suffix(".lost.csv").read_text().count("other-label") == 4


def shard(path: Path, entries: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_damage_and_bad_labels_of_shards_cost_themselves(tmp_path) -> None:
    def sample(number: int, label: object) -> dict[str, bytes]:
        about = label if isinstance(label, bytes) else json.dumps({"fake": label}).encode()
        return {f"{number}.json": about, f"{number}.png": PNG + bytes([number])}

    good = {
        **sample(1, True),
        **sample(2, False),
        **sample(3, "a\nb"),
        **sample(4, b"[" * 100_000),
        **sample(5, {"x": 1}),
    }
    shard(tmp_path / "a.tar", good)
    shard(tmp_path / "b.tar", {**sample(6, True), **sample(7, True), **sample(8, True)})
    data = (tmp_path / "b.tar").read_bytes()
    at = data.index(b"7.png")
    (tmp_path / "b.tar").write_bytes(data[:at] + b"\xff" * 300 + data[at + 300 :])  # a damaged header
    (tmp_path / "c.tar").write_bytes(b"no tar file" * 100)
    path = webdataset.Source(folder=tmp_path, label="json:fake", real=("false",), split="test").prepare()
    found = Manifest.read(path)
    assert sorted(zip(found["path"], found["generator"], strict=True)) == [
        ("a.tar::1.png", "true"), ("a.tar::2.png", "real"), ("b.tar::6.png", "true"),
    ]  # fmt: skip
    with path.with_suffix(".lost.csv").open() as file:
        lost = {Path(row["file"]).name: row["reason"].partition(":")[0] for row in csv.DictReader(file)}
    assert lost == {
        "a.tar::3.png": "bad-label", "a.tar::4.png": "no-label", "a.tar::5.png": "bad-label",
        "b.tar": "bad-archive", "c.tar": "bad-archive",
    }  # fmt: skip
