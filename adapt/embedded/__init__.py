"""The embedded world and its tiny CLIP: a small stand-in that runs anywhere, never a benchmark."""

from collections.abc import Sequence

from adapt.data.manifest import Manifest
from adapt.errors import Refusal


def read_manifests(names: Sequence[str]) -> Manifest:
    """Read and join manifests; `embedded` is the built-in world of seed 0, `embedded@3` that of seed 3."""
    return Manifest.read(*(_embedded(name) if name.partition("@")[0] == "embedded" else name for name in names))


def _embedded(name: str):
    from adapt.embedded.world import embedded_manifest

    seed = name.partition("@")[2] or "0"
    if not seed.isdecimal():
        raise Refusal(f"manifest {name!r}: the embedded world is `embedded` or `embedded@SEED` with a whole number")
    return embedded_manifest(int(seed))
