"""How far trusted runs of one case depart from each other, per tap: noise, and what explains it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .align import Aligner
from .comparison import Row
from .judge import FACTOR, Floor, floor_from
from .measuring import Asked, in_batches, measure_all
from .metrics import Metrics, Survey
from .row_noise import RowNoise
from .series import Series
from .tolerance import AUTO, EXACT

if TYPE_CHECKING:
    from .pairs import Pair
    from .tolerance import Tolerance
    from .trace import Run

#: The cause of noise that no other circumstances explain: the same run, executed once more.
AGAIN = "again"
#: Of float32; a reference that departs from itself by less than `FACTOR` times this is steady.
HALF_STEP = 2.0**-24


@dataclass(frozen=True, slots=True)
class Noise:
    """What one cause does to one tap: its level over `rows` rows, the largest difference and its place."""

    tap: str
    cause: str
    floor: Floor
    rows: int
    step: int
    max_abs: float
    expected: float

    def to_json(self) -> dict[str, Any]:
        """As it is kept and printed, the floor as its numbers."""
        return {**asdict(self), "floor": self.floor.numbers}

    def merge(self, other: Noise) -> Noise:
        """The higher level of each, the cause of the higher one, and the larger difference."""
        cause = (self if self.floor.rms >= other.floor.rms else other).cause
        far = self if self.max_abs >= other.max_abs else other
        floor, rows = self.floor.merge(other.floor), max(self.rows, other.rows)
        return Noise(self.tap, cause, floor, rows, far.step, far.max_abs, far.expected)


def floors_from(reference: Run, others: Iterable[Run]) -> dict[str, Floor]:
    """The noise of each tap: how far trusted runs of the same case depart from the reference.

    Each of `others` is the same case in another number format, layout or order of summation.
    """
    floors: dict[str, Floor] = {}
    for other in others:
        for tap, noise in noise_of(reference, other, "").items():
            floors[tap] = floors[tap].merge(noise.floor) if tap in floors else noise.floor
    return floors


def noise_of(
    reference: Run,
    other: Run,
    cause: str,
    *,
    order: Sequence[int] | None = None,
    rows: dict[str, RowNoise] | None = None,
) -> dict[str, Noise]:
    """How far `other` departs from the reference at each tap.

    `order`: the sequences of `other` that answer those of the reference, where they stand elsewhere. What
    each row shows is added to `rows`, by tap.
    """
    found: dict[str, Noise] = {}
    for item, every in _measured(reference, other, order):
        for place, metrics in enumerate(every):
            step = int(item.references[place].step) if isinstance(item, Series) else item.step
            noise = _noise(item.tap, cause, metrics, step)
            if rows is not None:
                if item.tap not in rows:
                    rows[item.tap] = RowNoise(reference.records(item.tap))
                rows[item.tap].add(item, place, metrics)
            before = found.get(item.tap)
            found[item.tap] = (
                noise if before is None else replace(before.merge(noise), rows=before.rows + noise.rows)
            )
    return found


def _noise(tap: str, cause: str, metrics: Metrics, step: int) -> Noise:
    floor, rows = floor_from(metrics), metrics.plan.num_rows
    return Noise(tap, cause, floor, rows, step, metrics.max_abs, metrics.expected_at_max)


def _measured(
    reference: Run, other: Run, order: Sequence[int] | None
) -> Iterator[tuple[Series | Pair, Iterable[Metrics]]]:
    aligner = Aligner(reference, other if order is None else _Reordered(other, order))  # type: ignore[arg-type]
    aligned = aligner.aligned if order is None else aligner.pairs
    found = (item for tap in reference.taps for item in aligned(tap))
    measurable = (item for item in found if isinstance(item, Series) or item.measurable)
    for batch in in_batches(measurable, lambda item: item):
        for item, one in zip(batch, measure_all([(item, Asked()) for item in batch]), strict=True):
            yield item, one if isinstance(one, Survey) else one[:1]


def unsteady(
    rows: Iterable[Row], spread: Mapping[str, Noise], tolerance: Tolerance, floors: Mapping[str, Floor]
) -> Noise | None:
    """The first tap at which the reference departs from itself by more than is allowed; None if it is steady.

    Records that are equal bit by bit need no steadiness. `floors` are what the number format explains: where
    they decide, a spread above `FACTOR` times them is more than rounding. They are no measure of a reference
    that departs from itself without any reason: then the bound of the number format is.
    """
    for row in rows:
        noise = spread.get(row.tap)
        if noise is None or noise.max_abs == 0.0 or row.status in ("equal", "skipped", "extra"):
            continue
        ruled = tolerance.kind == AUTO and row.tap in floors and noise.cause != AGAIN
        if ruled and "float" in row.expected_dtype:
            explained = floors[row.tap]
            if noise.floor.rms > FACTOR * max(explained.rms, HALF_STEP):
                return noise
            continue
        bound = tolerance.bound(row.tap, row.expected_dtype or row.dtype, row.dtype or row.expected_dtype)
        if bound == EXACT and noise.cause != AGAIN:
            continue  # who asks for equal bits asks for them in equal circumstances
        if not noise.max_abs <= bound.atol + bound.rtol * abs(noise.expected):
            return noise
    return None


class _Reordered:
    """A run of which other sequences, or the same in another order, are looked at."""

    def __init__(self, run: Run, order: Sequence[int]) -> None:
        self._run, self._order = run, list(order)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def records(self, tap: str) -> list[_Record]:
        """Records in execution order."""
        return [_Record(record, self._order) for record in self._run.records(tap)]


class _Record:
    """A record with its sequences in another order."""

    def __init__(self, record: Any, order: list[int]) -> None:
        self._record, self._order = record, order
        letters = record.axes.split()
        self._axis = letters.index("b") if "b" in letters else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._record, name)

    @property
    def shape(self) -> tuple[int, ...]:
        """With as many sequences as are looked at."""
        shape = list(self._record.shape)
        if self._axis is not None:
            shape[self._axis] = len(self._order)
        return tuple(shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape))

    @property
    def positions(self) -> Any:
        """Of each sequence, where they have their own."""
        positions = self._record.positions
        return positions[self._order] if positions is not None and np.ndim(positions) == 2 else positions

    def read(self) -> np.ndarray:
        """All values."""
        values: np.ndarray = self._record.read()
        return values if self._axis is None else np.take(values, self._order, axis=self._axis)

    def read_flat(self, start: int, stop: int) -> np.ndarray:
        """Values start..stop of the flat array."""
        return self.read().reshape(-1)[start:stop]
