"""What the libraries' image towers have in common: the tokens that one pass hands back."""

import difflib
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from adapt.data.preprocess import Preprocess
from adapt.errors import Refusal
from adapt.files import read_json as of_stranger
from adapt.text import one_line


@dataclass(frozen=True)
class Tokens:
    """After one block: the class token (n, d), if the tower has one, and the patch tokens (n, p, d).

    Registers are neither. The positions of a convolutional tower are its patches.
    """

    cls: Tensor | None
    patches: Tensor


@dataclass(frozen=True)
class End:
    """After all blocks: the pooled feature (n, d), the patch tokens (n, p, d) behind the final norm, and the
    projected embedding (n, e) of a tower that was trained with texts."""

    last: Tensor
    patches: Tensor
    proj: Tensor | None = None


# tower, normalised pixels (n, 3, size, size), numbers of the blocks asked for (from 1), whether the end is asked for
# -> tokens by block, the end. Runs every block once, and none behind the last one that is asked for.
Walk = Callable[[nn.Module, Tensor, Collection[int], bool], tuple[dict[int, Tokens], End | None]]


@dataclass(frozen=True)
class Cut:
    """Where the bare tower of a library can be cut: between its blocks."""

    blocks: str  # path of their list
    end: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor | None]]  # tower, tokens behind them -> `End`'s last, proj


@dataclass(frozen=True)
class Resize:
    """How the bare tower of a library is set to square images of another size."""

    patch: int  # pixels of which a size is a multiple
    to: Callable[[nn.Module, int], None]  # tower, size: positions are interpolated as the library does it


@dataclass(frozen=True)
class Loaded:
    """What a library hands over: the tower, how images enter it, and how to walk through it."""

    tower: nn.Module
    preprocess: Preprocess
    mean: tuple[float, ...]
    std: tuple[float, ...]
    depth: int  # number of blocks (or stages) with features of their own
    has_proj: bool
    walk: Walk
    first_pools: bool = False  # whether the pooled feature is the first token after the last block, normed
    cut: Cut | None = None  # None: it has no list of blocks that tokens run through
    resize: Resize | None = None  # None: it takes images of its own size alone
    commit: str | None = None  # of the hub's repository that the weights are from


def bare(tower: nn.Module) -> nn.Module:
    """The library's own module inside peft's wrapper."""
    return tower.get_base_model() if hasattr(tower, "get_base_model") else tower


def read_json(path: Path, name: str) -> dict:
    try:
        value = of_stranger(path)
    except OSError as error:
        raise Refusal(f"backbone {name}: {path} is needed beside the weights ({error.strerror})") from error
    except ValueError as error:
        raise Refusal(f"backbone {name}: {path} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise Refusal(f"backbone {name}: {path} must hold a JSON object")
    return value


def tell(name: str, words: str) -> None:
    """One line for whoever loads a backbone, beside what the command prints."""
    print(f"backbone {name}: {words}", file=sys.stderr)


def warn_of_satellites(name: str, *places: str) -> None:
    """One line where a name of the weights says that they are DINOv3's of satellite images."""
    if any("sat493m" in place.lower() for place in places):
        tell(
            name,
            "trained on satellite images. On ordinary photographs detectors on it fail (it found .121 of Chameleon's "
            "fakes; published, at second hand): take the weights lvd1689m",
        )


def near(word: str, known: Collection[str]) -> str:
    found = difflib.get_close_matches(word, known, n=1)
    return f", perhaps {found[0]!r}" if found else ""


def message_of(error: Exception) -> str:
    """What an error of a library says, or else its kind, in one line of whole words; of its cause, if it has one.

    Where the hub is switched off, or cannot be reached and its cache lacks the file, that is said and nothing else.
    """
    from huggingface_hub import errors

    cause, chain = error.__cause__ or error, list[BaseException]()
    one: BaseException | None = error
    while one is not None and one not in chain:
        chain.append(one)
        one = one.__cause__ or one.__context__
    if any(isinstance(link, errors.OfflineModeIsEnabled) for link in chain):
        return "the hub is switched off by HF_HUB_OFFLINE, and the cache lacks them"
    if any(isinstance(link, errors.LocalEntryNotFoundError) for link in chain):
        return "the hub cannot be reached, and the cache lacks them"
    said = one_line(str(cause), 1000) or type(cause).__name__
    return said if len(said) <= 300 else f"{said[:300].rpartition(' ')[0]} ..."
