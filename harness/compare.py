"""Holds one run against another: align, measure, judge, and say where the first departure lies."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .align import matches
from .comparison import Comparison, Finding, Row, Side
from .errors import did_you_mean
from .explaining import causes_of
from .facing import faced
from .handed import leave_out_wrongly_handed, roles_of
from .handed_rows import handed_rows, is_handed, without_handed
from .locate import coverage_of, culprits_of, first_of
from .noise import floors_from as floors_from
from .outputs import is_output
from .parted import leave_out_after_parting
from .progress import Progress, Silent
from .refuse import refuse_unlike
from .rows import RowMaker, Rules
from .sketch import alike
from .tokens import tokens_of
from .unfloored import unfloored

if TYPE_CHECKING:
    from .explaining.gather import Ops, Weights
    from .mapping import TapMap
    from .trace import Run


def compare_runs(
    reference: Run,
    candidate: Run,
    *,
    rules: Rules,
    sides: tuple[Side, Side],
    isolated: Run | None = None,
    taps: Sequence[str] = (),
    mapping: TapMap | None = None,
    replay: str = "forced",
    force: bool = False,
    progress: Progress | None = None,
    weights: Weights | Ops | None = None,
) -> Comparison:
    """The comparison of two stored runs.

    `isolated` is the candidate's run on the reference's inputs; `weights` are the case's, or the ops of its
    module, which explain more where they are at hand. `taps` are globs; none means all. Raises UserError
    when the runs differ in weights, scenario or cache policy and `force` is not given.
    """
    findings = refuse_unlike(reference, candidate, force=force)
    reference, candidate, isolated = faced(reference, candidate, isolated)
    reference, candidate = alike(reference, candidate)
    candidate = without_handed(candidate)
    maker = RowMaker(reference, candidate, isolated, rules, mapping)
    order = [tap for tap in maker.aligner.order if not taps or matches(tap, taps)]
    rows: list[Row] = []
    with (progress or Silent()).stage(f"comparing {sides[1].label}", len(order)) as bar, _no_collection():
        for made in maker.rows(order):
            rows += made
            bar.advance()
    leave_out_wrongly_handed(rows, roles_of(reference, candidate))
    unsound = _unsound(rows) or maker.unsound
    if replay in ("free", "own"):
        findings += leave_out_after_parting(rows, reference, candidate)
    rows.sort(key=lambda row: (row.step, row.order, row.call))
    for place, row in enumerate(rows):
        row.order = place
    comparison = Comparison(
        label=sides[1].label,
        reference=sides[0],
        candidate=sides[1],
        records=tuple(rows),
        coverage=coverage_of(rows),
        tokens=tokens_of(reference, candidate, free=replay == "free", rules=rules),
        findings=(*findings, *_notes(rules, maker, candidate, taps, mapping), *unfloored(rows, rules)),
        rules=maker.fired,
        tolerance=rules.tolerance.name,
        replay=replay,
        inconclusive=_inconclusive(rows, maker.wiring, reference, candidate, taps),
        unsound=unsound,
        isolation=maker.isolation,
        handed=handed_rows(isolated, rules, rows) if isolated is not None and _failing(rows) else (),
    )
    comparison = replace(comparison, first=first_of(comparison), culprits=culprits_of(comparison))
    if comparison.first is not None:
        from .brought import onset_of
        from .forensics import with_forensics

        comparison = with_forensics(comparison, reference, candidate)
        comparison = replace(comparison, onset=onset_of(comparison, reference, candidate))
    return replace(comparison, causes=causes_of(comparison, reference, candidate, isolated, weights))


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without the cycle collector: rows make no cycles, and there may be so many that it takes a third."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _failing(rows: Sequence[Row]) -> bool:
    return any(row.failing for row in rows)


def _notes(
    rules: Rules, maker: RowMaker, candidate: Run, taps: Sequence[str], mapping: TapMap | None
) -> list[Finding]:
    """What a reader must know besides the rows."""
    known = maker.aligner.order
    notes = [
        Finding("warning", f"tolerance override taps={glob!r} matched no tap")
        for glob in rules.tolerance.unmatched(known)
    ]
    notes += [Finding("warning", text) for text in (*rules.warnings, *_uncalibrated(rules, known))]
    notes += _left_out(known, taps, str(maker.wiring.get("output", "")))
    if maker.spread:
        told = "; ".join([*maker.spread.values()][:3]) + ("; ..." if len(maker.spread) > 3 else "")
        notes.append(Finding("note", f"one leading row was let stand for all, shapes differ by it: {told}"))
    notes += [Finding("note", text) for text in candidate.provenance.get("substitutions", ())]
    notes += [Finding("warning", text) for text in candidate.provenance.get("warnings", ())]
    if mapping is not None:
        unmatched = mapping.unmatched(candidate.taps)
        notes += [Finding("warning", f"map entry {entry!r} matched no tap") for entry in unmatched]
    return notes


def _uncalibrated(rules: Rules, known: Sequence[str]) -> list[str]:
    """Taps that a calibration file names and no run has, and those that it leaves out."""
    floors, source = rules.tolerance.floors, rules.tolerance.source
    there = set(known)
    lost = [tap for tap in floors if tap not in there and not is_handed(tap)]
    open_ = [tap for tap in known if floors and tap not in floors and not rules.tolerance.overrides(tap)]
    found = [f"{source} holds noise floors of {_some(lost)} that no run has"] if lost else []
    if open_:
        found.append(f"{source} has no noise floor of {_some(open_)}: the bound of the number format decides")
    return found


def _some(taps: Sequence[str]) -> str:
    """How many taps, and the first of them."""
    shown = ", ".join(taps[:3]) + (", ..." if len(taps) > 3 else "")
    return f"{len(taps)} tap{'s' if len(taps) > 1 else ''} ({shown})"


def _left_out(known: Sequence[str], taps: Sequence[str], output: str) -> list[Finding]:
    """What a filter keeps out of the comparison, and filters that match nothing."""
    if not taps:
        return []
    notes = [
        Finding("warning", f"taps={glob!r} matched no tap. {did_you_mean(glob, known)}")
        for glob in taps
        if not any(matches(tap, [glob]) for tap in known)
    ]
    left = [tap for tap in known if not matches(tap, taps)]
    if left:
        last = any(tap == output or is_output(tap) for tap in left)
        told = f"the filter taps={list(taps)} leaves out {len(left)} of {len(known)} taps"
        notes.append(Finding("warning", told + (", what the model returns among them" if last else "")))
    return notes


def _inconclusive(
    rows: Sequence[Row], wiring: Mapping[str, Any], reference: Run, candidate: Run, taps: Sequence[str]
) -> str:
    """Why nothing can be concluded; empty when something can."""
    compared = {row.tap for row in rows if row.metrics is not None and row.metrics.count}
    if not compared:
        return f"nothing was compared: {_why_nothing(rows, taps)}"
    if wiring and not compared & _computed(wiring):
        return f"only what both runs are fed was compared ({', '.join(sorted(compared))}): that agrees always"
    for side, run in (("reference", reference), ("candidate", candidate)):
        if not run.complete:
            return f"the {side} run is incomplete: it was interrupted while recording"
    return ""


def _why_nothing(rows: Sequence[Row], taps: Sequence[str]) -> str:
    if not rows and taps:
        return f"no tap matches {', '.join(map(repr, taps))}"
    if any(row.status == "shape" for row in rows):
        return "the records that answer each other have other shapes"
    if any(row.reason.startswith("empty") for row in rows):
        return "the records hold no values"
    return "the two runs have no record in common"


def _computed(wiring: Mapping[str, Any]) -> set[str]:
    """Taps that segments compute, and the caches that they fill."""
    segments, caches = wiring.get("segments", ()), wiring.get("caches", ())
    made = {port["value"] for segment in segments for port in segment["outputs"]}
    return made | {tap for segment in segments for tap in segment["taps"]} | {row["cache"] for row in caches}


def _unsound(rows: Sequence[Row]) -> str:
    """Why the reference cannot be trusted; empty when it can."""
    for row in rows:
        if row.failing and row.metrics is not None and row.metrics.nan_expected:
            return f"the reference itself holds NaN: {row.tap} at step {row.step}"
    return ""
