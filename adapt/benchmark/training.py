"""A LoRA step against the ways it is usually done: a plain fp32 loop, and transformers with peft under autocast.

The plain loop is that of CLIP-LoRA (2405.18541), written from its description: query, key and value of every block get
an update; with dropout on its input the update is multiplied out, W' = B A, and applied as a second full product. All
ways train the same shapes on the same pixels: rank 8, dropout 0.25, a linear head, AdamW. Ours and peft's adapt the
output projection too. Weights are random; they do not change the time. The goals are for a processor with AMX, whose
bf16 products are six times as fast as its fp32 ones; with AVX512-BF16 alone they are twice as fast.
"""

import multiprocessing
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapt.benchmark.encode import flops_of, products_of
from adapt.benchmark.timing import Ratio, Settings, in_turns
from adapt.models.adapters.cut_tower import TrainedPart
from adapt.models.adapters.lora import add_adapter
from adapt.models.heads.linear import LinearHead, balanced_bce
from adapt.models.towers.backbones import Precision, load_backbone
from adapt.provenance import peak_memory
from adapt.stop import end_with_parent

RANK, ALPHA, DROPOUT, BATCH = 8, 8.0, 0.25, 8
PEAKS = 3  # processes whose peak is taken: how the heap is torn differs from one to the next
Step = Callable[[], object]


class PlainLoRA(nn.Module):
    """x W^T + b + dropout(x) (s B A)^T as two full products; without dropout the weights would be summed first."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(t.detach().clone(), requires_grad=False) for t in (weight, bias))
        self.a = nn.Parameter(torch.randn(RANK, weight.shape[1], device=weight.device) * RANK**-0.5)
        self.b = nn.Parameter(torch.zeros(weight.shape[0], RANK, device=weight.device))

    def forward(self, x: Tensor) -> Tensor:
        update = F.linear(F.dropout(x, DROPOUT), self.b @ self.a * (ALPHA / RANK))
        return F.linear(x, self.weight, self.bias) + update


class PlainAttention(nn.Module):
    """`nn.MultiheadAttention` with such projections in place of its fused one."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        pairs = zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
        self.projections = nn.ModuleList(PlainLoRA(weight, bias) for weight, bias in pairs)
        self.out_proj, self.heads = attention.out_proj, attention.num_heads

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **_: object) -> tuple[Tensor, None]:
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection, x in zip(self.projections, (query, key, value), strict=True)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)), None


def plain_step(name: str, batch: int, device: str) -> Step:
    """fp32, every block, autograd as it comes."""
    import open_clip

    visual = open_clip.create_model(_architecture(name)).visual.requires_grad_(False)
    for block in visual.transformer.resblocks:
        block.attn = PlainAttention(block.attn)
    visual.to(device)
    head, pixels = nn.Linear(visual.output_dim, 1).to(device), _pixels(name, batch, device).float() / 128 - 1
    return _step(visual, head, pixels, [*visual.parameters()])


def peft_step(name: str, batch: int, device: str) -> Step:
    """CLIPVisionModel of the same shape with peft on q, k, v and the output, under bf16 autocast."""
    import open_clip
    from peft import LoraConfig, get_peft_model
    from transformers import CLIPVisionConfig, CLIPVisionModel

    shape = open_clip.get_model_config(_architecture(name))["vision_cfg"]
    config = CLIPVisionConfig(
        hidden_size=shape["width"],
        intermediate_size=4 * shape["width"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["width"] // shape.get("head_width", 64),
        image_size=shape["image_size"],
        patch_size=shape["patch_size"],
        hidden_act="gelu",
    )
    targets = ["q_proj", "k_proj", "v_proj", "out_proj"]
    lora = LoraConfig(r=RANK, lora_alpha=int(ALPHA), lora_dropout=DROPOUT, target_modules=targets)
    tower = get_peft_model(CLIPVisionModel(config), lora).to(device).train()
    head = nn.Linear(shape["width"], 1).to(device)
    pixels = _pixels(name, batch, device).float() / 128 - 1

    def features(x: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            return tower(pixel_values=x).pooler_output.float()

    return _step(features, head, pixels, [*tower.parameters()])


def our_step(
    name: str,
    batch: int,
    device: str,
    precision: Precision = "bf16",
    last: int | None = None,
    cached: bool = False,
    recompute: bool = False,
) -> Step:
    """That of recipes/lora.py; with `cached` the tokens below the last blocks are there already."""
    backbone = load_backbone(name).to(device).to_precision(precision)
    add_adapter(backbone, "qkvo", RANK, ALPHA, DROPOUT, last)
    part = TrainedPart(backbone, LinearHead(backbone.dim).to(device), recompute).train()
    inputs = _pixels(name, batch, device)
    if cached:
        with torch.no_grad():
            inputs = part.lower(inputs).flatten(1).float()
    return _step(part.forward, nn.Identity(), inputs, [*part.parameters()], fused=True)


def _step(
    features: Callable[[Tensor], Tensor],
    head: nn.Module,
    inputs: Tensor,
    parameters: Sequence[nn.Parameter],
    fused: bool = False,
) -> Step:
    every = [*parameters, *head.parameters()]
    optimizer = torch.optim.AdamW([p for p in every if p.requires_grad], lr=1e-4, fused=fused or None)
    fake = (torch.arange(len(inputs), device=inputs.device) % 2).float()

    def step() -> None:
        loss = balanced_bce(head(features(inputs)).flatten(), fake, torch.ones_like(fake)) / len(fake)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def _architecture(name: str) -> str:
    return name.removeprefix("open_clip:").partition("@")[0]


def _shape(name: str) -> tuple[int, int, int, int]:
    """Width, tokens, side of a patch and number of blocks."""
    import open_clip

    shape = open_clip.get_model_config(_architecture(name))["vision_cfg"]
    tokens = (shape["image_size"] // shape["patch_size"]) ** 2 + 1
    return shape["width"], tokens, shape["patch_size"], shape["layers"]


def _pixels(name: str, batch: int, device: str) -> Tensor:
    import open_clip

    size = open_clip.get_model_config(_architecture(name))["vision_cfg"]["image_size"]
    return torch.randint(0, 256, (batch, 3, size, size), generator=torch.Generator().manual_seed(0)).to(
        device, torch.uint8
    )


def peak_of(maker: str, name: str, batch: int, device: str, threads: int) -> float:
    """MiB at the peak of two steps, in a process of its own: resident memory, on a GPU that of its tensors."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent) as alone:
        return alone.submit(_peak, maker, name, batch, device, threads).result()


def _peak(maker: str, name: str, batch: int, device: str, threads: int) -> float:
    torch.set_num_threads(threads)
    makers: dict[str, Callable[[str, int, str], Step]] = {
        "ours": our_step,
        "recomputed": partial(our_step, recompute=True),
        "plain": plain_step,
    }
    step = makers[maker](name, batch, device)
    for _ in range(2):
        step()
    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else float(peak_memory())


def measure(settings: Settings) -> list[Ratio]:
    """Steps of all ways in turns, then of the last blocks with a cached prefix, then peak memory."""
    ratios = []
    for name in settings.backbones:
        model, wide = _architecture(name), "L-14" in name
        batch, last = (2, 1) if settings.small else (BATCH, 4 if wide else 3)
        work = (name, batch, settings.device)
        width, tokens, patch, depth = _shape(name)
        ways: dict[str, Step] = {
            "plain": plain_step(*work),
            "peft": peft_step(*work),
            "ours": our_step(*work),
            "recomputed": our_step(*work, recompute=True),
            "cached": our_step(*work, last=last, cached=True),
        }
        share, ways["products"] = products_of(width, batch * tokens, depth, torch.bfloat16, settings)
        costs = in_turns(ways, settings)
        full, few = f"{model}, batch {batch}, all blocks", f"{model}, batch {batch}, last {last} blocks"
        for case, ours, cost, baseline, other, goal in (
            (full, "ours, bf16", "ours", "plain fp32 LoRA", "plain", 6 if wide else 5),
            (full, "ours, bf16", "ours", "transformers + peft, bf16 autocast", "peft", 1.4),
            (full, "ours, activations computed again", "recomputed", "ours, bf16", "ours", None),
            (few, "ours, bf16, cached prefix", "cached", "plain fp32 LoRA, all blocks", "plain", 20),
        ):
            facts = {"ms a step": round(1e3 * statistics.median(costs[cost]), 1)}
            ratios.append(Ratio("training", case, ours, baseline, costs[cost], costs[other], goal=goal, facts=facts))
        ways.clear()
        # forward and gradient of the tokens; of the last block's tokens only keys and values
        flops = 2 * batch * (flops_of(width, tokens, patch, depth - 1) + 4 * tokens * width**2)
        limit = tuple(seconds * flops / share for seconds in costs["products"])
        rate = {"TFLOP/s": round(flops / min(costs["ours"]) / 1e12, 3)}
        products = ("ours, bf16", "bf16 products of its shapes", costs["ours"], limit)
        ratios.append(Ratio("training", full, *products, facts=rate))
        if not settings.small:
            threads, makers = torch.get_num_threads(), ("ours", "recomputed", "plain")
            peaks = {maker: tuple(peak_of(maker, *work, threads) for _ in range(PEAKS)) for maker in makers}
            for way, goal in (("ours", 2 if wide else None), ("recomputed", None)):
                ours = "peak memory of ours" + ", activations computed again" * (way == "recomputed")
                ratio = Ratio("training", full, ours, "plain fp32 LoRA", peaks[way], peaks["plain"], "MiB", goal=goal)
                ratios.append(ratio)
    return ratios
