"""Weights of the hub: the folder of one commit of a repository, of which only named files are fetched, no pickle."""

from collections.abc import Sequence
from pathlib import Path

from adapt.errors import Refusal
from adapt.hub import cause_of
from adapt.models.towers.tokens import message_of


def snapshot(name: str, repository: str, files: Sequence[str], otherwise: str = "") -> Path:
    """The folder, in the hub's cache, of those `files` (patterns) that `OWNER/NAME[@REVISION]` has.

    Without a revision its newest commit is taken, or without a network that which the cache has. Refuses a repository
    that cannot be had in one line, which ends with what can be done `otherwise`.
    """
    from huggingface_hub import snapshot_download

    repo, _, revision = repository.partition("@")
    copies = ", or take timm's copy, which is not: as timm:vit_large_patch16_dinov3.lvd1689m"
    copies = copies if "dinov3" in repo.lower() else ""
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=list(files)))
    except Exception as error:  # the hub's own reason says which
        fetch = f"`hf download {repo}{f' --revision {revision}' if revision else ''}`"
        why = {
            "gated": f"{repo} is gated: accept its terms on its page at the hub and run `hf auth login`{copies}",
            "revision": f"{repo} has no revision {revision}: name a branch, a tag or a commit behind @",
            "missing": f"the hub has no repository {repo!r}: write OWNER/NAME; if it is private, run `hf auth login`",
        }.get(
            cause_of(error),
            f"weights could not be loaded ({message_of(error)}). On a machine with a network run {fetch} (or unset "
            "HF_HUB_OFFLINE)",
        )
        raise Refusal(f"backbone {name}: {why}{otherwise}") from error


def commit_of(file: Path | str | None) -> str | None:
    """The commit that a file or folder of the hub's cache belongs to; None of any other."""
    parts = Path(file).parts if isinstance(file, str | Path) else ()
    at = len(parts) - 1 - parts[::-1].index("snapshots") if "snapshots" in parts else len(parts)
    ours = at + 1 < len(parts) and parts[at - 1].startswith("models--")
    return parts[at + 1] if ours else None
