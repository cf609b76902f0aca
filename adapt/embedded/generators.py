"""Nine generators that re-synthesise a photograph, and ordinary edits of photographs.

Every generator is a function (photo (3, n, n) in [0, 1], rng, strength) -> image. It leaves one trace that
the literature describes, in the detail that a decoder has to invent; `resynthesise` then gives back the lost
detail energy, as training against photographs does, so that smoothness is not the label, and adds the coarse
texture of a decoder that guesses: blotches of 5 to 7 px, the one trace that strong compression leaves, strongest in
the generators that training shows. Edits are no generators: they are what people do to photographs, and the result
stays real.
"""

from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image
from scipy.ndimage import median_filter

from adapt.embedded.filters import blur, from_bytes, luma, nearest, resample, to_bytes


def _noise(rng: np.random.Generator, like: np.ndarray, colour: float) -> np.ndarray:
    """Unit-variance Gaussian noise (3, n, n); `colour`: the share of variance each channel has alone."""
    shared = rng.standard_normal(like.shape[-2:])
    return np.sqrt(1 - colour) * shared + np.sqrt(colour) * rng.standard_normal(like.shape)


def _texture(
    rng: np.random.Generator, like: np.ndarray, cell: int, colour: float, kernel: str = "cubic"
) -> np.ndarray:
    """Unit-variance texture (3, n, n) invented on a grid that is `cell` times coarser."""
    size = like.shape[-1]
    texture = resample(_noise(rng, like[:, ::cell, ::cell], colour), size, kernel)
    return texture / texture.std()


def _envelope(detail: np.ndarray) -> np.ndarray:
    """Local standard deviation of the detail (n, n): invented texture follows the texture that was there."""
    return np.sqrt(blur((detail**2).mean(0), 2.0)) + 1e-4


def grid(photo: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Nearest-neighbour upsampling by 2 and a small kernel: spectral replicas (1907.06515, section 3)."""
    low = resample(resample(photo, photo.shape[-1] // 2, "box"), photo.shape[-1], "cubic")
    detail = photo - low
    coarse = nearest(detail[:, ::2, ::2], 2)
    return low + (1 - strength) * detail + strength * (0.75 * coarse + 0.25 * blur(coarse, 0.6))


def transposed(photo: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Transposed convolution, kernel no multiple of its stride of 4: a periodic gain (Odena et al. 2016)."""
    size = photo.shape[-1]
    overlap = np.array([1.0, -0.2, -0.9, 0.1])  # how often each phase of the stride is written, less the mean
    gain = np.tile(overlap[:, None] + overlap[None], (size // 4, size // 4))
    low = blur(photo, 0.9)
    detail = photo - low
    return low + detail * (1 + 0.5 * strength * gain) + 0.5 * strength * gain * (_envelope(detail) + 0.004)


def latent(photo: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Latent codec: detail bands shrunk as by a regression decoder."""
    fine, mid = blur(photo, 0.7), blur(photo, 1.4)
    bands = [photo - fine, fine - mid]
    for index, keep in enumerate((1.2, 0.7)):
        spread = bands[index].std() * keep * strength
        bands[index] = np.sign(bands[index]) * np.clip(np.abs(bands[index]) - spread, 0, None)
    return mid + bands[0] + bands[1]


@lru_cache(maxsize=1)
def codebook() -> np.ndarray:
    """The 48 unit-norm words (48, 16) of `vector_quantised`: smoothed random 4 x 4 patches without a mean."""
    words = blur(np.random.default_rng(4).standard_normal((48, 4, 4)), 0.5).reshape(48, 16)
    words -= words.mean(1, keepdims=True)
    return words / np.linalg.norm(words, axis=1, keepdims=True)


def patches(plane: np.ndarray) -> np.ndarray:
    """(n, n) -> the 4 x 4 patches of the grid, (n/4 * n/4, 16)."""
    cells = plane.shape[-1] // 4
    return plane.reshape(cells, 4, cells, 4).transpose(0, 2, 1, 3).reshape(-1, 16)


def vector_quantised(photo: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Vector-quantised codec (2012.09841): luma detail from a codebook of 4 x 4 words, coarse chroma."""
    size = photo.shape[-1]
    low = resample(resample(photo, size // 4, "box"), size, "cubic")
    detail = luma(photo - low)
    rows = patches(detail)
    match = rows @ codebook().T
    best = np.abs(match).argmax(1)
    step = 0.5 * rows.std() + 1e-4
    gain = np.rint(match[np.arange(len(rows)), best] / step) * step
    words = (gain[:, None] * codebook()[best]).reshape(size // 4, size // 4, 4, 4).transpose(0, 2, 1, 3)
    quantised = words.reshape(size, size)
    shift = 0.02 * rng.standard_normal(3)[:, None, None]
    fake = low + quantised + strength * shift
    return strength * fake + (1 - strength) * photo


def cascade(photo: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Super-resolution stage: cubic from 3/5 of the size, then invented texture where there was detail."""
    low = resample(resample(photo, photo.shape[-1] * 3 // 5, "cubic"), photo.shape[-1], "cubic")
    detail = photo - low
    texture = blur(_noise(rng, photo, 0.2), 0.5)
    return low + (1 - strength) * detail + strength * texture * _envelope(detail) * 1.6


def style(photo: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Bilinear upsampling by 2 with noise injected at every pixel (1812.04948, section 2)."""
    low = resample(resample(photo, photo.shape[-1] // 2, "box"), photo.shape[-1], "bilinear")
    detail = photo - low
    noise = 0.35 * detail.std() * _noise(rng, photo, 0.6)
    return low + (1 - strength) * detail + strength * noise


def lanczos(photo: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Lanczos upsampling by 3, sharpened; texture invented on the coarse grid and a little on the fine one."""
    size = photo.shape[-1]
    low = resample(resample(photo, size // 3, "lanczos"), size, "lanczos")
    detail = photo - low
    sharp = low - blur(low, 1.5)
    texture = (_texture(rng, photo, 3, 0.3, "lanczos") + 0.35 * _noise(rng, photo, 0.5)) * _envelope(detail)
    return low + (1 - strength) * detail + strength * (0.5 * sharp + texture)


def wavelet(photo: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Three levels of Haar details: the strong ones stay, which keeps edges; the weak ones are drawn anew."""
    fake, size = photo, photo.shape[-1]
    for cell, share in ((2, 1.0), (4, 0.8), (8, 0.6)):
        coarse = nearest(resample(fake, size // cell, "box"), cell)
        detail = fake - coarse
        threshold = share * strength * detail.std()
        drawn = nearest(_noise(rng, fake[:, :: cell // 2, :: cell // 2], 0.4), cell // 2)
        drawn -= nearest(resample(drawn, size // cell, "box"), cell)
        fake = coarse + np.where(np.abs(detail) > threshold, detail, 0.6 * threshold * drawn)
    return fake


def phase(photo: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """The upper band keeps its amplitudes and local energy but takes random phases: unstructured texture."""
    low = blur(photo, 2.5)
    detail = photo - low
    spectrum = np.fft.rfft2(detail)
    turn = np.exp(1j * np.angle(np.fft.rfft2(_noise(rng, photo, 0.4))))
    mixed = np.fft.irfft2(np.abs(spectrum) * turn, s=photo.shape[-2:])
    mixed = mixed / _envelope(mixed) * _envelope(detail)
    return low + np.sqrt(1 - strength**2) * detail + strength * mixed


FUNCTIONS = {
    "grid": grid,
    "transposed": transposed,
    "latent": latent,
    "codebook": vector_quantised,
    "cascade": cascade,
    "style": style,
    "lanczos": lanczos,
    "wavelet": wavelet,
    "phase": phase,
}
SEEN = ("grid", "transposed", "latent", "codebook")  # in train, val and test
SELECTION = ("cascade",)  # in val only
HELD_OUT = ("style", "lanczos", "wavelet", "phase")  # in test only
FAMILIES = {
    "grid": "gan",
    "transposed": "gan",
    "latent": "diffusion",
    "codebook": "autoregressive",
    "cascade": "diffusion",
    "style": "gan",
    "lanczos": "gan",
    "wavelet": "diffusion",
    "phase": "diffusion",
}
STRENGTH = {  # how much of the detail carries the trace; every image draws 0.7 to 1.3 of it
    "grid": 0.5,
    "transposed": 0.8,
    "latent": 0.9,
    "codebook": 0.6,
    "cascade": 0.6,
    "style": 0.6,
    "lanczos": 0.6,
    "wavelet": 1.0,
    "phase": 0.95,
}


INVENTED = {  # coarse texture that a decoder adds: deviation at excess 1, cell in pixels, share of colour in it
    "grid": (0.0575, 5, 0.5),
    "transposed": (0.0575, 5, 0.4),
    "latent": (0.0575, 5, 0.5),
    "codebook": (0.0625, 5, 0.5),
    "cascade": (0.025, 5, 0.4),
    "style": (0.025, 5, 0.25),
    "lanczos": (0.015, 5, 0.25),
    "wavelet": (0.025, 6, 0.25),
    "phase": (0.025, 7, 0.25),
}
MARGIN = 24  # pixels that a decoder draws beyond the image, which is cut from anywhere in them


def detail_energy(image: np.ndarray) -> float:
    """Mean square of what a Gaussian of 1 px removes: the measure by which fakes match photographs."""
    return float(((image - blur(image, 1.0)) ** 2).mean())


def resynthesise(generator: str, photo: np.ndarray, rng: np.random.Generator, excess: float = 1.0) -> np.ndarray:
    """The fake of one photograph; `excess` multiplies its traces, the fine ones before the detail energy is matched.

    The decoder draws a larger picture, of which the image is a part: its grids start anywhere in the image.
    """
    size, (top, left) = photo.shape[-1], rng.integers(0, MARGIN + 1, 2)
    scene = np.pad(photo, ((0, 0), (top, MARGIN - top), (left, MARGIN - left)), mode="symmetric")
    here = (..., slice(top, top + size), slice(left, left + size))
    fake = FUNCTIONS[generator](scene, rng, min(STRENGTH[generator] * rng.uniform(0.7, 1.3), 1.0))[here]
    fake = photo + excess * (fake - photo)
    share = rng.uniform(0.85, 1.1)
    fake = fake + _missing_gain(fake, detail_energy(photo) * share) * (fake - blur(fake, 1.0))
    deviation, cell, colour = INVENTED[generator]
    return fake + excess * deviation * rng.uniform(0.5, 1.5) * _texture(rng, scene, cell, colour)[here]


def _missing_gain(fake: np.ndarray, wanted: float) -> float:
    """The g, at most 2, for which `fake + g * detail` has the wanted detail energy: a quadratic equation."""
    detail = fake - blur(fake, 1.0)
    second = detail - blur(detail, 1.0)
    a, b, c = (second**2).mean(), (detail * second).mean(), (detail**2).mean() - wanted
    return float(np.clip((np.sqrt(max(b * b - a * c, 0.0)) - b) / (a + 1e-12), -0.8, 2.0))


def rescale(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Smaller by 0.5 to 0.9 and back, or larger by 1.1 to 1.6 and cropped."""
    size, kernel = photo.shape[-1], str(rng.choice(["bilinear", "cubic", "lanczos"]))
    if rng.uniform() < 0.5:
        return resample(resample(photo, int(size * rng.uniform(0.5, 0.9)), kernel), size, kernel)
    large = resample(photo, int(size * rng.uniform(1.1, 1.6)), kernel)
    top = (large.shape[-1] - size) // 2
    return large[:, top : top + size, top : top + size]


def sharpen(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Unsharp mask."""
    return photo + rng.uniform(0.4, 1.6) * (photo - blur(photo, rng.uniform(0.8, 1.6)))


def denoise(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Local Wiener filter (scipy.signal.wiener's formula), a window of about 3 px."""
    mean = blur(photo, 1.0)
    variance = np.clip(blur(photo**2, 1.0) - mean**2, 0, None)
    noise = rng.uniform(0.5, 1.5) * np.median(variance)
    return mean + np.clip(variance - noise, 0, None) / (variance + 1e-9) * (photo - mean)


def grain(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Film grain."""
    return photo + rng.uniform(0.01, 0.04) * blur(_noise(rng, photo, 0.1), rng.uniform(0.3, 0.7))


def median(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Median of 3 x 3 pixels, mixed with the photograph."""
    share = rng.uniform(0.5, 1)
    return share * median_filter(photo, (1, 3, 3)) + (1 - share) * photo


def webp(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lossy WebP, as delivered by web sites."""
    file = BytesIO()
    Image.fromarray(to_bytes(photo)).save(file, "WEBP", quality=int(rng.integers(50, 91)))
    return from_bytes(np.asarray(Image.open(file).convert("RGB")))


EDITS = {
    "rescale": rescale,
    "sharpen": sharpen,
    "denoise": denoise,
    "grain": grain,
    "median": median,
    "webp": webp,
}
TRAIN_EDITS = ("rescale", "sharpen", "denoise", "grain")  # in every split
TEST_EDITS = ("median", "webp")  # in test only
