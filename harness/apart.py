"""A narrow candidate's error in two parts: what its arithmetic does anywhere, and what is done besides.

The emulation runs the same narrow arithmetic with the same scales. Its error against the reference is the
arithmetic's (quantization), the candidate's error against it the implementation's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .comparison import COMPARED, Comparison, Row
from .facing import faced
from .quantized import QUANTIZED
from .rows import RowMaker
from .rules import BUG, QUANTIZATION, ROUNDING, Rules
from .sketch import alike

if TYPE_CHECKING:
    from .mapping import TapMap
    from .trace import Run

Place = tuple[str, int, int]


def tell_apart(
    comparison: Comparison,
    reference: Run,
    candidate: Run,
    emulated: Run,
    *,
    rules: Rules,
    mapping: TapMap | None = None,
) -> None:
    """Fill in both parts of every compared row, and call a failing one by that which made it fail.

    Nothing is told apart in a free replay, where the emulation may have gone on with other tokens.
    """
    if comparison.replay not in ("forced", "own"):
        return
    taps = dict.fromkeys(row.tap for row in comparison.records if row.status in COMPARED)
    names = mapping.names(candidate.taps) if mapping is not None else {}
    facing, other, _ = faced(reference, candidate, None)
    made = faced(reference, emulated, None)[1]
    arithmetic = _rows(facing, made, rules, list(taps), mapping)
    maker = _rows(made, other, rules, [names.get(tap, tap) for tap in taps], None)
    explained = QUANTIZATION if str(candidate.provenance.get("dtype")) in QUANTIZED else ROUNDING
    for row in comparison.records:
        if row.status in COMPARED:
            one = arithmetic.get((row.tap, row.step, row.call))
            two = maker.get((names.get(row.tap, row.tap), row.step, row.call))
            _tell(row, one, two, explained)


def _rows(
    reference: Run, candidate: Run, rules: Rules, taps: Sequence[str], mapping: TapMap | None
) -> dict[Place, Row]:
    reference, candidate = alike(reference, candidate)
    found = RowMaker(reference, candidate, None, rules, mapping).rows(taps)
    return {(row.tap, row.step, row.call): row for rows in found for row in rows}


def _tell(row: Row, arithmetic: Row | None, maker: Row | None, explained: str) -> None:
    if arithmetic is None or maker is None or arithmetic.error is None or maker.error is None:
        return
    row.quantization, row.implementation = arithmetic.error, maker.error
    if row.status == "fail":
        # One wrong row or head must not drown in noise that lies everywhere: rows are judged, not the sum.
        own = maker.failing or maker.error > arithmetic.error
        row.kind = BUG if own else explained
