"""What a reader must know where the default policy had no noise floor to judge by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .comparison import Finding, Row

if TYPE_CHECKING:
    from .rules import Rules

#: Taps that a warning names.
NAMED = 3


def unfloored(rows: Sequence[Row], rules: Rules) -> Iterator[Finding]:
    """That bounds decided, and which taps are too small for the absolute part of theirs."""
    if rules.tolerance.kind != "auto" or rules.floors:
        return
    decided = [row for row in rows if "float" in row.expected_dtype and row.metrics is not None]
    if decided:
        profile = "fp64" if all(row.expected_dtype == row.dtype == "float64" for row in decided) else "fp32"
        yield Finding("note", f"no noise floor is known for these runs: judged by the {profile} bounds")
    small = list(dict.fromkeys(row.tap for row in decided if _too_small(row, rules)))
    if small:
        named = ", ".join(small[:NAMED]) + (", ..." if len(small) > NAMED else "")
        taps = f"{len(small)} tap{'s' if len(small) > 1 else ''}"
        yield Finding(
            "warning",
            f"too small for an absolute tolerance: {taps} ({named}) differ and would pass whatever they held "
            "of that size; set a smaller atol for them, or record with a noise floor",
        )


def _too_small(row: Row, rules: Rules) -> bool:
    """Whether a record that passes with a difference lies, by its RMS, wholly below what is allowed."""
    found = row.metrics
    if found is None or row.status != "pass" or not found.max_abs or rules.tolerance.overrides(row.tap):
        return False
    return 0.0 < found.rms_expected < rules.tolerance.bound(row.tap, row.expected_dtype, row.dtype).atol
