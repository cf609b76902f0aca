"""What a run measured, on the model card of its detector: intended use, numbers with intervals, limits, licence."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from adapt.detector.detector import card_of
from adapt.evaluation.metrics import Cell, Control, index, weakest
from adapt.evaluation.replicates import ALL
from adapt.files import write_text
from adapt.models.towers.timm import repository_of
from adapt.models.towers.tokens import read_json
from adapt.pages.markdown_page import EMBEDDED
from adapt.pages.tables import grid, headline, show, views_of
from adapt.text import plain

USE = """\
## Intended use

To sort images of the kinds that it was measured on, so that a person looks at the right ones first, and to compare
detectors. It is not meant to decide about a person on its own: a single image needs other evidence. It judges whole
images; parts that were generated or retouched were not measured."""
READ = """\
`0.874 [0.851, 0.896]` is a value with its 95 % interval (over scenes). AUC: the chance that a fake scores
above a real image; seen generators had training images, unseen ones had none. Balanced accuracy and false alarms are
at the frozen threshold. Processed reals are photographs that were only resized, sharpened or denoised."""
RATES = """\
`p_fake` is for as many fakes as photographs. Where a share P of the images is fake, `adapt predict --prevalence P`
says what it is there, and how many of the verdicts to believe. An error rate that is stated (`--error_rate`,
`--max_false_positive_rate`) holds on average over validation samples, not for each single detector; with
`--confidence 0.9` it holds for this very detector, with probability 0.9 over validation samples."""
UNKNOWN = "see the page of the base weights"
WEAK = 5  # cells that are named


def complete_card(folder: Path, cells: Sequence[Cell], checks: Sequence[Control], base_licence: str) -> None:
    """Write the README.md of a saved detector with what `cells` and `checks` of its run say."""
    card = card_of(folder).rstrip("\n")
    embedded = [EMBEDDED] if any(cell.set == "embedded" for cell in cells) else []
    licence_words = (
        f"Base weights: {plain(base_licence)}. Adapter and head were derived from them and work only with them.\n"
        "The training images keep their own terms."
    )
    parts = [card, USE, "## Measured", *embedded, READ, grid(headline(cells)), RATES, *_limits(cells, checks)]
    write_text(folder / "README.md", "\n\n".join([*parts, "## Licence", licence_words]) + "\n")


def _limits(cells: Sequence[Cell], checks: Sequence[Control]) -> list[str]:
    """What a reader must not expect, from the numbers themselves."""
    at, lines = index(cells), []
    views = ", ".join(f"`{plain(view)}`" for view in views_of(cells))
    if all(show(at.get((ALL, view, "mean:unseen", "auc"))) == "n/a" for view in views_of(cells)):
        lines.append("- No generator was tested that training had not met: what it does on a new one is not known.")
    for cell in weakest(cells, WEAK):
        lines.append(f"- Among the weakest: {plain(cell.generator)} under `{plain(cell.view)}`, AUC {show(cell)}.")
    for check in checks:
        if check.outcome == "FAILED":
            lines.append(f"- Control FAILED: {plain(check.name)} under `{plain(check.view)}`, {show(check)}.")
    lines.append(f"- Other processing than {views}, and generators that are not in the table, were not measured.")
    return ["## Limits", "\n".join(lines)]


def licence(name: str) -> str:
    """What is known of the licence of a backbone's weights: from their own card or config, else where to look."""
    library, _, model = name.partition(":")
    if name == "tiny":
        return "Apache-2.0 (`tiny` of this package)"
    if model.endswith("@random"):
        return "none needed, they are random"
    if library == "timm" and not repository_of(name, model):
        file = Path(model.partition("@")[2]).with_suffix(".json")
        config = read_json(file, name) if file.is_file() else {}
        return str(config.get("pretrained_cfg", {}).get("license") or UNKNOWN)
    found = _of_card(_card(library, model))
    return found or UNKNOWN


def _card(library: str, model: str) -> Path | str | None:
    """The card of the weights: a file, or the repository that holds it."""
    if library == "open_clip":
        if model.startswith("local-dir:"):
            return Path(model.removeprefix("local-dir:")) / "README.md"
        if model.startswith("hf-hub:"):
            return model.removeprefix("hf-hub:").partition("@")[0]
        from open_clip import get_pretrained_cfg

        architecture, _, tag = model.partition("@")
        return "/".join(get_pretrained_cfg(architecture, tag).get("hf_hub", "").split("/")[:2]) or None
    if library == "timm":
        model = repository_of(f"timm:{model}", model)
    return Path(model) / "README.md" if Path(model).is_dir() else model.partition("@")[0]


def _of_card(card: Path | str | None) -> str | None:
    from huggingface_hub import errors, hf_hub_download, metadata_load

    with contextlib.suppress(OSError, ValueError, errors.HTTPError):  # a card is welcome, never needed
        file = Path(hf_hub_download(card, "README.md", etag_timeout=5)) if isinstance(card, str) else card
        told = (metadata_load(file) or {}) if file and file.is_file() else {}
        found = told.get("license_name") or told.get("license")
        return f"{found}, says their card" if isinstance(found, str) else None
    return None
