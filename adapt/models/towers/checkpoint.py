"""Tensors out of checkpoint files: those of torch.save, TorchScript archives (OpenAI's .pt), and safetensors.

A file of torch is a zip archive: a pickle says how tensors lie in the other members. Here that pickle is read as data,
instruction by instruction: a few names that make tensors and containers are understood, and nothing is ever imported
or called. So a TorchScript archive is read without running its code, and a file that asks for anything else is
refused. Of the tensors only those that are wanted are loaded. `read_script` also hands out the rest of a TorchScript
archive as data: the attributes of its modules and the sources of its code.
"""

import contextlib
import math
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapt.errors import Refusal

SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")  # of files that are checkpoints by their name
MOST_PICKLE = 64 * 2**20  # bytes; that of a CLIP with its optimizer has less than one MB
MOST_TENSORS = 100_000
MOST_CODE = 4 * 2**20  # bytes; that of a network of 500 modules has less than 1 MB
DEEPEST, LONGEST = 32, 300  # containers in one another; letters of a key
DTYPES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
HARMLESS = {  # what checkpoints hold beside tensors; stands for nothing here
    *("argparse.Namespace", "collections.Counter", "copyreg._reconstructor", "builtins.object", "__builtin__.object"),
    *("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "_codecs.encode"),
    *("pathlib.PosixPath", "pathlib.WindowsPath", "torch.device", "builtins.set", "__builtin__.set"),
}
AS_THEY_ARE = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
NOTHING = {"PROTO", "FRAME"}
LITERAL = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}


@dataclass(frozen=True)
class Stored:
    """A tensor that is still in its file."""

    shape: tuple[int, ...]
    load: Callable[[], Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of a file by their place in it, joined by dots.

    `plain` is all that a file of torch holds, in its containers: numbers and words beside what stands for tensors.
    """

    file: Path
    tensors: Mapping[str, Stored]
    plain: Any = None


class Attributes(dict[str, Any]):
    """An object of a TorchScript archive: what it holds, and the name of its class."""

    kind = ""


class _Damaged(ValueError):
    """The pickle says something that is not possible."""


@dataclass(frozen=True)
class _Name:
    """A name of Python that the pickle mentions."""

    name: str


class _Opaque:
    """A harmless object whose content is not wanted."""


class _Mark:
    """Where a list of arguments begins."""


@dataclass(frozen=True)
class View:
    """A tensor that is still in its file: a part of a storage."""

    key: str
    dtype: torch.dtype
    numel: int  # of the storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read_checkpoint(file: Path) -> Checkpoint:
    """The tensors of a .safetensors file, or of a file of torch 1.6 or later, whatever its name.

    Refuses other files, damaged ones, and those whose pickle asks for more than tensors and containers.
    """
    try:
        with file.open("rb") as opened:
            start = opened.read(9)
    except OSError as error:
        raise Refusal(f"{file}: cannot be read ({error.strerror})") from error
    if start[:4] == b"PK\x03\x04":
        return _archive(file)
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") < file.stat().st_size:
        return _safetensors(file)
    raise Refusal(
        f"{file} is neither a checkpoint of torch 1.6 or later nor safetensors. An older one becomes one by "
        f"torch.save(torch.load(FILE, weights_only=True), NEW)"
    )


def _safetensors(file: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    def stored(key: str) -> Stored:
        def load() -> Tensor:
            with safe_open(file, "pt") as opened:
                return opened.get_tensor(key)

        return Stored(tuple(opened.get_slice(key).get_shape()), load)

    try:
        with safe_open(file, "pt") as opened:
            return Checkpoint(file, {key: stored(key) for key in opened.keys()})  # noqa: SIM118
    except SafetensorError as error:
        raise Refusal(f"{file} is damaged: {error}") from error


@dataclass(frozen=True)
class Script:
    """A TorchScript archive as data: the module's attributes, with `View`s for tensors, the constants of its code, the
    sources by the name of their Python module, the version of its operators, and how the tensors are loaded."""

    module: Any
    constants: Sequence[Any]
    sources: Mapping[str, str]
    version: int
    tensors: Mapping[View, Callable[[], Tensor]]  # of the module
    load_constant: Callable[[View], Tensor]


def read_script(file: Path) -> Script:
    """What a TorchScript archive holds; nothing of it is run. Refuses other files and damaged ones."""
    with _damage_named(file), zipfile.ZipFile(file) as archive:
        root, members = _members(archive, file)
        module = _run(archive.read(members[f"{root}data.pkl"]), file)
        constants = _run(archive.read(members[f"{root}constants.pkl"]), file)
        code = [info for name, info in members.items() if name.startswith(f"{root}code/") and name.endswith(".py")]
        if sum(info.file_size for info in code) > MOST_CODE or not isinstance(constants, list | tuple):
            raise _Damaged(f"its code has more than {MOST_CODE} bytes, or its constants are no list")
        names = [info.filename.removeprefix(f"{root}code/").removesuffix(".py").replace("/", ".") for info in code]
        sources = dict(zip(names, (archive.read(info).decode() for info in code), strict=True))
        at = "version" if f"{root}version" in members else ".data/version"
        version = int(archive.read(members[f"{root}{at}"])[:8])
        tensors = {view: lambda view=view: _load(file, f"{root}data/", view) for view in _views(module, file).values()}
    return Script(module, constants, sources, version, tensors, lambda view: _load(file, f"{root}constants/", view))


def _archive(file: Path) -> Checkpoint:
    with _damage_named(file), zipfile.ZipFile(file) as archive:
        root, members = _members(archive, file)
        plain = _run(archive.read(members[f"{root}data.pkl"]), file)
        views = _views(plain, file)
    return Checkpoint(
        file,
        {key: Stored(view.shape, lambda view=view: _load(file, f"{root}data/", view)) for key, view in views.items()},
        plain,
    )


@contextlib.contextmanager
def _damage_named(file: Path) -> Iterator[None]:
    try:
        yield
    except Refusal:
        raise
    except (
        *(_Damaged, zipfile.BadZipFile, zlib.error, struct.error, KeyError, IndexError, TypeError, ValueError),
        *(NotImplementedError, RuntimeError, OSError),  # of members that are compressed or encrypted in a strange way
    ) as error:
        raise Refusal(f"{file} is damaged: {error or type(error).__name__}") from error


def _members(archive: zipfile.ZipFile, file: Path) -> tuple[str, dict[str, zipfile.ZipInfo]]:
    """The folder inside an archive, and its members by name; refuses what torch does not write."""
    members = {info.filename: info for info in archive.infolist()}
    roots = [name.removesuffix("data.pkl") for name in members if re.fullmatch("[^/]+/data[.]pkl", name)]
    if len(roots) != 1:
        raise Refusal(f"{file} is a zip archive, but no checkpoint of torch: it has {len(roots)} data.pkl, not one")
    root = roots[0]
    stored = [info for name, info in members.items() if name.startswith((f"{root}data/", f"{root}constants/"))]
    squeezed = any(info.compress_type != zipfile.ZIP_STORED for info in stored)
    pickles = [info.file_size for name, info in members.items() if name in (f"{root}data.pkl", f"{root}constants.pkl")]
    if squeezed or sum(info.file_size for info in stored) > file.stat().st_size or max(pickles) > MOST_PICKLE:
        raise _Damaged("its members are larger than torch writes them")
    if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
        raise _Damaged("its numbers are big-endian")
    return root, members


def _views(value: Any, file: Path) -> dict[str, View]:
    """Every tensor in nested containers by its place; a container that stands at two places is looked at once.

    The bounds keep a small hostile file from asking for much memory.
    """
    found: dict[str, View] = {}
    seen: set[int] = set()
    waiting: list[tuple[str, int, Any]] = [("", 0, value)]
    while waiting:
        place, depth, item = waiting.pop()
        if isinstance(item, View):
            found[place] = item
        elif isinstance(item, dict | list | tuple) and id(item) not in seen and depth < DEEPEST:
            seen.add(id(item))
            pairs = item.items() if isinstance(item, dict) else enumerate(item)
            named = [(str(key), inner) for key, inner in pairs if isinstance(key, str | int)]
            if any(len(key) > LONGEST for key, _ in named):
                raise Refusal(f"{file} has a key of more than {LONGEST} letters")
            waiting += [(f"{place}.{key}" if place else key, depth + 1, inner) for key, inner in reversed(named)]
        if len(found) > MOST_TENSORS:
            raise Refusal(f"{file} holds more than {MOST_TENSORS} tensors")
    return found


def _load(file: Path, folder: str, view: View) -> Tensor:
    size = torch.empty(0, dtype=view.dtype).element_size()
    last = view.offset + sum((side - 1) * step for side, step in zip(view.shape, view.stride, strict=True))
    numbers = math.prod(view.shape)
    try:
        with zipfile.ZipFile(file) as archive:
            data = bytearray(archive.read(f"{folder}{view.key}"))
    except (KeyError, zipfile.BadZipFile, OSError) as error:
        raise Refusal(f"{file} is damaged: tensor {view.key}: {error}") from error
    impossible = min(view.offset, *view.shape, *view.stride, 0) < 0 or numbers > view.numel
    if len(data) != view.numel * size or impossible or (numbers and last >= view.numel):
        raise Refusal(f"{file} is damaged: tensor {view.key} does not lie inside its storage")
    if not numbers:
        return torch.empty(view.shape, dtype=view.dtype)
    whole = torch.frombuffer(data, dtype=view.dtype)
    return whole.as_strided(view.shape, view.stride, view.offset).clone(memory_format=torch.contiguous_format)


def _run(data: bytes, file: Path) -> Any:
    """What a pickle describes, of dicts, lists, tuples, plain values, `View`s and `_Opaque`s; it calls nothing."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def arguments() -> list[Any]:
        at = next(i for i in range(len(stack) - 1, -1, -1) if stack[i] is _Mark)
        found = stack[at + 1 :]
        del stack[at:]
        return found

    try:
        for opcode, value, _ in pickletools.genops(data):
            name = opcode.name
            if name in LITERAL:
                stack.append(value)
            elif name in AS_THEY_ARE:
                stack.append(AS_THEY_ARE[name])
            elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
                memo[len(memo) if name == "MEMOIZE" else value] = stack[-1]
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[value])
            elif name == "STOP":
                return stack.pop()
            elif name == "MARK":
                stack.append(_Mark)
            elif name in ("POP", "POP_MARK"):
                stack.pop() if name == "POP" else arguments()
            elif name == "DUP":
                stack.append(stack[-1])
            elif name in ("GLOBAL", "STACK_GLOBAL"):
                words = reversed([stack.pop(), stack.pop()]) if name == "STACK_GLOBAL" else value.split(" ", 1)
                stack.append(_Name(".".join(words)))
            elif name not in NOTHING:
                _build(name, stack, arguments, file)
    except StopIteration:
        raise _Damaged("its pickle has a list without a beginning") from None
    raise _Damaged("its pickle has no end")


def _build(name: str, stack: list[Any], arguments: Callable[[], list[Any]], file: Path) -> None:
    """The instructions that make and fill containers and objects."""
    if name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_SET"):
        stack.append({"EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}.get(name, list)())
    elif name in ("LIST", "TUPLE", "DICT", "FROZENSET"):
        found = arguments()
        stack.append(tuple(found) if name == "TUPLE" else _pairs(found) if name == "DICT" else found)
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        many = int(name[-1])
        stack[-many:] = [tuple(stack[-many:])]
    elif name in ("APPEND", "APPENDS", "ADDITEMS"):
        found = [stack.pop()] if name == "APPEND" else arguments()
        if isinstance(stack[-1], list):
            stack[-1].extend(found)
    elif name in ("SETITEM", "SETITEMS"):
        found = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else arguments()
        if isinstance(stack[-1], dict):
            stack[-1].update(_pairs(found))
    elif name == "BINPERSID":
        stack.append(stack.pop())  # ("storage", kind, key, device, numel), which `_tensor` reads
    elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
        if name == "NEWOBJ_EX":
            stack.pop()
        given, called = stack.pop(), stack.pop()
        stack.append(_made(called, given, file))
    elif name == "BUILD":
        state = stack.pop()
        if isinstance(stack[-1], dict) and isinstance(state, dict):
            stack[-1].update(state)
    else:
        raise _Damaged(f"its pickle has the instruction {name}, which torch does not write")


def _pairs(found: list[Any]) -> dict[Any, Any]:
    pairs = zip(found[::2], found[1::2], strict=True)
    return {key: value for key, value in pairs if isinstance(key, str | int | float | bool)}


def _made(called: Any, given: Any, file: Path) -> Any:
    """What a call that is understood gives; every other one is refused."""
    name = called.name if isinstance(called, _Name) else type(called).__name__
    if name == "torch._utils._rebuild_tensor_v2":
        return _tensor(*given[:4])
    if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
        return given[0]
    if name in ("collections.OrderedDict", "collections.defaultdict"):
        return dict(given[0]) if given and isinstance(given[0], list) else {}
    if name.startswith("__torch__."):
        found = Attributes()  # which follow
        found.kind = name
        return found
    if name == "torch.Size" or name.startswith("torch.jit._pickle."):
        return given[0]
    if name in HARMLESS or name.startswith("torch.optim."):
        return _Opaque()
    whole = (
        ": it holds a whole model, not its weights" if name.startswith(("torch.nn.", "open_clip.", "clip.")) else ""
    )
    raise Refusal(
        f"{file} asks Python to call {name[:100]}{whole}. Nothing of it was run. Have whoever made it save the "
        "weights alone: torch.save(model.state_dict(), FILE)"
    )


def _tensor(storage: Any, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> View | _Opaque:
    word, kind, key, _, numel = storage
    dtype = DTYPES.get(kind.name.rpartition(".")[2]) if isinstance(kind, _Name) else None
    if (
        word != "storage"
        or not isinstance(key, str)
        or not all(isinstance(n, int) for n in (numel, offset, *shape, *stride))
    ):
        raise _Damaged("a tensor without a storage")
    if dtype is None:
        return _Opaque()  # of a kind that no weights have
    return View(key, dtype, numel, offset, tuple(shape), tuple(stride))
