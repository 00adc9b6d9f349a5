"""Divergence in time: the first step at which a candidate departs, and what brought it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .comparison import Comparison, Onset, Row
from .handed import roles_of
from .masks import other_mask
from .rows import CACHE
from .values import batch_positions, positional, records_of

if TYPE_CHECKING:
    from .trace import Run


def onset_of(comparison: Comparison, reference: Run, candidate: Run) -> Onset | None:
    """When and by what the departure came in; None for a run without one, or of a single step."""
    first = comparison.first
    steps = sorted({row.step for row in comparison.records if row.status != "extra"})
    if first is None or len(steps) < 2:
        return None
    rows = [row for row in comparison.records if row.step == first.step]
    row = next(row for row in rows if row.failing)
    wrong = {row.step for row in comparison.records if row.failing}
    later = [step for step in steps if step >= first.step]
    brought, told = _Brought(rows, row, reference, candidate).by()
    return Onset(
        step=first.step,
        wrong=len(wrong),
        steps=len(later),
        brought=brought,
        tap=row.tap,
        where=row.slice or row.reason,
        detail=told,
        first_step=first.step == steps[0],
    )


class _Brought:
    """What a step was handed, in the order in which it is handed: input, positions, cache, mask."""

    def __init__(self, rows: list[Row], row: Row, reference: Run, candidate: Run) -> None:
        self.rows, self.row, self.reference, self.candidate = rows, row, reference, candidate
        self.roles = roles_of(reference, candidate)

    def by(self) -> tuple[str, str]:
        """The word and what shows it."""
        role = self.roles.get(self.row.tap, {}).get("role")
        if self._ids_differ():
            return "input", "the token ids that were handed in differ"
        if self._positions_differ():
            return "position", "the absolute positions of its tokens differ"
        if role == "embedding":
            return "input", "the token ids are equal, their embedding is not"
        if role == "rope_table":
            return "position", "the rotary rows are of other positions, or another table"
        if self._cache():
            return "cache", "the rows that were handed in are not the ones that were appended"
        if role == "attention" and self._fed_rightly() and (mask := self._mask()):
            return "mask", f"its inputs are right and it attends to {mask}"
        inside = f" in {self.row.segment}" if self.row.segment else ""
        return "computation", f"everything handed to it{inside} was right" if self._local() else ""

    def _ids_differ(self) -> bool:
        return any(row.failing for row in self.rows if row.tap == "ids")

    def _positions_differ(self) -> bool:
        """Whether the sides say of one step that its tokens stand elsewhere."""
        sides = []
        for run in (self.reference, self.candidate):
            held = [r for r in records_of(run, "ids") if r.step == self.row.step and positional(r)]
            if not held:
                return False
            sides.append(np.concatenate([batch_positions(record) for record in held], axis=1))
        return not np.array_equal(sides[0], sides[1])

    def _cache(self) -> bool:
        """Whether the first wrong record is a cache's: what was appended to it came before, and was right."""
        return self.row.segment == CACHE or (
            "p" in self.row.axes.split() and not self.roles.get(self.row.tap, {}).get("inputs")
        )

    def _local(self) -> bool:
        return self.row.local_ratio is not None and self.row.local_ratio > 1.0

    def _fed_rightly(self) -> bool:
        inputs = self.roles[self.row.tap].get("inputs", ())
        return not any(row.failing for row in self.rows if row.tap in inputs)

    def _mask(self) -> str:
        return other_mask(self.candidate, self.roles[self.row.tap], self.row.tap, self.row.step)
