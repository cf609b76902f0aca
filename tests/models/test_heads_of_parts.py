"""Heads that read all blocks or all patch tokens, and the one that starts from texts, against other computations."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adapt.errors import Refusal
from adapt.models.heads.attention_pooling import AttentionPooling
from adapt.models.heads.block_weighting import BlockWeighting
from adapt.models.heads.classifier import Classifier, Parts, parts_of
from adapt.models.heads.probes import Probe
from adapt.models.heads.prototypes import Prototypes
from adapt.models.heads.token_choice import TokenChoice, fisher_scores
from adapt.models.prompts import prompt_features
from adapt.models.towers.backbones import load_backbone
from adapt.training.part_heads import layer_read_by, width_of

CLASSES = ("real", "fake")
MOBILE = "timm:mobilenetv2_035@random"


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def units(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def relu_layers(x: np.ndarray, module: nn.Sequential, last: bool = True) -> np.ndarray:
    """Linear layers with ReLU between them in NumPy; behind the last one too, unless `last` is off."""
    linears = [layer for layer in module if isinstance(layer, nn.Linear)]
    for i, layer in enumerate(linears):
        x = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        x = np.maximum(x, 0) if last or i < len(linears) - 1 else x
    return x


@pytest.mark.parametrize("classes", [CLASSES, ("real", "diffusion", "gan")])
def test_block_weighting_is_the_published_function_in_numpy(classes) -> None:
    torch.manual_seed(0)
    head = BlockWeighting(4 * 6, classes, width=6, depth=2, hidden=16).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(2)  # as drawn, ten layers hardly let the input through
    features = drawn(7, 24)
    head.parts.standardise(iter([features[:3], features[3:]]))
    x = units(features.double().numpy().reshape(7, 4, 6))
    x = (x - x.mean(axis=0)) / x.std(axis=0)  # each block has statistics of its own
    projected = relu_layers(x, head.project)
    importance = head.importance.detach().double().numpy()  # (blocks, hidden)
    share = np.exp(importance) / np.exp(importance).sum(axis=0)
    mixed = np.stack([sum(share[b] * projected[i, b] for b in range(4)) for i in range(7)])
    expected = relu_layers(relu_layers(mixed, head.refine), head.classify, last=False)
    assert expected.std(axis=0).min() > 0.05
    np.testing.assert_allclose(head.class_logits(features).detach(), expected, atol=1e-4)
    logit = np.log(np.exp(expected[:, 1:]).sum(axis=1)) - expected[:, 0]
    np.testing.assert_allclose(head(features).detach(), logit, atol=1e-4)


def test_an_importance_of_one_block_reads_that_block_alone() -> None:
    torch.manual_seed(0)
    head = BlockWeighting(3 * 4, CLASSES, width=4, depth=1, hidden=5).eval()
    with torch.no_grad():
        head.importance.fill_(-50.0)
        head.importance[1] = 50.0
    features = drawn(5, 12)
    changed = features.clone()
    changed[:, :4], changed[:, 8:] = 9.0, -3.0
    torch.testing.assert_close(head(changed), head(features))
    changed[:, 4:8] = drawn(5, 4, seed=8)
    assert (head(changed) - head(features)).abs().max() > 1e-3
    torch.testing.assert_close(head.weights().sum(dim=0), torch.ones(5))


@pytest.mark.parametrize("width", [128, 24])  # two heads of 64, and one
def test_attention_pooling_is_torchs_multi_head_attention(width) -> None:
    torch.manual_seed(0)
    head = AttentionPooling(9 * width, CLASSES, width).eval()
    assert head.heads == max(1, width // 64)
    with torch.no_grad():
        head.query.copy_(drawn(width) * 3)  # far from uniform weights
    features = drawn(4, 9 * width, seed=1)
    head.parts.standardise(iter([features]))
    oracle = nn.MultiheadAttention(width, head.heads, batch_first=True).eval()
    with torch.no_grad():
        key_bias = drawn(width, seed=5)  # the same for all keys: changes nothing
        oracle.in_proj_weight.copy_(torch.cat([torch.eye(width), head.key.weight, head.value.weight]))
        oracle.in_proj_bias.copy_(torch.cat([torch.zeros(width), key_bias, head.value.bias]))
        oracle.out_proj.load_state_dict(head.out.state_dict())
        tokens = units(features.double().numpy().reshape(4, 9, width))
        flat = tokens.reshape(-1, width)
        tokens = torch.from_numpy((tokens - flat.mean(axis=0)) / flat.std(axis=0)).float()  # shared by all places
        pooled, weights = oracle(head.query.expand(4, 1, width), tokens, tokens, average_attn_weights=False)
        torch.testing.assert_close(head.attention(tokens), weights[:, :, 0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(head.pooled(head.parts(features)), pooled[:, 0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(head.class_logits(features), head.classify(pooled[:, 0]), atol=1e-4, rtol=1e-4)
        assert weights.max() > 0.3


def test_attention_pooling_knows_no_places() -> None:
    torch.manual_seed(0)
    head = AttentionPooling(6 * 8, CLASSES, 8).eval()
    features = drawn(3, 48)
    head.parts.standardise(iter([features]))
    moved = features.view(3, 6, 8)[:, torch.tensor([3, 1, 5, 0, 2, 4])].flatten(1)
    torch.testing.assert_close(head(moved), head(features))


def test_prototypes_begin_as_the_difference_of_the_similarities_to_the_texts() -> None:
    texts = prompt_features("tiny", [("a real photo",), ("AI art",)])
    head = Prototypes(128, CLASSES, texts)
    features = drawn(6, 128) * 7
    cosines = units(features.double().numpy()) @ units(texts.double().numpy()).T
    np.testing.assert_allclose(head(features).detach(), cosines[:, 1] - cosines[:, 0], atol=1e-6)
    assert np.abs(cosines[:, 1] - cosines[:, 0]).max() > 1e-3


def brute_force(tokens: np.ndarray, fake: np.ndarray) -> np.ndarray:
    """Distance of the class means over the mean distance to them, token by token and image by image."""
    found = []
    for t in range(tokens.shape[1]):
        centre, spread = [], []
        for label in (False, True):
            of_class = [image[t] for image, is_fake in zip(tokens, fake, strict=True) if is_fake == label]
            centre.append(sum(of_class) / len(of_class))
            spread.append(np.mean([np.sqrt(((x - centre[-1]) ** 2).sum()) for x in of_class]))
        found.append(np.sqrt(((centre[0] - centre[1]) ** 2).sum()) / ((spread[0] + spread[1]) / 2 + 1e-8))
    return np.array(found)


def in_batches(features: Tensor, fake: Tensor, size: int) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    return lambda: zip(features.split(size), fake.split(size), strict=True)


@pytest.mark.parametrize("size", [1, 7, 100])  # a batch may lack a class
def test_fisher_scores_are_brute_force_whatever_the_batches(size) -> None:
    features, fake = drawn(23, 10 * 4) + 5, drawn(23, seed=2) > 0.3
    features[fake, 12:16] += 2.5  # token 3 is informative
    features[fake, 28:32] += 1.5  # and token 7, less
    scores = fisher_scores(in_batches(features, fake, size), 4)
    expected = brute_force(features.double().numpy().reshape(23, 10, 4), fake.numpy())
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert scores.argsort(descending=True)[:2].tolist() == [3, 7]


def test_chosen_tokens_are_averaged_and_no_other_counts() -> None:
    probe = Probe(4, CLASSES, "logistic")
    head = TokenChoice(torch.tensor([3, 0]), 4, probe).eval()
    features = drawn(5, 6 * 4)
    tokens = features.view(5, 6, 4)
    torch.testing.assert_close(head(features), probe((tokens[:, 3] + tokens[:, 0]) / 2))
    changed = features.clone()
    changed[:, 4:12] = 8.0
    torch.testing.assert_close(head(changed), head(features))


def test_parts_do_not_divide_by_what_does_not_vary() -> None:
    parts = Parts(3, 2)
    features = torch.tensor([[1.0, 0, 0, 1, 1, 0], [2.0, 0, 0, 0, 1, 1], [3.0, 0, 0, 1, 0, 1]])
    parts.standardise(iter([features]))
    assert torch.isfinite(parts(features)).all() and (parts(features)[:, 0] == 0).all()


@pytest.mark.parametrize(("dim", "width"), [(12, 5), (12, 0), (12, -3), (12, 24)])
def test_parts_that_do_not_make_the_feature_are_refused(dim, width) -> None:
    with pytest.raises(ValueError, match=f"length {dim} are not made of parts of width {width}"):
        parts_of(dim, width)


@pytest.mark.parametrize("name", ["tiny", MOBILE, "timm:vit_tiny_patch16_224@random"])
def test_tokens_of_a_layer_are_those_of_the_tower_in_their_places(name) -> None:
    backbone = load_backbone(name)
    pixels = torch.randint(0, 256, (2, 3, backbone.preprocess.size, backbone.preprocess.size), dtype=torch.uint8)
    shapes = backbone.tokens()
    assert list(shapes) == [layer for layer in backbone.layers() if layer != "proj"]
    for layer in ("block2", "last"):
        count, width = shapes[layer]
        with torch.no_grad():
            found = backbone.encode(pixels, [f"{layer}_tokens", f"{layer}_mean"])
        tokens = found[f"{layer}_tokens"].view(2, count, width)
        torch.testing.assert_close(tokens.mean(dim=1), found[f"{layer}_mean"], atol=1e-5, rtol=1e-4)
        backbone.layer = layer
        grid = backbone.patches(pixels)[0]  # (n, d, s, s)
        torch.testing.assert_close(tokens, grid.flatten(2).transpose(1, 2))


def test_each_head_says_which_layer_it_reads() -> None:
    tiny = load_backbone("tiny")
    assert layer_read_by("rine", "last", tiny) == "block1+block2+block3+block4"
    assert layer_read_by("rine", "block2+block4", tiny) == "block2+block4"
    assert layer_read_by("attention", "last", tiny) == layer_read_by("fisher", "last_tokens", tiny) == "last_tokens"
    assert layer_read_by("attention", "block3", tiny) == "block3_tokens"
    assert layer_read_by("prototypes", "last", tiny) == layer_read_by("prototypes", "proj", tiny) == "proj"
    assert layer_read_by("logistic", "block1+last_mean", tiny) == "block1+last_mean"
    assert [width_of(layer, tiny) for layer in ("block1+block2", "last_tokens", "last", "proj")] == [192, 192, 0, 0]


@pytest.mark.parametrize(
    ("kind", "layer", "name", "words"),
    [
        ("rine", "block2", "tiny", "it weighs whole blocks; give block1"),
        ("rine", "block1+last", "tiny", "it weighs whole blocks"),
        ("rine", "block1_mean+block2", "tiny", "it weighs whole blocks"),
        ("rine", "last", MOBILE, r"blocks of timm:mobilenetv2_035@random have \d widths, \d+ to \d+: take a vision"),
        ("attention", "proj", "tiny", "--head attention --layer proj: it reads the patch tokens of one layer"),
        ("fisher", "block1+block2", "tiny", "it reads the patch tokens of one layer: last or blockK"),
        ("fisher", "block9", "tiny", "it reads the patch tokens of one layer"),
        ("prototypes", "block1", "tiny", "--layer block1: texts are compared with layer proj; leave --layer out"),
        ("prototypes", "last", MOBILE, "--head prototypes: backbone .* has no text tower"),
    ],
)
def test_what_a_head_cannot_read_is_refused_in_one_line(kind, layer, name, words) -> None:
    with pytest.raises(Refusal, match=words) as refused:
        layer_read_by(kind, layer, load_backbone(name))
    assert "\n" not in str(refused.value)


def test_tokens_are_no_layer_of_single_patches() -> None:
    with pytest.raises(Refusal, match="layer 'last_tokens' has no patch tokens of its own"):
        load_backbone("tiny", "last_tokens").patch_tokens(torch.zeros(1, 3, 64, 64))


def test_a_classifier_says_what_it_needs() -> None:
    for method in ("class_logits", "describe"):
        with pytest.raises(NotImplementedError):
            getattr(Classifier(CLASSES), method)(*([torch.zeros(1, 1)] if method == "class_logits" else []))
