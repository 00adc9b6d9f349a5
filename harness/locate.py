"""From judged rows to words: the first divergence, the culprits, and how much was looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from .comparison import COMPARED, LARGEST, Comparison, Coverage, Culprit, First, Row
from .isolation import HANDED, Isolation, handed_tap
from .outputs import is_output
from .rows import CACHE, values_of


def first_of(comparison: Comparison) -> First | None:
    """The first failing record in execution order, and what the claim is worth."""
    rows = comparison.records
    at = next((place for place, row in enumerate(rows) if row.failing), None)
    if at is None:
        return None
    row = rows[at]
    compared = sum(r.status in COMPARED for r in rows)
    unseen = [r for r in rows[:at] if r.status in ("skipped", "missing", "extra")]
    claim = f"first among {compared} of {len(rows)} records"
    if unseen:
        claim += f"; {len(unseen)} that were not compared before it could hide an earlier fault"
    before = next((r for r in reversed(rows[:at]) if r.status in ("equal", "pass")), None)
    return First(
        row.tap,
        row.step,
        row.slice or row.reason,
        claim,
        f"{before.tap} at step {before.step}" if before else "",
        row.call,
    )


def culprits_of(comparison: Comparison) -> tuple[Culprit, ...]:
    """Taps where a fault was born, in execution order, each once: the earliest record that is wrong.

    What is wrong on the reference's values was born there. Where values are pinned that holds for every tap;
    where an error carries on, later taps of the same segment (or containers) may only show it again. A
    failing record that could not be isolated is a culprit only while nothing before it had failed. A run
    at parity has no culprits.
    """
    if not any(row.failing for row in comparison.records):
        return ()
    found = _Found(comparison.isolation)
    handed = {id(row) for row in comparison.handed}
    for row in sorted([*comparison.handed, *comparison.records], key=attrgetter("order")):
        found.handed(row) if id(row) in handed else found.record(row)
    return _innermost(found.culprits, comparison.isolation) or found.returned[:1] or _between(comparison)


@dataclass
class _Found:
    """Culprits by tap; `carrying` are segments of which a wrong value flows on, `returned` wrong outputs."""

    isolation: Isolation
    culprits: dict[str, Culprit] = field(default_factory=dict)
    returned: tuple[Culprit, ...] = ()
    carrying: set[str] = field(default_factory=set)
    failed: bool = False

    def record(self, row: Row) -> None:
        """Look at the next record."""
        own = row.local_ratio is not None and row.local_ratio > 1.0
        part = row.segment or row.tap
        if own and part not in self.carrying and not self._shown(row.tap):
            carries = row.segment == CACHE or self.isolation.carries(row.tap)
            born = Culprit(row.tap, row.step, row.segment or "", _born(row, carries), row.local_ratio)
            if carries and is_output(row.tap):
                self.returned += (born,)
            else:
                self.culprits.setdefault(row.tap, born)
                self.carrying |= {part} if carries else set()
        elif row.failing and row.local_ratio is None and not self.failed:
            known = any((c.segment or c.tap) == part for c in self.culprits.values())
            if not known:
                found = Culprit(row.tap, row.step, row.segment or "", _undecided(row), row.ratio)
                self.culprits[row.tap] = found
        self.failed = self.failed or row.failing or own

    def _shown(self, tap: str) -> bool:
        """Whether a culprit is made of the same values between taps."""
        return any(earlier in self.culprits for earlier in self.isolation.shared.get(tap, ()))

    def handed(self, row: Row) -> None:
        """Look at what a module was handed, before its own records."""
        tap = handed_tap(row.tap)
        inside = tap.removeprefix("module:").rpartition(".")[0]
        found = Culprit(tap, row.step, inside, _handed(row, tap, inside), row.ratio)
        self.culprits.setdefault(tap + HANDED, found)
        self.failed = True


def _innermost(culprits: Mapping[str, Culprit], isolation: Isolation) -> tuple[Culprit, ...]:
    """Without modules that are wrong only because a module inside them is."""
    found = tuple(culprits.values())
    carried = [culprit for culprit in found if isolation.carries(culprit.tap)]
    inside = [(outer, c) for outer in carried for c in found if c.tap.startswith(outer.tap + ".")]
    outer_only = {id(outer) for outer, inner in inside if inner.step <= outer.step}
    return tuple(culprit for culprit in found if id(culprit) not in outer_only)


def _handed(row: Row, tap: str, inside: str) -> str:
    """The code between two modules, named by the module that is handed what it makes."""
    what = row.tap.removeprefix(tap + HANDED + ".")
    named = f"input {what}" if what.isdecimal() else what
    return (
        f"what it is handed ({named}) is wrong although all that feeds it was right: the code before it in "
        f"{inside or 'the model'} ({_times(row.ratio)} what the format explains)"
    )


def _between(comparison: Comparison) -> tuple[Culprit, ...]:
    """Every part is right on the reference's inputs and yet the run departs: what feeds them is at fault."""
    row = next((row for row in comparison.records if row.failing), None)
    if row is None:
        return ()
    evidence = "every segment is right on the reference's inputs; look at what is handed from one to the next"
    return (Culprit(row.tap, row.step, "between segments", evidence, row.ratio),)


def _born(row: Row, carries: bool) -> str:
    ratio = _times(row.local_ratio)
    if row.segment == CACHE and row.reason.startswith("sequence"):
        return row.reason
    if row.segment == CACHE:
        return f"its rows are not the ones that were appended ({ratio} what the format explains)"
    if not carries:
        return f"made of the reference's values, it is still off by {ratio} what the format explains"
    return (
        f"fed the reference's inputs, {row.segment or 'it'} is still off by {ratio} what the format explains"
    )


def _times(ratio: float | None) -> str:
    """An error as a multiple; one without measure, as of whole numbers, has no figure."""
    if ratio is None:
        return "no multiple of"
    return "more than a million times" if ratio > LARGEST else f"{ratio:.3g} times"


def _undecided(row: Row) -> str:
    if row.status in ("missing", "shape"):
        return row.reason
    why = row.local_reason or "not isolated"
    return f"the first to depart; whether it was born here is open ({why})"


def coverage_of(rows: Sequence[Row]) -> Coverage:
    """Values of the reference that were checked, and why the others were not."""
    expected = checked = hidden = 0
    skipped: dict[str, int] = {}
    blind: str | None = None
    for row in rows:
        size = values_of(row)
        if row.status == "extra":
            continue
        size -= row.padded
        expected += size
        hidden += row.hidden
        if row.status in COMPARED:
            checked += size
            continue
        reason = row.reason or row.status
        skipped[reason] = skipped.get(reason, 0) + size
        blind = blind or f"{row.tap} at step {row.step} ({reason})"
    return Coverage(expected, checked, hidden, skipped, blind)
