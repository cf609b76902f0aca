"""A backbone's text tower never takes memory: loading makes fewer bytes of tensors than the text tower has."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_towers import MEAN, STD, TEXT, VISION
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adapt.models.prompts import prompt_features
from adapt.models.towers.backbones import TINY, load_backbone

WORDS = 20_000  # a text tower of 2.6 MB beside an image tower of 0.1 MB


class Made(TorchDispatchMode):
    """Bytes of every storage in main memory that an operation made, in sum; a file that is mapped is none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.seen = 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self._note((args, kwargs))
        found = function(*args, **kwargs or {})
        new = self._note(found)
        self.bytes += 0 if function is torch.ops.aten.set_.source_Storage else new  # safetensors maps a file
        return found

    def _note(self, values: object) -> int:
        """Bytes of the storages in `values` that were not seen before."""
        new = 0
        for tensor in (value for value in tree_leaves(values) if isinstance(value, torch.Tensor)):
            storage = tensor.untyped_storage()
            if tensor.device.type == "cpu" and storage.data_ptr() not in self.seen:
                self.seen[storage.data_ptr()] = tensor  # kept: a freed address would come again
                new += storage.nbytes()
        return new


def open_clip_folder(folder: Path) -> str:
    import open_clip

    config = json.loads((TINY / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"] |= {"width": 32, "head_width": 16, "layers": 2}
    config["model_cfg"]["text_cfg"] |= {"width": 32, "heads": 2, "layers": 1, "vocab_size": WORDS}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    clip = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, folder / "open_clip_model.safetensors")
    return f"open_clip:local-dir:{folder}"


def transformers_folder(folder: Path) -> str:
    import transformers

    both = {"projection_dim": 24}
    text = TEXT | both | {"vocab_size": WORDS}
    transformers.CLIPModel(
        transformers.CLIPConfig(vision_config=VISION | both, text_config=text, **both)
    ).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    transformers.CLIPImageProcessor(image_mean=MEAN, image_std=STD, **sizes).save_pretrained(folder)
    return f"transformers:{folder}"


@pytest.mark.parametrize("folder_of", [open_clip_folder, transformers_folder])
def test_text_tower_takes_no_memory(folder_of, tmp_path) -> None:
    name = folder_of(tmp_path)
    load_backbone(name)  # imports make tensors of their own
    with Made() as made:
        backbone = load_backbone(name)
    own = sum(4 * parameter.numel() for parameter in backbone.parameters())
    assert own < made.bytes < 4 * WORDS * 32
    assert not any(parameter.is_meta for parameter in backbone.parameters())


def test_text_tower_is_there_where_it_is_asked_for(tmp_path) -> None:
    name = open_clip_folder(tmp_path)
    load_backbone(name)  # leaves nothing behind that would keep open_clip from building text towers
    assert torch.isfinite(prompt_features("tiny", [["a photo"]])).all()


def test_weights_without_their_text_tower_are_still_refused(tmp_path) -> None:
    from safetensors.torch import load_file

    from adapt.errors import Refusal

    name = open_clip_folder(tmp_path)
    path = tmp_path / "open_clip_model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if k != "ln_final.weight"}, path)
    with pytest.raises(Refusal, match=r"could not be loaded.*ln_final.weight"):
        load_backbone(name)
