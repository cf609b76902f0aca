"""Turn a checkpoint file (.pt, .pth, .bin, .safetensors) into a folder that loads as a backbone.

    adapt convert ViT-L-14.pt --like open_clip:ViT-L-14 --output vit-l-14
    adapt convert epoch_10.pt --like open_clip:ViT-L-14@datacomp_xl_s13b_b90k --output tuned
    adapt convert pytorch_model.bin --like transformers:FOLDER --output tuned
    adapt convert detector.pth --like open_clip:ViT-L-14@openai --vision_only --ignore fc --output tower

Reads OpenAI's archives, checkpoints of open_clip's training, and state dicts with or without prefixes, as tensors:
nothing in the file is run. --like names the model; with a tag, activation and preprocessing are those of the weights
that training began from. Tensors that do not fit are shown, and the file is refused. The folder is then a backbone:
--backbone open_clip:local-dir:FOLDER. Time: about as long as it takes to copy the file.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from adapt.cli import run


@dataclass(frozen=True)
class Config:
    file: Path  # the checkpoint; --file may be left out
    like: str  # open_clip:MODEL[@TAG], open_clip:local-dir:FOLDER, tiny, or transformers:FOLDER with its config.json
    output: Path  # folder to make
    vision_only: bool = False  # take the image tower alone
    prefix: str | None = None  # where the tensors stand in the file; found where there is one such place
    ignore: tuple[str, ...] = ()  # beginnings of keys to leave out, as fc


def main(cfg: Config) -> None:
    from adapt.models.towers.convert import convert

    done = convert(cfg.file, cfg.like, cfg.output, vision_only=cfg.vision_only, prefix=cfg.prefix, ignore=cfg.ignore)
    where = f"under {done.prefix.rstrip('.')}" if done.prefix else "at its top"
    left = ", ".join(f"{count} of {name}" for name, count in done.left.items())
    print(f"{done.tensors} tensors, in {cfg.file} {where}; left out: {left or 'none'}")
    print(f"activation {done.activation}; " + "; ".join(f"{key} {value}" for key, value in done.prepares.items()))
    print(f"--backbone {done.name}")


def command() -> None:
    """Parse the command line and run; its first word may be the file."""
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        sys.argv.insert(1, "--file")
    run(main, Config)
