"""The values of one run, looked up by tap, step and absolute position.

Both alignment and isolation ask here: "what did this run hold for `layer0.ks` at positions 17..79 when
step 5 was executed?" The answer does not depend on where the rows lay: the newest record up to that step
that holds a position answers for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .errors import InconclusiveError

if TYPE_CHECKING:
    from .trace import Record, Run

TOKEN_AXES = ("t", "p")


def token_axis(axes: str) -> int | None:
    """Index of the axis that runs over tokens or cache rows; None if there is none."""
    letters = axes.split()
    return next((letters.index(letter) for letter in TOKEN_AXES if letter in letters), None)


def positional(record: Record) -> bool:
    """Whether a record can be aligned by absolute position."""
    return token_axis(record.axes) is not None and record.positions is not None


def batch_positions(record: Record) -> np.ndarray:
    """Positions `[B, T]` of a record, shared ones repeated for each sequence."""
    positions = np.asarray(record.positions)
    return positions if positions.ndim == 2 else np.repeat(positions[None], _batch(record), axis=0)


def _batch(record: Record) -> int:
    letters = record.axes.split()
    return record.shape[letters.index("b")] if "b" in letters else 1


def records_of(run: Run, tap: str) -> Sequence[Record]:
    """Records of a tap; none if the run has no such tap."""
    return run.records(tap) if tap in run.taps else ()


def rows_first(array: np.ndarray, axes: str) -> np.ndarray:
    """`array` with axes (sequence, token, the rest): a view; sequence is added where there is none."""
    letters = axes.split()
    at = token_axis(axes)
    if at is None:
        raise ValueError(f"axes={axes!r}: has no token axis")
    if "b" not in letters:
        array, letters, at = array[None], ["b", *letters], at + 1
    return np.moveaxis(array, (letters.index("b"), at), (0, 1))


def rows_back(rows: np.ndarray, axes: str) -> np.ndarray:
    """The inverse of `rows_first`."""
    letters = axes.split()
    at = token_axis(axes)
    if at is None:
        raise ValueError(f"axes={axes!r}: has no token axis")
    if "b" not in letters:
        return np.asarray(np.moveaxis(rows, (0, 1), (0, at + 1))[0])
    return np.moveaxis(rows, (0, 1), (letters.index("b"), at))


class TapRows:
    """The rows of one tap over the steps of a run, one per sequence and position.

    Walks the records forward, so asking in step order costs each record once.
    """

    def __init__(self, records: Sequence[Record], resets: Iterable[int] = ()) -> None:
        self._records = records
        self._resets = sorted(resets)
        self.axes = records[0].axes
        self.sketched = "sketched" in (records[0].meta or {})
        self._restart()

    def _restart(self) -> None:
        self._next = 0
        self._epoch = 0
        self._table: np.ndarray | None = None
        self._known: np.ndarray | None = None

    def at(self, step: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows `[B, T, ...]` for `[B, T]` positions as of `step`, and which of them exist `[B, T]`."""
        if self._next and self._records[self._next - 1].step > step:
            self._restart()
        while self._next < len(self._records) and self._records[self._next].step <= step:
            self._take(self._records[self._next])
            self._next += 1
        if self._table is None or self._known is None or self._epoch_of(step) != self._epoch:
            raise InconclusiveError(f"step={step}: nothing is recorded for it up to there")
        if len(positions) != len(self._known):
            raise InconclusiveError(
                f"batch={len(positions)}: the reference recorded {len(self._known)} sequences"
            )
        inside = (positions >= 0) & (positions < self._known.shape[1])
        index = np.where(inside, positions, 0)
        sequences = np.arange(len(positions))[:, None]
        found = inside & self._known[sequences, index]
        rows = self._table[sequences, index]
        rows[~found] = 0
        return rows, found

    def _epoch_of(self, step: int) -> int:
        return sum(reset <= step for reset in self._resets)

    def _take(self, record: Record) -> None:
        epoch = self._epoch_of(record.step)
        if epoch != self._epoch:
            self._epoch, self._table, self._known = epoch, None, None
        positions = batch_positions(record)
        rows = rows_first(record.read(), record.axes)
        before = self._table
        if before is not None and (rows.shape[2:], rows.dtype) != (before.shape[2:], before.dtype):
            raise InconclusiveError(
                f"step={record.step}: rows of {rows.dtype} {rows.shape[2:]}, but before "
                f"of {before.dtype} {before.shape[2:]}"
            )
        self._reserve(rows, int(positions.max(initial=-1)) + 1)
        assert self._table is not None
        assert self._known is not None
        sequence, column = np.nonzero(positions >= 0)
        at = positions[sequence, column]
        self._table[sequence, at] = rows[sequence, column]
        self._known[sequence, at] = True

    def _reserve(self, rows: np.ndarray, length: int) -> None:
        have = 0 if self._known is None else self._known.shape[1]
        if self._known is not None and self._table is not None and length <= have:
            return
        size = max(length, 2 * have, 1)
        table = np.zeros((rows.shape[0], size, *rows.shape[2:]), rows.dtype)
        known = np.zeros((rows.shape[0], size), np.bool_)
        if self._table is not None and self._known is not None:
            table[:, :have], known[:, :have] = self._table, self._known
        self._table, self._known = table, known


class Values:
    """Everything a run recorded, by tap."""

    def __init__(self, run: Run, *, derived: Mapping[str, str] | None = None) -> None:
        """`derived` maps a cache tap to the tap whose rows it is made of."""
        self.run = run
        self.resets = tuple(run.provenance.get("scenario", {}).get("resets", ()))
        self._derived = dict(derived or {})
        self._rows: dict[str, TapRows] = {}
        self._steps: dict[str, dict[int, list[Record]]] = {}
        self._newest: dict[str, tuple[int, TapRows]] = {}
        self._calls: dict[tuple[str, int], Record] | None = None

    def rows(self, tap: str) -> TapRows:
        """The rows of one tap; a cache tap is read from its source, which has every row exactly once."""
        source = self._derived.get(tap, tap)
        if source not in self._rows:
            records = records_of(self.run, source)
            if not records:
                raise InconclusiveError(
                    f"tap={tap!r}: the run {self.run.name!r} did not record it, so nothing can be fed with it"
                )
            self._rows[source] = TapRows(records, self.resets)
        return self._rows[source]

    def at(self, tap: str, step: int, positions: np.ndarray) -> np.ndarray:
        """The value in the tap's own layout, its token axis as long as `positions` `[B, T]`."""
        rows = self.rows(tap)
        return rows_back(rows.at(step, positions)[0], rows.axes)

    def like(self, tap: str, step: int, positions: np.ndarray, template: np.ndarray) -> np.ndarray:
        """As `at`, in the candidate's number format; padding and hidden slots as the candidate has them."""
        rows = self.rows(tap)
        if rows.sketched:
            raise InconclusiveError(
                f"tap={tap!r}: the run {self.run.name!r} holds sketches of it, and nothing can be fed with "
                "those; record it with --capture full"
            )
        found_rows, found = rows.at(step, positions)
        if (~found & (positions >= 0)).any():
            lost = positions[~found & (positions >= 0)]
            raise InconclusiveError(f"tap={tap!r}: the reference holds no row for position {int(lost[0])}")
        own = rows_first(template, rows.axes).copy()
        own[found] = found_rows[found].astype(template.dtype)
        return rows_back(own, rows.axes)

    def beside(
        self, tap: str, step: int, positions: np.ndarray, template: np.ndarray, axes: str
    ) -> np.ndarray | None:
        """What the run held in place of `template`, a value at `positions` `[B, T]`; None where it held none.

        In the template's number format. Padding stays the template's; of fewer rows than positions, they are
        the last ones.
        """
        records = self._at(tap, step)
        at = token_axis(axes)
        if not records or records[0].axes != axes:
            return None
        only = records[0] if len(records) == 1 else None
        if at is None or (only is not None and only.positions is None):
            return _as(only.read(), template) if only is not None else None
        positions = positions[:, positions.shape[1] - template.shape[at] :]
        if only is not None and (positions >= 0).all() and np.array_equal(batch_positions(only), positions):
            return _as(only.read(), template)
        return self._gathered(tap, step, positions, template)

    def _at(self, tap: str, step: int) -> Sequence[Record]:
        """Records of a tap at one step."""
        if tap not in self._steps:
            table: dict[int, list[Record]] = {}
            for record in records_of(self.run, tap):
                table.setdefault(record.step, []).append(record)
            self._steps[tap] = table
        return self._steps[tap].get(step, ())

    def _gathered(
        self, tap: str, step: int, positions: np.ndarray, template: np.ndarray
    ) -> np.ndarray | None:
        """Put in order by position: from the records of the step alone where these hold all of it."""
        records = self._at(tap, step)
        if tap not in self._derived and all(map(positional, records)):
            if self._newest.get(tap, (None, None))[0] != step:
                self._newest[tap] = step, TapRows(records)
            found = _filled(self._newest[tap][1], step, positions, template)
            if found is not None:
                return found
        try:
            return _filled(self.rows(tap), step, positions, template)
        except InconclusiveError:
            return None

    def named(self, tap: str, call: int, template: np.ndarray) -> np.ndarray | None:
        """What the run held for one call of a tap, by any name that it has, in the template's number format.

        None where it held nothing of that shape.
        """
        if self._calls is None:
            self._calls = {}
            for record in self.run.records():
                aliases = record.meta.get("alias", {})
                for name, number in {record.tap: record.call, **aliases}.items():
                    self._calls[name, number] = record
        found = self._calls.get((tap, call))
        return None if found is None else _as(found.read(), template)

    def tokens(self, step: int) -> np.ndarray | None:
        """Token ids `[B, T]` that the run was fed at a step; None if it recorded none."""
        return next((record.read() for record in records_of(self.run, "ids") if record.step == step), None)


def _as(value: np.ndarray, template: np.ndarray) -> np.ndarray | None:
    return value.astype(template.dtype, copy=False) if value.shape == template.shape else None


def _filled(rows: TapRows, step: int, positions: np.ndarray, template: np.ndarray) -> np.ndarray | None:
    """The template with the rows of its positions in place; None where one of them is not there."""
    own = rows_first(template, rows.axes).copy()
    if own.shape[:2] != positions.shape:
        return None
    values, found = rows.at(step, positions)
    if (~found & (positions >= 0)).any() or values.shape != own.shape:
        return None
    own[found] = values[found].astype(own.dtype)
    return rows_back(own, rows.axes)
