"""No shortcut leads through the embedded world: what tells its fakes from its photographs, on a small world.

The full bounds, with what learns from it, are measured by recipes/check_world.py: results/embedded/world.
"""

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from adapt.embedded import generators, world
from adapt.embedded.filters import blur, from_bytes, luma, to_bytes
from adapt.embedded.generators import FAMILIES, HELD_OUT, SEEN
from adapt.models.descriptors.color import CHROMA_NAMES, NAMES, describe

SCENES = {"train": 60, "test": 40}
CHROMA = [NAMES.index(name) for name in CHROMA_NAMES]
FAKES = {"train": SEEN, "test": SEEN + HELD_OUT}


def drawn() -> dict[str, list[dict[str, np.ndarray]]]:
    """Scenes of a seed that nothing was tuned on: {split: [{"real" or generator: pixels}]}."""
    out = {}
    for split, count in SCENES.items():
        groups = (world.make_group(910, split, index) for index in range(count))
        out[split] = [{name: group[name, ""] for name in ("real", *FAKES[split])} for group in groups]
    return out


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[dict[str, np.ndarray]]]:
    return drawn()


def described(scenes: dict[str, list[dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    return {
        split: np.array([[describe(Image.fromarray(group[name])) for name in group] for group in groups])
        for split, groups in scenes.items()
    }


def aucs(features: dict[str, np.ndarray]) -> tuple[float, float]:
    """Mean AUC on seen and on unseen generators of a head that learnt from the seen ones."""
    train, test = features["train"], features["test"]
    labels = np.tile(np.arange(train.shape[1]) > 0, len(train))
    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=3000))
    head.fit(train.reshape(len(labels), -1), labels)
    scores = head.decision_function(test.reshape(-1, test.shape[-1])).reshape(test.shape[:2])
    halves = np.repeat([0, 1], len(scores))
    found = [roc_auc_score(halves, np.concatenate([scores[:, 0], fake])) for fake in scores[:, 1:].T]
    return float(np.mean(found[: len(SEEN)])), float(np.mean(found[len(SEEN) :]))


def test_colour_is_no_way_to_tell_fakes(scenes) -> None:
    features = described(scenes)
    chroma, all_colour = aucs({split: values[..., CHROMA] for split, values in features.items()}), aucs(features)
    assert max(chroma) < 0.55
    assert max(all_colour) < 0.7


def blotched(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As the world's decoders left images until its version 4, but four times as weak."""
    return to_bytes(from_bytes(pixels) + 0.03 * generators.blotches(rng, pixels.shape[0]))


def test_a_shortcut_through_colour_would_be_seen(scenes) -> None:
    rng = np.random.default_rng(0)
    marked = {
        split: [{name: of if name == "real" else blotched(of, rng) for name, of in group.items()} for group in groups]
        for split, groups in scenes.items()
    }
    features = described(marked)
    assert min(aucs({split: values[..., CHROMA] for split, values in features.items()})) > 0.7
    assert min(aucs(features)) > 0.8


@pytest.mark.parametrize("generator", [*SEEN, *HELD_OUT])
def test_a_generator_changes_fine_luma_only(scenes, generator) -> None:
    changes = [from_bytes(group[generator]) - from_bytes(group["real"]) for group in scenes["test"]]
    in_luma = np.mean([(luma(change) ** 2).mean() for change in changes])
    in_chroma = np.mean([((change - luma(change)) ** 2).mean() for change in changes])
    assert in_chroma < 0.03 * in_luma  # rounding, and what black and white cut off
    coarse = np.mean([(blur(luma(change), 4.0) ** 2).mean() for change in changes])
    assert coarse < 0.02 * in_luma


def test_unseen_generators_are_many_enough_for_intervals_over_them() -> None:
    assert len(HELD_OUT) >= 7
    assert len({FAMILIES[name] for name in HELD_OUT}) >= 4
    seen = {FAMILIES[name] for name in SEEN}
    assert {FAMILIES[name] for name in HELD_OUT} - seen and {FAMILIES[name] for name in HELD_OUT} & seen


def test_the_decoder_is_asked_for_luma_alone() -> None:
    """A photograph that is grey but for a shift of Cb and Cr keeps that shift in every fake."""
    rng = np.random.default_rng(3)
    plane = 0.5 + 0.1 * blur(rng.standard_normal((96, 96)), 0.7)
    tint = np.array([0.05, -0.03, 0.02])[:, None, None]
    tint = tint - luma(np.broadcast_to(tint, (3, 96, 96)))
    for name in generators.FUNCTIONS:
        fake = generators.resynthesise(name, plane + tint, np.random.default_rng(4))
        np.testing.assert_allclose(fake - luma(fake), np.broadcast_to(tint, fake.shape), atol=1e-12)
