"""What a cache hands on: its rows must be those that were appended, and all that a token may attend to.

Where nothing masks them, they must be no others either: a graph without a mask attends to all it is handed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .cache import hidden_rows, missing_rows, repeated_rows, spans
from .case import CachePolicy
from .gather import gathered
from .values import TapRows, batch_positions, positional, records_of

if TYPE_CHECKING:
    from .comparison import Row
    from .pairs import Pair
    from .trace import Record, Run


#: Said of a view that holds a token's row more than once where no mask can hide the second.
TWICE = "twice, which no mask hides"


def roles_of(*runs: Run) -> dict[str, Mapping[str, Any]]:
    """Tap -> its row of the role table."""
    for run in runs:
        if run.provenance.get("roles"):
            return {role["taps"]: role for role in run.provenance["roles"]}
    return {}


def leave_out_wrongly_handed(rows: Sequence[Row], roles: Mapping[str, Mapping[str, Any]]) -> None:
    """Drop local errors of what is computed from a view that holds rows twice: it cannot be right."""
    wrong = {(row.tap, row.step): row.reason for row in rows if row.reason.endswith(TWICE)}
    for row in rows if wrong else ():
        fed = (tap for tap in roles.get(row.tap, {}).get("inputs", ()) if (tap, row.step) in wrong)
        cache = next(fed, None)
        if cache is not None and row.local_ratio is not None:
            row.local = row.local_ratio = None
            row.local_reason = f"it is handed {cache}: {wrong[cache, row.step]}"


def moved(reference: Run, candidate: Run, tap: str, source: str) -> Iterator[Pair]:
    """A cache only moves rows: each must be what its own source tap was when its token was new."""
    records = records_of(candidate, source)
    if not records or not all(map(positional, records)):
        return
    resets = candidate.provenance.get("scenario", {}).get("resets", ())
    trusted = records_of(reference, source)
    own = _Handed(TapRows(records, resets), TapRows(trusted, resets) if trusted else None)
    for record in filter(positional, records_of(candidate, tap)):
        pair = gathered(tap, record.step, [record], [], own)
        if not pair.problem:
            yield pair


class _Handed:
    """What a cache should hold: the rows that its run appended; where others filled it, the reference's."""

    def __init__(self, own: TapRows, reference: TapRows | None) -> None:
        self._own, self._reference = own, reference
        self.axes = own.axes

    def at(self, step: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `TapRows.at`."""
        rows, found = self._own.at(step, positions)
        if self._reference is None or found[positions >= 0].all():
            return rows, found
        others, known = self._reference.at(step, positions)
        rows[~found] = others[~found].astype(rows.dtype)
        return rows, found | known


class Needed:
    """Positions that a token may attend to must be in the cache that it is handed."""

    def __init__(self, reference: Run, candidate: Run) -> None:
        policy = candidate.provenance.get("policy", "none")
        self._known = policy != "none"
        self._window = CachePolicy.parse(policy).window if self._known else None
        self._queries = {record.step: record for record in records_of(candidate, "ids") if positional(record)}
        self._candidate = candidate
        self._bare = candidate.provenance.get("details", {}).get("masked") is False
        if candidate.provenance.get("cache_records") == "rows":
            last = max((record.step for record in records_of(reference, "ids")), default=-1)
            self._queries = {step: query for step, query in self._queries.items() if step == last}

    def check(self, tap: str, rows: Sequence[Row]) -> None:
        """Mark rows of a cache tap that lack a position; the fault is the cache's own."""
        held = {record.step: record for record in records_of(self._candidate, tap) if positional(record)}
        for row in rows:
            if self._known and row.step in held and row.step in self._queries:
                lost = self._lost(self._queries[row.step], held[row.step])
                if lost:
                    row.status, row.reason, row.slice = "fail", lost, lost
                    row.ratio = row.local_ratio = float("inf")

    def _lost(self, query: Record, held: Record) -> str:
        lacking = missing_rows(batch_positions(query), batch_positions(held), self._window)
        for sequence, positions in enumerate(lacking):
            if positions:
                return f"sequence {sequence}: no row for position {spans(positions)}"
        if not self._bare:
            return ""
        beyond = hidden_rows(batch_positions(query), batch_positions(held), self._window)
        for sequence, positions in enumerate(beyond):
            if positions:
                return (
                    f"sequence {sequence}: hands out position {spans(positions)}, which the cache policy "
                    "hides and no mask does"
                )
        for sequence, positions in enumerate(repeated_rows(batch_positions(held))):
            if positions:
                return f"sequence {sequence}: holds position {spans(positions)} {TWICE}"
        return ""
