"""Understanding: each measurement against an oracle, then the recipe through its real `main`."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import understand
from scipy import stats
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score
from torch import nn

from adapt.cli import parse
from adapt.data.manifest import Manifest
from adapt.detector.detector import Detector, load_detector, score
from adapt.errors import Refusal
from adapt.features.cache import extract
from adapt.models.adapters.lora import add_adapter
from adapt.models.heads.linear import LinearHead
from adapt.models.towers.backbones import load_backbone
from adapt.training.on_features import fit_on_features
from adapt.understanding import adversarial
from adapt.understanding import evidence as maps
from adapt.understanding.content import swapped
from adapt.understanding.item import jackknifed, mean
from adapt.understanding.layers import linear_cka
from adapt.understanding.menu import impossible
from adapt.understanding.subject import choose, logits, take
from adapt.understanding.texts import correlation, head_direction, pulled_back
from adapt.understanding.variance import balanced, centred, decompose


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def folder(planted, cache, tmp_path_factory) -> Path:
    """A detector with an adapter that no optimizer has seen, and a probe fitted on what comes out of it."""
    backbone = load_backbone("tiny")
    add_adapter(backbone, "qv", rank=2, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in backbone.tower.named_parameters():
            if "lora_B" in name:
                value.copy_(0.05 * torch.randn(value.shape, generator=generator))
    rows = Manifest.read(planted)
    features = extract(backbone, rows, ("none",), cache=cache)
    head, _ = fit_on_features(features, "logistic", "binary", ("none",), 0)
    out = tmp_path_factory.mktemp("detector") / "one" / "detector"
    Detector(backbone, head, 0.0).save(out, {})
    return out


@pytest.fixture(scope="module")
def detector(folder) -> Detector:
    return load_detector(folder).requires_grad_(False)


@pytest.fixture(scope="module")
def subject(detector, planted, cache):
    return take(detector, Manifest.read(planted), 6, 20, 0, cache)


class Plane(nn.Module):
    """A detector whose logit is a weighted sum of its pixels, in their own range."""

    def __init__(self, weight: torch.Tensor, threshold: float = 0.0) -> None:
        super().__init__()
        self.weight, self.threshold = weight, threshold
        self.backbone = type("Backbone", (), {"device": torch.device("cpu")})

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels.float() * self.weight).sum(dim=(1, 2, 3))


def noise(n: int, size: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


# -- numbers -------------------------------------------------------------------------------------------------------


def test_a_mean_has_the_interval_of_its_resamples_and_leaves_nan_out():
    values = np.array([*np.random.default_rng(0).normal(5, 2, 14), np.nan])
    weights = np.concatenate([np.ones((1, 15)), 1 - np.eye(15)[:14]])  # no resample lacks the NaN
    found, known = mean(values, weights), values[:14]
    assert found.value == pytest.approx(known.mean()) and found.n == 14
    reach = stats.t.ppf(0.975, 13) * known.std(ddof=1) / 14**0.5
    assert (found.low, found.high) == pytest.approx((known.mean() - reach, known.mean() + reach))
    few = mean(values[-6:], weights[:6, -6:])
    assert np.isnan([few.low, few.high]).all()


@pytest.mark.parametrize("yes", [0, 1, 12, 29, 30])
def test_a_share_lies_between_0_and_1_with_its_interval(yes):
    values = np.array([1.0] * yes + [0.0] * (30 - yes) + [np.nan])
    weights = np.concatenate([np.ones((1, 31)), 1 - np.eye(31)[:30]])
    found = mean(values, weights)
    assert found.value == yes / 30 and 0 <= found.low <= found.value <= found.high <= 1
    assert found.high - found.low > 0.05  # also where all images agree: others need not
    exact = stats.binomtest(yes, 30).proportion_ci(0.95)  # Clopper and Pearson 1934, which is the wider
    assert abs(found.low - exact.low) < 0.06 and abs(found.high - exact.high) < 0.06


def test_the_jackknife_of_a_mean_is_its_standard_error():
    x = np.random.default_rng(0).normal(size=30)
    (found,) = jackknifed(lambda kept: np.array([kept @ x / kept.sum()]), 30, 30)
    assert found.value == pytest.approx(x.mean())
    assert found.high - found.value == pytest.approx(1.96 * x.std(ddof=1) / np.sqrt(30))


# -- content, variance ---------------------------------------------------------------------------------------------


def test_centring_inside_groups_removes_planted_content_exactly():
    rng = np.random.default_rng(0)
    groups = np.repeat(["a", "b", "c"], 4)[rng.permutation(12)]
    trace = rng.integers(-64, 64, (12, 5)) / 64  # binary fractions and groups of four: no rounding at all
    content = {name: rng.integers(-4096, 4096, 5) / 64 for name in "abc"}
    mixed = trace + np.array([content[group] for group in groups])
    np.testing.assert_array_equal(centred(mixed, groups), centred(trace, groups))
    assert not np.array_equal(mixed, trace)
    for group in "abc":
        np.testing.assert_array_equal(centred(mixed, groups)[groups == group].sum(axis=0), 0)


def test_shares_of_variance_are_what_was_planted():
    rng = np.random.default_rng(1)
    content, trace, rest = rng.normal(size=(6, 1, 3)), rng.normal(size=(1, 4, 3)), rng.normal(size=(6, 4, 3))
    np.testing.assert_allclose(decompose(content + np.zeros((6, 4, 3))), [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(decompose(trace + np.zeros((6, 4, 3))), [0, 1, 0], atol=1e-12)
    x = content + trace + rest
    total = ((x - x.mean(axis=(0, 1))) ** 2).sum()
    group = sum(4 * ((x[g].mean(axis=0) - x.mean(axis=(0, 1))) ** 2).sum() for g in range(6))
    member = sum(6 * ((x[:, m].mean(axis=0) - x.mean(axis=(0, 1))) ** 2).sum() for m in range(4))
    np.testing.assert_allclose(decompose(x), [group / total, member / total, 1 - (group + member) / total])


def test_only_complete_groups_are_analysed():
    groups = np.array(["a", "a", "a", "b", "b", "c", "c", "c", "d", "e", "e"])
    names = np.array(["g", "real", "h", "real", "g", "h", "g", "real", "g", "real", "g"])
    places, kept = balanced(groups, names)
    assert kept == ["real", "g", "h"]  # h stands in half of the four groups with a photograph
    np.testing.assert_array_equal(places, [[1, 0, 2], [7, 6, 5]])
    with pytest.raises(Refusal, match="group"):
        balanced(np.array(["a", "b", "c"]), np.array(["real", "g", "real"]))


def test_amplitude_and_phase_of_one_picture_are_that_picture():
    one, other = noise(2), noise(2, seed=1)
    torch.testing.assert_close(swapped(one, one), one)
    moved = one.roll((3, 5), dims=(2, 3))  # the same amplitudes
    torch.testing.assert_close(swapped(one, moved), moved)
    assert (swapped(one, other) != other).any()


# -- layers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 7, 5), (6, 20, 9)])
def test_linear_cka_is_its_formula_and_blind_to_rotation_and_scale(shape):
    rng = np.random.default_rng(0)
    n, d, e = shape
    x, y = rng.normal(size=(n, d)), rng.normal(size=(n, e))
    centre = np.eye(n) - 1 / n
    k, m = x @ x.T, y @ y.T
    hsic = lambda a, b: np.trace(a @ centre @ b @ centre)  # noqa: E731 (equation 2 of 1905.00414)
    expected = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    assert linear_cka(x, y) == pytest.approx(expected)
    rotation, _ = np.linalg.qr(rng.normal(size=(d, d)))
    assert linear_cka(x, 3 * x @ rotation + 1) == pytest.approx(1)
    assert linear_cka(x @ rotation, y) == pytest.approx(expected)
    counts = rng.integers(0, 3, n)
    assert linear_cka(x, y, counts) == pytest.approx(linear_cka(np.repeat(x, counts, 0), np.repeat(y, counts, 0)))


# -- texts ---------------------------------------------------------------------------------------------------------


def test_correlations_are_numpys_under_every_weight():
    rng = np.random.default_rng(0)
    x, y, weights = rng.normal(size=20), rng.normal(size=20), rng.integers(0, 3, (3, 20))
    for weight, found in zip(weights, correlation(x, y, weights), strict=True):
        assert found == pytest.approx(np.corrcoef(np.repeat(x, weight), np.repeat(y, weight))[0, 1])


def test_directions_are_pulled_back_through_the_towers_own_projection():
    backbone = load_backbone("tiny")
    with torch.no_grad():
        found = backbone.encode(noise(backbone.dim + 40, 64), ["last", "proj"])
    layer, proj = found["last"].double().numpy(), found["proj"].double().numpy()
    text = np.random.default_rng(0).normal(size=(1, proj.shape[1]))
    expected = text @ backbone.tower.proj.double().numpy().T
    back = pulled_back(layer, proj, text)
    assert back is None or (back @ expected.T / np.linalg.norm(back) / np.linalg.norm(expected)).item() > 0.9
    wide = np.random.default_rng(1).normal(size=(500, 30))
    exact = np.random.default_rng(2).normal(size=(30, 8))
    np.testing.assert_allclose(pulled_back(wide, wide @ exact, np.eye(8)), exact.T, atol=1e-9)
    assert pulled_back(wide, np.tanh(wide @ exact), np.eye(8)) is None
    assert pulled_back(wide[:30], wide[:30] @ exact, np.eye(8)) is None


def test_the_direction_of_a_head_is_the_gradient_of_its_logit(detector):
    linear = LinearHead(12)
    nn.init.normal_(linear.linear.weight)
    x = torch.randn(12, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for head, at in ((linear, x), (detector.head, torch.randn(detector.backbone.dim, requires_grad=True))):
        (gradient,) = torch.autograd.grad(head(at[None]).sum(), at)
        direction = torch.from_numpy(head_direction(head)).float()
        unit = at.detach() / at.detach().norm()
        tangent = direction - (direction @ unit) * unit  # heads scale features to one length
        cosine = torch.nn.functional.cosine_similarity(gradient, tangent, dim=0)
        assert cosine == pytest.approx(1, abs=1e-4)


# -- maps ----------------------------------------------------------------------------------------------------------


def test_patch_tokens_have_the_features_for_their_mean():
    for layer in ("last_mean", "block2_mean"):
        backbone = load_backbone("tiny", layer)
        pixels = noise(2, 64)
        with torch.no_grad():
            torch.testing.assert_close(backbone.patch_tokens(pixels).mean(dim=1), backbone(pixels))
    for layer in ("proj", "last_both", "block1+last"):
        with pytest.raises(Refusal, match="no patch tokens"):
            load_backbone("tiny", layer).patch_tokens(noise(1, 64))


def test_integrated_gradients_add_up_and_occlusion_sees_the_window(detector, subject):
    pixels = subject.pixels[:3]
    found = maps.integrated_gradients(detector, pixels)
    blank = detector.backbone.mean.expand(3, 3, 64, 64)
    with torch.no_grad():
        change = detector(pixels) - detector(blank)
    assert torch.corrcoef(torch.stack([found.sum(dim=(1, 2)), change]))[0, 1] > 0.9
    weight = torch.zeros(3, 16, 16)
    weight[:, 4:8, 8:12] = 1.0
    plane = Plane(weight)
    plane.backbone.mean = torch.zeros(3, 1, 1)
    where = maps.occlusion(plane, noise(2), 4)
    assert (where[:, 4:8, 8:12].mean(dim=(1, 2)) > 3 * where.mean(dim=(1, 2))).all()
    exact = maps.integrated_gradients(plane, noise(2))
    torch.testing.assert_close(exact, (noise(2).float() * weight).sum(dim=1))


def test_the_pixels_with_most_evidence_are_deleted():
    pixels, evidence = noise(1, 10), torch.arange(100.0).view(1, 10, 10)
    gone = maps.deleted(pixels, evidence, 0.1)
    torch.testing.assert_close(gone[..., :9, :], pixels[..., :9, :])
    colour = pixels.float().mean(dim=(2, 3)).round().to(torch.uint8)
    torch.testing.assert_close(gone[0, :, 9], colour[0, :, None].expand(3, 10))


# -- adversarial ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [1, 2, 8])
@pytest.mark.parametrize("fake", [False, True])
def test_pgd_stays_in_the_ball_and_beats_noise(detector, subject, eps, fake):
    clean = subject.pixels[subject.sample.fake == fake][:4]
    found = adversarial.pgd(detector, clean, fake, eps, 4, max(1, eps / 4), 0)
    assert found.dtype == torch.uint8
    change = found.int() - clean.int()
    assert 0 < change.abs().max() <= eps
    sign = -1 if fake else 1
    random = clean.int() + torch.randint(-eps, eps + 1, clean.shape, generator=torch.Generator().manual_seed(1))
    random = random.clamp(0, 255).to(torch.uint8)
    shuffled = adversarial.shuffled_change(clean, found, 0)
    before, attacked, *others = (sign * logits(detector, each) for each in (clean, found, random, shuffled))
    assert (attacked > before).all() and all((attacked > other).all() for other in others)
    torch.testing.assert_close(found, adversarial.pgd(detector, clean, fake, eps, 4, max(1, eps / 4), 0))


def test_pgd_finds_the_corner_of_the_ball_where_that_is_best():
    weight = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    clean = noise(3)
    clean[0, :, :4], clean[1, :, :4] = 0, 255  # the edges of the range
    for fake, sign in ((False, 1), (True, -1)):
        found = adversarial.pgd(Plane(weight), clean, fake, 3, 8, 1.0, 0)
        torch.testing.assert_close(found.int(), (clean.int() + sign * 3 * weight.sign().int()).clamp(0, 255))


def test_an_attack_through_the_codec_sees_its_pixels_and_passes_its_gradient():
    pixels = noise(2, 24).float() + 0.3
    x = pixels.clamp(0, 255).requires_grad_()
    behind = adversarial.through_jpeg(x, 40)
    torch.testing.assert_close(behind.detach(), adversarial.compressed(x.detach().round().to(torch.uint8), 40).float())
    weight = torch.randn_like(x)
    (gradient,) = torch.autograd.grad((behind * weight).sum(), x)
    torch.testing.assert_close(gradient, weight)


@pytest.mark.parametrize("fake", [False, True])
def test_who_knows_of_the_codec_goes_further_behind_it(detector, subject, fake):
    clean, sign = subject.pixels[subject.sample.fake == fake][:6], -1 if fake else 1

    def wrong(attacked, qualities):
        return np.mean([sign * logits(detector, adversarial.compressed(attacked, q)) for q in qualities])

    unaware, one, both = (
        adversarial.pgd(detector, clean, fake, 4, 10, 1.0, 0, known) for known in ((), (40,), (40, 90))
    )
    assert wrong(one, [40]) > wrong(unaware, [40]) > wrong(clean, [40])
    assert wrong(both, [40, 90]) > wrong(unaware, [40, 90])
    assert (both.int() - clean.int()).abs().max() <= 4


def test_the_control_has_the_norm_of_the_attack():
    clean = noise(3) // 2 + 64  # nothing is clipped
    attacked = (clean.int() + torch.randint(-4, 5, clean.shape)).to(torch.uint8)
    control = adversarial.shuffled_change(clean, attacked, 0)
    for a, b in ((attacked, control),):
        one, other = ((each.int() - clean.int()).flatten(1).sort(dim=1).values for each in (a, b))
        torch.testing.assert_close(one, other)
    assert (control != attacked).any()


def test_success_counts_those_that_were_right_before():
    weight = torch.zeros(3, 16, 16)
    weight[0, 0, 0] = 1
    detector = Plane(weight, threshold=100.0)
    clean, attacked = torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    clean[:, 0, 0, 0] = torch.tensor([50, 60, 150, 70])  # the third is a false alarm already
    attacked[:, 0, 0, 0] = torch.tensor([120, 60, 50, 100])
    found = adversarial.success(detector, clean, attacked, False, np.ones((3, 4)))
    assert found.value == pytest.approx(2 / 3) and found.n == 3


def test_psnr_and_ssim_are_their_formulas():
    one = noise(1, 32)[0]
    other = (one.int() + torch.randint(-9, 10, one.shape, generator=torch.Generator().manual_seed(3))).clamp(0, 255)
    other = other.to(torch.uint8)
    error = np.mean((one.numpy().astype(float) - other.numpy()) ** 2)
    assert adversarial.psnr(one, other) == pytest.approx(10 * np.log10(255**2 / error))
    assert adversarial.ssim(one, one) == pytest.approx(1)
    x, y = (np.tensordot([0.299, 0.587, 0.114], each.numpy().astype(float), 1) for each in (one, other))
    impulse = np.zeros((32, 32))
    impulse[16, 16] = 1
    window = gaussian_filter(impulse, 1.5, radius=5)  # weights of the pixels around the middle one
    mx, my = (window * x).sum(), (window * y).sum()
    vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
    both = (window * (x - mx) * (y - my)).sum()
    c1, c2 = 6.5025, 58.5225
    middle = (2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert adversarial.ssim_map(one, other)[16, 16] == pytest.approx(middle)


# -- the sample, and the recipe -------------------------------------------------------------------------------------


def test_the_sample_is_whole_unedited_groups_that_the_seed_draws(planted):
    rows = Manifest.read(planted)
    chosen = choose(rows, "test", 5, 0)
    assert set(rows["split"][chosen]) == {"test"} and set(rows["edit"][chosen]) == {""}
    assert len(set(rows["group"][chosen])) == 5
    for group in set(rows["group"][chosen]):
        members = np.flatnonzero((rows["group"] == group) & (rows["edit"] == ""))
        assert set(members) <= set(chosen)
    np.testing.assert_array_equal(chosen, choose(rows, "test", 5, 0))
    assert set(chosen) != set(choose(rows, "test", 5, 1))


@pytest.fixture(scope="module")
def config(planted, folder, cache, tmp_path_factory) -> understand.Config:
    other = folder.parents[1] / "two" / "detector"
    shutil.copytree(folder, other)
    return understand.Config(
        detector=folder,
        manifest=(str(planted),),
        output_dir=tmp_path_factory.mktemp("understand") / "run",
        groups=6,
        views=("shuffle32", "shuffle64", "lowpass0.125"),
        spectra_views=("none",),
        train_groups=6,
        mapped=2,
        eps=(1, 4),
        steps=2,
        qualities=(90,),
        transfer_to=(str(other),),
        examples=1,
        cache=cache,
        resamples=20,
        num_workers=0,
    )


@pytest.fixture(scope="module")
def done(config) -> Path:
    understand.main(config)
    return config.output_dir


def table(folder: Path, item: str) -> dict[tuple[str, str, str], dict[str, str]]:
    with (folder / f"{item}.csv").open(encoding="utf-8", newline="") as file:
        return {(row["table"], row["row"], row["column"]): row for row in csv.DictReader(file)}


def test_the_recipe_leaves_one_page_with_every_item(done, config):
    page, report = (done / "table.md").read_text(), (done / "report.html").read_text()
    for title in (
        *("Content against trace", "Low-level evidence", "Where in the network", "Content and trace in the features"),
        *("Text directions", "Where the evidence lies", "Adversarial examples"),
    ):
        assert f"## {title}" in page and title in report
    assert "**Embedded world**" in page and "Left out" not in page
    record = json.loads((done / "provenance.json").read_text())
    assert record["items"] == list(understand.ITEMS) and record["seconds"] > 0
    assert record["command"] in page.replace("\\", "")
    assert report.count("<img ") > 15 and str(config.detector.parent) not in report
    assert {path.name for path in (done / "figures").glob("*.png")} >= {"content_views.png", "layers_cka.png"}


def test_pictures_are_left_out_on_demand(config, tmp_path):
    settings = {"items": ("content", "maps"), "pictures": False, "output_dir": tmp_path / "run"}
    understand.main(dataclasses.replace(config, **settings))
    report, figures = (tmp_path / "run" / "report.html").read_text(), list((tmp_path / "run" / "figures").iterdir())
    assert report.count("<img ") == len(figures) and "Pictures are left out" in report


def test_content_is_the_detectors_own_score(done, config, subject):
    scores = score(subject.detector, subject.sample, np.arange(len(subject.sample)), ("none", "shuffle32"))
    for view in ("none", "shuffle32"):
        aucs = []
        for generator in sorted(set(subject.sample["generator"]) - {"real"}):
            seen = subject.rows.seen([generator])[0] == "train"
            here = (scores["view"] == view) & np.isin(scores["generator"], ["real", generator])
            aucs += [roc_auc_score(scores.fake[here], scores["logit"][here])] if seen else []
        row = table(done, "content")["Views", view, "AUC seen"]
        assert float(row["value"]) == pytest.approx(np.mean(aucs), abs=1e-5)
        assert (row["low"], row["high"]) == ("n/a", "n/a")  # of fewer than ten groups
    assert table(done, "content")["Views", "shuffle64", "unreadable"]["value"] == str(len(subject.sample))
    assert table(done, "content")["Views", "shuffle64", "AUC seen"]["value"] == "n/a"


def test_the_planted_period_is_named_and_is_not_in_the_photographs(done):
    found = table(done, "spectra")
    peak, height, photographs = (
        found["Peaks and fine detail", "transposed, none", column]["value"]
        for column in ("strongest peak", "its height", "in photographs")
    )
    assert "4 px" in peak and float(height) > float(photographs) + 1  # a transposed convolution of stride 4


def test_a_detector_transfers_to_its_own_copy_as_to_itself(done):
    found = table(done, "adversarial")
    for direction in ("real to fake", "fake to real"):
        values = [
            found["Transfer", f"{source}, {direction}, eps 4", judge]["value"]
            for source in ("this detector", "two")
            for judge in ("this detector", "two")
        ]
        assert len(set(values)) == 1
        assert values[0] == found["Attacks", f"{direction}, eps 4", "8 bits"]["value"]


def test_shares_on_the_page_add_up(done):
    found = table(done, "variance")
    for of in ("features, base", "features, adapted", "logit", "noise alone"):
        shares = [float(found["Shares of variance", of, part]["value"]) for part in ("content", "trace", "rest")]
        assert sum(shares) == pytest.approx(1, abs=1e-5) and min(shares) >= 0
    found = table(done, "layers")
    assert float(found["Probes", "last", "CKA, before and after"]["value"]) < 1
    assert ("Probes", "block4_mean", "AUC seen, after") in found


def test_a_finished_run_is_not_repeated(done, config, capsys):
    before = (done / "report.html").read_bytes()
    understand.main(config)
    assert "this run is complete" in capsys.readouterr().out
    assert (done / "report.html").read_bytes() == before


def test_an_unknown_item_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse(understand.Config, ["--detector", "x", "--items", "dreams"])
    assert "dreams" in capsys.readouterr().err


def test_scenes_without_partners_have_no_variance(planted, config, tmp_path):
    rows = Manifest.read(planted)
    alone = Manifest(rows.columns | {"group": rows["path"]})
    alone.write(Path(planted).with_name("alone.csv"))
    try:
        other = dataclasses.replace(
            config,
            manifest=(str(Path(planted).with_name("alone.csv")),),
            output_dir=tmp_path / "a",
            items=("variance",),
        )
        with pytest.raises(Refusal, match=r"variance.*0 test groups hold a photograph"):
            understand.main(other)
    finally:
        Path(planted).with_name("alone.csv").unlink()
    assert "variance" in impossible(("variance", "layers"), alone, "tiny")
    assert not impossible(understand.ITEMS, rows, "tiny")


def test_texts_need_a_text_tower_and_are_left_out_where_nobody_asked(planted, config, tmp_path):
    backbone = load_backbone("timm:test_vit@random")
    Detector(backbone, LinearHead(backbone.dim), 0.0).save(tmp_path / "vit" / "detector", {})
    asked = dataclasses.replace(
        config, detector=tmp_path / "vit" / "detector", output_dir=tmp_path / "t", items=("texts",), transfer_to=()
    )
    with pytest.raises(Refusal, match="--items texts: backbone timm:test_vit@random has no text tower"):
        understand.main(asked)
    assert "texts" in impossible(understand.ITEMS, Manifest.read(planted), "timm:test_vit@random")
