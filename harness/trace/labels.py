"""Names, axes, positions and meta as numbers: each is written once as text, rows carry its number."""

from __future__ import annotations

import functools
import json
import platform
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import numpy as np

from ..errors import UserError
from . import format as f

_LIBRARIES = ("parity", "numpy", "h5py", "ml_dtypes", "torch", "onnx", "onnxruntime")
_MANY = 1 << 16
Positions = tuple[int, int, int, int]
"""position_kind, first position, how many, number of the text that lists them."""


class Labels:
    """Numbers of the texts of a file; new ones are kept in `fresh` until they are taken for writing."""

    def __init__(self, texts: Iterable[tuple[int, str]]) -> None:
        self._numbers: dict[str, int] = {"": 0}
        self._next = 1
        for number, text in texts:
            self._numbers[text] = number
            self._next = max(self._next, number + 1)
        self._axes: dict[tuple[str, int], int] = {}
        self._taps: dict[str, int] = {}
        self._positions: dict[Any, Positions] = {}
        self.fresh: list[bytes] = []

    def take(self) -> list[bytes]:
        """Lines that must be written before the next index rows."""
        lines, self.fresh = self.fresh, []
        return lines

    def tap(self, name: str) -> int:
        """Number of a tap's name; UserError unless it is a text that is not empty."""
        number = self._taps.get(name)
        if number is None:
            if not isinstance(name, str) or not name:
                raise UserError(f"tap={name!r}: a tap needs a name")
            number = self._taps[name] = self._number(name)
        return number

    def axes(self, axes: str, ndim: int) -> int:
        """Number of an axes text; UserError unless it is empty or has one letter per dimension."""
        number = self._axes.get((axes, ndim))
        if number is None:
            letters = axes.split()
            if letters and len(letters) != ndim:
                raise UserError(f"axes={axes!r}: names {len(letters)} dimensions, the array has {ndim}")
            number = self._axes[axes, ndim] = self._number(" ".join(letters))
        return number

    def meta(self, meta: Mapping[str, Any]) -> int:
        """Number of a record's own data, written as JSON."""
        return self._number(f.dump(meta))

    def positions(self, positions: Any, axes: str, shape: tuple[int, ...]) -> Positions:
        """How positions are stored: a consecutive range in the row itself, anything else as text."""
        array = np.asarray(positions)
        key = (array.dtype, array.shape, array.tobytes(), axes, shape)
        known = self._positions.get(key)
        if known is None:
            if len(self._positions) >= _MANY:
                self._positions.clear()
            known = self._positions[key] = self._store_positions(_checked(array, axes, shape))
        return known

    def _store_positions(self, array: np.ndarray[Any, np.dtype[np.int64]]) -> Positions:
        flat = array.reshape(-1)
        if flat.size and array.shape[:-1] in ((), (1,)) and bool(np.all(np.diff(flat) == 1)):
            kind = f.RANGE if array.ndim == 1 else f.RANGE_OF_ONE_SEQUENCE
            return kind, int(flat[0]), flat.size, 0
        return f.LISTED, 0, 0, self._number(json.dumps(array.tolist(), separators=(",", ":")))

    def _number(self, text: str) -> int:
        number = self._numbers.get(text)
        if number is None:
            number = self._next
            self.fresh.append(f.line({"text": number, "is": text}))
            self._numbers[text] = number
            self._next += 1
        return number


def _checked(
    array: np.ndarray[Any, Any], axes: str, shape: tuple[int, ...]
) -> np.ndarray[Any, np.dtype[np.int64]]:
    if array.dtype.kind not in "iu" or array.ndim not in (1, 2):
        raise UserError(
            f"positions={array.dtype}{list(array.shape)}: give whole numbers of shape [T] or [B, T]"
        )
    letters = axes.split()
    tokens = [size for letter, size in zip(letters, shape, strict=False) if letter in ("t", "p")]
    if tokens and array.shape[-1] not in tokens:
        raise UserError(f"positions={list(array.shape)}: do not fit {list(shape)} with axes {axes!r}")
    return array.astype(np.int64)


def created() -> str:
    """Now, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@functools.cache
def environment() -> dict[str, Any]:
    """Where a run happens: host and the versions of the libraries, asked without importing them."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"host": platform.node(), "python": platform.python_version(), "versions": versions}
