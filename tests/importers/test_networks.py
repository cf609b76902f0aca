"""Complete networks behind `adapt import`: their logits are those of torch behind torchvision's transforms."""

import json
import math

import numpy as np
import onnx
import pytest
import torch
from foreign_networks import MEAN, PREPARED, STD, cnn, refused, write_pictures, write_script
from importing import adapt
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from adapt.detector.detector import Detector, Saved, detector_digest, load_detector
from adapt.errors import Refusal
from adapt.evaluation.scores import _logit
from adapt.hub import FILES
from adapt.models.heads.linear import LinearHead
from adapt.models.heads.output import Output
from adapt.models.towers.backbones import load_backbone


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pictures(tmp_path):
    return write_pictures(tmp_path / "pictures")


def write_onnx(net, file, **options):
    torch.onnx.export(
        net, (torch.randn(2, 3, 32, 32),), file, dynamo=True, external_data=False, verbose=False,
        dynamic_shapes=({0: torch.export.Dim("n", min=1)},), **options,
    )  # fmt: skip
    return file


def reference(net, folder, *scaled) -> np.ndarray:
    prepare = transforms.Compose(
        [*scaled, transforms.CenterCrop(32), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )
    with torch.no_grad():
        return torch.cat([net(prepare(Image.open(file))[None]) for file in sorted(folder.iterdir())]).numpy()


def logits(folder, pictures) -> list[float]:
    return [row["logit"] for row in load_detector(folder).predict([pictures])]


SHORT = transforms.Resize(40, InterpolationMode.BILINEAR)
SQUASH = transforms.Resize((32, 32), InterpolationMode.BICUBIC)
SCALED = {
    "short": ((SHORT,), ("--shortest", 40)),
    "squash": ((SQUASH,), ("--resize", "squash", "--interpolation", "bicubic")),
    "none": ((), ("--resize", "none")),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("scaled", SCALED)
def test_logits_of_an_exported_onnx_file(tmp_path, monkeypatch, pictures, capsys, scaled) -> None:
    net, (steps, words) = cnn(), SCALED[scaled]
    file = write_onnx(net, tmp_path / "net.onnx")
    adapt(monkeypatch, "import", "onnx", file, *PREPARED, "--output_is", "fake_logit", *words, "--licence", "MIT")
    assert "toy (not stated), licence MIT" in capsys.readouterr().out
    found = logits("toy", pictures)  # by its name
    np.testing.assert_allclose(found, reference(net, pictures, *steps)[:, 0], rtol=1e-5, atol=1e-5)
    folder = tmp_path / "results/runs/detectors/toy"
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == [
        *("README.md", "detector.json", "head.safetensors", "tower/network.onnx")
    ]
    assert "| licence | MIT |" in (folder / "README.md").read_text()
    adapt(monkeypatch, "detectors")
    assert "detectors/toy" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["traced", "scripted", "frozen"])
def test_logits_of_a_torchscript_file(tmp_path, monkeypatch, pictures, how) -> None:
    net = cnn(2)
    file = write_script(net, tmp_path / "net.pt", how)
    words = (*PREPARED, "--output_is", "real_fake_logits", "--resize", "none", "--output", tmp_path / "d")
    adapt(monkeypatch, "import", "torchscript", file, *words)
    expected = reference(net, pictures)
    found = logits(tmp_path / "d", pictures)
    np.testing.assert_allclose(found, expected[:, 1] - expected[:, 0], rtol=1e-5, atol=1e-5)
    assert found != pytest.approx(reference(net, pictures, SHORT)[:, 1] - expected[:, 0], abs=1e-2)


class Two(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = cnn()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logit = self.net(x)
        return x.mean(), torch.sigmoid(logit).view(-1)


def test_one_of_several_outputs_is_named(tmp_path, monkeypatch, pictures, capsys) -> None:
    file = write_script(Two().eval(), tmp_path / "net.pt")
    words = ("import", "torchscript", file, *PREPARED, "--output_is", "real_probability", "--output", tmp_path / "d")
    assert "outputs 0, 1" in refused(monkeypatch, capsys, *words)
    assert "row of numbers for each" in refused(monkeypatch, capsys, *words, "--output_name", "0")
    adapt(monkeypatch, *words, "--output_name", "1")
    found = logits(tmp_path / "d", pictures)
    np.testing.assert_allclose(found, -reference(cnn(), pictures, transforms.Resize(32))[:, 0], rtol=1e-4, atol=1e-4)


# -- ONNX files made by hand -----------------------------------------------------------------------------------------


def by_hand(file, nodes=None, batch=1, inputs=None, weights=None, opsets=None, functions=(), outputs=("logit",)):
    """weights . the mean of each colour, for one image at a time."""
    value = numpy_helper.from_array(np.array([[1.0], [-2.0], [0.5]], np.float32), "w")
    nodes = nodes or [
        helper.make_node("GlobalAveragePool", ["x"], ["m"]),
        helper.make_node("Flatten", ["m"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["logit"]),
    ]
    inputs = inputs or [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 32, 32])]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "g", inputs, made, [weights or value])
    opsets = [helper.make_opsetid(domain, version) for domain, version in (opsets or {"": 17}).items()]
    model = helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=8)
    file.write_bytes(model.SerializeToString())
    return file


WORDS = (*PREPARED, "--output_is", "fake_logit")


def of_hand(pictures) -> np.ndarray:
    weights = torch.tensor([[1.0], [-2.0], [0.5]])
    return reference(lambda x: x.mean(dim=(2, 3)) @ weights, pictures, transforms.Resize(32))[:, 0]


@pytest.mark.parametrize("batch", [1, "n"])
def test_a_batch_of_one_is_run_one_by_one(tmp_path, monkeypatch, pictures, batch) -> None:
    file = by_hand(tmp_path / "net.onnx", batch=batch)
    adapt(monkeypatch, "import", "onnx", file, *WORDS, "--output", tmp_path / "d")
    np.testing.assert_allclose(logits(tmp_path / "d", pictures), of_hand(pictures), rtol=1e-5, atol=1e-5)


def test_an_output_of_several_and_a_function_of_the_file(tmp_path, monkeypatch, pictures, capsys) -> None:
    own = helper.make_function(
        "mine",
        "Mean",
        ["a"],
        ["b"],
        [helper.make_node("GlobalAveragePool", ["a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    nodes = [
        helper.make_node("Mean", ["x"], ["m"], domain="mine"),
        helper.make_node("Flatten", ["m"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["logit"]),
    ]
    file = by_hand(tmp_path / "net.onnx", nodes, opsets={"": 17, "mine": 1}, functions=[own], outputs=("f", "logit"))
    words = ("import", "onnx", file, *WORDS, "--output", tmp_path / "d")
    assert "the outputs f, logit" in refused(monkeypatch, capsys, *words)
    assert "f, logit" in refused(monkeypatch, capsys, *words, "--output_name", "g")
    assert "gives 3" in refused(monkeypatch, capsys, *words, "--output_name", "f")
    adapt(monkeypatch, *words, "--output_name", "logit")
    np.testing.assert_allclose(logits(tmp_path / "d", pictures), of_hand(pictures), rtol=1e-5, atol=1e-5)


def outside(file):
    weights = numpy_helper.from_array(np.ones((3, 1), np.float32), "w")
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    entry = weights.external_data.add()
    entry.key, entry.value = "location", "secret.bin"
    return by_hand(file, weights=weights)


def outside_in_a_branch(file):
    inner = onnx.load_model(outside(file), load_external_data=False).graph
    del inner.input[:]
    condition = helper.make_node("Constant", [], ["c"], value=helper.make_tensor("c", TensorProto.BOOL, [], [True]))
    branch = helper.make_node("If", ["c"], ["logit"], then_branch=inner, else_branch=inner)
    return by_hand(file, [condition, branch])


def value(name, kind=TensorProto.FLOAT, shape=("n", 3, 32, 32)):
    return helper.make_tensor_value_info(name, kind, list(shape))


HOSTILE = {
    "outside": (outside, "weights in other files (w)"),
    "outside in a branch": (outside_in_a_branch, "weights in other files (w)"),
    "custom": (
        lambda f: by_hand(f, [helper.make_node("Read", ["x"], ["logit"], domain="evil")], opsets={"": 17, "evil": 1}),
        "operator evil.Read",
    ),
    "fused": (
        lambda f: by_hand(
            f,
            [helper.make_node("Gelu", ["x"], ["logit"], domain="com.microsoft")],
            opsets={"": 17, "com.microsoft": 1},
        ),
        "com.microsoft.Gelu",
    ),
    "random": (
        lambda f: by_hand(f, [helper.make_node("RandomNormal", [], ["logit"], shape=[1, 1])]),
        "random numbers",
    ),
    "loop": (lambda f: by_hand(f, [helper.make_node("Loop", ["", ""], ["logit"])]), "need not end"),
    "two inputs": (lambda f: by_hand(f, inputs=[value("x"), value("y")]), "2 inputs, not one: x, y"),
    "bytes": (lambda f: by_hand(f, inputs=[value("x", TensorProto.UINT8)]), "not float32"),
    "last": (lambda f: by_hand(f, inputs=[value("x", shape=("n", 32, 32, 3))]), "not float32 (n, 3, h, w)"),
    "four": (lambda f: by_hand(f, batch=4), "4 images at once"),
    "size": (lambda f: by_hand(f, inputs=[value("x", shape=("n", 3, 64, 64))]), "takes images of 64 x 64"),
    "unknown": (
        lambda f: by_hand(f, [helper.make_node("Nothing", ["x"], ["logit"])]),
        "cannot be run by ONNX Runtime",
    ),
    "no file": (lambda f: f, "cannot be read"),
    "text": (lambda f: f.write_text("none of it") and f, "no ONNX file"),
    "empty": (lambda f: f.write_bytes(b"") or f, "inputs, not one"),
    "map": (lambda f: by_hand(f, [helper.make_node("Relu", ["x"], ["logit"])]), "expected one number or two"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_an_onnx_file_may_not_be(tmp_path, monkeypatch, capsys, name) -> None:
    (tmp_path / "secret.bin").write_bytes(np.ones(3, np.float32).tobytes())
    make, words = HOSTILE[name]
    file = make(tmp_path / "net.onnx")
    assert words in refused(monkeypatch, capsys, "import", "onnx", file, *WORDS)
    assert not (tmp_path / "results").exists()


FLAGS = {
    ("--name", "../toy"): "--name ../toy",
    ("--name", "univfd"): "--name univfd",
    ("--std", 0.1, 0, 0.1): "--std",
    ("--mean", "nan", 0, 0): "finite",
    ("--shortest", 20): "--shortest 20",
    ("--resize", "squash", "--shortest", 40): "--shortest 40",
    ("--size", 0): "--size 0",
    ("--size", 10**6): "images of 1000000 px",
    ("--shortest", 10**6): "out of 1000000 px",
    ("--output_is", "real_fake_logits"): "means 2",
}


@pytest.mark.parametrize("words", FLAGS)
def test_flags_that_make_no_sense(tmp_path, monkeypatch, capsys, words) -> None:
    file = by_hand(tmp_path / "net.onnx", batch="n")
    assert FLAGS[words] in refused(monkeypatch, capsys, "import", "onnx", file, *WORDS, *words)


def test_without_the_extra_it_is_named(tmp_path, monkeypatch, capsys) -> None:
    file = by_hand(tmp_path / "net.onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    assert "'adapt-aigi[export]'" in refused(monkeypatch, capsys, "import", "onnx", file, *WORDS)


# -- what outputs mean -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["fake", "real"])
def test_what_outputs_mean(first) -> None:
    sign, pair = (1, "fake_real") if first == "fake" else (-1, "real_fake")
    x = torch.linspace(-8, 8, 9)[:, None]
    two = torch.cat([x, 0.3 * x.flip(0)], dim=1)

    def given(kind, values):
        return sign * Output(values.shape[1], kind)(values)

    torch.testing.assert_close(given(f"{first}_logit", x), x[:, 0])
    torch.testing.assert_close(given(f"{first}_probability", x.double().sigmoid()), x[:, 0])
    torch.testing.assert_close(given(f"{pair}_logits", two), two[:, 0] - two[:, 1])
    torch.testing.assert_close(given(f"{pair}_probabilities", two.double().softmax(1)), two[:, 0] - two[:, 1])


def test_ends_are_finite_and_what_is_no_probability_has_no_logit() -> None:
    p = torch.tensor([[0.0], [5e-324], [0.5], [1.0], [1.5], [-0.1], [math.nan]], dtype=torch.float64)
    found = Output(1, "fake_probability")(p)
    np.testing.assert_array_equal(found[:4].numpy(), _logit(p[:4, 0].numpy()).astype(np.float32))
    assert found[4:].isnan().all()
    assert Output(2, "real_fake_probabilities")(torch.tensor([[1.0, 0.0], [0.0, 1.0]])).tolist() == [-745.0, 745.0]


# -- the folder ------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path, monkeypatch):
    file = write_script(cnn(), tmp_path / "net.pt")
    adapt(monkeypatch, "import", "torchscript", file, *WORDS, "--output", tmp_path / "d")
    return tmp_path / "d"


def load_refused(folder, read=load_detector, **words) -> str:
    with pytest.raises(Refusal) as refusal:
        read(folder, **words)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_the_network_belongs_to_the_folder(saved, tmp_path) -> None:
    record = json.loads((saved / "detector.json").read_text())
    assert "tower/network.pt" in record["files"] and "tower/network.pt" in FILES
    before, whole = detector_digest(saved), (saved / "tower/network.pt").read_bytes()
    other = write_script(cnn(2), tmp_path / "other.pt").read_bytes()
    (saved / "tower/network.pt").write_bytes(other)
    assert detector_digest(saved) != before
    for read in (load_detector, Saved.read):
        assert "tower/network.pt is not the file" in load_refused(saved, read)
    (saved / "tower/network.pt").unlink()
    assert "tower/network.pt is missing" in load_refused(saved)
    (saved / "tower/network.pt").write_bytes(whole)
    (saved / "tower/network.onnx").write_bytes(whole)
    assert "tower/network.onnx is no part" in load_refused(saved)
    (saved / "tower/network.onnx").unlink()
    detector = load_detector(saved)
    detector.save(saved, {})  # over itself
    assert load_detector(saved).threshold == 0 and (saved / "tower/network.pt").read_bytes() == whole
    detector.save(tmp_path / "again", {})
    assert (tmp_path / "again/tower/network.pt").read_bytes() == whole


@pytest.mark.parametrize(
    "change",
    [
        {"name": "torchscript:../net.pt"}, {"name": "torchscript:/etc/passwd"}, {"name": "torchscript:"},
        {"name": "onnx:tower/network.pt"}, {"layer": "last"}, {"layer": "block1"},
        {"name": "torchscript:tower/network.pt@1"},
        {"weights": "0"},
        {"preprocess": {"size": 10**9, "shortest": 32, "geometry": "resize", "mean": [0, 0, 0], "std": [1, 1, 1]}},
        {"preprocess": {"size": "32", "shortest": 32, "geometry": "resize", "mean": [0, 0, 0], "std": [1, 1, 1]}},
    ],
    ids=str,
)  # fmt: skip
def test_a_stranger_names_no_other_file(saved, change) -> None:
    record = json.loads((saved / "detector.json").read_text())
    record["backbone"] |= change
    (saved / "detector.json").write_text(json.dumps(record))
    assert str(saved) in load_refused(saved)


@pytest.mark.parametrize("settings", [{}, *({"output_is": one} for one in ("x", 3, "real_fake_logits"))], ids=str)
def test_a_head_that_does_not_fit(saved, settings) -> None:
    record = json.loads((saved / "detector.json").read_text()) | {"head": {"type": "output", **settings}}
    (saved / "detector.json").write_text(json.dumps(record))
    assert "output head" in load_refused(saved)


def test_what_needs_an_encoder_refuses_it(saved, tmp_path, monkeypatch, capsys) -> None:
    assert "leave the flag out" in load_refused(saved, backbone="tiny")
    words = ("share", "--detector", saved, "--onnx", tmp_path / "x.onnx")
    assert "complete network" in refused(monkeypatch, capsys, *words)
    probe = ("run", "linear_probe", "--backbone", "onnx:net.onnx", "--output_dir", tmp_path / "probe")
    assert "nothing is trained on it" in refused(monkeypatch, capsys, *probe)
    own = load_backbone("tiny")
    Detector(own, LinearHead(own.dim)).eval().save(tmp_path / "own", {})
    for i, (recipe, *flags) in enumerate(
        (
            ("refine", "--init", saved, "--focus", "holes"),
            ("understand", "--detector", saved),
            ("understand", "--detector", tmp_path / "own", "--transfer_to", saved),
            ("onboard", "--detector", saved, "--generator", "wavelet"),
        )
    ):
        words = ("run", recipe, *flags, "--output_dir", tmp_path / f"run{i}")
        assert "complete network" in refused(monkeypatch, capsys, *words), recipe
    for layer in ("last_mean", "block1", "proj+block2"):
        with pytest.raises(Refusal, match="its outputs alone"):
            load_detector(saved).backbone.encode(torch.zeros(1, 3, 32, 32), [layer])
    with pytest.raises(Refusal, match="nothing is trained"):
        load_backbone("torchscript:net.pt")


def test_commands_take_it(saved, tmp_path, monkeypatch, pictures) -> None:
    adapt(monkeypatch, "predict", "--detector", saved, "--input", pictures, "--output", tmp_path / "p.csv")
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 6
    flags = ("--views", "none", "--resamples", 20, "--output_dir", tmp_path / "t")
    adapt(monkeypatch, "test", "--detector", saved, *flags)
    assert (tmp_path / "t" / "scores.parquet").is_file()
    flags = ("--test_views", "none", "--resamples", 20, "--output_dir", tmp_path / "c")
    adapt(monkeypatch, "crops", "--detector", saved, *flags)
    adapt(monkeypatch, "evaluate", "--scores", tmp_path / "t" / "scores.parquet", "--resamples", 20)
