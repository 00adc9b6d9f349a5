"""How a tensor is seen: rows x leading axes, and the fixed chunks in which it is measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from ..errors import UserError

MIN_ROW = 32
"""Trailing axes are merged until a row has this many elements."""
MAX_ROWS = 1 << 20
"""More rows than this are merged along further axes, so that a huge tensor of short rows stays small."""
MAX_COLUMNS = 1 << 16
"""Lines longer than this have no per-index profile along themselves."""
CHUNK = 1 << 17
"""Elements in the unit of work. Chunks lie at fixed places, so no result depends on how a tensor was fed."""
LANES = 4
"""Chunk i belongs to lane i % LANES; lanes add and are joined in order, so that threads change nothing."""


@dataclass(frozen=True, slots=True)
class Layout:
    """`shape` with its axis names, cut into lines (innermost vectors), rows (one line or several) and chunks.

    A line spans the last `line_dims` axes, `row_shape` are the axes before a row. `columns` is the length of
    a line, 0 when that is too long to be profiled.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    size: int
    line: int
    line_dims: int
    row_size: int
    row_shape: tuple[int, ...]
    num_rows: int
    columns: int
    chunk: int
    shared_rows: bool


@lru_cache(maxsize=4096)
def layout(shape: tuple[int, ...], axes: str) -> Layout:
    """The layout of `shape`; UserError when `axes` does not name each dimension once."""
    names = axis_names(shape, axes)
    size = math.prod(shape)
    inner = _merge(shape, len(shape), lambda length, _rows: length < MIN_ROW)
    outer = _merge(shape, inner, lambda _length, rows: rows > MAX_ROWS)
    line, row_size = math.prod(shape[inner:]), math.prod(shape[outer:])
    return Layout(
        shape=shape,
        axes=names,
        size=size,
        line=line,
        line_dims=len(shape) - inner,
        row_size=row_size,
        row_shape=shape[:outer],
        num_rows=math.prod(shape[:outer]) if size else 0,
        columns=line if line <= MAX_COLUMNS else 0,
        chunk=CHUNK // row_size * row_size if 0 < row_size <= CHUNK else CHUNK,
        shared_rows=row_size <= CHUNK,
    )


def axis_names(shape: tuple[int, ...], axes: str) -> tuple[str, ...]:
    """One name per dimension: the letters of `axes`, or "0", "1", ... when there are none."""
    names = tuple(axes.split()) or tuple(str(i) for i in range(len(shape)))
    if len(names) != len(shape):
        raise UserError(
            f"axes={axes!r}: names {len(names)} axes, but the tensor has shape {list(shape)}; "
            "give one letter per dimension or none at all"
        )
    if len(set(names)) != len(names):
        raise UserError(f"axes={axes!r}: a letter is used twice; name every dimension differently")
    return names


def _merge(shape: tuple[int, ...], start: int, wanted: Callable[[int, int], bool]) -> int:
    """First axis of the innermost part: moves outwards from `start` while `wanted(length, rows)`."""
    first = max(start - 1, 0) if start == len(shape) else start
    while first > 0 and wanted(math.prod(shape[first:]), math.prod(shape[:first])):
        first -= 1
    return first
