"""Twelve generators that re-synthesise a photograph, and ordinary edits of photographs.

Every generator is a function (plane (n, n), rng, strength) -> plane: it works on luma (BT.601) in [0, 1]. It leaves
one trace that the literature describes, in the detail that a decoder has to invent. What all share is `cored`: a
decoder that was trained by regression loses weak detail and keeps strong edges. `resynthesise` gives back the lost
energy, as training against photographs does, so that smoothness is not the label; it keeps the change to fine
detail, and leaves Cb and Cr as they were, so that colour is not the label either. Edits are no generators: they are
what people do to photographs, and the result stays real.
"""

from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image
from scipy.ndimage import map_coordinates, median_filter

from adapt.embedded.filters import blur, from_bytes, luma, nearest, resample, to_bytes

CORED = 0.8  # threshold of `cored`, in deviations of the detail; every image draws 0.7 to 1.3 of it
TRACE = 2.0  # by which the change of a decoder is multiplied: as it is, so small a model as `tiny` hardly sees it
SHARE = (0.7, 1.0)  # of the photograph's detail energy that a fake has
FINE = 1.0  # sigma in pixels: what this Gaussian removes is the detail whose energy is matched
COARSEST = 2.0  # sigma in pixels: what this Gaussian keeps of a change is taken back
DARK = 0.08  # luma at which half of a change is left: in black the same step would change the saturation most
MARGIN = 24  # pixels that a decoder draws beyond the image, which is cut from anywhere in them


def _noise(rng: np.random.Generator, like: np.ndarray) -> np.ndarray:
    """Unit-variance Gaussian noise of the same shape."""
    return rng.standard_normal(like.shape)


def _envelope(detail: np.ndarray, sigma: float = 2.0) -> np.ndarray:
    """Local standard deviation of the detail: invented texture follows the texture that was there."""
    return np.sqrt(blur(detail**2, sigma)) + 1e-4


def cored(plane: np.ndarray, threshold: float) -> np.ndarray:
    """Detail finer than `FINE` under a soft threshold, in deviations of the detail: weak detail goes, edges stay."""
    low = blur(plane, FINE)
    detail = plane - low
    return low + np.sign(detail) * np.clip(np.abs(detail) - threshold * detail.std(), 0, None)


def grid(plane: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Nearest-neighbour upsampling by 2 and a small kernel: spectral replicas (1907.06515, section 3)."""
    size = plane.shape[-1]
    low = resample(resample(plane, size // 2, "box"), size, "cubic")
    detail = plane - low
    coarse = nearest(detail[::2, ::2], 2)
    return low + (1 - strength) * detail + strength * (0.75 * coarse + 0.25 * blur(coarse, 0.6))


def transposed(plane: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Transposed convolution, kernel no multiple of its stride of 4: a periodic gain (Odena et al. 2016)."""
    size = plane.shape[-1]
    overlap = np.array([1.0, -0.2, -0.9, 0.1])  # how often each phase of the stride is written, less the mean
    gain = np.tile(overlap[:, None] + overlap[None], (size // 4, size // 4))
    low = blur(plane, 0.9)
    detail = plane - low
    return low + detail * (1 + 0.7 * strength * gain) + 0.7 * strength * gain * (_envelope(detail) + 0.004)


def latent(plane: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Latent codec: detail bands shrunk as by a regression decoder."""
    fine, mid = blur(plane, 0.7), blur(plane, 1.4)
    bands = [plane - fine, fine - mid]
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


def _from_patches(rows: np.ndarray) -> np.ndarray:
    """What `patches` was made of."""
    cells = round(len(rows) ** 0.5)
    return rows.reshape(cells, cells, 4, 4).transpose(0, 2, 1, 3).reshape(4 * cells, 4 * cells)


def vector_quantised(plane: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Vector-quantised codec (2012.09841): detail from a codebook of 4 x 4 words."""
    size = plane.shape[-1]
    detail = plane - resample(resample(plane, size // 4, "box"), size, "cubic")
    rows = patches(detail)
    match = rows @ codebook().T
    best = np.abs(match).argmax(1)
    step = 0.5 * rows.std() + 1e-4
    gain = np.rint(match[np.arange(len(rows)), best] / step) * step
    return plane + strength * (_from_patches(gain[:, None] * codebook()[best]) - detail)


@lru_cache(maxsize=1)
def haar() -> np.ndarray:
    """The 16 orthonormal Haar patterns (16, 16) of 4 x 4 pixels."""
    rows = np.array([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 0, 0], [0, 0, 1, -1]], float)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return np.kron(rows, rows)


def tokens(plane: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Scalar tokens on a grid of 4 px: each Haar coefficient of the detail is rounded coarsely (2309.15505)."""
    size = plane.shape[-1]
    detail = plane - resample(resample(plane, size // 4, "box"), size, "bilinear")
    rows = patches(detail) @ haar().T
    step = 1.6 * rows.std(axis=0, keepdims=True) + 1e-4
    return plane + strength * (_from_patches(np.rint(rows / step) * step @ haar()) - detail)


def cascade(plane: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Super-resolution stage: cubic from 3/5 of the size, then invented texture where there was detail."""
    size = plane.shape[-1]
    low = resample(resample(plane, size * 3 // 5, "cubic"), size, "cubic")
    detail = plane - low
    texture = blur(_noise(rng, plane), 0.5)
    return low + (1 - strength) * detail + strength * texture * _envelope(detail) * 1.6


def style(plane: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Bilinear upsampling by 2 with noise injected at every pixel (1812.04948, section 2)."""
    size = plane.shape[-1]
    low = resample(resample(plane, size // 2, "box"), size, "bilinear")
    detail = plane - low
    return low + (1 - strength) * detail + strength * 0.35 * detail.std() * _noise(rng, plane)


def lanczos(plane: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Lanczos upsampling by 3; texture invented on the coarse grid and a little on the fine one."""
    size = plane.shape[-1]
    low = resample(resample(plane, size // 3, "lanczos"), size, "lanczos")
    detail = plane - low
    coarse = resample(rng.standard_normal((size // 3, size // 3)), size, "lanczos")
    texture = coarse / coarse.std() + 0.35 * _noise(rng, plane)
    return low + (1 - strength) * detail + strength * texture * _envelope(detail)


def wavelet(plane: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Two levels of Haar details: the strong ones stay, which keeps edges; the weak ones are drawn anew."""
    fake, size = plane, plane.shape[-1]
    for cell, share in ((2, 1.0), (4, 0.8)):
        coarse = nearest(resample(fake, size // cell, "box"), cell)
        detail = fake - coarse
        threshold = share * strength * detail.std()
        drawn = nearest(_noise(rng, fake[:: cell // 2, :: cell // 2]), cell // 2)
        drawn -= nearest(resample(drawn, size // cell, "box"), cell)
        fake = coarse + np.where(np.abs(detail) > threshold, detail, 0.6 * threshold * drawn)
    return fake


def turbo(plane: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Few-step decoder: the contrast of detail follows its wider surroundings, so that texture is alike everywhere."""
    low = blur(plane, 1.2)
    detail = plane - low
    wanted = _envelope(detail, 4.0)
    return low + detail * ((1 - strength) + strength * wanted / (_envelope(detail, 1.0) + 0.3 * wanted))


def phase(plane: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """The upper band keeps its amplitudes and local energy but takes random phases: unstructured texture."""
    low = blur(plane, 1.5)
    detail = plane - low
    turn = np.exp(1j * np.angle(np.fft.rfft2(_noise(rng, plane))))
    mixed = np.fft.irfft2(np.abs(np.fft.rfft2(detail)) * turn, s=plane.shape)
    mixed = mixed / _envelope(mixed) * _envelope(detail)
    return low + np.sqrt(1 - strength**2) * detail + strength * mixed


def warp(plane: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Detail carried along a smooth random field of about a pixel: it no longer lies on the edges it belongs to."""
    size = plane.shape[-1]
    low = blur(plane, 1.5)
    field = [1.2 * strength * resample(rng.standard_normal((size // 6, size // 6)), size, "cubic") for _ in range(2)]
    return low + map_coordinates(plane - low, np.mgrid[:size, :size] + np.stack(field), order=1, mode="mirror")


FUNCTIONS = {
    "grid": grid,
    "transposed": transposed,
    "latent": latent,
    "codebook": vector_quantised,
    "cascade": cascade,
    "style": style,
    "lanczos": lanczos,
    "wavelet": wavelet,
    "turbo": turbo,
    "tokens": tokens,
    "phase": phase,
    "warp": warp,
}
SEEN = ("grid", "transposed", "latent", "codebook")  # in train, val and test
SELECTION = ("cascade",)  # in val only
HELD_OUT = ("style", "lanczos", "wavelet", "turbo", "tokens", "phase", "warp")  # in test only
FAMILIES = {
    "grid": "gan",
    "transposed": "gan",
    "latent": "diffusion",
    "codebook": "autoregressive",
    "cascade": "diffusion",
    "style": "gan",
    "lanczos": "gan",
    "wavelet": "diffusion",
    "turbo": "diffusion",
    "tokens": "autoregressive",
    "phase": "flow",  # a family that no training image is of
    "warp": "flow",
}
STRENGTH = {  # how much of the detail carries the trace; every image draws 0.7 to 1.3 of it, at most 1
    "grid": 0.8,
    "transposed": 0.8,
    "latent": 0.9,
    "codebook": 0.6,
    "cascade": 0.6,
    "style": 0.6,
    "lanczos": 0.6,
    "wavelet": 1.0,
    "turbo": 0.8,
    "tokens": 1.0,
    "phase": 0.95,
    "warp": 1.0,
}


def detail_energy(plane: np.ndarray) -> float:
    """Mean square of what a Gaussian of `FINE` removes: the measure by which fakes match photographs."""
    return float(((plane - blur(plane, FINE)) ** 2).mean())


def resynthesise(generator: str, photo: np.ndarray, rng: np.random.Generator, excess: float = 1.0) -> np.ndarray:
    """The fake (3, n, n) of one photograph; `excess` multiplies what the decoder changes, and the detail energy of it.

    The decoder draws a larger picture, of which the image is a part: its grids start anywhere in the image.
    """
    size, (top, left) = photo.shape[-1], rng.integers(0, MARGIN + 1, 2)
    plane = luma(photo)
    scene = np.pad(plane, ((top, MARGIN - top), (left, MARGIN - left)), mode="symmetric")
    strength = min(STRENGTH[generator] * rng.uniform(0.7, 1.3), 1.0)
    scene = FUNCTIONS[generator](cored(scene, CORED * rng.uniform(0.7, 1.3)), rng, strength)
    change = TRACE * excess * (scene[top : top + size, left : left + size] - plane)
    energy = detail_energy(plane) * excess
    change = _matched(plane + change, energy * rng.uniform(*SHARE)) - plane
    change = (change - blur(change, COARSEST)) * plane / (plane + DARK)
    return photo + _matched(plane + change, energy * rng.uniform(*SHARE)) - plane


def blotches(rng: np.random.Generator, size: int) -> np.ndarray:
    """Coloured blotches of 5 px, (3, size, size) of unit variance: no generator leaves them."""
    texture = resample(rng.standard_normal((3, size // 5, size // 5)), size, "cubic")
    return texture / texture.std()


def _matched(fake: np.ndarray, wanted: float) -> np.ndarray:
    """`fake + g * detail` with the g, -0.8 to 2, that brings the detail energy to `wanted`: a quadratic equation."""
    detail = fake - blur(fake, FINE)
    second = detail - blur(detail, FINE)
    a, b, c = (second**2).mean(), (detail * second).mean(), (detail**2).mean() - wanted
    return fake + np.clip((np.sqrt(max(b * b - a * c, 0.0)) - b) / (a + 1e-12), -0.8, 2.0) * detail


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
    noise = np.sqrt(0.9) * rng.standard_normal(photo.shape[-2:]) + np.sqrt(0.1) * _noise(rng, photo)
    return photo + rng.uniform(0.01, 0.04) * blur(noise, rng.uniform(0.3, 0.7))


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
