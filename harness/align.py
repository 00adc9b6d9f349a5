"""Which candidate record answers which reference record.

By tap name, in the reference's execution order, then by absolute position (taps with a token axis) or by
step and call. Never by place in a list, by size or by resemblance of names. Every pair says which rule
made it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Protocol

import numpy as np

from .errors import InconclusiveError
from .values import TapRows, batch_positions, positional, rows_back, rows_first

if TYPE_CHECKING:
    from .mapping import TapMap
    from .trace import Record, Run


class Rows(Protocol):
    """Rows of one tap by absolute position; see `TapRows`."""

    axes: str

    def at(self, step: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(slots=True)
class Pair:
    """One reference record, or one candidate record without a counterpart, and what answers it.

    `direct` pairs are streamed from both files; the others were put in order by position and lie in
    memory as `expected` and `actual`. `hidden` counts values at padding, which are left out.
    """

    tap: str
    step: int
    call: int
    rule: str
    reference: Record | None = None
    candidate: Record | None = None
    expected: np.ndarray | None = None
    actual: np.ndarray | None = None
    positions: np.ndarray | None = None
    axes: str = ""
    hidden: int = 0
    problem: str = ""

    @property
    def measurable(self) -> bool:
        """Whether there are two sides to be measured."""
        return (
            not self.problem
            and self.candidate is not None
            and (self.reference is not None or self.expected is not None)
        )

    @property
    def direct(self) -> bool:
        """Whether both records can be streamed as they lie."""
        return self.reference is not None and self.candidate is not None and self.actual is None


class Aligner:
    """Pairs the records of two runs, tap by tap."""

    def __init__(self, reference: Run, candidate: Run, *, mapping: TapMap | None = None) -> None:
        self._resets = tuple(reference.provenance.get("scenario", {}).get("resets", ()))
        self._reference, self._candidate, self._mapping = reference, candidate, mapping
        self._names = mapping.names(candidate.taps) if mapping else {tap: tap for tap in candidate.taps}
        self.order = _order(reference.taps, self._names)
        self._known = set(reference.taps)

    def pairs(self, tap: str) -> Iterator[Pair]:
        """All pairs of one tap, by step."""
        expected = self._reference.records(tap) if tap in self._known else ()
        actual = self._candidate.records(self._names[tap]) if tap in self._names else ()
        declared = self._mapping is not None and actual and self._mapping.rule(self._names[tap])
        if expected and actual and not declared and all(map(positional, (*expected, *actual))):
            yield from self._by_position(tap, expected, actual)
        else:
            yield from self._by_call(tap, expected, actual)

    def _by_call(self, tap: str, expected: Sequence[Record], actual: Sequence[Record]) -> Iterator[Pair]:
        rest = {(record.step, record.call): record for record in actual}
        for record in expected:
            answer = rest.pop((record.step, record.call), None)
            yield self._declared(
                Pair(tap, record.step, record.call, "tap, step, call", record, answer, axes=record.axes)
            )
        for record in rest.values():
            yield Pair(tap, record.step, record.call, "tap, step, call", None, record, axes=record.axes)

    def _declared(self, pair: Pair) -> Pair:
        """Apply the transform that the user declared for this tap, if there is one."""
        if self._mapping is None or pair.candidate is None or pair.reference is None:
            return pair
        name = self._names[pair.tap]
        rule = self._mapping.rule(name)
        if rule:
            pair.rule += f"; {rule}"
            pair.actual = self._mapping.apply(name, pair.candidate.read())
            pair.expected = pair.reference.read()
        return pair

    def _by_position(self, tap: str, expected: Sequence[Record], actual: Sequence[Record]) -> Iterator[Pair]:
        rows = TapRows(expected, self._resets)
        groups = _by_step(actual)
        first = _by_step(expected)
        for step in sorted(groups.keys() | first.keys()):
            own, theirs = groups.get(step, []), first.get(step, [])
            if not own:
                yield from (
                    Pair(tap, step, record.call, "tap, position", record, None, axes=record.axes)
                    for record in theirs
                )
            elif len(own) == len(theirs) == 1 and _congruent(own[0], theirs[0]):
                rule = "tap, step, call; same positions"
                yield Pair(
                    tap, step, 0, rule, theirs[0], own[0], positions=own[0].positions, axes=own[0].axes
                )
            else:
                yield gathered(tap, step, own, theirs, rows)


def _by_step(records: Iterable[Record]) -> dict[int, list[Record]]:
    groups: dict[int, list[Record]] = {}
    for record in records:
        groups.setdefault(record.step, []).append(record)
    return groups


def _congruent(own: Record, other: Record) -> bool:
    """Same shape, axes and positions, and no padding: nothing has to be put in order."""
    if own.shape != other.shape or own.axes != other.axes:
        return False
    mine, theirs = batch_positions(own), batch_positions(other)
    return bool(mine.min(initial=0) >= 0) and np.array_equal(mine, theirs)


def gathered(tap: str, step: int, own: Sequence[Record], theirs: Sequence[Record], rows: Rows) -> Pair:
    """Put the reference's rows in the order of the candidate's positions; the calls of a step are joined."""
    axes = own[0].axes
    pair = Pair(
        tap, step, 0, f"tap, position ({len(own)} calls)" if len(own) > 1 else "tap, position",
        theirs[0] if theirs else None, own[0], axes=axes,
    )  # fmt: skip
    if len({_signature(record) for record in own}) > 1 or _kind(axes) != _kind(rows.axes):
        pair.problem = f"axes={axes!r}, but should be {rows.axes!r}, with the same shape in every call"
        return pair
    actual = np.concatenate([rows_first(record.read(), axes) for record in own], axis=1)
    positions = np.concatenate([batch_positions(record) for record in own], axis=1)
    try:
        expected, found = rows.at(step, positions)
    except InconclusiveError as error:
        pair.problem = str(error)
        return pair
    if expected.shape != actual.shape:
        pair.problem = f"rows of shape={actual.shape[2:]}, but should be {expected.shape[2:]}"
        return pair
    return _without_hidden(pair, expected, actual, positions, found)


def _kind(axes: str) -> str:
    """Axes with cache rows and tokens alike: both run over absolute positions."""
    return axes.replace("p", "t")


def _signature(record: Record) -> tuple[str, str, int]:
    return record.axes, record.dtype, len(record.shape)


def _without_hidden(
    pair: Pair, expected: np.ndarray, actual: np.ndarray, positions: np.ndarray, found: np.ndarray
) -> Pair:
    """Leave out what no token stands behind: columns that are padding everywhere, else equal zeros."""
    keep = found.any(axis=0)
    if not keep.any():
        pair.problem = "the reference holds none of these positions"
        return pair
    unknown = int((~found & (positions >= 0)).sum())
    if unknown:
        pair.rule += f"; {unknown} positions that the reference does not hold"
    row = int(np.prod(actual.shape[2:], dtype=np.int64))
    pair.hidden = int((~found).sum()) * row
    expected, actual = expected[:, keep], np.array(actual[:, keep])
    lost = ~found[:, keep]
    expected[lost], actual[lost] = 0, 0
    pair.expected = np.ascontiguousarray(rows_back(expected, pair.axes))
    pair.actual = np.ascontiguousarray(rows_back(actual, pair.axes))
    pair.positions = np.where(found, positions, -1)[:, keep]
    return pair


def _order(reference: Sequence[str], candidate: Mapping[str, str]) -> list[str]:
    """The reference's taps in execution order, then what only the candidate has."""
    known = set(reference)
    return [*reference, *(tap for tap in candidate if tap not in known)]


def matches(tap: str, patterns: Iterable[str]) -> bool:
    """Whether a tap name fits one of the globs."""
    return any(fnmatchcase(tap, pattern) for pattern in patterns)
