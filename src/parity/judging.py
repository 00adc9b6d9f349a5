"""`parity.judge`: other tolerances for what was run before, and the least that would pass.

Nothing is executed. Where the traces are still there values are compared again; a report.json alone is judged
by the metrics that it holds.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parity.harness.compare import compare_runs
from parity.harness.comparison import Comparison, Finding, Result, Row
from parity.harness.errors import UserError, did_you_mean
from parity.harness.judge import FACTOR, judge_bound, least_bound
from parity.harness.locate import coverage_of, culprits_of, first_of
from parity.harness.mapping import load_map
from parity.harness.progress import Progress, Silent
from parity.harness.rules import Rules
from parity.harness.tolerance import AUTO, PROFILES, Tolerance, load_tolerance
from parity.harness.trace import Run

from .emulating import emulated_of, floors_of, told_apart
from .finished import Finished, candidates, open_result
from .floors import rules_of
from .provenance import isolated_of, side_of
from .recorder import FLOOR, ISOLATED, stored

#: Profiles from the tightest, of which the first that passes is named.
ORDER = ("exact", "fp32", "fp16", "bf16", "fp8")


@dataclass(frozen=True)
class Least:
    """The least that one candidate would pass with; infinite where no tolerance helps.

    `bound` is atol and rtol alike, over all records; `floor` the largest multiple of a noise floor; `profile`
    the tightest of `ORDER`; `taps` the bound of each tap that fails now.
    """

    bound: float
    floor: float | None
    profile: str | None
    taps: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        taps = {tap: _plain(value) for tap, value in self.taps.items()}
        floor = None if self.floor is None else _plain(self.floor)
        return {"bound": _plain(self.bound), "floor": floor, "profile": self.profile, "taps": taps}


@dataclass(frozen=True)
class Judged:
    """Every candidate judged again, and the least that it would pass with, by label."""

    result: Result
    least: Mapping[str, Least]

    def __getitem__(self, label: str) -> Comparison:
        return self.result[label]

    @property
    def exit_code(self) -> int:
        """As of a run."""
        return self.result.exit_code

    def to_json(self) -> dict[str, Any]:
        """The result as in report.json, with `least` beside it."""
        return {**self.result.to_json(), "least": {label: one.to_json() for label, one in self.least.items()}}


def judge(
    path: str | Path,
    *,
    tol: str | None = None,
    cand: str | None = None,
    ref: str | None = None,
    progress: Progress | None = None,
) -> Judged:
    """Judge a finished run, its report.json, or the runs of a trace again, with other tolerances.

    `tol` is the run's own by default, `cand` one candidate (all), `ref` the trusted run of a trace. UserError
    for what holds nothing to be judged, or too little for these tolerances.
    """
    progress = progress or Silent()
    given = Path(path)
    if given.suffix in (".h5", ".hdf5"):
        comparisons = list(_of_trace(given, ref, cand, load_tolerance(tol or AUTO), progress))
        result = Result(tuple(comparisons), files={"trace": str(given)})
    else:
        old, _ = open_result(given)
        tolerance = load_tolerance(tol or str(old.provenance.get("request", {}).get("tol", AUTO)))
        comparisons = list(_of_result(given, old, cand, tolerance, progress))
        result = Result(tuple(comparisons), old.provenance, old.files)
    return Judged(result, {found.label: least_of(found) for found in result})


def _of_trace(
    path: Path, ref: str | None, cand: str | None, tolerance: Tolerance, progress: Progress
) -> Iterator[Comparison]:
    """Every run of a file, or the one that is named, against the trusted one."""
    from parity.harness.target import Spec

    trace, name = stored(Spec(ref or "", str(path), "stored", str(path), ref or ""))
    others = [
        run.name for run in trace.runs if not run.name.endswith((ISOLATED, FLOOR)) and "@" not in run.name
    ]
    labels = [label for label in dict.fromkeys(others) if label != name]
    if cand is not None and cand not in labels:
        raise UserError(f"cand={cand!r}: is not in {path}. {did_you_mean(cand, labels)}")
    if not labels:
        raise UserError(f"{path}: holds the run {name!r} alone; there is nothing to be judged by it")
    for label in labels if cand is None else [cand]:
        one, two = trace[name], trace[label]
        emulated = emulated_of(trace, label)
        rules = _rules(tolerance, path, one, two, emulated)
        found = compare_runs(
            one,
            two,
            rules=rules,
            sides=(side_of(one, name, str(path)), side_of(two, label, str(path))),
            isolated=isolated_of(trace, label),
            replay=str(two.provenance.get("replay", "forced")),
            progress=progress,
        )
        yield told_apart(found, (one, two, emulated), rules)


def _of_result(
    path: Path, old: Result, cand: str | None, tolerance: Tolerance, progress: Progress
) -> Iterator[Comparison]:
    labels = [comparison.label for comparison in old]
    if cand is not None and cand not in labels:
        raise UserError(f"cand={cand!r}: is not in {path}. {did_you_mean(cand, labels)}")
    request = old.provenance.get("request", {})
    for before in old:
        if cand not in (None, before.label):
            continue
        if not before.candidate.path:  # it never ran
            yield before
            continue
        try:
            (held,) = candidates(path, cand=before.label)
        except UserError:
            yield _from_metrics(before, tolerance)
            continue
        yield _again(held, before, tolerance, request, progress)


def _again(
    held: Finished, before: Comparison, tolerance: Tolerance, request: Mapping[str, str], progress: Progress
) -> Comparison:
    """The stored runs compared anew, as they were compared before."""
    mapping = load_map(request["map"]) if request.get("map") else None
    rules = _rules(tolerance, held.reference_path, held.reference, held.candidate, held.emulated)
    found = compare_runs(
        held.reference,
        held.candidate,
        rules=rules,
        sides=(before.reference, before.candidate),
        isolated=held.isolated,
        taps=ast.literal_eval(request.get("taps", "()")),
        mapping=mapping,
        replay=before.replay,
        force=bool(request.get("force")),
        progress=progress,
    )
    found = told_apart(found, (held.reference, held.candidate, held.emulated), rules, mapping=mapping)
    return replace(found, unsound=found.unsound or before.unsound)


def _rules(tolerance: Tolerance, path: Path, one: Run, two: Run, emulated: Run | None) -> Rules:
    return rules_of(tolerance, floors_of(path, one, two, emulated), one, two)


def _from_metrics(before: Comparison, tolerance: Tolerance) -> Comparison:
    """Judged by what the report holds, which only bounds can be."""
    if tolerance.kind == AUTO or tolerance.vendor is not None:
        raise UserError(
            f"tol={tolerance.name!r}: needs the values, and the trace {before.candidate.path!r} is gone; "
            f"keep trace.h5 beside report.json, or name a bound: {', '.join(PROFILES)}"
        )
    rows = tuple(_row_again(row, tolerance) for row in before.records)
    lost = sum(row.reason == _LOST for row in rows)
    notes = [Finding("note", "judged by the metrics of the report, the traces are gone")]
    if lost:
        notes.append(
            Finding("warning", f"{lost} records that were healthy keep no metrics and are not judged")
        )
    found = replace(
        before,
        records=rows,
        coverage=coverage_of(rows),
        tolerance=tolerance.name,
        findings=(*before.findings, *notes),
        causes=(),
    )
    return replace(found, first=first_of(found), culprits=culprits_of(found))


_LOST = "its metrics were not kept"


def _row_again(row: Row, tolerance: Tolerance) -> Row:
    if row.status not in ("pass", "fail"):
        return row
    if row.metrics is None:
        return replace(row, status="skipped", reason=_LOST, ratio=None, kind="")
    bound = tolerance.bound(row.tap, row.expected_dtype, row.dtype)
    judged = judge_bound(row.metrics, bound, tolerance.allows_nonfinite(row.tap))
    return replace(row, status=judged.status, reason=judged.reason, ratio=judged.ratio, floor=None, kind="")


def least_of(comparison: Comparison) -> Least:
    """The least that a candidate would pass with."""
    taps: dict[str, float] = {}
    failing = {row.tap for row in comparison.records if row.failing}
    for row in comparison.records:
        taps[row.tap] = max(taps.get(row.tap, 0.0), _needs(row))
    floors = [
        row.ratio * FACTOR for row in comparison.records if row.floor is not None and row.ratio is not None
    ]
    return Least(
        bound=max(taps.values(), default=math.inf),
        floor=max(floors, default=None),
        profile=next((name for name in ORDER if _passes(comparison, name)), None),
        taps={tap: taps[tap] for tap in taps if tap in failing},
    )


def _needs(row: Row) -> float:
    """The least atol = rtol of a record."""
    if row.metrics is not None and row.status in ("pass", "fail"):
        return least_bound(row.metrics)
    return math.inf if row.failing else 0.0


def _passes(comparison: Comparison, profile: str) -> bool:
    tolerance = load_tolerance(profile)
    judged = [row for row in comparison.records if row.status in ("pass", "fail") and row.metrics is not None]
    rest = (row for row in comparison.records if row.status not in ("pass", "fail"))
    if any(row.failing for row in rest):
        return False
    return all(
        row.metrics is not None
        and judge_bound(row.metrics, tolerance.bound(row.tap, row.expected_dtype, row.dtype)).passed
        for row in judged
    )


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
