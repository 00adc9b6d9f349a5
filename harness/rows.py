"""From aligned pairs to judged rows, tap by tap.

There may be a hundred thousand rows: each is made once and filled in place when its pair was measured,
which happens to many pairs at a time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from .align import Aligner, matches
from .comparison import Row
from .detail import Detail
from .handed import Needed, moved
from .judge import Floor, Judgement, judge_bound, judge_floor
from .measuring import Asked, in_batches, measure_pair, measure_pairs
from .pairs import Pair
from .slices import worst_slice

if TYPE_CHECKING:
    from .mapping import TapMap
    from .metrics import LogitMetrics, Metrics
    from .tolerance import Bound, Tolerance
    from .trace import Record, Run

#: Rows that only the candidate has come after all that the reference executed.
LATE = 1 << 62
#: How the report names the part that moves rows between segments.
CACHE = "cache"
#: Status of a row until its pair was measured.
WAITING = "waiting"


@dataclass(frozen=True)
class Rules:
    """How records are judged: the tolerance, and the noise floor per tap where one is known."""

    tolerance: Tolerance
    floors: Mapping[str, Floor]

    def of(self, tap: str, expected: str, actual: str) -> Rule:
        """What holds for the records of a tap in these number formats."""
        bound = self.tolerance.bound(tap, expected, actual)
        floor = None if self.tolerance.overrides(tap) else self.floors.get(tap)
        asked = Asked(bound.atol, bound.rtol, rows=floor is not None)
        return Rule(bound, floor, self.tolerance.allows_nonfinite(tap), asked)


@dataclass(frozen=True, slots=True)
class Rule:
    """What is allowed at one tap, the floor before the bound, and what must be measured to judge it."""

    bound: Bound
    floor: Floor | None
    nonfinite: bool
    asked: Asked

    def judge(self, metrics: Metrics) -> Judgement:
        """The judgement of one measured record."""
        if self.floor is None:
            return judge_bound(metrics, self.bound, allow_nonfinite=self.nonfinite)
        return judge_floor(metrics, self.floor, dtype=metrics.dtype_actual, allow_nonfinite=self.nonfinite)


Waiting = tuple[Row, Pair, Rule, Detail | None]
"""A row whose pair is still to be measured, how it is judged, and who keeps the finest metrics of its tap."""


@dataclass(slots=True)
class _Tap:
    """The rows of one tap and of its isolated replay, full when `due` pairs were measured."""

    tap: str
    rows: list[Row] = field(default_factory=list)
    local: list[Row] = field(default_factory=list)
    detail: Detail = field(default_factory=Detail)
    due: int = 0


class RowMaker:
    """Makes the rows of one comparison; remembers which alignment rules fired."""

    def __init__(
        self, reference: Run, candidate: Run, isolated: Run | None, rules: Rules, mapping: TapMap | None
    ) -> None:
        self.aligner = Aligner(reference, candidate, mapping=mapping)
        self.fired: dict[str, int] = {}
        self.unsound = ""
        self.wiring: Mapping[str, Any] = (
            candidate.provenance.get("wiring") or reference.provenance.get("wiring") or {}
        )
        self._reference, self._candidate, self._rules = reference, candidate, rules
        self._isolated = Aligner(reference, isolated) if isolated is not None else None
        self._sources = {row["cache"]: row["source"] for row in self.wiring.get("caches", ())}
        self._segments = _producers(self.wiring)
        self._needed = Needed(reference, candidate)
        self._known: dict[tuple[str, str, str], Rule] = {}

    def rows(self, taps: Iterable[str]) -> Iterator[list[Row]]:
        """The rows of each tap in step order, local errors filled in; `taps` are in execution order."""
        begun: deque[_Tap] = deque()
        measured = 0
        for batch in in_batches(self._begin(taps, begun), itemgetter(1)):
            found = measure_pairs([(pair, rule.asked) for _, pair, rule, _ in batch])
            for waiting, (metrics, logits) in zip(batch, found, strict=True):
                _fill(waiting, metrics, logits)
            measured += len(batch)
            while begun and begun[0].due <= measured:
                yield self._finished(begun.popleft())
        yield from map(self._finished, begun)

    def _begin(self, taps: Iterable[str], begun: deque[_Tap]) -> Iterator[Waiting]:
        """Make the rows of each tap; what is still to be measured."""
        count = 0
        for place, tap in enumerate(taps):
            made = _Tap(tap)
            for waiting in self._make(made, place):
                yield waiting
                count += 1
            made.due = count
            begun.append(made)

    def _make(self, made: _Tap, place: int) -> Iterator[Waiting]:
        for pair in self.aligner.pairs(made.tap):
            self.fired[pair.rule] = self.fired.get(pair.rule, 0) + 1
            row = self._row(pair, place)
            made.rows.append(row)
            if row.status == WAITING:
                yield row, pair, self._rule(row), made.detail
        for pair in self._local(made.tap):
            row = self._row(pair, 0)
            made.local.append(row)
            if row.status == WAITING:
                yield row, pair, self._rule(row), None

    def _finished(self, made: _Tap) -> list[Row]:
        """The rows of a tap of which every pair was measured."""
        tap, rows = made.tap, made.rows
        made.detail.finish()
        local = {(row.step, row.call): row for row in made.local}
        for row in rows:
            _add_local(row, local)
        if tap in self._sources:
            self._needed.check(tap, rows)
        if rows and self._is_output(tap) and all(row.status == "skipped" and values_of(row) for row in rows):
            rows[0].status, rows[0].reason = "missing", "a model output is always promised, and never came"
        return rows

    def _is_output(self, tap: str) -> bool:
        """Isolated runs have no output of the whole call."""
        if self._candidate.name.endswith("@isolated"):
            return False
        return tap == self.wiring.get("output", "logits") or tap.partition(".")[0] == "output"

    def _row(self, pair: Pair, place: int) -> Row:
        """The row of a pair; its status is settled unless there are two sides to be measured."""
        row = _bare(pair, place, CACHE if pair.tap in self._sources else self._segments.get(pair.tap))
        if pair.problem:
            row.status, row.reason = "shape", pair.problem
        elif pair.candidate is None:
            self._absent(row)
        elif pair.reference is None and pair.expected is None:
            row.status, row.reason = "extra", "the reference has no such record"
        elif (shapes := pair.shapes) and shapes[0] != shapes[1]:
            row.status, row.reason = "shape", f"shape={shapes[0]}, but should be {shapes[1]}"
        else:
            return row
        if row.status in ("missing", "shape") and pair.reference is not None and _holds_nan(pair.reference):
            self.unsound = self.unsound or f"the reference itself holds NaN: {row.tap} at step {row.step}"
        _mark_lost(row, pair)
        return row

    def _absent(self, row: Row) -> None:
        """Nothing answers a reference record: skipped when the target said so, else missing."""
        for item in self._candidate.provenance.get("unobserved", ()):
            if matches(row.tap, [item["taps"]]) and (item["steps"] is None or row.step in item["steps"]):
                row.status, row.reason = "skipped", item["reason"]
                return
        row.status, row.reason = "missing", "the candidate promised this tap and did not record it"

    def _rule(self, row: Row) -> Rule:
        key = row.tap, row.expected_dtype, row.dtype
        return self._known.get(key) or self._known.setdefault(key, self._rules.of(*key))

    def _local(self, tap: str) -> Iterable[Pair]:
        """Pairs of the same tap in isolation: of a cache, what it was handed and what it should hold."""
        if tap in self._sources:
            return moved(self._reference, self._candidate, tap, self._sources[tap])
        if self._isolated is None or tap not in self._isolated.order:
            return ()
        return (pair for pair in self._isolated.pairs(tap) if pair.candidate is not None)


def _fill(waiting: Waiting, metrics: Metrics, logits: LogitMetrics | None) -> None:
    """Judge what was measured; a record that fails is measured again in full, to say where."""
    row, pair, rule, detail = waiting
    judgement = rule.judge(metrics)
    row.floor = rule.floor.rms if rule.floor else None
    row.status, row.reason, row.ratio = judgement.status, judgement.reason, judgement.ratio
    row.error, row.shape, row.metrics, row.logits = metrics.rel_l2, metrics.shape, metrics, logits
    if not judgement.passed:
        row.metrics = metrics if metrics.detailed else measure_pair(pair, rule.asked)[0]
        row.slice = worst_slice(row.metrics, positions=pair.positions)
    _mark_lost(row, pair)
    if detail is not None:
        detail.keep(row, pair, rule.asked)


def _mark_lost(row: Row, pair: Pair) -> None:
    if pair.lost:
        row.status, row.reason, row.slice, row.ratio = "missing", pair.lost, pair.lost, math.inf


def _producers(wiring: Mapping[str, Any]) -> dict[str, str]:
    """Tap -> the segment that computes it."""
    out: dict[str, str] = {}
    for segment in wiring.get("segments", ()):
        for tap in (*segment["taps"], *(port["value"] for port in segment["outputs"])):
            out.setdefault(tap, segment["name"])
    return out


def _bare(pair: Pair, place: int, segment: str | None) -> Row:
    reference, candidate = pair.reference, pair.candidate
    some = reference or candidate
    if pair.expected is not None:
        expected = str(pair.expected.dtype.name)
    else:
        expected = reference.dtype if reference else ""
    return Row(
        order=reference.order if reference is not None else LATE + place,
        tap=pair.tap,
        step=pair.step,
        call=pair.call,
        status=WAITING,
        segment=segment,
        axes=pair.axes,
        shape=tuple(some.shape) if some else (),
        dtype=candidate.dtype if candidate else "",
        expected_dtype=expected,
        hidden=pair.hidden,
        padded=pair.padded,
        rule=pair.rule,
    )


def _holds_nan(record: Record) -> bool:
    return "float" in record.dtype and bool(np.isnan(record.read().astype(np.float64)).any())


def _add_local(row: Row, local: Mapping[tuple[int, int], Row]) -> None:
    found = local.get((row.step, row.call))
    if found is not None:
        row.local, row.local_ratio, row.local_reason = found.error, found.ratio, found.reason
    elif row.status not in ("skipped", "extra", "missing"):
        row.local_reason = "not isolated"


def values_of(row: Row) -> int:
    """Number of values in a row's tensor."""
    return math.prod(row.shape)
