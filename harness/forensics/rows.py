"""The rows of one cache record beside the rows that it should hold, and other places rows may come from.

Shapes: B sequences, W rows of a view, P absolute positions, H heads, D values of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InconclusiveError
from ..values import TapRows, batch_positions, positional, records_of, rows_first, token_axis

if TYPE_CHECKING:
    from ..trace import Record, Run

Array = np.ndarray[Any, Any]

#: Relative error of a row from which on it is another row, where no noise floor is known: an ULP of fp32.
SAME = 1e-6


@dataclass(frozen=True)
class View:
    """What a segment was handed: `rows` `[B, W, H, D]` in a wide format at `positions` `[B, W]`."""

    rows: Array
    positions: Array


@dataclass(frozen=True)
class Wrong:
    """Rows of a view that are not what was appended: their places `[N]`, what they hold and should, `[N, D]`.

    `error` `[N]` is the distance of the two, `noise` the relative distance that counts as none.
    """

    sequence: Array
    slot: Array
    head: Array
    position: Array
    held: Array
    wanted: Array
    error: Array
    noise: float

    def __len__(self) -> int:
        return len(self.sequence)

    def only(self, keep: Array) -> Wrong:
        """Those of a mask `[N]` or of indices."""
        places = self.sequence[keep], self.slot[keep], self.head[keep], self.position[keep]
        return Wrong(*places, self.held[keep], self.wanted[keep], self.error[keep], self.noise)

    def some(self, most: int) -> Wrong:
        """At most so many of them, evenly spread."""
        if len(self) <= most:
            return self
        return self.only(np.unique(np.linspace(0, len(self) - 1, most).astype(np.int64)))

    def are(self, rows: Array, known: Array | None = None) -> Array:
        """Which rows hold `rows` `[N, D]`: within the noise, and far closer than what they should hold."""
        gap = _norm(self.held - rows)
        near = (gap <= np.maximum(4 * SAME, self.noise) * _norm(rows)) & (gap <= 0.2 * self.error)
        return np.asarray(near if known is None else near & known)


def _norm(rows: Array) -> Array:
    return np.asarray(np.sqrt(np.einsum("...d,...d->...", rows, rows)))


def by_heads(array: Array, axes: str) -> Array:
    """`[B, T, H, D]` in float32 or wider; a tap without heads has one."""
    rest = [letter for letter in axes.split() if letter not in ("b", "t", "p")]
    rows = rows_first(array, axes)
    if "h" in rest:
        rows = np.moveaxis(rows, 2 + rest.index("h"), 2)
        return _wide(rows).reshape(*rows.shape[:3], -1)
    return _wide(rows).reshape(*rows.shape[:2], 1, -1)


def _wide(rows: Array) -> Array:
    """Contiguous; float32 and float64 as they are, narrower formats in float32."""
    dtype = np.float64 if rows.dtype == np.float64 else np.float32
    return np.ascontiguousarray(rows, dtype)


def view_of(records: Sequence[Record]) -> View:
    """The records of one step: the calls of a step that was fed token by token stand one behind the other."""
    rows = [by_heads(record.read(), record.axes) for record in records]
    held = [batch_positions(record) for record in records]
    return View(np.concatenate(rows, axis=1), np.concatenate(held, axis=1))


class Source:
    """The rows of one tap by position: as the candidate appended them, else as the reference has them."""

    def __init__(self, tap: str, reference: Run, candidate: Run) -> None:
        resets = candidate.provenance.get("scenario", {}).get("resets", ())
        self.tap = tap
        self._sides: list[tuple[TapRows, str]] = []
        for run in (candidate, reference):
            records = [record for record in records_of(run, tap) if positional(record)]
            if records:
                self._sides.append((TapRows(records, resets), records[0].axes))

    def __bool__(self) -> bool:
        return bool(self._sides)

    def at(self, step: int, positions: Array) -> tuple[Array, Array] | None:
        """Rows `[B, T, H, D]` for `[B, T]` as of `step`, and which are known; None where nothing is."""
        rows: Array | None = None
        known = np.zeros(positions.shape, np.bool_)
        for side, axes in self._sides:
            if rows is not None and known[positions >= 0].all():
                break
            try:
                found, there = side.at(step, positions)
            except InconclusiveError:
                continue
            own = _heads_of(found, axes)
            if rows is None:
                rows, known = own, there
            elif own.shape == rows.shape:
                rows, known = np.where((there & ~known)[..., None, None], own, rows), known | there
        return None if rows is None else (rows, known)


def _heads_of(rows: Array, axes: str) -> Array:
    """`[B, T, ...]` as `TapRows` gives it -> `[B, T, H, D]`."""
    rest = " ".join(letter for letter in axes.split() if letter not in ("b", "t", "p"))
    return by_heads(rows, f"b t {rest}")


def wrong_rows(view: View, expected: Array, known: Array, noise: float) -> Wrong:
    """The rows of a view whose content is not the one expected, `[B, W, H, D]`."""
    off = (view.rows != expected).any(axis=3) & known[..., None]
    at = np.nonzero(off)
    held, wanted = view.rows[at].astype(np.float64), expected[at].astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        error, scale = _norm(held - wanted), _norm(wanted)
    floor = 0.1 * float(np.sqrt(np.mean(np.square(expected, dtype=np.float64)) * expected.shape[3]))
    beyond = ~(error <= max(SAME, noise) * np.maximum(scale, floor))
    sequence, slot, head = (index[beyond] for index in at)
    gap = np.nan_to_num(error[beyond], nan=np.inf)
    position = view.positions[sequence, slot]
    return Wrong(sequence, slot, head, position, held[beyond], wanted[beyond], gap, noise)


def cache_records(run: Run, tap: str) -> Mapping[int, Sequence[Record]]:
    """Step -> records of a cache tap, in execution order."""
    groups: dict[int, list[Record]] = {}
    for record in records_of(run, tap):
        if positional(record) and token_axis(record.axes) is not None:
            groups.setdefault(record.step, []).append(record)
    return groups
