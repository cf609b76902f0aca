"""Chains of degradations, drawn: which steps of a view, in which order, how strong.

As in ARNIQA (2310.14918, utils/utils_data.py of its repository): K kinds are drawn without replacement, one operation
of each, applied in the drawn order; strengths are half-normal, so that weak ones are frequent. There a strength is one
of five levels, with the weights of a normal density of deviation 2.5 at 0 to 4; here it is a number from 0 to 1, of
deviation 0.5, drawn again above 1. The operations and their ranges are ours.
"""

import random
from collections.abc import Callable

CHAINS = 1  # raise it with any change below: cached features of drawn views know it
DEVIATION = 0.5  # of a strength
STRENGTHS: dict[str, tuple[Callable[[float, int], str], ...]] = {  # kind: operations of a strength 0..1 and a sign
    "codec": (lambda s, _: f"qf{round(95 - 65 * s)}", lambda s, _: f"webp{round(95 - 70 * s)}"),
    "blur": (lambda s, _: f"blur{0.3 + 2.7 * s:.2f}",),
    "scale": (lambda s, _: f"scale{1 - 0.7 * s:.2f}",),
    "noise": (lambda s, _: f"noise{20 * s:.1f}",),
    "light": (
        lambda s, sign: f"bright{2 ** (0.7 * sign * s):.2f}",
        lambda s, sign: f"gamma{2 ** (0.6 * sign * s):.2f}",
    ),
    "contrast": (lambda s, sign: f"contrast{2 ** (0.7 * sign * s):.2f}",),
    "colour": (lambda s, sign: f"saturate{1 + 1.5 * s if sign > 0 else 1 - 0.8 * s:.2f}",),
}
LONGEST = len(STRENGTHS)
PRESET = ("none", *(f"chain{length}:0" for length in (1, 2, 3, 4)))  # what `chains` among training views stands for


def draw_chain(length: int, draw: random.Random, share: float = 1.0) -> str:
    """The name of a view of `length` steps, of as many kinds, at this share of the drawn strengths."""
    steps = []
    for kind in draw.sample(list(STRENGTHS), length):
        step = draw.choice(STRENGTHS[kind])
        steps.append(step(share * half_normal(draw), draw.choice((-1, 1))))
    return "+".join(steps)


def half_normal(draw: random.Random) -> float:
    """A strength from 0 to 1."""
    while (strength := abs(draw.gauss(0, DEVIATION))) > 1:
        pass
    return strength
