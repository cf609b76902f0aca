"""The encoder alone: open_clip's own tower in fp32, ours, and bare matrix products of the same shapes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from adapt.benchmark.timing import Ratio, Settings, in_turns
from adapt.models.towers.backbones import Backbone, load_backbone
from adapt.models.towers.open_clip import create_clip
from adapt.models.towers.packed import rows_of_a_pass

GOALS = {"ViT-L-14": (5.0, 0.70), "ViT-B-32": (4.5, 0.60)}  # against fp32, of the products' rate; on a CPU with AMX


def measure(settings: Settings) -> list[Ratio]:
    return [ratio for name in settings.backbones for ratio in _one(name, settings)]


@torch.no_grad()
def _one(name: str, settings: Settings) -> list[Ratio]:
    model = name.partition(":")[2].partition("@")[0] or name
    theirs, ours = upstream(name, settings), load_backbone(name, "proj").to(settings.device).for_features("bf16")
    plain = load_backbone(name, "proj").to(settings.device).for_features("bf16", "plain")
    width, tokens, patch = shape_of(ours)
    rows = rows_of_a_pass(tokens) if settings.device == "cpu" else 128
    pixels = torch.randint(0, 256, (rows, 3, ours.preprocess.size, ours.preprocess.size), dtype=torch.uint8)
    pixels = pixels.to(settings.device)
    normalised = (pixels - ours.mean) / ours.std
    share, products = products_of(width, rows * tokens, ours.depth, torch.bfloat16, settings)
    _, wide = products_of(width, rows * tokens, ours.depth, torch.float32, settings)
    ways = {
        "open_clip fp32": lambda: theirs(normalised),
        "plain bf16": lambda: plain(pixels),
        "ours": lambda: ours(pixels),
        "products": products,
        "fp32 products": wide,
    }
    seconds = in_turns(ways, settings)
    cosine = torch.cosine_similarity(ours(pixels), theirs(normalised).float()).min().item()
    facts = {"least cosine to fp32": round(cosine, 6)}
    case, way = f"{model}, batch {rows}", "packed" if ours.identity("proj").get("encoder") else "plain"
    flops = flops_of(width, tokens, patch, ours.depth)
    limit = tuple(s * rows * flops / share for s in seconds["products"])
    goals = GOALS.get(model, (None, None)) if settings.device == "cpu" else (None, None)
    rate = {"TFLOP/s": round(rows * flops / min(seconds["ours"]) / 1e12, 3)}
    return [
        Ratio("encoder", case, f"{way} bf16", "open_clip fp32", seconds["ours"], seconds["open_clip fp32"],
              goal=goals[0], facts=facts),
        Ratio("encoder", case, f"{way} bf16", "plain bf16", seconds["ours"], seconds["plain bf16"]),
        Ratio("encoder", case, f"{way} bf16", "bf16 products of its shapes", seconds["ours"], limit,
              goal=goals[1], facts=rate),
        Ratio("encoder", case, "bf16 products of its shapes", "fp32 products", seconds["products"],
              seconds["fp32 products"]),
    ]  # fmt: skip


def upstream(name: str, settings: Settings) -> nn.Module:
    """open_clip's own image tower with the weights of `load_backbone(name)`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tower = create_clip(name, name.partition(":")[2], texts=False).get_submodule("visual")
    return tower.eval().requires_grad_(False).to(settings.device)


def flops_of(width: int, tokens: int, patch: int, depth: int) -> int:
    """Of one image's forward pass through a vision transformer, a multiplication and an addition as two."""
    return depth * (24 * tokens * width**2 + 4 * tokens**2 * width) + 6 * (tokens - 1) * width * patch**2


def shape_of(backbone: Backbone) -> tuple[int, int, int]:
    """Width, tokens and side of a patch."""
    patches = next(m for m in backbone.tower.modules() if isinstance(m, nn.Conv2d))
    patch = patches.kernel_size[0]
    return patches.out_channels, (backbone.preprocess.size // patch) ** 2 + 1, patch


def products_of(
    width: int, rows: int, depth: int, dtype: torch.dtype, settings: Settings
) -> tuple[int, Callable[[], None]]:
    """Floating-point operations of the products of all blocks, and a call that does them into kept memory."""
    shapes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=settings.device)

    made = [(draw(rows, a), draw(a, b), draw(rows, b)) for a, b in shapes]

    def run() -> None:
        for _ in range(depth):
            for x, weight, out in made:
                torch.mm(x, weight, out=out)

    return depth * sum(2 * rows * a * b for a, b in shapes), run
