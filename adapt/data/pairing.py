"""Who stands beside whom in training: controls that keep the images and take the matching away."""

import numpy as np

from adapt.data.manifest import Manifest


def rematched(manifest: Manifest, seed: int) -> Manifest:
    """The same images in groups of the same make-up, but every fake beside the photograph of another scene.

    For each generator the groups that have it pass its images on around a circle in random order, another circle
    for each, so the fakes of one group come from different scenes. Reals, processed ones too, stay. A generator
    with one group has nobody to pass to and stays.
    """
    group, draw = manifest["group"].copy(), np.random.default_rng(seed)
    for generator in dict.fromkeys(manifest["generator"][manifest.fake]):
        rows = np.flatnonzero(manifest["generator"] == generator)
        circle = draw.permutation(sorted(set(manifest["group"][rows])))
        following = dict(zip(circle, np.roll(circle, 1), strict=True))
        group[rows] = [following[name] for name in manifest["group"][rows]]
    return Manifest(manifest.columns | {"group": group})


def unpaired(manifest: Manifest) -> Manifest:
    """The same images, each a group of its own: drawn, cropped and degraded apart from its partners."""
    return Manifest(manifest.columns | {"group": manifest["path"].copy()})
