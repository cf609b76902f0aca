"""Tip-Adapter against kernels, loops and brute force; what training must not see; shots."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.metrics.pairwise import rbf_kernel
from torch.nn import functional as F

from adapt.errors import Refusal
from adapt.models.heads.linear import binary_logit
from adapt.models.heads.tip_adapter import (
    ALPHAS,
    BETAS,
    Rows,
    TipAdapter,
    draw_shots,
    fit,
    group_ids,
    probe_prior,
    text_prior,
    tune,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scenes(
    name: str, count: int, dim: int = 32, signal: float = 2.0, seed: int = 0, classes: int = 2, content: float = 1.0
) -> Rows:
    """`count` scenes of one image a class that share their content; class c lies `signal` along axis c.

    `content` scales all but the first 8 axes: where it is large, scenes hide the classes and training helps.
    """
    shared = noise(count, 1, dim, seed=seed) * torch.where(torch.arange(dim) < 8, 1.0, content)
    features = shared + noise(count, classes, dim, seed=seed + 1000) + signal * torch.eye(classes, dim)
    groups = [f"{name}{i}" for i in range(count) for _ in range(classes)]
    return Rows(features.reshape(-1, dim), np.tile(np.arange(classes), count), groups)


def cache(rows: Rows, **options) -> TipAdapter:
    return TipAdapter(rows.features, rows.labels, rows.groups, **options)


def auc(logits: torch.Tensor, rows: Rows) -> float:
    return roc_auc_score(rows.labels.numpy() > 0, binary_logit(logits).numpy())


# -- the formula -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.5, 5.5, 40.0])
def test_affinity_is_an_rbf_kernel(beta) -> None:
    keys, queries = F.normalize(noise(9, 6), dim=1), F.normalize(noise(20, 6, seed=1), dim=1)
    adapter = TipAdapter(keys, range(9), [str(i) for i in range(9)], classes=9, values="sum", beta=beta)
    expected = rbf_kernel(queries.double().numpy(), keys.double().numpy(), gamma=beta / 2)
    np.testing.assert_allclose(adapter(queries).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("values", ["sum", "mean"])
@pytest.mark.parametrize("centred", [False, True])
def test_logits_are_those_of_a_loop(values, centred) -> None:
    rows, queries = scenes("a", 5, dim=8, classes=3), noise(7, 8, seed=5)
    prior = noise(7, 3, seed=6)
    centre = F.normalize(rows.features, dim=1).mean(0) if centred else None
    adapter = cache(rows, classes=3, values=values, alpha=1.7, beta=3.0, centre=centre)

    def unit(x) -> np.ndarray:
        x = x / np.linalg.norm(x) - (0 if centre is None else centre.double().numpy())
        return x / np.linalg.norm(x)

    expected = prior.double().numpy().copy()
    for i, f in enumerate(queries.double().numpy()):
        for key, label in zip(rows.features.double().numpy(), rows.labels.tolist(), strict=True):
            vote = np.exp(-3.0 * (1 - unit(f) @ unit(key)))
            expected[i, label] += 1.7 * vote / (5 if values == "mean" else 1)
    np.testing.assert_allclose(adapter(queries, prior).numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(adapter(queries * 9, prior).numpy(), expected, atol=1e-5)


def test_duplicated_keys_change_only_the_published_form() -> None:
    rows, queries = scenes("a", 6), scenes("b", 10).features
    twice = Rows(rows.features.repeat(2, 1), rows.labels.repeat(2), rows.groups.repeat(2))
    torch.testing.assert_close(cache(twice)(queries), cache(rows)(queries))
    torch.testing.assert_close(
        cache(twice)(queries, None, rows.groups[:1].repeat(20)), cache(rows)(queries, None, rows.groups[:1].repeat(20))
    )
    torch.testing.assert_close(cache(twice, values="sum")(queries), 2 * cache(rows, values="sum")(queries))


def test_affinities_in_chunks_equal_those_at_once(monkeypatch) -> None:
    rows = scenes("a", 20)
    whole = cache(rows)(rows.features, None, rows.groups)
    monkeypatch.setattr("adapt.models.heads.tip_adapter.CHUNK", 3 * len(rows) + 1)
    torch.testing.assert_close(cache(rows)(rows.features, None, rows.groups), whole)


def test_priors() -> None:
    logit = torch.tensor([-3.0, 0.0, 8.0])
    for classes in (2, 5):
        prior = probe_prior(logit, classes)
        assert prior.shape == (3, classes)
        torch.testing.assert_close(binary_logit(prior), logit)
    features, prompts = noise(4, 6), noise(3, 6, seed=1)
    expected = 14.3 * F.cosine_similarity(features[:, None], prompts[None], dim=2)
    torch.testing.assert_close(text_prior(features * 3, prompts, 14.3), expected)
    logits = noise(4, 3).double()
    p = logits.softmax(1)
    torch.testing.assert_close(binary_logit(logits), ((1 - p[:, 0]) / p[:, 0]).log())


# -- leave-group-out ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", ["sum", "mean"])
def test_leaving_groups_out_equals_removing_their_keys(values) -> None:
    rows = scenes("a", 6, classes=3)
    # groups of unequal size, one row that is in no group of the cache, and unequal classes
    keep = [0, 1, 2, 3, 5, 6, 7, 8, 10, 12, 14, 15]
    features, labels = rows.features[keep], rows.labels[keep]
    names = np.array(["g0", "g0", "g0", "g1", "g1", "g0", "g2", "g2", "g3", "g4", "g4", "g5"])
    adapter = TipAdapter(features, labels, names, classes=3, values=values, alpha=2.0, beta=4.0)
    asked = np.append(names, "elsewhere")
    queries = torch.cat([features, noise(1, 32, seed=9)])
    found = adapter(queries, None, asked)
    for i, name in enumerate(asked):
        rest = np.flatnonzero(names != name)
        assert len(set(labels[rest].tolist())) == 3
        alone = TipAdapter(features[rest], labels[rest], names[rest], 3, values, 2.0, 4.0)
        torch.testing.assert_close(found[i], alone(queries[i : i + 1])[0])


def test_a_class_without_remaining_keys_votes_nothing() -> None:
    adapter = TipAdapter(noise(3, 4), [0, 1, 1], ["a", "a", "b"])
    logits = adapter(noise(1, 4, seed=1), torch.tensor([[5.0, 0.0]]), ["a"])
    assert logits[0, 0] == 5 and logits[0, 1] > 0


def test_a_row_that_meets_itself_is_scored_by_its_own_label() -> None:
    """The leak: random labels are "learnt" to AUC 1 unless a row's own group is left out."""
    features, labels = noise(600, 64), np.random.default_rng(0).permutation(np.arange(600) % 2)
    rows = Rows(features, labels, [str(i) for i in range(600)])
    adapter = cache(rows, beta=20.0)
    logits, fake = binary_logit(adapter(features)), rows.labels > 0
    assert logits[fake].min() > logits[~fake].max()  # AUC 1, without the rounding of its sum
    assert auc(adapter(features, None, rows.groups), rows) == pytest.approx(0.5, abs=0.07)


# -- search ------------------------------------------------------------------------------------------------------


def with_prior(rows: Rows, strength: float, seed: int = 3, classes: int = 2) -> Rows:
    prior = noise(len(rows), classes, seed=seed) + strength * F.one_hot(rows.labels, classes)
    return Rows(rows.features, rows.labels, rows.groups, prior)


def test_search_finds_the_best_point_of_brute_force() -> None:
    train, val = scenes("a", 12, signal=1.0), with_prior(scenes("v", 40, signal=1.0, seed=1), 0.7)
    adapter = cache(train)
    alphas, betas = ALPHAS[3:9], BETAS[::3]
    found = tune(adapter, val, alphas, betas)
    points = {
        (a, b): auc(cache(train, alpha=a, beta=b)(val.features, val.prior), val) for a in (0.0, *alphas) for b in betas
    }
    best = max(points.values())
    assert found.score == pytest.approx(best, abs=1e-9) and best > found.prior_score
    assert found.prior_score == pytest.approx(auc(val.prior, val), abs=1e-9)
    smallest = min(point for point, score in points.items() if score == best)
    assert (found.alpha, found.beta) == pytest.approx(smallest, rel=1e-6)
    assert (float(adapter.alpha), float(adapter.beta)) == (found.alpha, found.beta)
    assert auc(adapter(val.features, val.prior), val) == pytest.approx(found.score, abs=1e-9)


def test_families_are_searched_by_log_loss() -> None:
    train = scenes("a", 12, classes=3)
    val = with_prior(scenes("v", 25, classes=3, seed=1), 1.0, classes=3)
    found = tune(cache(train, classes=3), val, ALPHAS[3:9], BETAS[::3])
    losses = [
        log_loss(val.labels, cache(train, classes=3, alpha=a, beta=b)(val.features, val.prior).softmax(1).numpy())
        for a in ALPHAS[3:9]
        for b in BETAS[::3]
    ]
    assert found.score == pytest.approx(-min(losses), abs=1e-5)
    assert found.prior_score == pytest.approx(-log_loss(val.labels, val.prior.softmax(1).numpy()), abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("classes", [2, 3])
def test_search_is_never_worse_than_the_prior(seed, classes) -> None:
    """A cache of noise beside a good prior: alpha 0 or better."""
    train = scenes("a", 8, signal=0.0, classes=classes, seed=seed)
    val = with_prior(scenes("v", 15, signal=0.0, classes=classes, seed=seed + 50), 3.0, seed, classes)
    found = tune(cache(train, classes=classes), val)
    assert found.score >= found.prior_score


def test_ties_go_to_the_smaller_alpha() -> None:
    val = scenes("v", 10, seed=1)
    perfect = Rows(val.features, val.labels, val.groups, 100.0 * F.one_hot(val.labels, 2))
    adapter = cache(scenes("a", 8))
    found = tune(adapter, perfect, ALPHAS[:6])
    assert found.alpha == 0 and found.score == 1
    torch.testing.assert_close(adapter(val.features, perfect.prior), perfect.prior)
    # a perfect cache beside a useless prior: many points separate the classes, in whatever order they are tried
    train, val = scenes("a", 8, signal=20.0), with_prior(scenes("v", 10, signal=20.0, seed=1), 0.0)
    points = [(a, b) for a in ALPHAS for b in BETAS]
    smallest = next(p for p in points if auc(cache(train, alpha=p[0], beta=p[1])(val.features, val.prior), val) == 1)
    found = tune(cache(train), val, ALPHAS[::-1], BETAS[::-1])
    assert (found.alpha, found.beta) == pytest.approx(smallest, rel=1e-6)


def test_without_a_prior_alpha_stays() -> None:
    adapter = cache(scenes("a", 8), alpha=7.0)
    found = tune(adapter, scenes("v", 30, seed=1))
    assert found.alpha == 7 and found.prior_score == 0.5 < found.score


def test_validation_groups_must_be_new() -> None:
    train, val = scenes("a", 8), scenes("v", 8, seed=1)
    mixed = Rows(val.features, val.labels, torch.cat([val.groups[:-3], train.groups[:3]]))
    with pytest.raises(Refusal, match=r"3 of 16 validation rows .*row 13\) have their group in the cache"):
        tune(cache(train), mixed)
    more = scenes("more", 4, seed=2)
    with pytest.raises(Refusal, match=r"in training: choose"):
        fit(cache(train), more, Rows(val.features, val.labels, torch.cat([val.groups[:-1], more.groups[:1]])))
    real = np.flatnonzero(val.labels == 0)
    with pytest.raises(Refusal, match="all validation rows are of one class"):
        tune(cache(train), Rows(val.features[real], val.labels[real], val.groups[real]))


def test_leaving_groups_out_of_the_search_equals_a_cross_validation() -> None:
    """Every row scored by a cache of its own, made of all other groups; what is found is the best of brute force."""
    rows = with_prior(scenes("a", 12, signal=1.0), 0.5)
    alphas, betas = ALPHAS[3:7], BETAS[::4]
    adapter = cache(rows)
    with pytest.raises(Refusal, match="24 of 24 validation rows"):
        tune(adapter, rows, alphas, betas)
    found = tune(adapter, rows, alphas, betas, leave_out=True)
    points = {}
    for a in (0.0, *alphas):
        for b in betas:
            logits = torch.empty(len(rows), 2)
            for i in range(len(rows)):
                rest = rows.groups != rows.groups[i]
                alone = TipAdapter(rows.features[rest], rows.labels[rest], rows.groups[rest], alpha=a, beta=b)
                logits[i] = alone(rows.features[i : i + 1], rows.prior[i : i + 1])[0]
            points[a, b] = auc(logits, rows)
    assert found.score == pytest.approx(max(points.values()), abs=1e-9) and found.score > found.prior_score
    assert points[min(points, key=lambda point: (-round(points[point], 9), point))] == pytest.approx(found.score)
    assert found.tried == 1 + 4 * 3


def test_the_judge_of_the_rows_chooses() -> None:
    """One that likes small logits of class 1 finds another setting than the AUC does."""
    train, val = scenes("a", 12), with_prior(scenes("v", 30, seed=1), 0.5)
    judge = lambda logits: -logits[..., 1].mean(dim=1).double().numpy()  # noqa: E731
    small = Rows(val.features, val.labels, val.groups, val.prior, judge)
    assert tune(cache(train), val).alpha > 0
    assert tune(cache(train), small).alpha == 0  # votes are positive: none is least


# -- Tip-Adapter-F -----------------------------------------------------------------------------------------------


def balanced_loss(adapter: TipAdapter, rows: Rows) -> float:
    """Mean over classes of the mean log-loss, every row without its own group."""
    p = adapter(rows.features, rows.prior, rows.groups).softmax(1).double().numpy()
    losses = -np.log(p[np.arange(len(rows)), rows.labels])
    return np.mean([losses[rows.labels == c].mean() for c in range(adapter.classes)])


def test_step_0_of_tip_f_is_tip() -> None:
    train, val = scenes("a", 10), with_prior(scenes("v", 20, seed=1), 0.5)
    tip, trained = cache(train), cache(train)
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    found = fit(trained, train, val, epochs=0)
    assert found.epoch == 0 and found.scores == [pytest.approx(auc(cache(train)(val.features, val.prior), val))]
    assert found.tuned == tune(tip, val)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, before[name]) or name in ("alpha", "beta")
    assert torch.equal(trained(val.features, val.prior), tip(val.features, val.prior))


def test_first_step_is_adamw_on_the_balanced_loss_without_own_groups() -> None:
    train = scenes("a", 10, classes=3)
    chosen = np.flatnonzero((train.labels.numpy() != 2) | (np.arange(len(train)) < 12))  # unequal classes
    train = with_prior(Rows(train.features[chosen], train.labels[chosen], train.groups[chosen]), 0.5, classes=3)
    adapter, rate = cache(train, classes=3, alpha=5.0), 1e-3
    keys = adapter.keys.clone().requires_grad_()
    # by hand in float64: masked kernel, counts of the remaining keys, class weights
    f = F.normalize(train.features, dim=1).double()
    other = (train.groups[:, None] != train.groups).double()
    hot = F.one_hot(train.labels, 3).double()
    votes = (torch.exp(-5.5 * (1 - f @ keys.double().T)) * other) @ hot / (other @ hot)
    p = (train.prior.double() + 5.0 * votes).softmax(1)[torch.arange(len(train)), train.labels]
    loss = torch.stack([-p[train.labels == c].log().mean() for c in range(3)]).mean()
    loss.backward()
    moved = keys.detach() * (1 - 0.01 * rate) - rate * keys.grad / (keys.grad.abs() + 1e-8)
    again = Rows(train.features, train.labels, [f"v{i}" for i in range(len(train))], train.prior)
    found = fit(adapter, train, again, epochs=1, batch=len(train), learning_rate=rate)
    assert found.losses[1] == pytest.approx(loss.item(), rel=1e-5)
    assert found.epoch == 1
    torch.testing.assert_close(adapter.keys, moved, atol=2e-5, rtol=0)


FAST = {"learning_rate": 1e-2, "batch": 32, "epochs": 6}  # small caches have little time to move


def test_tip_f_lowers_the_loss_and_repeats_itself() -> None:
    train, val = scenes("a", 60, content=4), scenes("v", 60, content=4, seed=1)
    before = balanced_loss(cache(train, alpha=50.0), train)
    runs = []
    for seed in (0, 0, 1):
        adapter = cache(train, alpha=50.0)
        frozen = {name: tensor.clone() for name, tensor in adapter.state_dict().items() if name != "keys"}
        found = fit(adapter, train, val, seed=seed, **FAST)
        assert all(torch.equal(adapter.state_dict()[name], frozen[name]) for name in ("values", "groups", "centre"))
        assert not adapter.keys.requires_grad and found.epoch > 0
        adapter.alpha.fill_(50.0), adapter.beta.fill_(5.5)
        assert balanced_loss(adapter, train) < before - 0.03
        assert auc(adapter(val.features), val) == pytest.approx(found.scores[found.epoch]) == max(found.scores)
        assert found.losses[1:] == sorted(found.losses[1:], reverse=True)
        runs.append((adapter.keys, found))
    assert torch.equal(runs[0][0], runs[1][0]) and runs[0][1].losses[1:] == runs[1][1].losses[1:]
    assert not torch.equal(runs[0][0], runs[2][0])


def test_without_validation_rows_nothing_is_chosen() -> None:
    """The last epoch is kept, alpha and beta stay; a stop after k epochs leaves the keys of epoch k."""
    train, val = scenes("a", 60, content=4), scenes("v", 60, content=4, seed=1)
    watched, stopped, whole = (cache(train, alpha=50.0) for _ in range(3))
    found = fit(watched, train, val, **FAST)
    assert 0 < found.epoch <= 6 and found.tried == 7 + found.tuned.tried
    alone = fit(stopped, train, None, stop_after=found.epoch, **FAST)
    assert torch.equal(stopped.keys, watched.keys) and alone.losses[1:] == found.losses[1 : found.epoch + 1]
    assert (float(stopped.alpha), float(stopped.beta), alone.tuned, alone.tried) == (50.0, 5.5, None, 0)
    assert fit(whole, train, None, **FAST).epoch == 6


def test_rate_falls_by_half_a_cosine(monkeypatch) -> None:
    rates, step = [], torch.optim.AdamW.step
    record = lambda self: rates.append(self.param_groups[0]["lr"]) or step(self)  # noqa: E731
    monkeypatch.setattr(torch.optim.AdamW, "step", record)
    fit(cache(scenes("a", 8)), scenes("b", 9, seed=1), scenes("v", 8, seed=2), epochs=3, batch=4)
    expected = 1e-3 * 0.5 * (1 + np.cos(np.pi * np.arange(15) / 15))  # 5 batches of 18 rows
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_keys_drift_unless_renormalised() -> None:
    train, val = scenes("a", 60, content=4), scenes("v", 60, content=4, seed=1)
    lengths = []
    for renormalise in (False, True):
        adapter = cache(train, alpha=50.0)
        assert fit(adapter, train, val, renormalise=renormalise, **FAST).epoch > 0
        lengths.append(adapter.keys.norm(dim=1))
    assert (lengths[0] - 1).abs().max() > 0.05
    torch.testing.assert_close(lengths[1], torch.ones(120))


@pytest.mark.parametrize("values", ["mean", "sum"])
def test_permuted_labels_stay_at_chance_on_held_out_scenes(values) -> None:
    test = scenes("t", 300, seed=2)
    held_out = {}
    for permuted in (False, True):
        found = []
        for seed in range(8):
            train, val = scenes("a", 60, seed=10 + seed), scenes("v", 60, seed=20 + seed)
            for rows in (train, val) if permuted else ():
                rows.labels = rows.labels[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
            adapter = cache(train, values=values, alpha=50.0 if values == "mean" else 50 / 60)
            fit(adapter, train, val, **FAST)
            adapter.alpha.fill_(1.0)  # `tune` may have settled for the prior alone
            found.append(auc(adapter(test.features), test))
        held_out[permuted] = np.mean(found)
    assert held_out[False] > 0.85 and held_out[True] == pytest.approx(0.5, abs=0.12)


def test_training_that_cannot_work_is_refused() -> None:
    train, val = scenes("a", 8), scenes("v", 8, seed=1)
    with pytest.raises(Refusal, match="alpha 0: the keys change nothing"):
        fit(cache(train, alpha=0.0), train, val)
    real = np.flatnonzero(train.labels == 0)
    with pytest.raises(Refusal, match="class 1 has no training rows"):
        fit(cache(train), Rows(train.features[real], train.labels[real], train.groups[real]), val)
    adapter = cache(train, alpha=10.0)
    with pytest.raises(Refusal, match=r"loss (nan|inf) in epoch \d+ at alpha 10, beta 5.5: lower"):
        fit(adapter, train, val, learning_rate=1e4)
    assert not adapter.keys.requires_grad


# -- shots -------------------------------------------------------------------------------------------------------


def table(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Scenes of one real and three fakes, the last ten without fakes."""
    rows = [(f"g{i}", label) for i in range(count) for label in ((0, 1, 1, 1) if i < count - 10 else (0,))]
    return np.array([label for _, label in rows]), np.array([group for group, _ in rows])


def test_shots_are_nested_balanced_and_repeatable() -> None:
    labels, groups = table()
    draws = {shots: draw_shots(labels, groups, shots, seed=3) for shots in (1, 4, 8, 16)}
    for shots, (rows, short) in draws.items():
        assert not short and len(set(rows)) == 2 * shots
        assert np.bincount(labels[rows]).tolist() == [shots, shots]
        assert len(set(groups[rows[labels[rows] == 1]])) == shots  # one fake a scene, as long as there are scenes
        assert np.array_equal(rows, draw_shots(labels, groups, shots, seed=3)[0])
    assert set(draws[1][0]) < set(draws[4][0]) < set(draws[8][0]) < set(draws[16][0])
    other, _ = draw_shots(labels, groups, 16, seed=4)
    assert set(draws[16][0][:16]) != set(other[:16]) and set(draws[16][0][16:]) != set(other[16:])


def test_shots_of_paired_scenes_are_pairs_and_of_every_generator() -> None:
    labels, groups = np.tile([0, 1, 1, 1], 200), np.repeat([f"g{i}" for i in range(200)], 4)
    rows, _ = draw_shots(labels, groups, 120, seed=0)
    real, fake = rows[:120], rows[120:]
    assert set(groups[real]) == set(groups[fake])
    assert np.bincount(fake % 4, minlength=4)[1:].min() > 20


def test_a_new_scene_moves_no_other() -> None:
    labels, groups = table()
    rows, _ = draw_shots(labels, groups, 5, seed=0)
    more, _ = draw_shots(np.append(labels, [0, 1]), np.append(groups, ["new", "new"]), 6, seed=0)
    assert set(rows) - {len(labels), len(labels) + 1} <= set(more)


def test_short_classes_give_all_and_are_reported() -> None:
    labels, groups = table(15)
    rows, short = draw_shots(labels, groups, 100, seed=0)
    assert sorted(rows) == list(range(len(labels))) and short == {"real": 15, "fake": 15}
    rows, short = draw_shots([0, 1, 2, 1], list("abcd"), 2, 0, ("real", "gan", "diffusion"))
    assert sorted(rows) == [0, 1, 2, 3] and short == {"real": 1, "diffusion": 1}


@pytest.mark.parametrize(
    ("labels", "shots", "classes", "message"),
    [
        ([0, 0, 1], 2, ("real", "gan", "diffusion"), "class 'diffusion' has no rows"),
        ([1, 1, 1], 2, ("real", "fake"), "class 'real' has no rows"),
        ([0, 1, 1], 0, ("real", "fake"), "0 shots: ask for 1 or more"),
        ([0, 1, 2], 1, ("real", "fake"), "1 labels such as 2 are none of the 2 classes"),
        ([0, 1], 1, ("real", "fake"), "3 groups for 2 labels"),
    ],
)
def test_impossible_draws_are_refused(labels, shots, classes, message) -> None:
    with pytest.raises(Refusal, match=message):
        draw_shots(labels, list("abc"), shots, 0, classes)


# -- input and storage -------------------------------------------------------------------------------------------


def test_group_ids_are_of_names_alone() -> None:
    ids = group_ids(np.array(["a", "b", "a", "ä"], object))
    assert ids[0] == ids[2] and len(set(ids.tolist())) == 3
    assert torch.equal(group_ids(["b", "a"]), ids[[1, 0]]) and group_ids(ids) is ids
    for wrong in ([1, 2], torch.tensor([1.0])):
        with pytest.raises(Refusal, match=r"give groups as text|give names"):
            group_ids(wrong)


def test_features_that_are_not_finite_are_refused() -> None:
    rows = scenes("a", 5)
    spoilt = rows.features.clone()
    spoilt[3, 0], spoilt[3, 1], spoilt[7, 5] = torch.nan, torch.nan, torch.inf
    message = r"2 of 10 rows of features \(the first is row 3\) are not finite"
    for action in (
        lambda: Rows(spoilt.numpy(), rows.labels, rows.groups),
        lambda: TipAdapter(spoilt, rows.labels, rows.groups),
        lambda: cache(rows)(spoilt),
    ):
        with pytest.raises(Refusal, match=message):
            action()
    with pytest.raises(Refusal, match=r"2 of 10 rows of prior"):
        cache(rows)(rows.features, spoilt[:, :2] * spoilt[:, 5:6])


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda r: cache(r)(r.features[:, :9]), "features of 9 columns, keys of 32"),
        (lambda r: cache(r)(r.features, noise(10, 3)), r"prior \(10, 3\) for logits \(10, 2\)"),
        (lambda r: cache(r)(r.features, None, ["a"]), "1 groups for 10 rows"),
        (lambda r: cache(r, classes=3), "no key of class 2"),
        (lambda r: cache(r, values="max"), "values 'max'"),
        (lambda r: cache(r, beta=0.0), "beta 0.0: neither"),
        (lambda r: cache(r, centre=torch.zeros(5)), "centre has 5 entries, the keys 32"),
        (lambda r: Rows(r.features, r.labels[1:], r.groups), r"have \[9, 10\] rows"),
        (lambda r: tune(cache(r), scenes("v", 4), (0.0, 1.0)), "all above 0"),
    ],
)
def test_what_does_not_fit_is_refused(action, message) -> None:
    with pytest.raises(Refusal, match=message):
        action(scenes("a", 5))


def test_saved_adapter_scores_the_same(tmp_path) -> None:
    train, val = scenes("a", 60, content=4), scenes("v", 60, content=4, seed=1)
    adapter = cache(train, alpha=50.0, centre=F.normalize(train.features, dim=1).mean(0))
    assert fit(adapter, train, val, **FAST).epoch > 0  # keys that are no unit vectors any more
    save_file(adapter.state_dict(), tmp_path / "head.safetensors")
    loaded = TipAdapter.from_state(load_file(tmp_path / "head.safetensors"))
    assert torch.equal(loaded(val.features), adapter(val.features))
    names = [f"a{i // 2}" for i in range(120)]
    assert torch.equal(loaded(train.features, None, names), adapter(train.features, None, train.groups))
    assert not list(adapter.parameters()) and loaded.state_dict().keys() == adapter.state_dict().keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("groups"), "no Tip-Adapter"),
        (lambda t: t.clear(), r"no Tip-Adapter \(none\)"),
        (lambda t: t.update(more=torch.zeros(2)), r"no Tip-Adapter .*more \(2,\)"),
        (lambda t: t.update(keys=t["keys"][:, :5].clone()), r"no Tip-Adapter .*keys \(10, 5\)"),
        (lambda t: t.update(values=t["values"][1:]), r"no Tip-Adapter .*values \(9, 2\)"),
        (lambda t: t.update(values=t["values"] / 5), "not one-hot"),
        (lambda t: t.update(alpha=torch.zeros(1)), r"no Tip-Adapter .*alpha \(1,\)"),
        (lambda t: t.update(groups=t["groups"].float()), "no Tip-Adapter"),
        (lambda t: t.update(beta=torch.tensor(torch.nan)), "beta nan: neither"),
        (lambda t: t.update(keys=t["keys"] * torch.inf), "10 of 10 rows of features"),
    ],
)
def test_wrong_tensors_are_refused(change, message) -> None:
    tensors = dict(cache(scenes("a", 5)).state_dict())
    change(tensors)
    with pytest.raises(Refusal, match=message):
        TipAdapter.from_state(tensors)
