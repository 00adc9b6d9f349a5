"""Free replay: once a candidate has chosen another token, its further tensors answer another question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .comparison import Finding, Row
from .values import records_of

if TYPE_CHECKING:
    from .trace import Run

REASON = "its own tokens differ from the reference's by then"


def leave_out_after_parting(rows: Sequence[Row], reference: Run, candidate: Run) -> list[Finding]:
    """Mark rows from the first step on whose token ids differ as skipped; says where that was.

    Up to there both sides were fed alike, so every tensor is judged; whether the choice itself was a tie or
    an error shows in the logits of the step before.
    """
    notes = [
        Finding("note", f"step {step}, sequence {sequence}: a tie, gone on with the reference's token")
        for step, sequence in candidate.provenance.get("ties", ())
    ]
    step = _first_difference(reference, candidate)
    if step is None:
        return notes
    ran = {record.step for record in records_of(candidate, "ids")}
    for row in rows:
        if row.step >= step and row.step in ran and row.status != "extra":
            row.status, row.reason, row.slice = "skipped", REASON, ""
            row.ratio = row.local_ratio = None
            row.metrics = row.logits = None
    text = f"free replay parts at step {step}: tensors are compared up to there, tokens to the end"
    return [*notes, Finding("warning", text)]


def _first_difference(reference: Run, candidate: Run) -> int | None:
    theirs = {record.step: record.read() for record in records_of(reference, "ids")}
    for record in records_of(candidate, "ids"):
        if record.step in theirs and not np.array_equal(record.read(), theirs[record.step]):
            return record.step
    return None
