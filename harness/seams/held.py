"""One way held against the plain prefill, tap by tap and row by row, by absolute position."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InconclusiveError
from ..judge import FACTOR
from ..metrics import measure
from ..rows import Rule, Rules
from ..slices import worst_slice
from ..values import TapRows, positional, records_of, rows_back

if TYPE_CHECKING:
    from ..trace import Record, Run

Array = np.ndarray[Any, Any]

LATEST = 1 << 30
"""A step behind all others."""


@dataclass(frozen=True)
class Departure:
    """A tap of one way that departs from the plain prefill; `position` is that of its first wrong row."""

    tap: str
    where: str
    position: int
    ratio: float
    reason: str = ""


@dataclass(frozen=True)
class Held:
    """What was held: taps compared, the worst ratio, and the first departure in execution order."""

    compared: int
    worst: float
    first: Departure | None


def hold(
    way: Run, plain: Run, rules: Rules, *, lengths: Sequence[int], unseen: int, sources: Mapping[str, str]
) -> Held:
    """All taps with token rows in the plain run's execution order.

    `lengths` are the tokens of each sequence; rows before position `unseen` may be lacking, as they were made
    elsewhere. `sources` maps cache taps to the taps whose rows they should hold.
    """
    compared, worst, first = 0, 0.0, None
    for tap in dict.fromkeys((*plain.taps, *sources)):
        found = _tap(tap, way, plain, rules, lengths, unseen, sources)
        if found is None:
            continue
        ratio, departure = found
        compared, worst = compared + 1, max(worst, ratio)
        first = first or departure
    return Held(compared, worst, first)


def _tap(
    tap: str,
    way: Run,
    plain: Run,
    rules: Rules,
    lengths: Sequence[int],
    unseen: int,
    sources: Mapping[str, str],
) -> tuple[float, Departure | None] | None:
    """Worst ratio and departure of one tap; None where either side has no rows of it."""
    theirs, own = _records(plain, sources.get(tap, tap)), _records(way, tap)
    if not theirs or not own:
        return None
    longest = max(lengths)
    positions = np.array([[p if p < n else -1 for p in range(longest)] for n in lengths], np.int64)
    try:
        expected, _ = TapRows(theirs).at(LATEST, positions[:1])
        actual, found = TapRows(own).at(LATEST, positions)
    except InconclusiveError as error:
        return np.inf, Departure(tap, "", 0, np.inf, str(error))
    if tap not in sources and (lost := _lost(positions, found, unseen)) is not None:
        reason = f"no row for position {lost}"
        return np.inf, Departure(tap, reason, lost, np.inf, reason)
    if expected.shape[2:] != actual.shape[2:]:
        reason = f"rows of shape {actual.shape[2:]}, but should be {expected.shape[2:]}"
        return np.inf, Departure(tap, reason, 0, np.inf, reason)
    pair = np.broadcast_to(expected, actual.shape).copy(), actual.copy()
    for side in pair:
        side[~found] = 0
    rule = rules.of(tap, theirs[0].dtype, own[0].dtype)
    return _judged(tap, *pair, found, rule, own[0].axes, positions)


def _judged(
    tap: str, expected: Array, actual: Array, found: Array, rule: Rule, axes: str, positions: Array
) -> tuple[float, Departure | None]:
    keep = found.any(axis=0)
    one, two = (np.ascontiguousarray(rows_back(side[:, keep], axes)) for side in (actual, expected))
    named = axes if "b" in axes.split() else ""
    metrics = measure(one, two, axes=named or axes, atol=rule.asked.atol, rtol=rule.asked.rtol)
    judged = rule.judge(metrics)
    ratio = judged.ratio or 0.0
    if judged.passed or judged.status == "skipped":
        return ratio, None
    where = worst_slice(metrics, positions=np.where(found, positions, -1)[:, keep])
    return ratio, Departure(tap, where, _first_wrong(expected, actual, found, rule), ratio, judged.reason)


def _first_wrong(expected: Array, actual: Array, found: Array, rule: Rule) -> int:
    """The first position, over all sequences, of a row that is off by more than noise."""
    gap = _lengths(actual.astype(np.float64) - expected.astype(np.float64))
    scale = np.maximum(_lengths(expected.astype(np.float64)), 1e-30)
    allowed = FACTOR * rule.floor.rms if rule.floor is not None else max(rule.bound.rtol, 1e-6)
    share = np.where(found, np.nan_to_num(gap / scale, nan=np.inf), 0.0)
    wrong = share > max(allowed, 1e-3 * float(np.minimum(share, 1.0).max()))
    columns = np.flatnonzero(wrong.any(axis=0))
    return int(columns[0]) if columns.size else int(share.max(axis=0).argmax())


def _lengths(rows: Array) -> Array:
    return np.asarray(np.linalg.norm(rows.reshape(*rows.shape[:2], -1), axis=2))


def _lost(positions: Array, found: Array, unseen: int) -> int | None:
    lacking = (positions >= unseen) & ~found
    return int(positions[lacking].min()) if lacking.any() else None


def _records(run: Run, tap: str) -> Sequence[Record]:
    return [record for record in records_of(run, tap) if positional(record) and record.size]


def sources_of(wiring: Mapping[str, Any]) -> dict[str, str]:
    """Cache tap -> the tap whose rows are appended to it."""
    return {row["cache"]: row["source"] for row in wiring.get("caches", ())}


def taps_in_order(run: Run) -> Iterator[str]:
    """Tap names that have rows by position."""
    return (tap for tap in run.taps if _records(run, tap))
