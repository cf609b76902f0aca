"""Small random towers in the true layouts of their libraries, for tests of detectors whose own towers are large."""

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file


def open_clip_folder(
    folder: Path, embed_dim: int = 32, width: int = 64, layers: int = 3, size: int = 56, words: int = 64
) -> str:
    """The name of a backbone: a CLIP with QuickGELU, patches of 14 px, and random weights."""
    folder.mkdir(parents=True)
    vision = {"image_size": size, "layers": layers, "width": width, "patch_size": 14, "head_width": 32}
    text = {"context_length": 8, "vocab_size": words, "width": 32, "heads": 1, "layers": 1}
    model = {"embed_dim": embed_dim, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    prepares = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
    prepares |= {"interpolation": "bicubic", "resize_mode": "shortest"}
    config = {"model_cfg": model, "preprocess_cfg": prepares}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        clip = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
        state = {key: value + 0.02 * torch.randn_like(value) for key, value in clip.state_dict().items()}
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "open_clip_model.safetensors")
    return f"open_clip:local-dir:{folder}"
