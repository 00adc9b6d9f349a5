"""A finished comparison as the lines that the original tool's users know: [OK], [WRONG], [SKIP]."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..comparison import Comparison, Row

_WORDS = {
    "equal": "OK",
    "pass": "OK",
    "fail": "WRONG",
    "nonfinite": "WRONG",
    "shape": "WRONG",
    "skipped": "SKIP",
    "missing": "MISSING",
    "extra": "EXTRA",
}
_MARGIN = 10


def lines_of(comparison: Comparison) -> list[str]:
    """One line per record, records that one side lacks grouped by tap, then findings and verdict."""
    lines = [f"{comparison.label} against {comparison.reference.label} ({comparison.tolerance})"]
    several = {row.tap for row in comparison.records if row.step or row.call}
    absent = _absent_by_tap(comparison.records)
    for row in comparison.records:
        if _word(row) not in ("MISSING", "EXTRA"):
            lines.append(_line(row, several=row.tap in several))
        elif rows := absent.pop((row.tap, row.status), None):
            lines.append(_absent(comparison, rows))
    lines += [f"  {finding.level}: {finding.text}" for finding in comparison.findings]
    return [*lines, _conclusion(comparison)]


def _absent_by_tap(records: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Records that one side lacks, by tap and status: said once per tap, not once per step."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in records:
        if row.status in ("missing", "extra"):
            groups.setdefault((row.tap, row.status), []).append(row)
    return groups


def _word(row: Row) -> str:
    if row.status == "shape" and row.ratio is not None and row.ratio <= 1.0:
        return "SHAPE"
    return _WORDS[row.status]


def _line(row: Row, *, several: bool) -> str:
    word = _word(row)
    parts = [f"{f'[{word}]':<{_MARGIN}}{row.tap}"]
    if several:
        parts.append(f"step {row.step} call {row.call}")
    if row.dtype != row.expected_dtype:
        parts.append(f"{row.dtype} against {row.expected_dtype}")
    return "  ".join([*parts, *_figures(row, word), *filter(None, [row.reason, row.slice])])


def _figures(row: Row, word: str) -> Iterator[str]:
    """Relative norm of the error, its largest value and where that is."""
    m = row.metrics
    if m is None or not m.used:
        return
    if row.status == "equal":
        yield "equal"
        return
    yield f"rel {100 * m.rel_l2:.3g} %"
    yield f"max abs {m.max_abs:.3g}"
    if word == "WRONG" and m.max_abs_index >= 0:
        yield f"at {list(m.unravel())}: {m.actual_at_max:.6g}, but should be {m.expected_at_max:.6g}"
        yield f"rms {m.rms_actual:.3g} against {m.rms_expected:.3g}"


def _absent(comparison: Comparison, rows: Sequence[Row]) -> str:
    """How many records of a tap one side lacks, and at which steps."""
    tap, word = rows[0].tap, _word(rows[0])
    lacks, has = comparison.candidate.label, comparison.reference.label
    if word == "EXTRA":
        lacks, has = has, lacks
    places = ", ".join(f"step {row.step} call {row.call}" for row in rows[:4])
    more = f" and {len(rows) - 4} more" if len(rows) > 4 else ""
    what = f"{plural(len(rows), 'record')} of {has} that {lacks} has not"
    return f"{f'[{word}]':<{_MARGIN}}{tap}  {what}: {places}{more}"


def _conclusion(comparison: Comparison) -> str:
    counts = ", ".join(f"{count} {status}" for status, count in sorted(comparison.counts.items()))
    line = f"{comparison.label}: {comparison.verdict} ({counts or 'no records'})"
    if comparison.first is not None:
        first = comparison.first
        line += f"; first divergence: {first.tap} at step {first.step}"
        line += f", call {first.call}" if first.call else ""
    return f"{line}; {comparison.inconclusive}" if comparison.inconclusive else line


def summary_of(comparisons: Sequence[Comparison], num_runs: int) -> list[str]:
    """One line per pair, or why there is none."""
    if not comparisons:
        return [
            f"parity: inconclusive: nothing was compared, there {_runs(num_runs)}; a comparison needs two"
        ]
    return [
        f"parity: {comparison.verdict}: {comparison.label} against {comparison.reference.label}"
        for comparison in comparisons
    ]


def _runs(count: int) -> str:
    return "is no run" if not count else f"is {count} run"


def plural(count: int, noun: str) -> str:
    """`1 record`, `2 records`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
