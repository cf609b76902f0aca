"""Which items a detector and a manifest allow."""

from collections.abc import Collection

from adapt.data.manifest import Manifest
from adapt.models.prompts import without_texts
from adapt.understanding.evidence import without_captum


def impossible(items: Collection[str], rows: Manifest, backbone: str) -> dict[str, str]:
    """Why some of `items` cannot be measured, by name; one line each, with the remedy."""
    plain = rows["edit"] == ""

    def matched() -> str:
        real, fake = (set(rows["group"][plain & (rows["split"] == "test") & of]) for of in (~rows.fake, rows.fake))
        if len(real & fake) >= 2:
            return ""
        return (
            f"{len(real & fake)} test groups hold a photograph and fakes of its own, and two are needed: give a "
            "manifest whose `group` joins them"
        )

    def trainable() -> str:
        for split in ("train", "val"):
            fake = rows.fake[plain & (rows["split"] == split)]
            if not len(fake) or fake.all() or not fake.any():
                return f"no {split} rows of both classes, which its probes need: give the manifest of the training"
        return ""

    checks = {
        "layers": trainable,
        "variance": matched,
        "texts": lambda: without_texts(backbone),
        "maps": without_captum,
    }
    return {name: why for name, check in checks.items() if name in items and (why := check())}
