"""How noisy each row of a tap is: what trusted runs differ by there, as a share of the tap's noisiest row.

Rows are those of the reference's own records, record after record. A candidate's rows are told by the record
that they answer, or by absolute position where its layout lies otherwise.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from .errors import InconclusiveError
from .judge import SCALE_SHARE, Floor
from .metrics.layout import Layout, layout
from .metrics.rowjudge import S_ERR, S_ERR_MAX, S_EXCLUDED, S_REF
from .series import Series
from .trace import Records, changes, column
from .tracer.memory import MemoryRecord
from .values import TapRows, batch_positions, rows_back, rows_first, token_axis

if TYPE_CHECKING:
    from .metrics import Metrics
    from .pairs import Pair
    from .trace import Run

Shares = npt.NDArray[np.uint8]
#: A share of 1: of rows that nothing was measured at, too.
WHOLE = 255
LEAST, LEAST_NARROW = 1 / 2, 3 / 4
"""A row has at least this share of its tap's noise: how quiet few runs showed it is chance. A narrow format
is shown by one run alone, and a candidate may round at other places.

Of KLM (trained and drawn, six targets, four scenarios), rows whose noise is twenty times what it was are
seen in 62 to 93 % instead of 12 to 73 %. Healthy rows reach 0.39 of what is allowed (0.25 with a level per
tap), in bf16 0.48 (0.39); with a third for both, bf16 reaches 0.81."""


@dataclass(frozen=True, slots=True)
class RowShares:
    """Of the rows of a tap `[rows, 2]`: RMS and largest error as shares of the tap's, in 255ths, rounded up.

    `mark` tells the records that they belong to.
    """

    mark: int
    held: bytes

    @property
    def shares(self) -> Shares:
        """The values."""
        return np.frombuffer(bytearray(self.held), np.uint8).reshape(-1, 2)

    def answering(self, records: Sequence[Any], resets: Sequence[int]) -> Answering | None:
        """For the records of a reference; None where these are others than it was measured on."""
        return Answering(records, self.shares, resets) if mark_of(records) == self.mark else None

    def packed(self) -> tuple[int, str]:
        """As JSON holds it; see `unpacked`."""
        return self.mark, base64.b64encode(zlib.compress(self.held, 1)).decode()

    @classmethod
    def unpacked(cls, mark: int, text: str) -> RowShares:
        """The inverse of `packed`."""
        return cls(mark, zlib.decompress(base64.b64decode(text)))


def answering(floors: Mapping[str, Floor], reference: Run) -> dict[str, Floor]:
    """Floors whose rows are those of this reference; where its records are others, taps alone decide."""
    resets, taps = tuple(reference.provenance.get("scenario", {}).get("resets", ())), set(reference.taps)
    found = dict(floors)
    for tap, floor in floors.items():
        if isinstance(floor.rows, RowShares):
            rows = floor.rows.answering(reference.records(tap), resets) if tap in taps else None
            found[tap] = replace(floor, rows=rows)
    return found


class Answering:
    """The shares of the rows of any pair of a reference's tap."""

    def __init__(self, records: Sequence[Any], shares: Shares, resets: Sequence[int]) -> None:
        self._records, self._shares, self._resets = records, shares, resets

    def of(self, source: Series | Pair, place: int, plan: Layout) -> Shares | None:
        """Shares `[rows, 2]` of what was measured of a pair; None where a row of it has none."""
        if isinstance(source, Series):
            return self._recorded(source.references[place], plan)
        if source.actual is None or source.positions is None:
            return self._recorded(source.reference, plan)
        return self._placed(source, plan)

    @cached_property
    def _spans(self) -> dict[int, tuple[int, int]]:
        bounds = _bounds(self._records).tolist()
        orders = column(self._records, "order").tolist()
        return dict(zip(orders, pairwise(bounds), strict=True))

    @cached_property
    def _by_position(self) -> TapRows | None:
        """The shares as values of the rows; None where rows do not run over tokens."""
        made = []
        for record, (start, stop) in zip(self._records, self._spans.values(), strict=True):
            shape, axes = _row_axes(layout(tuple(record.shape), record.axes), record.axes)
            if token_axis(axes) is None or record.positions is None:
                return None
            values = self._shares[start:stop].reshape(shape)
            made.append(
                MemoryRecord(
                    record.tap, record.step, record.call, 0, "uint8", values, axes, record.positions, {}
                )
            )
        return TapRows(cast(Any, made), self._resets)

    def _recorded(self, record: Any, plan: Layout) -> Shares | None:
        span = self._spans.get(record.order)
        if span is None or tuple(record.shape) != plan.shape:
            return None
        found = self._shares[span[0] : span[1]]
        return found if len(found) == plan.num_rows else None

    def _placed(self, pair: Pair, plan: Layout) -> Shares | None:
        _, axes = _row_axes(plan, pair.axes)
        rows = self._by_position
        if rows is None or pair.positions is None or token_axis(axes) is None:
            return None
        try:
            values, found = rows.at(pair.step, pair.positions)
        except InconclusiveError:
            return None
        values[~found] = WHOLE
        shares = np.ascontiguousarray(rows_back(values, axes)).reshape(-1, 2)
        return shares if len(shares) == plan.num_rows else None


class RowNoise:
    """The noise of the rows of one tap, the largest of all trusted runs that were added."""

    def __init__(self, records: Sequence[Any]) -> None:
        self._records = records
        self._bounds = _bounds(records)
        self._place = {order: at for at, order in enumerate(column(records, "order").tolist())}
        self._steps = column(records, "step")
        self._levels = np.full((int(self._bounds[-1]), 2), -1.0)

    def add(self, source: Series | Pair, place: int, metrics: Metrics) -> None:
        """What was measured of one pair."""
        levels = _levels(metrics)
        if isinstance(source, Series) or source.actual is None or source.positions is None:
            record = source.references[place] if isinstance(source, Series) else source.reference
            at = self._place.get(record.order) if record is not None else None
            if at is not None and self._bounds[at + 1] - self._bounds[at] == len(levels):
                own = self._levels[self._bounds[at] : self._bounds[at + 1]]
                np.maximum(own, levels, out=own)
            return
        shape, axes = _row_axes(metrics.plan, source.axes)
        if token_axis(axes) is None:
            return
        theirs = rows_first(levels.reshape(shape), axes)
        for at in np.flatnonzero(self._steps == source.step).tolist():
            self._spread(at, theirs, source.positions)

    def _spread(self, at: int, theirs: np.ndarray, positions: np.ndarray) -> None:
        """Rows of a pair to where a record has them."""
        record = self._records[at]
        shape, axes = _row_axes(layout(tuple(record.shape), record.axes), record.axes)
        if token_axis(axes) is None or record.positions is None:
            return
        own = rows_first(self._levels[self._bounds[at] : self._bounds[at + 1]].reshape(shape), axes)
        if own.shape[2:] != theirs.shape[2:] or len(own) != len(theirs):
            return
        for sequence, wanted in enumerate(batch_positions(record)):
            column_of = np.full(max(int(wanted.max(initial=0)), int(positions.max(initial=0))) + 2, -1)
            here = positions[sequence] >= 0
            column_of[positions[sequence][here]] = np.flatnonzero(here)
            found = column_of[wanted]  # padding, -1, asks for the last place, which no row has
            have = found >= 0
            own[sequence, have] = np.maximum(own[sequence, have], theirs[sequence, found[have]])

    def shares(self, floor: Floor, *, narrow: bool = False) -> RowShares:
        """As shares of the tap's noise, of a format narrower than float32 or not.

        Rows that no trusted run answered have all of it.
        """
        least = LEAST_NARROW if narrow else LEAST
        whole = np.array([floor.rms, floor.peak])
        with np.errstate(divide="ignore", invalid="ignore"):
            parts = np.ceil(self._levels / whole * WHOLE)
        known = (self._levels >= 0.0) & (whole > 0.0)
        shares = np.where(known, np.clip(np.nan_to_num(parts), np.ceil(least * WHOLE), WHOLE), WHOLE)
        return RowShares(mark_of(self._records), shares.astype(np.uint8).tobytes())


def mark_of(records: Sequence[Any]) -> int:
    """A number of steps, calls, shapes and positions of records, which tells others from them."""
    mark = zlib.crc32(column(records, "step").tobytes())
    mark = zlib.crc32(column(records, "call").tobytes(), mark)
    kinds = [(place, tuple(records[place].shape), records[place].axes) for place in (0, *changes(records))]
    mark = zlib.crc32(repr(kinds).encode(), mark)
    return zlib.crc32(_positions(records).tobytes(), mark)


def _positions(records: Sequence[Any]) -> npt.NDArray[np.int64]:
    """Positions of each `[N, 2]`: first and number of a range, (-1, -1) for none, else a checksum and -2."""
    if isinstance(records, Records) and (ranges := records.ranges) is not None:
        return ranges[:, 1:].astype(np.int64)
    return np.array([_span(record) for record in records], np.int64).reshape(-1, 2)


def _span(record: Any) -> tuple[int, int]:
    positions = record.positions
    if positions is None:
        return -1, -1
    row = np.asarray(positions, np.int64)
    flat = row.reshape(-1)
    if (row.ndim == 1 or len(row) == 1) and flat.size and (np.diff(flat) == 1).all():
        return int(flat[0]), flat.size
    return zlib.crc32(repr(row.shape).encode() + row.tobytes()), -2


def _bounds(records: Sequence[Any]) -> npt.NDArray[np.int64]:
    """Where the rows of each record begin among all, and where the last ones end."""
    cuts = [0, *changes(records), len(records)]
    sizes = np.empty(len(records) + 1, np.int64)
    sizes[0] = 0
    for start, stop in pairwise(cuts):
        record = records[start]
        sizes[start + 1 : stop + 1] = layout(tuple(record.shape), record.axes).num_rows
    return sizes.cumsum()


def _row_axes(plan: Layout, axes: str) -> tuple[tuple[int, ...], str]:
    """Shape and axes of two numbers per row."""
    letters = axes.split()[: len(plan.row_shape)]
    return (*plan.row_shape, 2), " ".join((*letters, "."))


def _levels(metrics: Metrics) -> npt.NDArray[np.float64]:
    """RMS and largest error of each row `[rows, 2]`, relative to its scale as `judge_floor` sees it."""
    rows = metrics.raw_rows
    used = metrics.plan.row_size - rows[:, S_EXCLUDED]
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.maximum(np.sqrt(rows[:, S_REF] / used), SCALE_SHARE * metrics.rms_expected)
        found = np.stack((np.sqrt(rows[:, S_ERR] / used) / scale, rows[:, S_ERR_MAX] / scale), axis=1)
    found[(rows[:, S_ERR_MAX] == 0.0) | (used <= 0) | (scale == 0.0)] = 0.0
    return found
