"""The embedded world and its tiny CLIP: a small stand-in that runs anywhere, never a benchmark."""

from collections.abc import Sequence

from adapt.data.manifest import Manifest


def read_manifests(names: Sequence[str]) -> Manifest:
    """Read and join manifests; the name `embedded` is the built-in world, made on first use."""
    from adapt.embedded.world import embedded_manifest

    return Manifest.read(*(embedded_manifest() if name == "embedded" else name for name in names))
