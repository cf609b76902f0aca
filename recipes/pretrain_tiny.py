"""Pre-train the embedded `tiny` CLIP on captioned procedural images.

    python recipes/pretrain_tiny.py --out half
    python recipes/pretrain_tiny.py --start half --seed 2 --scenes 8000 --warmup 50 --out adapt/embedded/tiny

About 30 minutes on two shared cores for 288,000 pairs, of which 6 draw the images. The caption of a fresh image
ranks first among 258 (43 scenes at 6 qualities; 1 in 6 if quality were not seen) for 0.38, then for 0.42.
A batch holds every scene at six qualities: without that the features hardly see noise, blur or patterns.
The generators of the embedded world have no part in it.
"""

import copy
import json
import math
import shutil
import time
import types
from dataclasses import dataclass
from pathlib import Path

import needs_adapt  # noqa: F401 (one line where this Python has no adapt)

from adapt.cli import run


@dataclass(frozen=True)
class Config:
    out: Path = Path("results/runs/tiny")  # folder for configuration, vocabulary and weights
    start: Path | None = None  # folder of weights to continue from; None: start at random
    scenes: int = 16_000  # number of scenes, drawn once
    qualities: int = 6  # copies per scene, each with its own caption
    epochs: float = 2.0  # passes over the scenes
    batch: int = 16  # scenes per batch
    learning_rate: float = 1e-3  # AdamW's step size, with a cosine to zero
    weight_decay: float = 0.1  # decay of the weight matrices
    warmup: int = 100  # steps with a rising rate
    processes: int = 2  # processes that draw images
    seed: int = 1  # seed of every random draw


def normalise(pixels, mean, std):
    """uint8 (n, h, w, 3) -> float (n, 3, h, w)."""
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def whitening(images):
    """Filters (192, 3, 8, 8) that whiten 8 px patches: the first layer sees fine detail from the start."""
    import torch

    patches = images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(-1, 192)
    values, vectors = torch.linalg.eigh(patches.T.cov().double())
    return 0.3 * (vectors / (values + 0.003).sqrt()).T.float().reshape(192, 3, 8, 8)


def attention(self, query, key=None, value=None, need_weights=False, attn_mask=None):
    """nn.MultiheadAttention for q = k = v by plain products: the backward is 1.6 times as fast on a CPU."""
    import torch.nn.functional as F

    n, t, width = query.shape
    q, k, v = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
    q, k, v = (x.view(n, t, self.num_heads, self.head_dim).transpose(1, 2) for x in (q, k, v))
    weights = (q * self.head_dim**-0.5) @ k.transpose(-1, -2)
    weights = weights if attn_mask is None else weights + attn_mask
    return self.out_proj((weights.softmax(-1) @ v).transpose(1, 2).reshape(n, t, width)), None


def contrastive(images, texts, scale):
    """Symmetric cross-entropy between matching rows (2103.00020, figure 3)."""
    import torch
    import torch.nn.functional as F

    logits = scale * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    own = torch.arange(len(logits))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2, logits.argmax(1) == own


def main(cfg: Config) -> None:
    import open_clip
    import torch
    from safetensors.torch import load_file, save_file

    from adapt.embedded.captions import draw
    from adapt.embedded.tokenizer import TINY
    from adapt.files import atomic

    cfg.out.mkdir(parents=True, exist_ok=True)
    for name in ("open_clip_config.json", "vocabulary.txt"):
        if cfg.out.resolve() != TINY.resolve():
            shutil.copy(TINY / name, cfg.out)
    config = json.loads((cfg.out / "open_clip_config.json").read_text())
    mean, std = (torch.tensor(config["preprocess_cfg"][key]) for key in ("mean", "std"))
    started = time.time()
    pixels, ids = draw(cfg.seed, 0, cfg.scenes, cfg.qualities, cfg.processes)
    fresh_pixels, fresh_ids = (
        part.flatten(0, 1) for part in draw(cfg.seed, cfg.scenes, 43, cfg.qualities, cfg.processes)
    )
    print(f"{cfg.scenes} scenes in {time.time() - started:.0f} s", flush=True)

    torch.manual_seed(cfg.seed)
    master = open_clip.model.CLIP(**config["model_cfg"])  # fp32 weights that the optimiser changes
    if cfg.start is None:
        master.visual.conv1.weight.data.copy_(whitening(normalise(pixels[:500, 0], mean, std)))
    else:
        master.load_state_dict(load_file(cfg.start / "open_clip_model.safetensors"))
    worker = copy.deepcopy(master).bfloat16()  # the copy that computes: twice as fast on CPUs with bf16 units
    for module in worker.modules():
        if isinstance(module, torch.nn.MultiheadAttention):
            module.forward = types.MethodType(attention, module)
    pairs = list(zip(master.parameters(), worker.parameters(), strict=True))
    matrices, vectors = ([p for p in master.parameters() if (p.ndim > 1) is many] for many in (True, False))
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, cfg.learning_rate, (0.9, 0.98), weight_decay=cfg.weight_decay)

    generator = torch.Generator().manual_seed(cfg.seed)
    per_epoch = cfg.scenes // cfg.batch
    steps = int(per_epoch * cfg.epochs)
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(cfg.scenes, generator=generator)
        rate = min((step + 1) / cfg.warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = cfg.learning_rate * rate
        chosen = order[step % per_epoch * cfg.batch :][: cfg.batch]
        images = normalise(pixels[chosen].flatten(0, 1), mean, std).bfloat16()
        images = images.flip(3) if torch.rand((), generator=generator) < 0.5 else images
        texts = worker.encode_text(ids[chosen].flatten(0, 1))
        loss, _ = contrastive(worker.encode_image(images).float(), texts.float(), master.logit_scale.exp())
        loss.backward()
        for weight, quick in pairs:
            if quick.grad is not None:
                weight.grad, quick.grad = quick.grad.float(), None
        torch.nn.utils.clip_grad_norm_(master.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            master.logit_scale.clamp_(0, math.log(100))
            for weight, quick in pairs:
                quick.copy_(weight)
        if step % 200 == 199 or step == steps - 1:
            with torch.no_grad():
                seen = master.encode_image(normalise(fresh_pixels, mean, std))
                _, right = contrastive(seen, master.encode_text(fresh_ids), 100.0)
            with atomic(cfg.out / "open_clip_model.safetensors") as temporary:
                save_file({k: v.half().contiguous() for k, v in master.state_dict().items()}, temporary)
                temporary.chmod(0o644)
            passed, share = time.time() - started, right.float().mean()
            print(f"step {step + 1}/{steps} loss {loss:.3f} R@1 of 258 {share:.3f} {passed:.0f} s", flush=True)


if __name__ == "__main__":
    run(main, Config)
