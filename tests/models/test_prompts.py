"""Class weights from texts, against the libraries' own text towers and by what they say of images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from adapt.data.families import read_families
from adapt.embedded.captions import MEDIA, QUALITIES, SIZE
from adapt.embedded.filters import to_bytes
from adapt.embedded.scenes import draw_scene
from adapt.embedded.tokenizer import tokenize, vocabulary
from adapt.errors import Refusal
from adapt.models.prompts import FAKE, FAMILIES, REAL, family_prompts, prompt_features
from adapt.models.towers.backbones import TINY, load_backbone

CLASSES = [["a photo", "a real photo of the thing"], ["a synthetic image"], ["a drawing", "a sketch", "a painting"]]
WORDS = sorted({word for texts in CLASSES for text in texts for word in text.split()})
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def by_hand(embed) -> torch.Tensor:
    """One prompt at a time, one class at a time."""
    rows = []
    for texts in CLASSES:
        units = [embed(text)[0] / embed(text)[0].norm() for text in texts]
        mean = sum(units) / len(units)
        rows.append(mean / mean.norm())
    return torch.stack(rows)


@torch.no_grad()
def test_tiny_equals_open_clips_encode_text() -> None:
    import open_clip

    clip = open_clip.create_model(f"local-dir:{TINY}", require_pretrained=True).eval()
    found = prompt_features("tiny", CLASSES)
    torch.testing.assert_close(found, by_hand(lambda text: clip.encode_text(tokenize(text))), atol=1e-5, rtol=0)
    assert found.shape == (3, load_backbone("tiny", "proj").dim)
    assert not torch.allclose(found[0], prompt_features("tiny", [["a photo"]])[0], atol=1e-3)


@torch.no_grad()
def test_open_clip_equals_its_own_encode_text(tmp_path) -> None:
    import open_clip

    vision = {"image_size": 16, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1}
    text = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    clip = open_clip.create_model(f"local-dir:{tmp_path}", load_weights=False).eval()
    save_file(clip.state_dict(), tmp_path / "open_clip_model.safetensors")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    found = prompt_features(f"open_clip:local-dir:{tmp_path}", CLASSES)
    torch.testing.assert_close(found, by_hand(lambda t: clip.encode_text(tokenizer([t]))), atol=1e-5, rtol=0)


def write_tokenizer(folder: Path):
    """One id a word: 0 pads, 1 starts, 3 ends, 2 is any other word."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: number for number, word in enumerate(["<pad>", "<s>", "<unk>", "</s>", *WORDS])}
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 3)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)
    return ids


@pytest.mark.parametrize("kind", ["CLIP", "MetaClip2", "Siglip"])
@torch.no_grad()
def test_transformers_equals_its_own_text_features(tmp_path, kind) -> None:
    import transformers

    joint = {} if kind == "Siglip" else {"projection_dim": 24}
    text = SIZES | joint | {"vocab_size": 64, "max_position_embeddings": 12}
    text |= {"bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0, "projection_size": 32}
    vision = SIZES | joint | {"image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=vision, **joint)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape) * 0.1)
    model.save_pretrained(tmp_path)
    ids = write_tokenizer(tmp_path)

    def embed(sentence: str) -> torch.Tensor:
        tokens = [1, *(ids[word] for word in sentence.split()), 3]
        if kind == "Siglip":
            tokens += [0] * (12 - len(tokens))
        return model.get_text_features(input_ids=torch.tensor([tokens])).pooler_output

    found = prompt_features(f"transformers:{tmp_path}", CLASSES)
    torch.testing.assert_close(found, by_hand(embed), atol=1e-5, rtol=0)


@torch.no_grad()
def test_tiny_tells_noisy_from_clean() -> None:
    """Ten generated scenes, each noisy and clean: the text that fits is nearer for most."""
    weights = prompt_features("tiny", [["a clean photo"], ["a very noisy photo", "a noisy photo"]])
    backbone = load_backbone("tiny", "proj")
    images = []
    for seed in range(10):
        rng = np.random.default_rng([5, seed])
        photo = MEDIA["photo"][0](draw_scene(rng, SIZE), rng)
        images += [to_bytes(photo), to_bytes(QUALITIES["noisy"](photo, rng, 0.8))]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    scores = F.normalize(backbone(pixels), dim=1) @ weights.T
    leaning = (scores[:, 1] - scores[:, 0]).view(10, 2)  # clean, noisy
    assert (leaning[:, 1] > leaning[:, 0]).sum() >= 9


@pytest.mark.parametrize("name", ["timm:test_vit@random", "transformers:dino", "nonsense"])
def test_backbones_without_texts_are_refused(tmp_path, monkeypatch, name) -> None:
    from transformers import Dinov2Config, Dinov2Model

    monkeypatch.chdir(tmp_path)
    Dinov2Model(Dinov2Config(**SIZES, image_size=16, patch_size=8)).save_pretrained("dino")
    with pytest.raises(Refusal, match=r"no text tower.*prior logits from a linear probe"):
        prompt_features(name, CLASSES)


@pytest.mark.parametrize("prompts", [[], [["a photo"], []], ["a photo", "a fake"]])
def test_classes_without_prompts_are_refused(prompts) -> None:
    with pytest.raises(Refusal, match=r"class \d has no prompts"):
        prompt_features("tiny", prompts)


def test_every_family_has_prompts_of_its_own() -> None:
    names = set(read_families().names) - {"other"}
    assert names == set(FAMILIES)
    assert len({family_prompts(name) for name in names}) == len(names)
    assert family_prompts("other") == family_prompts("somebody's own") == FAKE and family_prompts("real") == REAL


def test_tiny_knows_the_words_of_the_default_prompts() -> None:
    words = {word for text in REAL + FAKE for word in text.lower().replace("-", " ").split()}
    assert words - set(vocabulary()) == {"diffusion", "model"}
