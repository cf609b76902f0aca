"""A detector is one directory: saved, loaded, refused on a wrong base, and scored row by row."""

import json
import math
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import zoo
from processes import in_children
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from adapt.data.crops import Crops
from adapt.data.images import read_image
from adapt.data.manifest import Manifest
from adapt.detector.detector import Detector, detector_digest, load_detector, score
from adapt.detector.export import export_onnx
from adapt.errors import Refusal
from adapt.evaluation.decision import fit_decision
from adapt.evaluation.scores import Scores
from adapt.models.adapters.lora import add_adapter, save_adapter
from adapt.models.descriptors import color
from adapt.models.heads.linear import LinearHead, balanced_bce
from adapt.models.heads.probes import Probe
from adapt.models.heads.tip_adapter import TipAdapter
from adapt.models.heads.tip_head import PriorHead
from adapt.models.towers.backbones import load_backbone
from adapt.processes import Processes

TINY = Path(__file__).parents[2] / "adapt" / "embedded" / "tiny"


@pytest.fixture(scope="module")
def detector() -> Detector:
    backbone = load_backbone("tiny")
    add_adapter(backbone, "qv", rank=2)
    model = Detector(backbone, LinearHead(backbone.dim), threshold=0.25)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture
def folder(detector, tmp_path) -> Path:
    detector.save(tmp_path / "detector", {"command": "python recipes/lora.py"})
    return tmp_path / "detector"


def tip(prior: str, classes: tuple[str, ...] = ("real", "gan", "diffusion"), cache: bool = True) -> PriorHead:
    draw = torch.Generator().manual_seed(4)
    features = torch.randn(12, 192, generator=draw)
    labels, groups = [i % len(classes) for i in range(12)], [f"g{i}" for i in range(12)]
    keys = TipAdapter(features, labels, groups, len(classes), alpha=30, beta=4, centre=features.mean(0) / 40)
    keys.keys += 0.1  # trained keys are no unit vectors
    probe = Probe(192, classes, "logistic")
    for value in probe.state_dict().values():
        value.copy_(torch.rand(value.shape, generator=draw) + 0.1)
    texts = torch.randn(len(classes), 192, generator=draw)
    return PriorHead(classes, texts if prior == "text" else None, probe if prior == "probe" else None,
                     keys if cache else None)  # fmt: skip


@pytest.mark.parametrize(("prior", "cache"), [("text", True), ("probe", True), ("none", True), ("text", False)])
def test_a_tip_adapter_is_a_detector(prior, cache, tmp_path) -> None:
    saved = Detector(load_backbone("tiny"), tip(prior, cache=cache), 0.5).eval()
    saved.save(tmp_path / "tip", {})
    loaded = load_detector(tmp_path / "tip")
    assert torch.equal(loaded(pixels()), saved(pixels()))
    features = saved.backbone(pixels())
    classes = loaded.head.class_logits(features)
    assert torch.equal(classes, saved.head.class_logits(features)) and loaded.head.classes == saved.head.classes
    if cache:  # by hand: eq. 5 of the paper over class means
        head = saved.head
        unit = F.normalize(F.normalize(features, dim=1) - head.cache.centre, dim=1)
        expected = {"none": torch.zeros(3, 3), "probe": head.probe and head.probe.class_logits(features)}
        if prior == "text":
            expected["text"] = 100 * F.cosine_similarity(features[:, None], head.texts[None], dim=2)
        for c in range(3):
            affinity = torch.exp(-4 * (1 - unit @ head.cache.keys[c::3].T))
            expected[prior][:, c] += 30 * affinity.mean(1)
        torch.testing.assert_close(classes, expected[prior])
    broken = features.clone()
    broken[1] = math.nan  # one image must not stop a folder
    assert loaded.head(broken).isfinite().tolist() == [True, False, True]


def test_damaged_tip_adapters_are_refused(tmp_path) -> None:
    Detector(load_backbone("tiny"), tip("text"), 0.5).save(tmp_path / "tip", {})
    file = tmp_path / "tip" / "head.safetensors"
    tensors, record = load_file(file), json.loads((tmp_path / "tip" / "detector.json").read_text())
    for change, message in (
        ({"cache.values": tensors["cache.values"] * 0.5}, "not one-hot"),
        ({"cache.keys": tensors["cache.keys"][:, :8].contiguous()}, "no Tip-Adapter"),
        ({"texts": tensors["texts"][:2].contiguous()}, "head.safetensors holds"),
        ({"more": torch.zeros(1)}, "head.safetensors holds"),
    ):
        save_file(tensors | change, file)
        with pytest.raises(Refusal, match=message):
            load_detector(tmp_path / "tip")
    save_file(tensors, file)
    for change in ({"prior": "wish"}, {"probe": {"kind": "logistic"}, "prior": "probe", "surprise": 1}):
        (tmp_path / "tip" / "detector.json").write_text(json.dumps(record | {"head": record["head"] | change}))
        with pytest.raises(Refusal, match="does not describe a tip-adapter head"):
            load_detector(tmp_path / "tip")


@pytest.fixture(scope="module")
def fusion(tmp_path_factory) -> Path:
    backbone = load_backbone("tiny")
    head = Probe(backbone.dim + len(color.NAMES), ("real", "fake"), "logistic", unit=False)
    draw = torch.Generator().manual_seed(2)
    for value in head.state_dict().values():
        value.copy_(torch.rand(value.shape, generator=draw) + 0.1)
    folder = tmp_path_factory.mktemp("fusion") / "detector"
    Detector(backbone, head, 0.5, descriptor=color.Colours("sound")).save(folder, {})
    return folder


@pytest.mark.parametrize("crops", ["1", "5"])
def test_a_fusion_reads_colour_of_the_whole_file(fusion, tmp_path, crops) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(zoo.save(zoo.picture(150, 90 + 30 * i, seed=i), "PNG"))
    (tmp_path / "cut.png").write_bytes(b"nothing")
    detector = load_detector(fusion)
    rows = {row["path"]: row for row in detector.predict([tmp_path], crops=crops)}
    assert rows["cut.png"]["status"] != "ok" and rows["cut.png"]["logit"] is None
    for i in range(3):
        image = read_image(tmp_path / f"{i}.png")
        with torch.no_grad():
            seen = detector.backbone(Crops(detector.backbone.preprocess, crops)(image)).mean(0)
        read = torch.cat([seen / seen.norm(), torch.from_numpy(color.describe(image))])
        state = detector.head.state_dict()
        standard = ((read - state["mean"]) / state["deviation"]).clamp(-8, 8)
        expected = (standard @ state["net.weight"][0] + state["net.bias"][0]) * state["scale"] + state["shift"]
        assert rows[f"{i}.png"]["logit"] == pytest.approx(expected.item(), rel=1e-4)


def test_a_fusion_is_refused_where_there_are_pixels_only(fusion, tmp_path) -> None:
    detector = load_detector(fusion)
    with pytest.raises(Refusal, match="also reads colour statistics of the whole image"):
        detector(pixels())
    with pytest.raises(Refusal, match="an ONNX file does not have: use `adapt predict`"):
        export_onnx(detector, tmp_path / "d.onnx")
    shutil.copytree(fusion, tmp_path / "other")
    record = json.loads((fusion / "detector.json").read_text())
    record["descriptor"]["version"] += 1
    (tmp_path / "other" / "detector.json").write_text(json.dumps(record))
    with pytest.raises(Refusal, match="reads other statistics than this version computes"):
        load_detector(tmp_path / "other")
    del record["descriptor"]
    (tmp_path / "other" / "detector.json").write_text(json.dumps(record))
    with pytest.raises(Refusal, match=r"head\.safetensors holds"):
        load_detector(tmp_path / "other")


def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 64, 64), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


def test_loaded_equals_saved(detector, folder) -> None:
    loaded = load_detector(folder)
    assert torch.equal(loaded(pixels()), detector(pixels()))
    assert loaded.threshold == 0.25 and not loaded.training
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    adapter = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
    assert found == {"detector.json", "head.safetensors", "README.md"} | adapter


def test_what_validation_says_of_verdicts_travels_along(detector, tmp_path) -> None:
    rng, n = np.random.default_rng(0), 30
    columns = {"path": [str(i) for i in range(2 * n)], "group": [f"g{i // 2}" for i in range(2 * n)]}
    columns |= {"generator": ["real", "gan"] * n, "split": ["val"] * 2 * n, "view": ["qf40"] * 2 * n}
    decision = fit_decision(Scores(columns | {"logit": rng.normal(size=2 * n) + np.tile([-1, 1], n)}))
    Detector(detector.backbone, detector.head, 0.25, decision).save(tmp_path / "new", {})
    loaded, logits = load_detector(tmp_path / "new"), rng.normal(size=100)
    for stated in ({"error_rate": 0.1}, {"max_false_positive_rate": 0.05, "thresholds": "quality"}):
        one, other = (found.rules(0.25, **stated) for found in (decision, loaded.decision))
        assert one.cuts == other.cuts
        np.testing.assert_array_equal(one.calibration(logits), other.calibration(logits))
    before = detector_digest(tmp_path / "new")
    tensors = load_file(tmp_path / "new" / "decision.safetensors")
    save_file(tensors | {"real/every": tensors["real/every"] + 1}, tmp_path / "new" / "decision.safetensors")
    assert detector_digest(tmp_path / "new") != before
    (tmp_path / "new" / "decision.safetensors").unlink()
    with pytest.raises(Refusal, match="not a complete detector directory"):
        load_detector(tmp_path / "new")


def test_an_older_detector_loads_with_its_threshold(detector, folder) -> None:
    record = json.loads((folder / "detector.json").read_text())
    assert record["format"] == 2 and record.pop("decision")["calibration"] == "none"
    (folder / "detector.json").write_text(json.dumps(record))
    loaded = load_detector(folder)
    assert torch.equal(loaded(pixels()), detector(pixels())) and loaded.threshold == 0.25
    assert list(loaded.decision.rules(0.25).at(40).verdicts(np.array([0.24, 0.25]))) == ["real", "fake"]


def test_same_weights_from_another_place(detector, folder, tmp_path) -> None:
    shutil.copytree(TINY, tmp_path / "clip")
    loaded = load_detector(folder, backbone=f"open_clip:local-dir:{tmp_path / 'clip'}")
    assert torch.equal(loaded(pixels()), detector(pixels()))


def test_wrong_base_is_refused(folder, tmp_path) -> None:
    shutil.copytree(TINY, tmp_path / "clip")
    path = tmp_path / "clip" / "open_clip_model.safetensors"
    tensors = load_file(path)
    tensors["visual.conv1.weight"] *= 1.01
    save_file(tensors, path)
    with pytest.raises(Refusal, match=r"trained on tiny with weights .* give the original weights"):
        load_detector(folder, backbone=f"open_clip:local-dir:{tmp_path / 'clip'}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "head.safetensors").unlink(), "not a complete detector directory"),
        (
            lambda f: save_file({"linear.weight": torch.zeros(1, 192)}, f / "head.safetensors"),
            "head.safetensors holds",
        ),
        (lambda f: (f / "detector.json").write_text("{"), "not a complete detector directory"),
        (lambda f: (f / "detector.json").write_text('{"format": 3}'), "format 3, this version reads 2"),
        (lambda f: (f / "adapter" / "adapter_model.safetensors").unlink(), "adapter in .* cannot be read"),
    ],
)
def test_incomplete_directories_are_refused(folder, change, message) -> None:
    change(folder)
    with pytest.raises(Refusal, match=message):
        load_detector(folder)


class Harmful:
    """A pickle that would leave a file behind if anything loaded it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["detector.json", "head.safetensors", "adapter/adapter_model.safetensors"])
def test_a_pickle_in_place_of_a_file_is_refused_and_never_run(folder, tmp_path, name) -> None:
    (folder / name).write_bytes(pickle.dumps(Harmful(tmp_path / "mark")))
    (folder / "adapter" / "adapter_model.bin").write_bytes(pickle.dumps(Harmful(tmp_path / "mark")))
    with pytest.raises(Refusal, match=r"^[^\n]*$"):
        load_detector(folder)
    (folder / "adapter" / "adapter_model.safetensors").unlink()  # nor is peft's older format a way out
    with pytest.raises(Refusal):
        load_detector(folder)
    assert not (tmp_path / "mark").exists()


def test_every_key_that_loading_needs_is_asked_for(folder) -> None:
    path = folder / "detector.json"
    whole = json.loads(path.read_text())
    inner = ("name", "layer", "weights", "preprocess", "activation")
    for place in (("precision",), ("threshold",), ("backbone",), *(("backbone", key) for key in inner)):
        record = json.loads(json.dumps(whole))
        parent = record if len(place) == 1 else record[place[0]]
        del parent[place[-1]]
        path.write_text(json.dumps(record))
        with pytest.raises(Refusal, match=r"detector\.json lacks " + r"\.".join(place)):
            load_detector(folder)
    for wrong in ({"threshold": "high"}, {"head": "linear"}, {"head": {"type": "linear", "classes": 3}}, {"head": {}}):
        path.write_text(json.dumps(whole | wrong))
        with pytest.raises(Refusal, match=r"^[^\n]*(must be|does not describe|unknown head)[^\n]*$"):
            load_detector(folder)
    path.write_text("[]")
    with pytest.raises(Refusal, match="detector format 'list'"):
        load_detector(folder)


def test_a_wrong_number_of_classes_is_refused(tmp_path) -> None:
    backbone = load_backbone("tiny")
    Detector(backbone, Probe(backbone.dim, ("real", "gan", "diffusion"), "logistic")).save(tmp_path / "d", {})
    record = json.loads((tmp_path / "d" / "detector.json").read_text())
    record["head"]["classes"].append("one more")
    (tmp_path / "d" / "detector.json").write_text(json.dumps(record))
    with pytest.raises(Refusal, match=r"head\.safetensors holds [^\n]*, expected"):
        load_detector(tmp_path / "d")


def test_an_adapter_of_another_base_is_refused(folder, tmp_path) -> None:
    other = load_backbone("timm:mobilenetv3_small_050@random")
    add_adapter(other, "all", rank=2)
    save_adapter(other, folder / "adapter")
    with pytest.raises(Refusal, match=r"^adapter in [^\n]* does not fit tiny"):
        load_detector(folder)


def test_the_readme_example_runs_as_it_stands(folder, tmp_path, monkeypatch, capsys) -> None:
    """The block of the room's README that begins with `import torch`, with a detector and a photograph in place."""
    text = (Path(__file__).parents[2] / "adapt/detector/README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(import torch\n.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(example.splitlines()) <= 12
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "results/runs/lora/detector")
    (tmp_path / "photo.jpg").write_bytes(zoo.save(zoo.picture(90, 80), "JPEG"))
    exec(compile(example, "README.md", "exec"), {})
    detector = load_detector(folder)
    with torch.no_grad():
        logit = detector(detector.backbone.preprocess(read_image("photo.jpg"))[None]).item()
    verdict = "fake" if logit >= detector.threshold else "real"
    p_fake = 1 / (1 + math.exp(-logit))  # nothing was calibrated here
    assert capsys.readouterr().out == f"photo.jpg {verdict} p_fake {p_fake:.3f}\n"


def test_changed_preprocessing_is_refused(folder) -> None:
    record = json.loads((folder / "detector.json").read_text())
    record["backbone"]["preprocess"]["mean"] = [0.0, 0.0, 0.0]
    (folder / "detector.json").write_text(json.dumps(record))
    with pytest.raises(Refusal, match="with preprocess"):
        load_detector(folder)


def test_scores_one_row_an_image_and_view(detector, planted) -> None:
    rows = Manifest.read(planted)
    chosen = np.flatnonzero(rows["split"] == "test")[:20]
    Path(rows["file"][chosen[4]]).rename(hidden := Path(rows["file"][chosen[4]] + ".away"))
    try:
        scores = score(detector, rows, chosen, ("none", "qf40"))
    finally:
        hidden.rename(rows["file"][chosen[4]])
    assert len(scores) == 40
    assert list(scores["path"][::2]) == list(rows["path"][chosen])
    assert [i for i, ok in enumerate(scores.ok) if not ok] == [8, 9] and scores["status"][8] == "unreadable: missing"
    from adapt.data.views import parse_view

    for i, view in ((0, "none"), (1, "qf40"), (31, "qf40")):
        image = parse_view(view)(read_image(rows["file"][chosen[i // 2]]))
        with torch.no_grad():
            expected = detector(detector.backbone.preprocess(image)[None]).item()
        assert scores["logit"][i] == pytest.approx(expected, abs=1e-4) and scores["view"][i] == view


def test_shares_of_three_processes_joined_equal_one(detector, planted) -> None:
    rows = Manifest.read(planted)
    chosen = np.flatnonzero(rows["split"] == "val")[:9]
    views = ("none", "qf40")
    rows.columns["file"][chosen[5]] = "gone"
    expected = score(detector, rows, chosen, views)

    def member() -> None:
        one = score(detector, rows, chosen, views, **Processes().scoring(0))
        np.testing.assert_allclose(one["logit"], expected["logit"], atol=1e-5)
        for column in ("path", "view", "status"):
            assert list(one[column]) == list(expected[column])

    assert in_children(member, 3) == [0, 0, 0]


def test_head_ignores_the_length_of_features_and_starts_undecided() -> None:
    head = LinearHead(5)
    features = torch.randn(4, 5)
    assert torch.equal(head(features), torch.zeros(4))
    torch.nn.init.normal_(head.linear.weight)
    torch.testing.assert_close(head(features * 7), head(features))


def test_balanced_bce_is_the_weighted_sum() -> None:
    logits, fake, weight = torch.tensor([0.3, -2.0, 5.0]), torch.tensor([1.0, 0.0, 0.0]), torch.tensor([2.0, 1.0, 0.5])
    p = torch.sigmoid(logits)
    by_hand = -(2 * p[0].log() + (1 - p[1]).log() + 0.5 * (1 - p[2]).log())
    torch.testing.assert_close(balanced_bce(logits, fake, weight), by_hand)
