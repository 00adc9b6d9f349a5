"""Which rows keep histogram, row statistics and slices: some 30 KB each, too much for a hundred thousand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .measuring import Asked, measure_pair

if TYPE_CHECKING:
    from .comparison import Row
    from .pairs import Pair

#: Of the rows of a tap that fail, so many keep their detail.
FAILING = 16


class Detail:
    """Of one tap: what someone will look at is kept, the first rows that fail and the worst of the others."""

    def __init__(self) -> None:
        self._worst: tuple[Row, Pair, Asked] | None = None
        self._failing = 0

    def keep(self, row: Row, pair: Pair, asked: Asked) -> None:
        """Take note of the next row that was measured; what need not be kept in full is slimmed."""
        if row.failing and self._failing < FAILING:
            self._failing += 1
            return
        slimmed = row
        if self._worst is None or (row.ratio or 0.0) > (self._worst[0].ratio or 0.0):
            before, self._worst = self._worst, (row, pair, asked)
            if before is None:
                return
            slimmed = before[0]
        if slimmed.metrics is not None:
            slimmed.metrics = slimmed.metrics.slim()

    def finish(self) -> None:
        """Measure the worst row in full if it was only surveyed."""
        if self._worst is not None:
            row, pair, asked = self._worst
            if row.metrics is not None and not row.metrics.detailed:
                row.metrics = measure_pair(pair, asked)[0]
