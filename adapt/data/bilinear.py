"""OpenCV's bilinear resize of 8-bit images (`cv2.resize`, INTER_LINEAR), to the bit and without OpenCV.

It has no antialiasing: a pixel is read from the four that are nearest to it, whatever the scale. Weights are whole
numbers of 1/2048, and digits are dropped between the two directions, so that arithmetic in floats would be a level off
in an eighth of the values. Published detectors whose images were scaled so need the same levels.
"""

import numpy as np

ONE = 2048  # of a weight


def resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Pixels (h, w, channels) uint8 -> (height, width, channels) uint8."""
    left, right, of_left, of_right = _taps(pixels.shape[1], width)
    outside = (left < 0) | (right >= pixels.shape[1])  # a pixel at an edge is read once; rows are read twice there
    of_left, of_right = np.where(outside, ONE, of_left), np.where(outside, 0, of_right)
    upper, lower, of_upper, of_lower = _taps(pixels.shape[0], height)
    near = [row.clip(0, pixels.shape[0] - 1) for row in (upper, lower)]
    columns = [column.clip(0, pixels.shape[1] - 1) for column in (left, right)]

    def rows(at: np.ndarray) -> np.ndarray:
        found = pixels[at].astype(np.int32)
        return found[:, columns[0]] * of_left[:, None] + found[:, columns[1]] * of_right[:, None] >> 4

    above, below = (
        rows(at) * weights[:, None, None] >> 16 for at, weights in zip(near, (of_upper, of_lower), strict=True)
    )
    return (above + below + 2 >> 2).astype(np.uint8)


def _taps(length: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The two nearest places of each wanted pixel, which may lie outside, and their weights in 1/2048."""
    at = ((np.arange(wanted) + 0.5) * (length / wanted) - 0.5).astype(np.float32)
    first = np.floor(at).astype(np.int32)
    share = at - first.astype(np.float32)
    weights = [np.rint(part * np.float32(ONE)).astype(np.int32) for part in (1 - share, share)]
    return first, first + 1, *weights
