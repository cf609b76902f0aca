"""Adversarial examples: how small a change turns the verdict, and what JPEG and other detectors make of it.

Projected gradient descent (1706.06083, section 2.1) in the pixels that the detector sees, 0 to 255 at its input size,
its normalisation inside the attack. Preprocessing is not attacked: what is attacked, rounded to 8 bits and compressed
is the image of that size, as if it had been published so.

An attacker who knows that the image will be compressed attacks through the codec. Its rounding has no gradient:
forward the pixels are those of the real codec, backward they are taken for the pixels that went in (straight-through,
1802.00420). Where the quality is not known, the mean over several is attacked (expectation over transformations,
1707.07397).
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter
from torch import Tensor

from adapt.data.views import parse_view
from adapt.detector.detector import Detector
from adapt.pages.drawing import COLOURS, LINES, MARKERS
from adapt.pages.html import Gallery, Picture
from adapt.pages.thumbnails import thumbnail
from adapt.understanding.content import to_image
from adapt.understanding.item import Item, Numbers, Value, mean
from adapt.understanding.subject import BATCH, Subject, logits

DIRECTIONS = {"real to fake": False, "fake to real": True}  # whether the attacked images are fakes
ROUNDED, CONTROL = "8 bits", "same noise, shuffled"
ABOUT = """\
Every attacked image is rounded to 8 bits before it is scored again; {steps} steps of {share:g} eps (at least 1 / 255)
from a random start, the best of all steps kept, the largest change of a pixel eps / 255. Success: the share of the
images called rightly before that are called wrongly after. After JPEG both the untouched and the attacked image are
compressed, so that what JPEG itself turns does not count. Same noise, shuffled: the attack's own change with its
pixels in random order, of equal norm, as control. PSNR (dB) and SSIM (Wang et al. 2004, luma) are of the attacked
images against the untouched ones, at 8 bits. {images} images: per group one photograph, and one of its fakes drawn at
random.

Transfer: images attacked on the detector of the row, judged by the detector of the column at its own threshold, among
the images that it calls rightly untouched; on the diagonal stands the attack on itself. One of another input size sees
the picture of the attacked size through its own preprocessing.

Attacks that know of JPEG: each step sees the image behind the codec, at one quality, or its mean logit over all of
them, and takes the codec's gradient for the identity. "Knows nothing" is the attack above. An image attacked so is
judged behind each quality. This, not the row of the unaware attack, says how safe JPEG makes a detector."""


def adversarial(
    subject: Subject,
    others: Mapping[str, Detector],
    eps: Sequence[float],
    steps: int,
    step_share: float,
    qualities: Sequence[int],
    examples: int,
) -> Item:
    """Success of PGD at each `eps` (levels of 255) in both directions, its control, after JPEG, and its transfer.

    `others` (by name) are attacked at the smallest and the largest `eps` too; every detector judges every attack.
    """
    places = {name: _one_a_group(subject, fake) for name, fake in DIRECTIONS.items()}
    cells: dict[tuple[str, str], Value] = {}
    adaptive: dict[tuple[str, str], Value] = {}
    strips: list[Picture] = []
    hostile: dict[tuple[str, float], Tensor] = {}
    ends = sorted({min(eps), max(eps)})
    for direction, at in places.items():
        clean = subject.pixels[torch.from_numpy(at)]
        weights, fake = subject.weights[:, at], DIRECTIONS[direction]
        for e in eps:
            found = pgd(subject.detector, clean, fake, e, steps, max(1.0, step_share * e), subject.seed)
            judged = _judged(subject.detector, clean, found, fake, weights, qualities, subject.seed)
            cells |= {(f"{direction}, eps {e:g}", column): value for column, value in judged.items()}
            if e in ends:
                hostile[direction, e] = found
                for name, aware in _aware(
                    subject.detector, clean, found, fake, e, steps, step_share, subject.seed, qualities
                ):
                    pairs = {f"JPEG {q}": (compressed(clean, q), compressed(aware, q)) for q in qualities}
                    for column, pair in ({ROUNDED: (clean, aware)} | pairs).items():
                        row = f"{direction}, eps {e:g}, knows {name}"
                        adaptive[row, column] = success(subject.detector, *pair, fake, weights)
            if e == max(eps):
                strips += _examples(subject, at, found, examples, e)
    numbers = [Numbers("Attacks", "direction, eps of 255", cells)]
    rows = [f"{direction}, eps {e:g}" for direction in DIRECTIONS for e in ends]
    headline = [(f"{row}: {column}", cells[row, column]) for row in rows for column in (ROUNDED, CONTROL)]
    if adaptive:
        numbers.append(Numbers("Attacks that know of JPEG", "attack", adaptive))
        headline += _hardest(adaptive, rows, qualities)
    if others:
        numbers.append(_transfer(subject, others, places, hostile, steps, step_share))
    images = sum(map(len, places.values()))
    about = ABOUT.format(steps=steps, share=step_share, images=images)
    figures = {"success": _figure(cells, eps, qualities)}
    gallery = Gallery(strips, f"Untouched, attacked (eps {max(eps):g}), and the change, enlarged to the full scale")
    return Item("adversarial", "Adversarial examples", about, numbers, figures, [gallery], headline)


def _aware(
    detector: Detector,
    clean: Tensor,
    unaware: Tensor,
    fake: bool,
    eps: float,
    steps: int,
    step_share: float,
    seed: int,
    qualities: Sequence[int],
) -> Iterator[tuple[str, Tensor]]:
    """Attacked images by what the attacker knows of the JPEG that follows: nothing, one quality, or several."""
    if not qualities:
        return
    yield "nothing", unaware
    for known in dict.fromkeys([*((quality,) for quality in qualities), tuple(qualities)]):
        attacked = pgd(detector, clean, fake, eps, steps, max(1.0, step_share * eps), seed, known)
        yield f"JPEG {' '.join(map(str, known))}", attacked


def _hardest(
    adaptive: Mapping[tuple[str, str], Value], rows: Sequence[str], qualities: Sequence[int]
) -> list[tuple[str, Value]]:
    """At the lowest quality: what an attacker reaches who knows nothing, and one who knows it."""
    column = f"JPEG {min(qualities)}"
    return [(f"{row}, knows {name}: {column}", adaptive[f"{row}, knows {name}", column])
            for row in rows for name in ("nothing", column)]  # fmt: skip


def pgd(
    detector: Detector,
    pixels: Tensor,
    fake: bool,
    eps: float,
    steps: int,
    step: float,
    seed: int,
    qualities: Sequence[int] = (),
) -> Tensor:
    """Images (n, 3, s, s) uint8 within `eps` levels of `pixels` (uint8) that push fakes to real, reals to fake.

    `detector` must not require gradients. Each image keeps the step at which its logit was the most wrong: behind JPEG
    at the `qualities`, on average over them, or without any at once.
    """
    sign = -1.0 if fake else 1.0
    generator = torch.Generator().manual_seed(seed)
    out = []
    for clean in pixels.split(BATCH):
        start = (2 * torch.rand(clean.shape, generator=generator) - 1) * eps
        clean = clean.to(detector.backbone.device).float()
        low, high = (clean - eps).clamp(min=0), (clean + eps).clamp(max=255)
        x = (clean + start.to(clean)).clamp(low, high)
        best, worst = x, torch.full((len(x),), -torch.inf, device=x.device)
        for number in range(steps + 1):
            x = x.detach().requires_grad_()
            seen = [through_jpeg(x, quality) for quality in qualities] or [x]
            wrong = sign * torch.stack([detector(each) for each in seen]).mean(dim=0)
            better = wrong.detach() > worst
            worst, best = (
                torch.where(better, wrong.detach(), worst),
                torch.where(better[:, None, None, None], x.detach(), best),
            )
            if number < steps:
                (gradient,) = torch.autograd.grad(wrong.sum(), x)
                x = (x.detach() + step * gradient.sign()).clamp(low, high)
        out.append(within(best, clean, eps).cpu())
    return torch.cat(out)


def through_jpeg(x: Tensor, quality: int) -> Tensor:
    """Pixels (n, 3, s, s) in 0..255, rounded, behind the real codec; their gradient is that of x itself."""
    behind = compressed(x.detach().round().to(torch.uint8).cpu(), quality).to(x)
    return x + (behind - x).detach()


def within(x: Tensor, clean: Tensor, eps: float) -> Tensor:
    """Rounded to 8 bits without leaving the ball of radius `eps` (which need not be a whole number) around `clean`."""
    reach = int(eps)  # of whole levels, for `clean` is one of them
    return x.round().clamp(clean - reach, clean + reach).clamp(0, 255).to(torch.uint8)


def _judged(
    detector: Detector,
    clean: Tensor,
    attacked: Tensor,
    fake: bool,
    weights: np.ndarray,
    qualities: Sequence[int],
    seed: int,
) -> dict[str, Value]:
    """Success at 8 bits, of the control, and after JPEG; and how much is seen of the attack."""
    pairs = {ROUNDED: (clean, attacked), CONTROL: (clean, shuffled_change(clean, attacked, seed))}
    pairs |= {f"JPEG {quality}": (compressed(clean, quality), compressed(attacked, quality)) for quality in qualities}
    found = {name: success(detector, *pair, fake, weights) for name, pair in pairs.items()}
    for name, distance in (("PSNR, dB", psnr), ("SSIM", ssim)):
        found[name] = mean(np.array([distance(*pair) for pair in zip(clean, attacked, strict=True)]), weights)
    return found


def shuffled_change(clean: Tensor, attacked: Tensor, seed: int) -> Tensor:
    """`clean` with the change of `attacked`, its pixels and channels in random order: the same norms and levels.

    Where that would leave 0 to 255 it is clipped.
    """
    change = (attacked.int() - clean.int()).flatten(1)
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(change.shape, generator=generator).argsort(dim=1)
    return (clean.int() + change.gather(1, order).view_as(clean)).clamp(0, 255).to(torch.uint8)


def success(detector: Detector, clean: Tensor, attacked: Tensor, fake: bool, weights: np.ndarray) -> Value:
    """Share of the images that the detector calls rightly of which it calls the attacked ones wrongly."""
    before, after = ((logits(detector, pixels) >= _threshold(detector)) == fake for pixels in (clean, attacked))
    return mean(np.where(before, ~after, np.nan).astype(np.float64), weights)


def compressed(pixels: Tensor, quality: int) -> Tensor:
    """Each image (3, s, s) through one JPEG file."""
    view = parse_view(f"qf{quality}")
    return torch.stack([_to_tensor(np.asarray(view(to_image(each)))) for each in pixels])


def psnr(clean: Tensor, other: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of 8-bit images; infinite for equal ones."""
    error = (clean.double() - other.double()).square().mean()
    return float(10 * torch.log10(255**2 / error))


def ssim(clean: Tensor, other: Tensor) -> float:
    """Structural similarity of two images (3, h, w) uint8: the mean of `ssim_map`."""
    return float(ssim_map(clean, other).mean())


def ssim_map(clean: Tensor, other: Tensor) -> np.ndarray:
    """Structural similarity at each pixel (h, w) of luma: Wang et al. 2004, equation 13.

    Gaussian window of 11 px, sigma 1.5; K1 = 0.01, K2 = 0.03.
    """
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    x, y = ((luma @ image.double().flatten(1)).view(image.shape[1:]).numpy() for image in (clean, other))

    def local(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, 1.5, radius=5)

    mean_x, mean_y = local(x), local(y)
    var_x, var_y, both = local(x * x) - mean_x**2, local(y * y) - mean_y**2, local(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    light = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return light * (2 * both + c2) / (var_x + var_y + c2)


def seen_by(detector: Detector, pixels: Tensor, source: Detector) -> Tensor:
    """Images at the size of `source` as `detector` sees them."""
    if detector.backbone.preprocess == source.backbone.preprocess:
        return pixels
    return torch.stack([detector.backbone.preprocess(to_image(each)) for each in pixels])


def _threshold(detector: Detector) -> float:
    return detector.threshold if detector.threshold == detector.threshold else 0.0


def _one_a_group(subject: Subject, fake: bool) -> np.ndarray:
    """Places of one image of the class in each group that has one, drawn by seed."""
    rng = np.random.default_rng(subject.seed)
    at: dict[str, list[int]] = {}
    for place in np.flatnonzero(subject.sample.fake == fake):
        at.setdefault(subject.sample["group"][place], []).append(int(place))
    return np.array([members[rng.integers(len(members))] for members in at.values()])


def _transfer(
    subject: Subject,
    others: Mapping[str, Detector],
    places: Mapping[str, np.ndarray],
    hostile: Mapping[tuple[str, float], Tensor],
    steps: int,
    step_share: float,
) -> Numbers:
    detectors = {"this detector": subject.detector, **others}
    cells: dict[tuple[str, str], Value] = {}
    for name, source in detectors.items():
        for (direction, e), own in hostile.items():
            at, fake = places[direction], DIRECTIONS[direction]
            clean = seen_by(source, subject.pixels[torch.from_numpy(at)], subject.detector)
            found = own
            if source is not subject.detector:
                found = pgd(source, clean, fake, e, steps, max(1.0, step_share * e), subject.seed)
            for judge_name, judge in detectors.items():
                before, after = (seen_by(judge, pixels, source) for pixels in (clean, found))
                row = f"{name}, {direction}, eps {e:g}"
                cells[row, judge_name] = success(judge, before, after, fake, subject.weights[:, at])
    return Numbers("Transfer", "attacked on", cells)


def _examples(subject: Subject, at: np.ndarray, found: Tensor, count: int, eps: float) -> list[Picture]:
    pictures = []
    for k in range(min(count, len(at))):
        clean = subject.pixels[at[k]]
        change = ((found[k].float() - clean.float()) * (127 / eps) + 128).clamp(0, 255).to(torch.uint8)
        before, after = logits(subject.detector, torch.stack([clean, found[k]]))
        lines = (subject.sample["path"][at[k]], f"logit {before:.2f}, attacked {after:.2f}")
        strip = to_image(torch.cat([clean, found[k], change], dim=-1))
        pictures.append(Picture(thumbnail(strip, 384), "untouched, attacked, change", lines))
    return pictures


def _to_tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def _figure(cells: dict, eps: Sequence[float], qualities: Sequence[int]) -> Figure:
    figure, places = Figure(figsize=(9, 3.6), layout="constrained"), range(len(eps))
    for axes, direction in zip(figure.subplots(1, 2, sharey=True), DIRECTIONS, strict=True):
        for i, column in enumerate((ROUNDED, *(f"JPEG {quality}" for quality in qualities), CONTROL)):
            found = [cells[f"{direction}, eps {e:g}", column] for e in eps]
            style = {"color": COLOURS[i % 7], "linestyle": LINES[i % 4], "marker": MARKERS[i % 7]}
            axes.plot(places, [v.value for v in found], label=column, **style)
            axes.fill_between(places, [v.low for v in found], [v.high for v in found], color=COLOURS[i % 7], alpha=0.1)
        axes.set_xticks(places, [f"{e:g}" for e in eps])
        axes.set(ylim=(-0.03, 1.03))
        axes.set_title(direction, fontsize=10)
        axes.grid(color="0.92")
    figure.supxlabel("eps, levels of 255", fontsize=10)
    figure.supylabel("share of verdicts turned", fontsize=10)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return figure
