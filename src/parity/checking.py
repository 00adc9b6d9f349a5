"""One assertion over two arrays, and one over a result: what fails is said in the same grammar everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from parity.harness.dtypes import from_any
from parity.harness.judge import Judgement, judge_bound
from parity.harness.metrics import Metrics, measure
from parity.harness.tolerance import Bound, load_tolerance

if TYPE_CHECKING:
    from parity.harness.comparison import Comparison, Result


def check(
    name: str,
    actual: Any,
    expected: Any,
    *,
    atol: float | None = None,
    rtol: float | None = None,
    axes: str = "",
) -> Metrics:
    """Assert |a - e| <= atol + rtol * |e| at every place; returns what was measured.

    `actual` and `expected` are arrays or tensors of one shape; `axes` ("b h t d") name it in the message. A
    bound that is not given is that of the coarser number format. Raises AssertionError: for values out of
    bounds, NaN, Inf on one side, another shape, or nothing to compare.
    """
    __tracebackhide__ = True
    (a, a_dtype), (e, e_dtype) = from_any(actual), from_any(expected)
    call = f"[check({name!r})]"
    if a.shape != e.shape:
        raise AssertionError(f"shape={list(a.shape)}, but should be {list(e.shape)} {call}")
    if e.size == 0:
        raise AssertionError(
            f"size=0 of shape {list(e.shape)}, but should be at least 1: nothing compared {call}"
        )
    default = load_tolerance("auto").bound(name, e_dtype, a_dtype)
    bound = Bound(default.atol if atol is None else atol, default.rtol if rtol is None else rtol)
    found = measure(a, e, axes=axes, atol=bound.atol, rtol=bound.rtol)
    judged = judge_bound(found, bound)
    if not judged.passed:
        raise AssertionError("\n".join(_sentences(name, judged, found, bound, call)))
    return found


def _sentences(name: str, judged: Judgement, found: Metrics, bound: Bound, call: str) -> Iterator[str]:
    """What, how many, how much at worst and where, what to try."""
    yield f"{judged.reason or judged.status} {call}"
    if found.max_abs_index >= 0:
        yield (
            f"worst absolute: |{found.actual_at_max!r} - {found.expected_at_max!r}| = {found.max_abs:.4g} "
            f"at {_place(name, found, found.max_abs_index)} (atol={bound.atol:g})"
        )
    if found.max_rel_index >= 0:
        yield (
            f"worst relative: {found.max_rel:.4g} at {_place(name, found, found.max_rel_index)} "
            f"(rtol={bound.rtol:g}, guard {found.rel_guard:.3g})"
        )
    if found.nan_actual or found.nan_expected:
        yield f"NaN: {found.nan_actual} actual, {found.nan_expected} expected, {found.nan_both} at one place"
    if found.inf_mismatch:
        yield f"Inf: {found.inf_mismatch} on one side only, or of opposite sign"
    formats = f"{found.dtype_actual} against {found.dtype_expected}"
    yield f"cosine {found.cosine:.6f}, relative L2 {found.rel_l2:.3g}, {formats}"
    yield "try: record both sides and `parity compare` them, which names the first tap that departs"


def _place(name: str, found: Metrics, flat: int) -> str:
    index = found.unravel(flat)
    letters = found.axes.split()
    words = (
        [f"{letter}={i}" for letter, i in zip(letters, index, strict=True)] if letters else map(str, index)
    )
    return f"{name}[{', '.join(words)}]"


def check_result(result: Result) -> None:
    """Assert that every candidate is at parity; the message says where each one departs first."""
    __tracebackhide__ = True
    if result.exit_code:
        lines = [line for comparison in result.comparisons for line in _findings(comparison)]
        report = result.files.get("html")
        raise AssertionError(
            "\n".join(
                [
                    f"exit_code={result.exit_code}, but should be 0 [parity.run]",
                    *(lines or ["no candidate was compared"]),
                    *([f"report: {report}"] if report else []),
                ]
            )
        )


def _findings(comparison: Comparison) -> Iterator[str]:
    if comparison.exit_code == 0:
        return
    yield f"{comparison.label}: {comparison.verdict} against {comparison.reference.label}"
    if reason := comparison.refused or comparison.failure or comparison.inconclusive:
        yield f"  {reason}"
    if comparison.first:
        first = comparison.first
        call = f", call {first.call}" if first.call else ""
        place = f"{first.tap} at step {first.step}{call}, {first.slice or 'everywhere'}"
        yield f"  first divergence: {place}; {first.claim}"
    for culprit in comparison.culprits:
        place = f"{culprit.tap} at step {culprit.step}, segment {culprit.segment}"
        yield f"  born in: {place}; {culprit.evidence}"
    counts = ", ".join(f"{count} {status}" for status, count in comparison.counts.items())
    yield f"  records: {counts or 'none'}"
