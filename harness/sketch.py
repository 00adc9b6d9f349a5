"""The cheap capture level: instead of a tensor, a few random projections of each of its rows.

A row of d values becomes `size` sums of them under seeded random signs, divided by the root of d, so that
sketches have the RMS of what they stand for, and the difference of two sketches that of the difference: an
ordinary comparison of sketches estimates the relative error of every token (to 1 part in the root of
2 * size), sees a permutation or a rotation, which keep every norm and extreme, and adds up across shards
(Johnson and Lindenstrauss 1984; random signs: Achlioptas 2003). Two more numbers per row: the largest
magnitude, and the share of values that are not finite.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .dtypes import from_any, logical_name
from .errors import UserError
from .values import rows_first, token_axis

if TYPE_CHECKING:
    from .trace import Run
    from .tracer import Sink

#: Projections per row by default; more tell an error's size better, fewer take less room.
SIZE, FEWEST, MOST = 32, 8, 256
EXTRA = 2
#: What stands for a value that is not finite, in units of the row's largest: no rounding moves a row so far.
NAN, INFINITE = 31.0, 17.0
#: Rows are projected so many values at a time.
BLOCK = 1 << 22

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Sketching:
    """How rows are sketched: projections per row, and the seed of the signs."""

    size: int = SIZE
    seed: int = 0

    @property
    def numbers(self) -> int:
        """Numbers that stand for a row."""
        return self.size + EXTRA

    def provenance(self) -> dict[str, Any]:
        """What a run says of itself."""
        return {"kind": "sketch", "size": self.size, "seed": self.seed}


def parse_capture(text: str) -> Sketching | None:
    """`full` (None), `sketch` or `sketch:N`; UserError for anything else."""
    if text == "full":
        return None
    match = re.fullmatch(r"sketch(?::(\d+))?", text)
    if not match:
        raise UserError(f"capture={text!r}: unknown; use full, sketch or sketch:N")
    size = int(match[1] or SIZE)
    if not FEWEST <= size <= MOST:
        raise UserError(f"capture={text!r}: a sketch has {FEWEST} to {MOST} numbers per row")
    return Sketching(size)


def capture_of(run: Run) -> Sketching | None:
    """How a stored run was captured; None for full tensors."""
    said = run.provenance.get("capture")
    return Sketching(int(said["size"]), int(said["seed"])) if said else None


def sketch(array: Array, axes: str, how: Sketching) -> tuple[Array, str] | None:
    """`[B, T, size + 2]` float32 and its axes, per token where `axes` has one, else per row of the last axis.

    None where a sketch would be no smaller, or would blur what must be exact (integers, booleans).
    """
    if array.ndim == 0 or not logical_name(array).startswith(("float", "bfloat")):
        return None
    rows, letters = _rows(array, axes)
    width = rows.shape[-1]
    if width <= how.numbers:
        return None
    return _projected(rows.reshape(-1, width), how).reshape(*rows.shape[:-1], how.numbers), letters


def _rows(array: Array, axes: str) -> tuple[Array, str]:
    """Everything but sequence and token flattened; without a token axis, rows along the last one."""
    at = token_axis(axes)
    if at is None:
        return array, " ".join([*axes.split()[:-1], "s"]) if axes else ""
    rows = rows_first(array, axes)
    return rows.reshape(*rows.shape[:2], -1), f"b {axes.split()[at]} s"


def _projected(rows: Array, how: Sketching) -> npt.NDArray[np.float32]:
    count, width = rows.shape
    signs = _signs(width, how)
    made = np.empty((count, how.numbers), np.float32)
    step = max(1, BLOCK // width)
    for start in range(0, count, step):
        part = rows[start : start + step].astype(np.float64)
        finite = np.isfinite(part)
        most = np.abs(np.where(finite, part, 0.0)).max(axis=1)
        if not finite.all():
            part = np.where(finite, part, _stand_in(part) * np.where(most > 0.0, most, 1.0)[:, None])
        into = made[start : start + step]
        into[:, : how.size] = part @ signs
        into[:, how.size] = most
        into[:, how.size + 1] = (~finite).mean(axis=1)
    return made


def _stand_in(part: Array) -> Array:
    return np.where(np.isnan(part), NAN, np.where(part > 0.0, INFINITE, -INFINITE))


@lru_cache(maxsize=64)
def _signs(width: int, how: Sketching) -> npt.NDArray[np.float64]:
    """Random signs `[width, size]` over the root of the width; the same for the same seed, anywhere."""
    bits = np.random.Generator(np.random.Philox(key=[how.seed, width])).integers(0, 2, (width, how.size))
    return np.asarray((2.0 * bits - 1.0) / np.sqrt(width))


class Sketcher:
    """A sink that hands sketches on to another; what is small or exact goes through as it is."""

    def __init__(self, sink: Sink, how: Sketching) -> None:
        self._sink, self._how = sink, how

    def record(
        self,
        tap: str,
        array: Any,
        *,
        step: int = 0,
        call: int = 0,
        axes: str = "",
        positions: Any = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        """Sketch and pass on."""
        data, name = from_any(array)
        made = sketch(data, axes, self._how)
        about = {"step": step, "call": call, "positions": positions}
        if made is None:
            self._sink.record(tap, array, axes=axes, meta=meta, **about)
        else:
            told = {**(meta or {}), "sketched": {"dtype": name, "shape": list(data.shape), "axes": axes}}
            self._sink.record(tap, made[0], axes=made[1], meta=told, **about)


class SketchedRecord:
    """A full record seen as its sketch."""

    __slots__ = ("_made", "_record", "axes", "shape", "size")

    dtype = "float32"

    def __init__(self, record: Any, made: Array, axes: str) -> None:
        self._record, self._made, self.axes = record, made, axes
        self.shape, self.size = made.shape, made.size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._record, name)

    def read(self) -> Array:
        """The sketch."""
        return self._made

    def read_flat(self, start: int, stop: int) -> Array:
        """Part of it, in row-major order."""
        return self._made.reshape(-1)[start:stop]


class SketchedRun:
    """A full run seen through its sketches, to be held against a run that has nothing else."""

    def __init__(self, run: Any, how: Sketching) -> None:
        self._run, self._how = run, how

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def records(self, tap: str | None = None) -> Sequence[Any]:
        """Records in execution order, sketched where a sketch is smaller."""
        return [self._shown(record) for record in self._run.records(tap)]

    def _shown(self, record: Any) -> Any:
        made = sketch(record.read(), record.axes, self._how)
        return record if made is None else SketchedRecord(record, *made)


def alike(reference: Any, candidate: Any) -> tuple[Any, Any]:
    """Both runs at one capture level; UserError for sketches of different sizes or seeds."""
    one, two = capture_of(reference), capture_of(candidate)
    if one == two:
        return reference, candidate
    if one is not None and two is not None:
        raise UserError(
            f"capture: {reference.name!r} holds sketches of {one.size} numbers (seed {one.seed}), "
            f"{candidate.name!r} of {two.size} (seed {two.seed}); record one of them again"
        )
    how = one or two
    assert how is not None
    return (reference, SketchedRun(candidate, how)) if one else (SketchedRun(reference, how), candidate)
