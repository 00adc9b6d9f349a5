"""Which candidate record answers which reference record.

By tap name, in the reference's execution order, then by absolute position (taps with a token axis) or by
step and call. Never by place in a list, by size or by resemblance of names. Every pair says which rule
made it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from .gather import congruent, gathered, repeated
from .pairs import Pair, Rows
from .series import Series, all_positional, by_call, by_position, parts_of
from .values import TapRows, positional

if TYPE_CHECKING:
    from .mapping import TapMap
    from .trace import Record, Run


class Aligner:
    """Pairs the records of two runs, tap by tap."""

    def __init__(self, reference: Run, candidate: Run, *, mapping: TapMap | None = None) -> None:
        self._resets = tuple(reference.provenance.get("scenario", {}).get("resets", ()))
        self._reference, self._candidate, self._mapping = reference, candidate, mapping
        self._names = mapping.names(candidate.taps) if mapping else {tap: tap for tap in candidate.taps}
        self.order = _order(reference.taps, self._names)
        self._known = set(reference.taps)
        self._policy = reference.provenance.get("policy", "none") != "none"

    def aligned(self, tap: str) -> Iterator[Series | Pair]:
        """All pairs of one tap, by step: in series where both sides are regular and the records small."""
        expected, actual = self._records(tap)
        parts = [] if self._transformed(tap) else parts_of(expected, actual)
        if not parts:
            yield from self.pairs(tap)
        elif all_positional(parts):
            rows = TapRows(expected, self._resets)
            for part in parts:
                series = by_position(tap, part)
                yield from series.measured() if series else self._by_step(tap, *part, rows)
        else:
            for part in parts:
                series = by_call(tap, part, self._said(tap))
                yield from series.measured() if series else self._by_call(tap, *part)

    def pairs(self, tap: str) -> Iterator[Pair]:
        """All pairs of one tap, by step, each on its own."""
        expected, actual = self._records(tap)
        if expected and actual and not self._transformed(tap) and all(map(positional, (*expected, *actual))):
            yield from self._by_step(tap, expected, actual, TapRows(expected, self._resets))
        else:
            yield from self._by_call(tap, expected, actual)

    def _records(self, tap: str) -> tuple[Sequence[Record], Sequence[Record]]:
        expected = self._reference.records(tap) if tap in self._known else ()
        actual = self._candidate.records(self._names[tap]) if tap in self._names else ()
        return expected, actual

    def _transformed(self, tap: str) -> bool:
        """Whether the user's map changes the arrays of a tap."""
        names, mapping = self._names, self._mapping
        return mapping is not None and tap in names and mapping.transformed(names[tap])

    def _said(self, tap: str) -> str:
        """What the user's map says of a tap, as the end of a rule."""
        rule = self._mapping.rule(self._names[tap]) if self._mapping is not None else ""
        return f"; {rule}" if rule else ""

    def _by_call(self, tap: str, expected: Sequence[Record], actual: Sequence[Record]) -> Iterator[Pair]:
        rest: dict[tuple[int, int], list[Record]] = {}
        for record in actual:
            rest.setdefault((record.step, record.call), []).append(record)
        for record in expected:
            answers = rest.pop((record.step, record.call), [])
            own = answers[0] if answers else None
            pair = Pair(tap, record.step, record.call, "tap, step, call", record, own, axes=record.axes)
            if len(answers) > 1:
                pair.problem = f"records={len(answers)} for one step and call, but should be 1"
            elif own is not None and _other_axes(own, record):
                pair.problem = f"axes={own.axes!r}, but should be {record.axes!r}; declare the difference"
            yield self._declared(pair)
        for left in rest.values():
            for record in left:
                yield Pair(tap, record.step, record.call, "tap, step, call", None, record, axes=record.axes)

    def _declared(self, pair: Pair) -> Pair:
        """Apply the transform that the user declared for this tap, if there is one."""
        if self._mapping is None or pair.candidate is None or pair.reference is None:
            return pair
        pair.rule += self._said(pair.tap)
        if self._transformed(pair.tap):
            pair.problem = ""
            pair.actual = self._mapping.apply(self._names[pair.tap], pair.candidate.read())
            pair.expected = pair.reference.read()
        return pair

    def _by_step(
        self, tap: str, expected: Sequence[Record], actual: Sequence[Record], rows: Rows
    ) -> Iterator[Pair]:
        groups, first = _grouped(actual), _grouped(expected)
        for step in sorted(groups.keys() | first.keys()):
            own, theirs = groups.get(step, []), first.get(step, [])
            tokens = "t" in rows.axes.split()
            if tokens and theirs and repeated(theirs):
                yield from self._by_call(tap, theirs, own)
            elif not own:
                yield from (
                    Pair(tap, step, record.call, "tap, position", record, None, axes=record.axes)
                    for record in theirs
                )
            elif len(own) == len(theirs) == 1 and congruent(own[0], theirs[0]):
                rule = "tap, step, call; same positions"
                yield Pair(
                    tap, step, 0, rule, theirs[0], own[0], positions=own[0].positions, axes=own[0].axes
                )
            else:
                whole = tokens or not self._policy
                yield gathered(tap, step, own, theirs, rows, whole=whole)


def _grouped(records: Iterable[Record]) -> dict[int, list[Record]]:
    groups: dict[int, list[Record]] = {}
    for record in records:
        groups.setdefault(record.step, []).append(record)
    return groups


def _other_axes(own: Record, other: Record) -> bool:
    return bool(own.axes and other.axes and own.axes != other.axes)


def _order(reference: Sequence[str], candidate: Mapping[str, str]) -> list[str]:
    """The reference's taps in execution order, then what only the candidate has."""
    known = set(reference)
    return [*reference, *(tap for tap in candidate if tap not in known)]


def matches(tap: str, patterns: Iterable[str]) -> bool:
    """Whether a tap name fits one of the globs."""
    return any(fnmatchcase(tap, pattern) for pattern in patterns)
