"""Where the rows of a cache stand, in absolute positions. Bookkeeping only: tensors are moved by others.

Positions are int64 `[B, S]`; -1 marks padding or a slot that was never filled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]


def empty(batch: int, rows: int = 0) -> Positions:
    """Positions of `rows` slots that hold nothing yet."""
    return np.full((batch, rows), -1, dtype=np.int64)


def grown(held: Positions, new: Positions) -> Positions:
    """After an append to a cache that keeps every row."""
    return np.concatenate([held, new], axis=1)


def rolled(held: Positions, new: Positions) -> Positions:
    """After an append to a right-aligned window of fixed size: the oldest rows fall off on the left."""
    return grown(held, new)[:, -held.shape[1] :] if held.shape[1] else held


def attendable(query: Positions, key: Positions, window: int | None) -> npt.NDArray[np.bool_]:
    """Which key rows each query may attend to, `[B, T, S]`; a query at padding sees the padding alone."""
    behind = query[:, :, None] - key[:, None, :]
    allowed = (behind >= 0) if window is None else (behind >= 0) & (behind < window)
    same: npt.NDArray[np.bool_] = allowed & ((key >= 0)[:, None, :] == (query >= 0)[:, :, None])
    return same


def missing_rows(query: Positions, key: Positions, window: int | None) -> list[list[int]]:
    """Per sequence, the positions that the newest query may attend to but that the cache does not hold."""
    out = []
    for sequence in range(query.shape[0]):
        newest = int(query[sequence].max())
        oldest = 0 if window is None else max(0, newest - window + 1)
        held = {int(position) for position in key[sequence]}
        out.append([p for p in range(oldest, newest + 1) if p not in held])
    return out


def hidden_rows(query: Positions, key: Positions, window: int | None) -> list[list[int]]:
    """Per sequence, the positions that the cache holds but that its newest query may not attend to."""
    seen = attendable(query, key, window)[:, -1]
    return [sorted({int(p) for p in row[~one] if p >= 0}) for row, one in zip(key, seen, strict=True)]


def repeated_rows(key: Positions) -> list[list[int]]:
    """Per sequence, the positions that the cache holds more than once."""
    counted = (np.unique(row[row >= 0], return_counts=True) for row in key)
    return [[int(p) for p in positions[counts > 1]] for positions, counts in counted]


def spans(numbers: Sequence[int]) -> str:
    """`3..7, 12` for sorted whole numbers."""
    out: list[str] = []
    start = last = numbers[0]
    for number in [*numbers[1:], None]:
        if number is not None and number == last + 1:
            last = number
            continue
        out.append(str(start) if start == last else f"{start}..{last}")
        if number is not None:
            start = last = number
    return ", ".join(out)
