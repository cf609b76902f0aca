"""Detectors at the Hugging Face hub: only the files that a detector consists of, up and down."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from adapt.errors import Refusal
from adapt.published import FOLDER, published

PREFIX = "hf-hub:"
FILES = (
    *("detector.json", "head.safetensors", "decision.safetensors", "README.md"),
    *("adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
    *("tower/model.safetensors", "tower/config.json", "tower/preprocessor_config.json", "tower/model.json"),
    *("tower/network.onnx", "tower/network.pt", "tower/network.safetensors"),  # of a complete network, one of them
)
Cause = Literal["offline", "gated", "revision", "missing", "refused", "other"]


def detector_folder(name: str | Path) -> Path:
    """The folder of a detector: `name` itself, that of a published one, or that of `hf-hub:OWNER/NAME[@REVISION]` in
    the hub's cache.

    Nothing but `FILES` is fetched: JSON, safetensors, a complete network and the card. An imported detector is where
    `adapt import` puts it, if no folder has its name; a published one that is not there is refused: what to fetch.
    """
    if not str(name).startswith(PREFIX):
        known = published().get(str(name))
        if Path(name).exists():
            return Path(name)
        if known is None:
            return FOLDER / name if (FOLDER / name / "detector.json").is_file() else Path(name)
        if not known.here:
            raise Refusal(f"{name}: {known.method} is not here: {known.to_fetch}")
        return known.folder
    from huggingface_hub import snapshot_download

    repo, _, revision = str(name).removeprefix(PREFIX).partition("@")
    with _reaching(repo, revision):
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=list(FILES)))


def push_to_hub(folder: str | Path, repo: str, private: bool = False) -> str:
    """Upload a saved detector to OWNER/NAME, which is made if it is not there; returns the commit's address.

    Nothing but `FILES` is uploaded, whatever else lies in the folder.
    """
    from huggingface_hub import HfApi

    folder = detector_folder(folder)
    if not (folder / "detector.json").is_file():
        raise Refusal(f"{folder} is not a complete detector directory: it has no detector.json")
    with _reaching(repo, "", f"; {folder} stays as it is, and the same command pushes it"):
        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        words = "A detector of AI-generated images"
        return api.upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=list(FILES), commit_message=words
        ).commit_url


def cause_of(error: BaseException) -> Cause:
    """Why something could not be had from the hub, whatever stands around it."""
    from huggingface_hub import errors

    kinds: dict[Cause, tuple[type[Exception], ...]] = {
        "offline": (errors.OfflineModeIsEnabled,),
        "gated": (errors.GatedRepoError,),
        "revision": (errors.RevisionNotFoundError,),
        "missing": (errors.RepositoryNotFoundError, errors.HFValidationError),
    }
    causes = [error]
    while deeper := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(deeper)
    for cause, classes in kinds.items():
        if any(isinstance(one, classes) for one in causes):
            return cause
    statuses = {getattr(getattr(one, "response", None), "status_code", None) for one in causes}
    return "refused" if statuses & {401, 403} else "other"


@contextlib.contextmanager
def _reaching(repo: str, revision: str, then: str = "") -> Iterator[None]:
    """What fails between here and the hub becomes one line, which ends with what can be done `then`."""
    try:
        yield
    except Exception as error:
        from huggingface_hub import errors

        if not isinstance(error, OSError | ValueError | RuntimeError | errors.HTTPError):  # hf_xet: RuntimeError
            raise
        said = (str(error).strip().splitlines() or [""])[0]
        raise Refusal(
            {
                "offline": f"{repo}: the hub is switched off by HF_HUB_OFFLINE and the cache lacks it: unset it",
                "gated": f"{repo} is gated: accept its terms on its page at the hub, then run `hf auth login`",
                "revision": f"{repo} has no revision {revision}: name a branch, a tag or a commit behind @",
                "missing": f"no repository {repo!r} at the hub: write OWNER/NAME; if it is private, `hf auth login`",
                "refused": f"the hub refuses {repo}: run `hf auth login` with a token that may do this",
                "other": f"cannot reach {repo} at the hub ({type(error).__name__}: {said}): check the network",
            }[cause_of(error)]
            + then
        ) from error
