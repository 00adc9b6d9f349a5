"""Runs of different cases are not compared unless told so, and then the report says it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .comparison import Finding
from .errors import UserError

if TYPE_CHECKING:
    from .trace import Run

#: Provenance that must agree: key -> what it is in words.
SAME = {
    "weights": "weights",
    "scenario_digest": "scenario",
    "policy": "cache policy",
    "model": "model",
}


def refuse_unlike(reference: Run, candidate: Run, *, force: bool) -> list[Finding]:
    """Findings about provenance; UserError for runs of different cases unless `force`."""
    unlike = [
        f"{words}: {_short(reference.provenance[key])} against {_short(candidate.provenance[key])}"
        for key, words in SAME.items()
        if key in reference.provenance
        and key in candidate.provenance
        and reference.provenance[key] != candidate.provenance[key]
    ]
    if unlike and not force:
        raise UserError(
            f"ref={reference.name!r} cand={candidate.name!r}: these runs are of different cases ("
            + "; ".join(unlike)
            + "). Record both from one case, or say --force to compare them all the same"
        )
    findings = [Finding("warning", f"different {line}; compared because of --force") for line in unlike]
    if not {"weights", "scenario_digest"} <= candidate.provenance.keys() & reference.provenance.keys():
        findings.append(
            Finding(
                "note", "a run does not say its weights or scenario: that both are of one case is unproven"
            )
        )
    findings += [
        Finding("warning", f"the run {run.name!r} is incomplete: it was interrupted while recording")
        for run in (reference, candidate)
        if not run.complete
    ]
    return findings


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 16 else text[:12] + "..."
