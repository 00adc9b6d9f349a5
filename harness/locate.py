"""From judged rows to words: the first divergence, the culprits, and how much was looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .comparison import COMPARED, Comparison, Coverage, Culprit, First, Row
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
    """Taps where a fault was born: one per segment, the earliest, in execution order.

    A record that fails in isolation was born in its segment; later taps of that segment only carry it on.
    A failing record that could not be isolated is a culprit only while nothing before it had failed. A run
    at parity has no culprits.
    """
    if not any(row.failing for row in comparison.records):
        return ()
    culprits: dict[str, Culprit] = {}
    failed_before = False
    for row in comparison.records:
        own = row.local_ratio is not None and row.local_ratio > 1.0
        part = row.segment or row.tap
        if own and part not in culprits:
            culprits[part] = Culprit(row.tap, row.step, row.segment or "", _born(row), row.local_ratio)
        elif row.failing and row.local_ratio is None and not failed_before:
            found = Culprit(row.tap, row.step, row.segment or "", _undecided(row), row.ratio)
            culprits.setdefault(part, found)
        failed_before = failed_before or row.failing or own
    return _innermost(culprits) or _between(comparison)


def _innermost(culprits: Mapping[str, Culprit]) -> tuple[Culprit, ...]:
    """Without modules that are wrong only because a module inside them is."""
    found = tuple(culprits.values())
    inside = [(outer, c) for outer in found for c in found if c.tap.startswith(outer.tap + ".")]
    outer_only = {id(outer) for outer, inner in inside if inner.step <= outer.step}
    return tuple(culprit for culprit in found if id(culprit) not in outer_only)


def _between(comparison: Comparison) -> tuple[Culprit, ...]:
    """Every part is right on the reference's inputs and yet the run departs: what feeds them is at fault."""
    row = next((row for row in comparison.records if row.failing), None)
    if row is None:
        return ()
    evidence = "every segment is right on the reference's inputs; look at what is handed from one to the next"
    return (Culprit(row.tap, row.step, "between segments", evidence, row.ratio),)


def _born(row: Row) -> str:
    ratio = "no multiple" if row.local_ratio is None else f"{row.local_ratio:.3g} times"
    if row.segment == CACHE and row.reason.startswith("sequence"):
        return row.reason
    if row.segment == CACHE:
        return f"its rows are not the ones that were appended ({ratio} what the format explains)"
    return (
        f"fed the reference's inputs, {row.segment or 'it'} is still off by {ratio} what the format explains"
    )


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
