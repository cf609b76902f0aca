"""Columns of strings that Arrow holds: millions of rows in memory that processes share, read like object arrays."""

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import DTypeLike

FEW = 4096  # values that are also kept as Python's strings
BLOCK = 65536  # rows that are Python's strings at a time, when all are asked for in turn


class Column:
    """Strings (n,): row i is `prefix` + `values[codes[i]]`. Binary values are digests, read in hex, and "" for null.

    It reads like an object array: `column[row]` is a string, `column[rows]` a Column of these rows, which shares the
    values; `column == "train"` is an array of booleans. NumPy's functions get an object array, which is made anew each
    time. It cannot be written to: `copy` gives an object array.
    """

    ndim, dtype = 1, np.dtype(object)

    def __init__(self, values: pa.Array, codes: np.ndarray | None = None, prefix: str = "") -> None:
        self.values, self.prefix = values, prefix
        self.codes = codes if codes is not None else np.arange(len(values), dtype=np.int64)
        self._few = np.array(self._texts(values), object) if len(values) <= FEW else None

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def shape(self) -> tuple[int]:
        return (len(self.codes),)

    @property
    def size(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, key: int | np.integer) -> str: ...
    @overload
    def __getitem__(self, key: slice | Sequence[int] | np.ndarray) -> "Column": ...
    def __getitem__(self, key: int | np.integer | slice | Sequence[int] | np.ndarray) -> "str | Column":
        codes = self.codes[key]
        if isinstance(codes, np.ndarray) and codes.ndim:
            return Column(self.values, codes, self.prefix)
        return self._few[codes] if self._few is not None else self._texts(self.values[int(codes) : int(codes) + 1])[0]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), BLOCK):
            yield from self._block(self.codes[start : start + BLOCK])

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        if self._few is not None:
            found = self._few[self.codes]
        else:
            found = np.empty(len(self), object)
            for start in range(0, len(self), BLOCK):
                found[start : start + BLOCK] = self._block(self.codes[start : start + BLOCK])
        return found if dtype is None else found.astype(dtype)

    def __eq__(self, other: object) -> np.ndarray:  # type: ignore[override]
        if not isinstance(other, str):
            return np.asarray(self) == np.asarray(other)
        return self._equal(other)[self.codes]

    def __ne__(self, other: object) -> np.ndarray:  # type: ignore[override]
        return ~(self == other)

    __hash__ = None  # type: ignore[assignment]

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str) and bool(self._equal(value)[self.codes].any())

    def astype(self, dtype: DTypeLike) -> np.ndarray:
        """An array of another kind of strings, or of objects."""
        return np.asarray(self).astype(dtype)

    def copy(self) -> np.ndarray:
        """An object array to write to."""
        return np.asarray(self)

    def tolist(self) -> list[str]:
        """All rows as a list."""
        return list(self)

    def _texts(self, values: pa.Array) -> list[str]:
        if pa.types.is_fixed_size_binary(values.type):
            return ["" if value is None else value.hex() for value in values.to_pylist()]
        return [self.prefix + value for value in values.to_pylist()] if self.prefix else values.to_pylist()

    def _block(self, codes: np.ndarray) -> list[str]:
        if self._few is not None:
            return self._few[codes].tolist()
        return self._texts(self.values.take(pa.array(codes)))

    def _equal(self, text: str) -> np.ndarray:
        """Which values are this string (v,)."""
        if not text.startswith(self.prefix):
            return np.zeros(len(self.values), bool)
        if not pa.types.is_fixed_size_binary(self.values.type):
            return pc.equal(self.values, text[len(self.prefix) :]).to_numpy(zero_copy_only=False)
        if not text:
            return pc.is_null(self.values).to_numpy(zero_copy_only=False)
        try:
            wanted = pa.scalar(bytes.fromhex(text), self.values.type)
        except (ValueError, pa.ArrowInvalid):
            return np.zeros(len(self.values), bool)
        return pc.fill_null(pc.equal(self.values, wanted), False).to_numpy(zero_copy_only=False)


class GroupRows(Sequence[np.ndarray]):
    """Row indices of each group, in the order of first appearance; `codes` (n,) are the groups' numbers."""

    def __init__(self, codes: np.ndarray) -> None:
        _, first, group = np.unique(codes, return_index=True, return_inverse=True)
        place = np.empty(len(first), np.int64)
        place[np.argsort(first)] = np.arange(len(first))
        group = place[group]
        self._rows = np.argsort(group, kind="stable")
        self._ends = np.cumsum(np.bincount(group, minlength=len(first)))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, key: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, key: slice) -> list[np.ndarray]: ...
    def __getitem__(self, key: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(key, slice):
            return [self[i] for i in range(*key.indices(len(self)))]
        at = int(key) + (len(self) if key < 0 else 0)
        if not 0 <= at < len(self):
            raise IndexError(key)
        return self._rows[self._ends[at - 1] if at else 0 : self._ends[at]]
