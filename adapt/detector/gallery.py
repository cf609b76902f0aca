"""Verdicts on unknown files as one page: counts, the most and the least certain images, what was not judged."""

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from adapt.data.images import Unreadable, read_bytes
from adapt.data.inputs import Input
from adapt.data.rows import Place
from adapt.detector.finished_batches import Kept
from adapt.detector.predict import Row, quality, summary, tally, write_predictions
from adapt.files import write_text
from adapt.pages.html import Facts, Gallery, Heading, Part, Picture, Table, Text, page
from adapt.pages.thumbnails import placeholder, thumbnail

NAMES = 5  # of the files that were not judged for one reason
ENDS = {  # by verdict: caption of the highest logits, caption of the lowest, and which of the two comes first
    "fake": ("Most certain: the highest logits", "Least certain: the lowest logits", 1),
    "unsure": ("Nearest to fake", "Nearest to real", 1),
    "real": ("Least certain: the highest logits", "Most certain: the lowest logits", -1),
}
HOW_TO_READ = (
    "A logit says how much an image resembles the fakes that the detector was trained on. It is no proof, and it "
    "means little for kinds of image that the detector's card does not name. A calibrated p is the chance of a fake "
    "where fakes are as frequent as photographs; where they are rarer it is lower."
)


def finish(
    outputs: Sequence[Path],
    root: str,
    inputs: Sequence[Input],
    kept: Kept,
    pictures: int,
    facts: Mapping[str, object],
    maps: Path | None = None,
) -> str:
    """Write what the finished rows, one an input, make: the table and, as a second output, the page.

    `maps` is the folder of a localiser's pictures. Returns what to tell the user.
    """
    table, *pages = outputs
    write_predictions(kept.rows(), table)
    for file in pages:
        write_text(file, gallery(kept.rows(), inputs, pictures, {**facts, "table": table.name}, maps))
    told = [summary(tally(kept.rows())), f"{table}: the table; its paths are relative to {root}"]
    told += [f"{maps}: where images were changed, a picture of each"] if maps else []
    return "\n".join([*told, *(f"{file}: the page" for file in pages)])


def gallery(
    rows: Iterable[Row],
    inputs: Sequence[Input],
    pictures: int,
    facts: Mapping[str, object],
    maps: Path | None = None,
) -> str:
    """The page of one row an input, in the inputs' order; the same rows and files give the same bytes.

    Each verdict shows at most `pictures` images from either end, each beside its picture in the folder `maps`, where
    there is one. The rows are read once and never held: whatever their number, page and memory stay small.
    """
    shown: dict[tuple[str, int], list[tuple[tuple[float, int], Row]]] = {}  # (verdict, sign) -> a heap
    verdicts: Counter[str] = Counter()
    compression: Counter[tuple[str, str]] = Counter()
    reasons: Counter[str] = Counter()
    names: dict[str, list[str]] = {}
    for number, row in enumerate(rows):
        verdict, logit, reason = row["verdict"], row["logit"], row["status"]
        if not verdict or logit is None:
            reasons[reason] += 1
            if len(names.setdefault(reason, [])) < NAMES:
                names[reason].append(row["path"])
            continue
        verdicts[verdict] += 1
        compression[quality(row), verdict] += 1
        for sign in (1, -1):
            _keep(shown.setdefault((verdict, sign), []), (sign * logit, -number), row, pictures)
    known = [verdict for verdict in ENDS if verdicts[verdict]]
    parts: list[Part] = [Text(HOW_TO_READ, warning=True), Heading("Counts")]
    parts += [_verdicts(verdicts, known, reasons.total()), *_compression(compression, known)]
    for verdict in known:
        parts.append(Heading(f"Called {verdict}" if verdict != "unsure" else "Unsure"))
        parts += _ends(verdict, shown, inputs, maps)
    if reasons:
        parts += [Heading("Not judged"), _reasons(reasons, names)]
    return page("Predictions", [*parts, Heading("Provenance"), Facts(facts)])


def _keep(heap: list, key: tuple[float, int], row: Row, most: int) -> None:
    """Keep the `most` rows with the largest keys; keys differ, so rows are never compared."""
    if len(heap) < most:
        heapq.heappush(heap, (key, row))
    elif heap and key > heap[0][0]:
        heapq.heapreplace(heap, (key, row))


def _verdicts(verdicts: Counter[str], known: Sequence[str], unread: int) -> Table:
    total = verdicts.total() + unread
    counted = {verdict: verdicts[verdict] for verdict in known} | {"not judged": unread, "all files": total}
    rows = [[name, f"{count:,}", f"{100 * count / total:.1f} %"] for name, count in counted.items()]
    return Table(("verdict", "files", "share"), rows[:-1], controls=rows[-1:])


def _compression(counted: Counter[tuple[str, str]], known: Sequence[str]) -> list[Table]:
    """Verdicts by JPEG quality, in rising order, and by format for what is no JPEG."""
    kinds = sorted({kind for kind, _ in counted}, key=lambda kind: (not kind.isdigit(), kind.zfill(3)))
    rows = []
    for kind in kinds:
        counts = [counted[kind, verdict] for verdict in known]
        rows.append([kind, f"{sum(counts):,}", *(f"{count:,}" for count in counts)])
    header = ("JPEG quality or format", "judged", *known)
    return [Table(header, rows, caption="Verdicts by compression")] if rows else []


def _ends(verdict: str, shown: dict, inputs: Sequence[Input], maps: Path | None) -> list[Gallery]:
    """The images from either end of the logits; none of them twice."""
    *captions, first = ENDS[verdict]
    seen, parts = set(), []
    for sign in (first, -first):
        best = [(-key[1], row) for key, row in sorted(shown[verdict, sign], key=lambda kept: kept[0], reverse=True)]
        tiles = [_tile(row, inputs[number], maps) for number, row in best if number not in seen]
        seen |= {number for number, _ in best}
        if tiles:
            parts.append(Gallery(tiles, captions[0 if sign > 0 else 1]))
    return parts


def _tile(row: Row, item: Input, maps: Path | None) -> Picture | tuple[Picture, Picture]:
    lines = [row["path"], f"logit {row['logit']:.2f}, p {row['p_fake']:.3f}"]
    if row["family"]:
        share = row["family_probability"]
        lines.append(row["family"] if share is None else f"{row['family']} ({share:.2f})")
    if row["extent"] and row["changed"] is not None:
        lines.append(", ".join(filter(None, (row["extent"], row["tool"], f"{100 * row['changed']:.1f} % changed"))))
    kind = quality(row)
    lines.append(", ".join(filter(None, (f"quality {kind}" if kind.isdigit() else kind, row["subsampling"]))))
    notes = [f"decoded at {row['dct_scale']:g} of its size"] if row["dct_scale"] else []
    notes += [f"first of {row['frames']} pictures"] if (row["frames"] or 1) > 1 else []
    if notes := notes + ([f"profile {row['profile']}"] if row["profile"] else []):
        lines.append(", ".join(notes))
    picture = Picture(_thumbnail(item.file, item.place), row["path"], tuple(lines))
    if not maps or not row["map"]:
        return picture
    return picture, Picture(_thumbnail(str(maps / row["map"])), f"map of {row['path']}", ("called changed: tinted",))


def _thumbnail(file: str, place: Place | None = None) -> bytes:
    try:
        return thumbnail(read_bytes(file, place))
    except Unreadable as problem:  # it was there when it was judged
        return placeholder(problem.reason)


def _reasons(reasons: Counter[str], names: Mapping[str, Sequence[str]]) -> Table:
    rows = []
    for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
        more = f" and {count - NAMES:,} more" if count > NAMES else ""
        rows.append([reason, f"{count:,}", ", ".join(map(repr, names[reason])) + more])
    return Table(("reason", "files", "which"), rows)
