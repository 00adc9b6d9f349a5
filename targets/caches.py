"""Keys and values kept outside the graphs, as numpy arrays: growing, or a right-aligned window.

Rows are `[B, h, S, d]`, positions int64 `[B, S]` with -1 where nothing is. A cache learns heads, channels and
number format from the first rows that it is given. A view that was handed out stays as it was: every append
makes new arrays.
"""

from __future__ import annotations

import numpy as np

from parity.harness import cache as bookkeeping
from parity.harness.errors import UserError


class GrowCache:
    """Keeps every row, padding included, in the order in which it came."""

    single = False

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self.reset()

    def reset(self) -> None:
        """Forget every row."""
        self._rows: dict[str, np.ndarray] = {}
        self._held: dict[str, bookkeeping.Positions] = {}

    def append(self, cache: str, rows: np.ndarray, positions: np.ndarray) -> None:
        """Take new rows `[B, h, T, d]` at absolute positions `[B, T]`."""
        kept = self._rows.get(cache, rows[:, :, :0])
        _check(cache, self._batch, kept, rows, positions)
        self._rows[cache] = np.concatenate([kept, rows], axis=2)
        held = self._held.get(cache, bookkeeping.empty(self._batch))
        self._held[cache] = bookkeeping.grown(held, positions)

    def view(self, cache: str) -> np.ndarray:
        """Every row, `[B, h, S, d]`."""
        return self._rows[cache]

    def positions(self, cache: str) -> np.ndarray:
        """Absolute position of each row of the view, `[B, S]`."""
        return self._held[cache]


class WindowCache:
    """The newest `rows` rows of each sequence, right-aligned; the oldest fall off on the left.

    Padding takes no row. With `static`, the view has `rows` rows from the start, zeros at position -1 where
    nothing came yet; otherwise only as many as the fullest sequence holds. Fed token by token, as a query
    further back would miss rows that its own successors pushed out.
    """

    single = True

    def __init__(self, batch: int, rows: int, *, static: bool = False) -> None:
        if rows < 1:
            raise UserError(f"window={rows}: a cache needs at least one row")
        self._batch = batch
        self._size = rows
        self._static = static
        self.reset()

    def reset(self) -> None:
        """Forget every row."""
        self._rows: dict[str, np.ndarray] = {}
        self._held: dict[str, bookkeeping.Positions] = {}

    def append(self, cache: str, rows: np.ndarray, positions: np.ndarray) -> None:
        """Take new rows `[B, h, T, d]` at absolute positions `[B, T]`; those at -1 are dropped."""
        kept = self._rows.get(cache, self._blank(rows))
        _check(cache, self._batch, kept, rows, positions)
        held = self._held.get(cache, bookkeeping.empty(self._batch, self._size))
        real = positions >= 0
        sequences = range(self._batch)
        moved = [np.concatenate([kept[b], rows[b][:, real[b]]], axis=1) for b in sequences]
        self._rows[cache] = np.stack([row[:, -self._size :] for row in moved])
        self._held[cache] = np.concatenate(
            [bookkeeping.rolled(held[b : b + 1], positions[b : b + 1, real[b]]) for b in sequences]
        )

    def _blank(self, rows: np.ndarray) -> np.ndarray:
        batch, heads, _, channels = rows.shape
        return np.zeros((batch, heads, self._size, channels), rows.dtype)

    def view(self, cache: str) -> np.ndarray:
        """What the segment is handed, `[B, h, W, d]`."""
        return self._rows[cache][:, :, self._first(cache) :]

    def positions(self, cache: str) -> np.ndarray:
        """Absolute position of each row of the view, `[B, W]`."""
        return self._held[cache][:, self._first(cache) :]

    def _first(self, cache: str) -> int:
        """The view's first column: 0, or the left-most that a sequence has filled; one is always left."""
        if self._static:
            return 0
        filled = (self._held[cache] >= 0).any(axis=0)
        return int(filled.argmax()) if filled.any() else self._size - 1


def _check(cache: str, batch: int, kept: np.ndarray, rows: np.ndarray, positions: np.ndarray) -> None:
    """Refuse rows that would broadcast, be cast, or be more or fewer than their positions."""
    want = (batch, kept.shape[1], positions.shape[1], kept.shape[3])
    if rows.shape != want or len(positions) != batch:
        raise UserError(
            f"{cache}: rows {list(rows.shape)} at positions {list(positions.shape)}, should be {list(want)}"
        )
    if rows.dtype != kept.dtype:
        raise UserError(f"{cache}: rows are {rows.dtype}, the cache holds {kept.dtype}; cast them knowingly")
