"""Which rows keep histogram, row statistics and slices: some 30 KB each, too much for a hundred thousand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .measuring import Asked, measure_pair

if TYPE_CHECKING:
    from .comparison import Row
    from .pairs import Pair
    from .series import Series

#: Of the rows of a tap that fail, so many keep their detail,
FAILING = 16
#: and of the rows of all taps as many as fit into so many bytes.
ROOM = 64 << 20


class Room:
    """What is left of the memory for rows that fail, of all taps together."""

    def __init__(self) -> None:
        self._left = ROOM

    def takes(self, size: int) -> bool:
        """Whether so many bytes still fit; they are taken if they do."""
        fits = size <= self._left
        self._left -= size if fits else 0
        return fits


class Detail:
    """Of one tap: what someone will look at is kept, the first rows that fail and the worst of the others."""

    def __init__(self, room: Room) -> None:
        self._worst: tuple[Row, Series | Pair, int, Asked] | None = None
        self._failing, self._room = 0, room

    def keep(self, row: Row, source: Series | Pair, place: int, asked: Asked) -> None:
        """Take note of the next row that was measured; what need not be kept in full is slimmed."""
        if row.failing and self._failing < FAILING and self._room.takes(_size(row)):
            self._failing += 1
            return
        if self._worst is None or (row.ratio or 0.0) > (self._worst[0].ratio or 0.0):
            before, self._worst = self._worst, (row, source, place, asked)
            if before is None:
                return
            row = before[0]
        if row.metrics is not None:
            row.metrics = row.metrics.slim()

    def finish(self) -> None:
        """Measure the worst row in full if it was only surveyed."""
        if self._worst is not None:
            row, source, place, asked = self._worst
            if row.metrics is not None and not row.metrics.detailed:
                row.metrics = measure_pair(source.pair(place), asked)[0]


def _size(row: Row) -> int:
    return row.metrics.nbytes if row.metrics is not None else 0
