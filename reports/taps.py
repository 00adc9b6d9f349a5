"""Records gathered per tap, and healthy neighbours folded away: a table that a person can take in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from parity.harness.comparison import Comparison, Row

from .words import first_row

#: Lines for taps that are only casualties, or only closest to the tolerance.
SHOWN = 5


@dataclass(frozen=True, slots=True)
class TapView:
    """All records of one tap: the worst one, the worst local one, and how many fail."""

    tap: str
    worst: Row
    local: Row | None
    records: int
    failing: int
    culprit: bool
    first: bool

    @property
    def deviates(self) -> bool:
        """Whether a reader must see this tap: it fails, or is wrong on right inputs."""
        return bool(self.failing) or self.culprit or self.born > 1

    @property
    def born(self) -> float:
        """Largest local error as a multiple of what is allowed; -1 when there is none."""
        return _finite(self.local.local_ratio) if self.local is not None else -1.0

    @property
    def casualty(self) -> bool:
        """Whether it fails only by what was handed to it."""
        return self.worst.status == "fail" and not (self.culprit or self.first) and 0 <= self.born <= 1


@dataclass(frozen=True, slots=True)
class Fold:
    """Neighbouring taps shown as one line."""

    views: tuple[TapView, ...]
    label: str


def tap_views(comparison: Comparison) -> list[TapView]:
    """One view per tap, in execution order."""
    groups: dict[str, list[Row]] = {}
    for row in comparison.records:
        groups.setdefault(row.tap, []).append(row)
    diverges = comparison.verdict == "divergence"
    first = first_row(comparison) if diverges else None
    culprits = {culprit.tap for culprit in comparison.culprits if diverges}
    return [
        TapView(
            tap=tap,
            worst=max(rows, key=_gravity),
            local=max((row for row in rows if row.local is not None), key=_local_gravity, default=None),
            records=len(rows),
            failing=sum(row.failing for row in rows),
            culprit=tap in culprits,
            first=first is not None and first.tap == tap,
        )
        for tap, rows in groups.items()
    ]


def _gravity(row: Row) -> tuple[bool, bool, float, float]:
    unmeasured = row.failing and row.ratio is None
    return row.failing, unmeasured, _finite(row.ratio), _finite(row.error)


def _local_gravity(row: Row) -> tuple[float, float]:
    return _finite(row.local_ratio), _finite(row.local)


def _finite(value: float | None) -> float:
    """For ranking: nothing measured is below everything, NaN above."""
    if value is None:
        return -1.0
    return math.inf if math.isnan(value) else value


def chosen(views: Sequence[TapView], limit: int) -> set[int]:
    """Which taps get a line of their own when not all can.

    In order of claim: culprits and the first divergence, the tap just before it, the output, what else
    deviates (of the casualties of something else only the first few), or the closest to the tolerance.
    """
    indices = range(len(views))
    cited = [i for i in indices if views[i].culprit or views[i].first]
    before = [i - 1 for i in cited[:1] if i]
    born = [i for i in indices if views[i].deviates and not views[i].casualty]
    hit = [i for i in indices if views[i].casualty][:SHOWN]
    measured = [i for i in indices if views[i].worst.ratio is not None]
    close = sorted(measured, key=lambda i: _gravity(views[i].worst), reverse=True)[:SHOWN]
    order = [*cited[:limit], *before, *indices[-1:], *born, *hit, *([] if born or hit else close)]
    return set(list(dict.fromkeys(order))[:limit])


def fold(views: Sequence[TapView], limit: int) -> list[TapView | Fold]:
    """At most about `limit` taps in execution order; the others as folds where they lie."""
    if len(views) <= limit:
        return list(views)
    keep = chosen(views, limit)
    lines: list[TapView | Fold] = []
    run: list[int] = []
    for i in [*range(len(views)), -1]:
        if i >= 0 and i not in keep:
            run.append(i)
            continue
        if run:
            lines += [views[run[0]]] if len(run) == 1 else [_folded(views, run)]
            run = []
        if i >= 0:
            lines.append(views[i])
    return lines


def _folded(views: Sequence[TapView], run: Sequence[int]) -> Fold:
    taps = tuple(views[i] for i in run)
    return Fold(taps, _span(taps[0].tap, taps[-1].tap, _neighbours(views, run)))


def _neighbours(views: Sequence[TapView], run: Sequence[int]) -> set[str]:
    beside = [i for i in (run[0] - 1, run[-1] + 1) if 0 <= i < len(views)]
    return {group(views[i].tap) for i in beside}


def _span(first: str, last: str, beside: Iterable[str]) -> str:
    """`layer1 .. layer2` when whole groups are folded, else the two tap names."""
    if group(first) not in beside and group(last) not in beside:
        first, last = group(first), group(last)
    return first if first == last else f"{first} .. {last}"


def group(tap: str) -> str:
    """The outermost scope of a tap: `layer3` of `layer3.q`."""
    return tap.partition(".")[0]
