"""Rows filled in: what was measured of them, judged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from .comparison import Row
from .detail import Detail
from .judge import settled
from .measuring import Full, measure_pair
from .metrics import LogitMetrics, Metrics, Survey
from .pairs import Pair
from .series import Series
from .slices import worst_slice

if TYPE_CHECKING:
    from .rows import Rule

#: Status of a row until its pair was measured.
WAITING = "waiting"


class Waiting(NamedTuple):
    """Rows still to be measured, how they are judged, and who keeps the finest metrics of their tap."""

    rows: Sequence[Row]
    source: Series | Pair
    rule: Rule
    detail: Detail | None


def fill(waiting: Waiting, found: Survey | Full) -> None:
    """Judge what was measured, and fill it in."""
    rows, source, rule, _ = waiting
    if not isinstance(found, Survey):
        _judge(waiting, 0, *found)
        return
    floor = rule.floor.rms if rule.floor else None
    known = zip(rows, found, settled(found, by_bound=rule.by_bound), found.rel_l2.tolist(), strict=True)
    for place, (row, metrics, judgement, error) in enumerate(known):
        if judgement is None:
            _judge(waiting, place, metrics, None)
            continue
        row.status, row.ratio = judgement.status, judgement.ratio
        row.error, row.floor, row.metrics = error, floor, metrics
        if waiting.detail is not None:
            waiting.detail.keep(row, source, place, rule.asked)


def _judge(waiting: Waiting, place: int, metrics: Metrics, logits: LogitMetrics | None) -> None:
    """Judge one record; one that fails is measured in full, to say where."""
    row, source, rule = waiting.rows[place], waiting.source, waiting.rule
    judgement = rule.judge(metrics, logits, (source, place))
    row.floor = rule.floor.rms if rule.floor else None
    row.status, row.reason, row.ratio = judgement.status, judgement.reason, judgement.ratio
    row.error, row.shape, row.metrics, row.logits = metrics.rel_l2, metrics.shape, metrics, logits
    if not judgement.passed and judgement.status != "skipped":
        pair = source.pair(place)
        row.metrics = metrics if metrics.detailed else measure_pair(pair, rule.asked)[0]
        row.slice = worst_slice(row.metrics, positions=pair.positions)
    row.kind = rule.kind(judgement, row.metrics)
    if isinstance(source, Pair):
        mark_lost(row, source)
    if waiting.detail is not None:
        waiting.detail.keep(row, source, place, rule.asked)


def mark_lost(row: Row, pair: Pair) -> None:
    """A row whose pair says what nothing answers has failed, whatever its values are."""
    if pair.lost:
        row.status, row.reason, row.slice, row.ratio = "missing", pair.lost, pair.lost, math.inf
