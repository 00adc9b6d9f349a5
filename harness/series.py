"""A tap whose records answer each other one for one: many pairs that differ in step and call alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .gather import congruent, repeated
from .pairs import Pair
from .trace import Records, alike, column
from .values import token_axis

if TYPE_CHECKING:
    from .trace import Record

#: Elements of a record up to which it is measured in a series.
SMALL = 16 * 1024


@dataclass(frozen=True, slots=True)
class Series:
    """Pairs of one tap, of one shape and number format on each side; the records answer each other in order.

    Aligned by position, a step has one call.
    """

    tap: str
    rule: str
    axes: str
    references: Sequence[Record]
    candidates: Sequence[Record]
    by_position: bool

    def __len__(self) -> int:
        return len(self.references)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of every record."""
        return tuple(self.references[0].shape)

    @property
    def calls(self) -> list[int]:
        """The call of each pair."""
        calls: list[int] = column(self.references, "call").tolist()
        return [0] * len(calls) if self.by_position else calls

    def part(self, start: int, stop: int) -> Series:
        """Pairs start..stop."""
        return replace(self, references=self.references[start:stop], candidates=self.candidates[start:stop])

    def pair(self, place: int) -> Pair:
        """One of the pairs."""
        one, two = self.references[place], self.candidates[place]
        call, positions = (0, two.positions) if self.by_position else (one.call, None)
        return Pair(self.tap, one.step, call, self.rule, one, two, positions=positions, axes=self.axes)


def series_of(tap: str, expected: Sequence[Any], actual: Sequence[Any]) -> Series | None:
    """All pairs of a tap as one series, by the rules of `Aligner`; None where the tap is not as regular."""
    if not _regular(expected, actual):
        return None
    one, two = expected[0], actual[0]
    steps, calls = column(expected, "step"), column(expected, "call")
    rising = bool((np.diff(steps) > 0).all())
    if _positional(expected) and _positional(actual):
        same = rising and one.axes == two.axes and _same_positions(expected, actual)
        rule = "tap, step, call; same positions"
        return Series(tap, rule, one.axes, expected, actual, True) if same else None
    unique = rising or len(set(zip(steps.tolist(), calls.tolist(), strict=True))) == len(expected)
    same = unique and (one.axes == two.axes or not one.axes or not two.axes)
    return Series(tap, "tap, step, call", one.axes, expected, actual, False) if same else None


def _regular(expected: Sequence[Any], actual: Sequence[Any]) -> bool:
    """Whether as many records of one small shape answer each other, step by step, in the same order."""
    if not len(expected) == len(actual) > 0 or not alike(expected) or not alike(actual):
        return False
    one, two = expected[0], actual[0]
    if tuple(one.shape) != tuple(two.shape) or not 0 < one.size <= SMALL:
        return False
    if one.axes.endswith("v") or "complex" in one.dtype + two.dtype:
        return False
    return all(np.array_equal(column(expected, name), column(actual, name)) for name in ("step", "call"))


def _positional(records: Sequence[Any]) -> bool:
    """Whether records that are alike can be aligned by absolute position."""
    if token_axis(records[0].axes) is None:
        return False
    if isinstance(records, Records):
        return bool(records.rows["position_kind"].all())
    return all(record.positions is not None for record in records)


def _same_positions(expected: Sequence[Any], actual: Sequence[Any]) -> bool:
    """Whether each pair has the same positions, every one once and none of them padding."""
    if isinstance(expected, Records) and isinstance(actual, Records):
        one, two = expected.ranges, actual.ranges
        if one is not None and two is not None and np.array_equal(one, two):
            return bool((one[:, 1] >= 0).all())
    pairs = zip(expected, actual, strict=True)
    return all(congruent(own, other) and not repeated([other]) for other, own in pairs)
