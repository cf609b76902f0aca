"""Captioned procedural images, from which the embedded `tiny` CLIP is pre-trained.

A caption names what is in the image, the medium, and its quality. The same scene comes at several qualities,
so the model has to see them: captioned pictures of the web teach a real CLIP noise, blur and compression.
"""

from collections.abc import Iterator
from io import BytesIO
from multiprocessing import get_context
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from scipy.ndimage import median_filter

from adapt.embedded.camera import draw_camera, photograph, tone
from adapt.embedded.filters import blur, from_bytes, luma, nearest, one_thread, resample, to_bytes
from adapt.embedded.scenes import COLOURS, GROUNDS, TEXTURES, Scene, draw_scene

if TYPE_CHECKING:
    from torch import Tensor

SIZE = 64  # pixels a side
MARGIN = 8  # drawn around the image and cut off after the quality was set, so that borders teach nothing


def _photo(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    return photograph(scene.light, draw_camera(rng), rng)


def _render(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """No camera: clean light, no noise, no mosaic."""
    return tone(blur(scene.light, rng.uniform(0.3, 0.6)), rng.uniform(1.9, 2.4))


def _painting(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Flat brush strokes on canvas."""
    image = median_filter(tone(blur(scene.light, 0.6)), (1, 5, 5))
    canvas = blur(rng.standard_normal(image.shape[-2:]), 0.7)
    return image * (1 + rng.uniform(0.08, 0.2) * canvas)


def _drawing(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Dark outlines on paper, pale colours."""
    image = tone(blur(scene.light, 0.7))
    edges = np.abs(luma(image - blur(image, 1.5)))
    return np.clip(0.5 + 0.5 * image - rng.uniform(3, 6) * edges, 0, 1)


def _halftone(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Printed dots of 3 to 5 px."""
    image = tone(blur(scene.light, 0.8))
    y, x = np.mgrid[: image.shape[-2], : image.shape[-1]] * (2 * np.pi / rng.uniform(3, 5))
    return image + rng.uniform(0.06, 0.2) * np.sin(x + y) * np.sin(x - y)


def _screen(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """A photographed display: its pixel grid of 2 to 5 px stays visible."""
    light = blur(scene.light, 0.6)
    y, x = np.mgrid[: light.shape[-2], : light.shape[-1]] * (2 * np.pi / rng.uniform(2, 5))
    phase = rng.uniform(0, 2 * np.pi, 2)
    mesh = 1 + rng.uniform(0.06, 0.3) * (np.sin(y + phase[0]) + np.sin(x + phase[1]))
    return photograph(np.clip(light * mesh, 0.002, 1), draw_camera(rng), rng)


MEDIA = {  # word: (function, share of the scenes)
    "photo": (_photo, 0.55),
    "render": (_render, 0.13),
    "painting": (_painting, 0.1),
    "drawing": (_drawing, 0.06),
    "print": (_halftone, 0.06),
    "screen": (_screen, 0.1),
}
MEDIUM_NAMES = {
    "photo": ("photo", "photograph", "real photo", "camera photo", "picture"),
    "render": ("computer generated image", "digital image", "synthetic image", "render"),
    "painting": ("painting", "oil painting"),
    "drawing": ("drawing", "sketch"),
    "print": ("halftone print", "print"),
    "screen": ("screen photo", "display photo"),
}


def _compressed(image: np.ndarray, rng: np.random.Generator, degree: float) -> np.ndarray:
    file = BytesIO()
    Image.fromarray(to_bytes(image)).save(file, "JPEG", quality=int(85 - 65 * degree))
    return from_bytes(np.asarray(Image.open(file)))


def _pixelated(image: np.ndarray, rng: np.random.Generator, degree: float) -> np.ndarray:
    cell = int(rng.choice([2, 4]))
    coarse = nearest(resample(image, image.shape[-1] // cell, "box"), cell)
    return image + (0.25 + 0.75 * degree) * (coarse - image)


def _smoothed(image: np.ndarray, rng: np.random.Generator, degree: float) -> np.ndarray:
    """Weak detail is lost, strong edges stay."""
    low = blur(image, 1.2)
    detail = image - low
    return low + np.where(np.abs(detail) > (0.3 + 1.5 * degree) * detail.std(), detail, 0.2 * detail)


def _upscaled(image: np.ndarray, rng: np.random.Generator, degree: float) -> np.ndarray:
    kernel = str(rng.choice(["bilinear", "cubic", "lanczos"]))
    return resample(resample(image, int(image.shape[-1] * (0.85 - 0.5 * degree)), kernel), image.shape[-1], kernel)


def _posterized(image: np.ndarray, rng: np.random.Generator, degree: float) -> np.ndarray:
    levels = 20 - 15 * degree
    return np.rint(image * levels) / levels


def _noisy(image: np.ndarray, rng: np.random.Generator, degree: float) -> np.ndarray:
    return image + (0.01 + 0.06 * degree) * rng.standard_normal(image.shape)


def _grainy(image: np.ndarray, rng: np.random.Generator, degree: float) -> np.ndarray:
    return image + (0.02 + 0.1 * degree) * blur(rng.standard_normal(image.shape[-2:]), rng.uniform(0.5, 1.0))


def _sharpened(image: np.ndarray, rng: np.random.Generator, degree: float) -> np.ndarray:
    return image + (0.4 + 2 * degree) * (image - blur(image, rng.uniform(0.8, 1.5)))


def _checkered(image: np.ndarray, rng: np.random.Generator, degree: float) -> np.ndarray:
    """A regular pattern of 2 to 4 px lies over the image."""
    period = int(rng.integers(2, 5))
    mesh = np.tile(rng.standard_normal((period, period)), (image.shape[-1] // period + 1,) * 2)
    return image + (0.008 + 0.05 * degree) * mesh[: image.shape[-1], : image.shape[-1]]


def _shifted(image: np.ndarray, rng: np.random.Generator, degree: float) -> np.ndarray:
    """Colours bleed: chroma is coarse."""
    grey = luma(image)
    return grey + resample(resample(image - grey, image.shape[-1] // 8, "box"), image.shape[-1], "bilinear") * (
        1 + degree * rng.uniform(-0.5, 0.5)
    )


def _mottled(image: np.ndarray, rng: np.random.Generator, degree: float) -> np.ndarray:
    """Coarse blotches of 3 to 6 px."""
    small = rng.standard_normal((3, *(int(image.shape[-1] / rng.uniform(3, 6)),) * 2))
    return image + (0.01 + 0.05 * degree) * resample(small, image.shape[-1], "cubic")


QUALITIES = {
    "clean": lambda image, rng, degree: image,
    "blurry": lambda image, rng, degree: blur(image, 0.4 + 1.2 * degree),
    "noisy": _noisy,
    "grainy": _grainy,
    "compressed": _compressed,
    "pixelated": _pixelated,
    "smoothed": _smoothed,
    "upscaled": _upscaled,
    "sharpened": _sharpened,
    "posterized": _posterized,
    "patterned": _checkered,
    "bleeding": _shifted,
    "mottled": _mottled,
}
DEGREES = ("slightly", "", "very")  # degree below 1/3, below 2/3, above


def _caption(rng: np.random.Generator, words: dict[str, str], medium: str, quality: str, degree: float) -> str:
    how = "" if quality == "clean" else DEGREES[min(int(degree * 3), 2)]
    name = rng.choice(MEDIUM_NAMES[medium])
    if quality == "clean" and rng.uniform() < 0.3:
        quality = ""
    thing = f"{words['colour']} {words['texture']} {rng.choice(['object', 'thing', 'shape'])}"
    text = f"a {how} {quality} {name} of a {thing} on {words['ground_colour']} {words['ground']}"
    return " ".join(text.split())


def captioned(rng: np.random.Generator, qualities: int = 4) -> Iterator[tuple[np.ndarray, str]]:
    """One scene in one medium at several qualities: pixels uint8 (SIZE, SIZE, 3), caption."""
    scene = draw_scene(rng, SIZE + 2 * MARGIN)
    medium = str(rng.choice(list(MEDIA), p=[share for _, share in MEDIA.values()]))
    image = MEDIA[medium][0](scene, rng)
    chosen = rng.permutation(list(QUALITIES))[:qualities]
    if "clean" not in chosen and rng.uniform() < 0.7:  # most qualities are learnt as a difference from none
        chosen[0] = "clean"
    delivery = rng.uniform(0, 0.6) if rng.uniform() < 0.4 else None  # a mild JPEG that no caption mentions
    for quality in map(str, chosen):
        degree = rng.uniform()
        copy = QUALITIES[quality](image, rng, degree)
        if delivery is not None:
            copy = _compressed(copy, rng, delivery)
        pixels = to_bytes(copy)[MARGIN:-MARGIN, MARGIN:-MARGIN]
        yield pixels, _caption(rng, scene.words, medium, quality, degree)


PROMPT_WORDS = """an the ai artificial artificially by camera captured fake from generated generator images
in is machine made manipulated not photos pictures taken this with"""  # no caption has them, prompts may


def words() -> list[str]:
    """Every word that captions use, and PROMPT_WORDS."""
    kinds = (COLOURS, GROUNDS, TEXTURES, QUALITIES, DEGREES, *MEDIUM_NAMES.values())
    text = " ".join(name for kind in kinds for name in kind)
    return sorted({*text.split(), *PROMPT_WORDS.split(), "a", "of", "on", "object", "shape", "thing", "background"})


def draw(seed: int, first: int, count: int, qualities: int, processes: int) -> "tuple[Tensor, Tensor]":
    """Scenes `first` to `first + count` of a seed: pixels uint8 (count, qualities, SIZE, SIZE, 3) and token ids
    int64 (count, qualities, context), the same for any number of processes."""
    import torch

    from adapt.embedded.tokenizer import tokenize

    jobs = [(seed, first + index, qualities) for index in range(count)]
    with get_context("spawn").Pool(processes, one_thread) as pool:
        pixels, texts = zip(*pool.imap(_scene, jobs, chunksize=64), strict=True)
    return torch.from_numpy(np.stack(pixels)), torch.stack([tokenize(found) for found in texts])


def _scene(job: tuple[int, int, int]) -> tuple[np.ndarray, list[str]]:
    seed, index, qualities = job
    pixels, texts = zip(*captioned(np.random.default_rng([seed, index]), qualities), strict=True)
    return np.stack(pixels), list(texts)
