"""Taps whose records answer each other one for one: many pairs that differ in step and call alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from .gather import congruent, repeated
from .pairs import Pair
from .trace import Records, changes, column
from .values import token_axis

if TYPE_CHECKING:
    from .trace import Record

#: Elements of a record up to which it is measured together with others.
SMALL = 16 * 1024

Part = tuple[Sequence[Any], Sequence[Any]]
"""Records of the reference that are alike, and as many of the candidate, alike too, that answer them."""


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

    def measured(self) -> Iterator[Series | Pair]:
        """As it is measured: together where the records are short and no logits, else pair by pair."""
        one, two = self.references[0], self.candidates[0]
        special = self.axes.endswith("v") or "complex" in one.dtype + two.dtype
        if 0 < one.size <= SMALL and not special:
            yield self
        else:
            yield from map(self.pair, range(len(self)))


def parts_of(expected: Sequence[Any], actual: Sequence[Any]) -> list[Part]:
    """A tap cut where records change shape or format: a prefill, then the steps after it.

    None where they do not answer each other in order, each step and call once, where positions go over
    several calls of a step, or where records change so often that cutting is not worth while.
    """
    size = len(expected)
    if not 0 < size == len(actual):
        return []
    steps, calls = column(expected, "step"), column(expected, "call")
    if not np.array_equal(steps, column(actual, "step")) or not np.array_equal(calls, column(actual, "call")):
        return []
    if not _rising(steps) and len(set(zip(steps.tolist(), calls.tolist(), strict=True))) < size:
        return []
    cuts = sorted({0, size, *changes(expected), *changes(actual)})
    if len(cuts) - 2 > size // 4:
        return []
    parts = [(expected[start:stop], actual[start:stop]) for start, stop in pairwise(cuts)]
    return parts if _rising(steps) or not all_positional(parts) else []


def all_positional(parts: Sequence[Part]) -> bool:
    """Whether every record can be aligned by absolute position."""
    return all(_positional(side) for part in parts for side in part)


def by_position(tap: str, part: Part) -> Series | None:
    """A part whose records lie at the same positions on both sides; None where rows must be put in order."""
    expected, actual = part
    one, two = expected[0], actual[0]
    if one.shape != two.shape or one.axes != two.axes or not _same_positions(expected, actual):
        return None
    return Series(tap, "tap, step, call; same positions", one.axes, expected, actual, True)


def by_call(tap: str, part: Part, said: str) -> Series | None:
    """A part aligned by step and call, with what a map says of the tap; None where the two sides differ."""
    expected, actual = part
    one, two = expected[0], actual[0]
    other_axes = one.axes and two.axes and one.axes != two.axes
    if tuple(one.shape) != tuple(two.shape) or other_axes:
        return None
    return Series(tap, "tap, step, call" + said, one.axes, expected, actual, False)


def _rising(steps: np.ndarray) -> bool:
    return bool((np.diff(steps) > 0).all())


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
