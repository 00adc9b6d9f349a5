"""`compare`: every run of the working folder's trace held against the reference, printed and returned."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..comparison import Comparison, Finding, Result, Row, Side
from ..errors import UserError, did_you_mean
from ..facing import facing
from .store import store, trace_path
from .verdict_lines import lines_of, plural, summary_of

if TYPE_CHECKING:
    from pathlib import Path

    from ..rows import Rules

REFERENCE_NAMES = ("torch", "ref")


@dataclass(frozen=True)
class TraceComparison:
    """What `compare()` found: one Comparison per run that was held against `reference`.

    It has no truth value: ask `verdict` or `exit_code`.
    """

    reference: str
    comparisons: tuple[Comparison, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 parity, 1 divergence, 3 inconclusive (nothing compared is that too)."""
        return Result(self.comparisons).exit_code

    @property
    def verdict(self) -> str:
        """`parity`, `divergence` or `inconclusive`: the gravest of the runs."""
        found = [c.verdict for c in self.comparisons if c.exit_code == self.exit_code]
        return found[0] if found else "inconclusive"

    def rows(self) -> list[Row]:
        """The records of every run, in the order of `comparisons`."""
        return [row for comparison in self.comparisons for row in comparison.rows()]

    def __getitem__(self, run: str) -> Comparison:
        for comparison in self.comparisons:
            if comparison.label == run:
                return comparison
        raise UserError(
            f"run={run!r}: was not compared. {did_you_mean(run, [c.label for c in self.comparisons])}"
        )

    def __iter__(self) -> Iterator[Comparison]:
        return iter(self.comparisons)

    def __len__(self) -> int:
        return len(self.comparisons)

    def __bool__(self) -> bool:
        raise TypeError("a comparison is neither true nor false; ask .verdict == 'parity' or .exit_code == 0")


def compare(eps: float = 1e-5, ignore_shape: bool = False, *, ref: str | None = None) -> TraceComparison:
    """Hold every run against the reference, print a line per record, and return what was found.

    The runs are the newest of each name in the trace file (`traced_tensors.h5`, or PARITY_TRACE) and those
    kept in memory. The reference is `ref`, else the run named `torch` or `ref`, else the first recorded.
    Accepted is |a - e| <= eps + eps * |e|. ignore_shape=True compares tensors of equal size in row-major
    order and says whether the values agree; the status stays `shape`, never `pass`.

    UserError: a negative or infinite eps, a `ref` that is not there, a file that is no trace.
    """
    if not 0 <= eps < math.inf:
        raise UserError(f"eps={eps}: must be a finite number, 0 or more")
    path = trace_path()
    runs = _runs(path)
    name, why = _reference(runs, ref)
    _print_header(path, runs, name, why)
    rules = _rules(eps)
    found = []
    for other in runs:
        if other != name:
            found.append(_compare(runs[name], runs[other], path, rules, ignore_shape=ignore_shape))
            print("\n".join(["", *lines_of(found[-1])]))
    result = TraceComparison(name, tuple(found))
    print("\n".join(["", *summary_of(result.comparisons, len(runs))]))
    return result


def _runs(path: Path) -> dict[str, Any]:
    """Newest run of each name, in the order in which the names first came up."""
    runs: dict[str, Any] = {}
    if path.exists():
        from ..trace import Trace

        store.settle(path)
        for run in Trace(path).runs:
            runs[run.name] = run
    for name, kept in store.memory.items():
        if name not in runs or runs[name].created <= kept.created:
            runs[name] = kept
    return runs


def _reference(runs: Mapping[str, Any], ref: str | None) -> tuple[str, str]:
    """Name of the reference and why it is the one; UserError for a `ref` that is not there."""
    if ref is not None:
        if ref not in runs:
            raise UserError(f"ref={ref!r}: no such run. {did_you_mean(ref, runs)}")
        return ref, "as asked"
    for name in REFERENCE_NAMES:
        if name in runs:
            return name, "by its name"
    first = next(iter(runs), "")
    return first, "the first that was recorded, for none is named torch or ref; choose with compare(ref=...)"


def _print_header(path: Path, runs: Mapping[str, Any], name: str, why: str) -> None:
    """Say which runs are met, how old they are, and which one is trusted."""
    print(f"parity: comparing the runs of {path}")
    if not runs:
        print("  there are none")
        return
    newest = max(run.created for run in runs.values())
    for run in runs.values():
        print(f"  {_describe(run, newest)}")
    print(f"  reference: {name} ({why})")


def _describe(run: Any, newest: str) -> str:
    from datetime import datetime

    age = datetime.fromisoformat(newest) - datetime.fromisoformat(run.created)
    words = [f"run {run.name}: {plural(len(run.records()), 'record')}, recorded {run.created}"]
    if script := run.provenance.get("script"):
        words.append(f"by {script}")
    if run.generation > 1:
        words.append(f"(the newest of {run.generation} of that name)")
    if not run.complete:
        words.append("INCOMPLETE: it was interrupted, or is still open")
    if age.total_seconds() > 3600:
        words.append(f"STALE? {_span(age.total_seconds())} older than the newest run")
    return " ".join(words)


def _span(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:.0f} hours" if hours < 48 else f"{hours / 24:.0f} days"


def _rules(eps: float) -> Rules:
    from ..rows import Rules
    from ..tolerance import Override, Tolerance

    everywhere = Override("*", eps, eps, "asked for by compare(eps)")
    return Rules(Tolerance("exact", (everywhere,), source=f"eps={eps:g}"), {})


def _compare(reference: Any, candidate: Any, path: Path, rules: Rules, *, ignore_shape: bool) -> Comparison:
    from ..compare import compare_runs
    from ..refuse import refuse_unlike

    reference, candidate = facing(reference, candidate)
    trusted, held = (
        Side(run.name, run.name, run.target, str(path), run.provenance) for run in (reference, candidate)
    )
    try:
        refuse_unlike(reference, candidate, force=False)
    except UserError as error:
        return Comparison(held.label, trusted, held, tolerance=rules.tolerance.name, inconclusive=str(error))
    comparison = compare_runs(reference, candidate, rules=rules, sides=(trusted, held))
    if not ignore_shape or not comparison.counts.get("shape"):
        return comparison
    rows = tuple(_row_major(row, reference, candidate, rules) for row in comparison.records)
    note = Finding("warning", "ignore_shape=True: tensors of other shapes were compared in row-major order")
    return replace(comparison, records=rows, findings=(*comparison.findings, note))


def _row_major(row: Row, reference: Any, candidate: Any, rules: Rules) -> Row:
    """A `shape` row with the values measured in row-major order, where there are equally many."""
    expected, actual = (_find(run, row) for run in (reference, candidate))
    if row.status != "shape" or expected is None or actual is None or expected.size != actual.size:
        return row
    from ..judge import judge_bound
    from ..metrics import measure

    bound = rules.tolerance.bound(row.tap, expected.dtype, actual.dtype)
    flat = (actual.read().reshape(-1), expected.read().reshape(-1))
    metrics = measure(*flat, atol=bound.atol, rtol=bound.rtol)
    judgement = judge_bound(metrics, bound)
    words = "agree" if judgement.passed else f"differ: {judgement.reason}"
    ratio = judgement.ratio if judgement.passed else math.inf
    reason = f"{row.reason}; in row-major order the values {words}"
    return replace(row, reason=reason, error=metrics.rel_l2, ratio=ratio, metrics=metrics)


def _find(run: Any, row: Row) -> Any:
    found = [r for r in run.records(row.tap) if (r.step, r.call) == (row.step, row.call)]
    return found[0] if found else None
