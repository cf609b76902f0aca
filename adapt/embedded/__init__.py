"""The embedded world and its tiny CLIP: a small stand-in that runs anywhere, never a benchmark."""

from collections.abc import Sequence
from pathlib import Path

from adapt.data.manifest import Manifest
from adapt.errors import Refusal

WORLDS = ("embedded", "embedded-composites")


def read_manifests(names: Sequence[str]) -> Manifest:
    """Read and join manifests; `embedded` is the built-in world of seed 0, `embedded@3` that of seed 3.

    `embedded-composites` are partly modified images of that world, to be read beside it.
    """
    return Manifest.read(*(_embedded(name) if name.partition("@")[0] in WORLDS else name for name in names))


def read_manifest(*names: str | Path) -> Manifest:
    """A manifest from one table or several joined ones; `embedded` and `embedded@SEED` are built in.

    Raises `Refusal` for what a manifest must not be: see adapt/data/manifest.py.
    """
    return read_manifests([str(name) for name in names])


def _embedded(name: str) -> Path:
    from adapt.embedded.world import embedded_composites, embedded_manifest

    world, _, seed = name.partition("@")
    if seed and not seed.isdecimal():
        raise Refusal(f"manifest {name!r}: the embedded world is `{world}` or `{world}@SEED` with a whole number")
    return (embedded_manifest if world == "embedded" else embedded_composites)(int(seed or 0))
