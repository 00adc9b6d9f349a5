"""Holds one run against another: align, measure, judge, and say where the first departure lies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .align import Aligner, Pair, matches
from .comparison import Comparison, Finding, Row, Side
from .judge import Floor, Judgement, judge_bound, judge_floor
from .locate import coverage_of, culprits_of, first_of
from .measuring import measure_pair
from .progress import Progress, Silent
from .refuse import refuse_unlike
from .slices import worst_slice
from .tokens import tokens_of
from .values import Values

if TYPE_CHECKING:
    from .mapping import TapMap
    from .metrics import Metrics
    from .tolerance import Tolerance
    from .trace import Record, Run


@dataclass(frozen=True)
class Rules:
    """How records are judged: the tolerance, and the noise floor per tap where one is known."""

    tolerance: Tolerance
    floors: Mapping[str, Floor]

    def judge(self, tap: str, metrics: Metrics, expected: str, actual: str) -> tuple[Judgement, float | None]:
        """The judgement of one measured record and the relative floor it was held against."""
        allowed = self.tolerance.allows_nonfinite(tap)
        floor = self.floors.get(tap)
        if floor is not None and not self.tolerance.overrides(tap):
            return judge_floor(metrics, floor, dtype=actual, allow_nonfinite=allowed), floor.rms
        bound = self.tolerance.bound(tap, expected, actual)
        return judge_bound(metrics, bound, allow_nonfinite=allowed), None


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
) -> Comparison:
    """The comparison of two stored runs.

    `isolated` is the candidate's run on the reference's inputs. `taps` are globs; none means all. Raises
    UserError when the runs differ in weights, scenario or cache policy and `force` is not given.
    """
    findings = refuse_unlike(reference, candidate, force=force)
    work = _Work(reference, candidate, isolated, rules, tuple(taps), mapping)
    rows: list[Row] = []
    order = work.aligner.order
    with (progress or Silent()).stage(f"comparing {sides[1].label}", len(order)) as bar:
        for place, tap in enumerate(order):
            rows += work.rows(tap, place)
            bar.advance()
    rows.sort(key=lambda row: (row.step, row.order, row.call))
    ordered = tuple(replace(row, order=place) for place, row in enumerate(rows))
    findings += _notes(rules, order, candidate, mapping)
    comparison = Comparison(
        label=sides[1].label,
        reference=sides[0],
        candidate=sides[1],
        records=ordered,
        coverage=coverage_of(ordered),
        tokens=tokens_of(reference, candidate, free=replay == "free"),
        findings=tuple(findings),
        rules=work.fired,
        tolerance=rules.tolerance.name,
        replay=replay,
        inconclusive=work.inconclusive(ordered),
    )
    return replace(comparison, first=first_of(comparison), culprits=culprits_of(comparison, work.wiring))


def _notes(rules: Rules, taps: Sequence[str], candidate: Run, mapping: TapMap | None) -> list[Finding]:
    """What a reader must know besides the rows."""
    notes = [
        Finding("warning", f"tolerance override taps={glob!r} matched no tap")
        for glob in rules.tolerance.unmatched(taps)
    ]
    notes += [Finding("note", text) for text in candidate.provenance.get("substitutions", ())]
    notes += [Finding("warning", text) for text in candidate.provenance.get("warnings", ())]
    if mapping is not None:
        notes += [Finding("warning", f"map entry {entry!r} matched no tap") for entry in mapping.unmatched(taps)]
    return notes


class _Work:
    """The state of one comparison: aligners, local errors, rules that fired."""

    def __init__(
        self,
        reference: Run,
        candidate: Run,
        isolated: Run | None,
        rules: Rules,
        taps: tuple[str, ...],
        mapping: TapMap | None,
    ) -> None:
        self.aligner = Aligner(reference, candidate, mapping=mapping)
        self.fired: dict[str, int] = {}
        self.wiring = candidate.provenance.get("wiring") or reference.provenance.get("wiring") or {}
        self._reference, self._candidate, self._rules, self._taps = reference, candidate, rules, taps
        self._isolated = Aligner(reference, isolated) if isolated is not None else None
        self._sources = {row["cache"]: row["source"] for row in self.wiring.get("caches", ())}
        self._complete = reference.complete, candidate.complete

    def rows(self, tap: str, place: int) -> list[Row]:
        """Rows of one tap, local errors filled in."""
        if self._taps and not matches(tap, self._taps):
            return []
        rows = [self._row(pair, place) for pair in self.aligner.pairs(tap)]
        local = self._local(tap)
        return [_with_local(row, local) for row in rows]

    def inconclusive(self, rows: Sequence[Row]) -> str:
        """Why nothing can be concluded; empty when something can."""
        if not any(row.metrics is not None for row in rows):
            return "nothing was compared: the two runs have no record in common"
        if any(row.metrics is not None and row.status == "nonfinite" and row.metrics.nan_expected for row in rows):
            return "the reference itself holds NaN at a place that is not allowed"
        if not all(self._complete):
            which = "reference" if not self._complete[0] else "candidate"
            return f"the {which} run is incomplete: it was interrupted while recording"
        return ""

    def _row(self, pair: Pair, place: int) -> Row:
        self.fired[pair.rule] = self.fired.get(pair.rule, 0) + 1
        row = _bare(pair, place, self._segment(pair.tap))
        if pair.problem:
            return replace(row, status="shape", reason=pair.problem)
        if pair.candidate is None:
            return self._absent(row)
        if pair.reference is None and pair.expected is None:
            return replace(row, status="extra", reason="the reference has no such record")
        if pair.direct and _shapes(pair)[0] != _shapes(pair)[1]:
            expected, actual = _shapes(pair)
            return replace(row, status="shape", reason=f"shape={actual}, but should be {expected}")
        return self._measured(row, pair)

    def _absent(self, row: Row) -> Row:
        """Nothing answers a reference record: skipped when the target said so, else missing."""
        for item in self._candidate.provenance.get("unobserved", ()):
            if matches(row.tap, [item["taps"]]) and (item["steps"] is None or row.step in item["steps"]):
                return replace(row, status="skipped", reason=item["reason"])
        return replace(row, status="missing", reason="the candidate promised this tap and did not record it")

    def _measured(self, row: Row, pair: Pair) -> Row:
        metrics, logits = measure_pair(pair, self._rules.tolerance)
        judgement, floor = self._rules.judge(row.tap, metrics, row.expected_dtype, row.dtype)
        failing = judgement.status not in ("equal", "pass")
        return replace(
            row,
            status=judgement.status,
            reason=judgement.reason,
            error=metrics.rel_l2,
            ratio=judgement.ratio,
            floor=floor,
            shape=metrics.shape,
            slice=worst_slice(metrics, positions=pair.positions) if failing else "",
            metrics=metrics,
            logits=logits,
        )

    def _segment(self, tap: str) -> str | None:
        for segment in self.wiring.get("segments", ()):
            if tap in segment["taps"] or any(port["value"] == tap for port in segment["outputs"]):
                return str(segment["name"])
        return "cache" if tap in self._sources else None

    def _local(self, tap: str) -> dict[tuple[int, int], Row]:
        """Rows of the same tap judged in isolation, by step and call."""
        if tap in self._sources:
            return self._moved(tap, self._sources[tap])
        if self._isolated is None or tap not in self._isolated.order:
            return {}
        rows = [self._row_of(pair) for pair in self._isolated.pairs(tap) if pair.candidate is not None]
        return {(row.step, row.call): row for row in rows}

    def _row_of(self, pair: Pair) -> Row:
        fired, self.fired = self.fired, {}
        row = self._row(pair, 0)
        self.fired = fired
        return row

    def _moved(self, tap: str, source: str) -> dict[tuple[int, int], Row]:
        """A cache only moves rows: each must be what its own source tap was when its token was new."""
        records = self._candidate.records(source)
        if not records:
            return {}
        own = Values(self._candidate, derived={tap: source}).rows(tap)
        out: dict[tuple[int, int], Row] = {}
        for record in self._candidate.records(tap):
            pair = _own_rows(tap, record, own)
            if pair is not None:
                out[record.step, 0] = self._row_of(pair)
        return out


def _own_rows(tap: str, record: Record, own: object) -> Pair | None:
    from .align import _gathered
    from .values import TapRows

    assert isinstance(own, TapRows)
    pair = _gathered(tap, record.step, [record], [], own)
    return None if pair.problem else pair


def _bare(pair: Pair, place: int, segment: str | None) -> Row:
    expected, actual = _shapes(pair)
    return Row(
        order=place,
        tap=pair.tap,
        step=pair.step,
        call=pair.call,
        status="skipped",
        segment=segment,
        axes=pair.axes,
        shape=actual or expected or (),
        dtype=pair.candidate.dtype if pair.candidate else "",
        expected_dtype=_expected_dtype(pair),
        hidden=pair.hidden,
        rule=pair.rule,
    )


def _expected_dtype(pair: Pair) -> str:
    if pair.expected is not None:
        return str(pair.expected.dtype.name)
    return pair.reference.dtype if pair.reference else ""


def _shapes(pair: Pair) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    return (
        tuple(pair.reference.shape) if pair.reference else None,
        tuple(pair.candidate.shape) if pair.candidate else None,
    )


def _with_local(row: Row, local: Mapping[tuple[int, int], Row]) -> Row:
    found = local.get((row.step, row.call))
    if found is None:
        reason = "" if row.status in ("skipped", "extra", "missing") else "not isolated"
        return replace(row, local_reason=reason)
    return replace(row, local=found.error, local_ratio=found.ratio, local_reason=found.reason)


def floors_from(reference: Run, others: Iterable[Run]) -> dict[str, Floor]:
    """The noise of each tap: how far trusted runs of the same case depart from the reference.

    Each of `others` is the same case in another number format, layout or order of summation.
    """
    from .judge import floor_from

    floors: dict[str, Floor] = {}
    for other in others:
        aligner = Aligner(reference, other)
        for tap in reference.taps:
            for pair in aligner.pairs(tap):
                if pair.problem or pair.candidate is None or (pair.reference is None and pair.expected is None):
                    continue
                measured = floor_from(measure_pair(pair, None)[0])
                floors[tap] = floors[tap].merge(measured) if tap in floors else measured
    return floors


