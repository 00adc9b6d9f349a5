"""From aligned pairs to judged rows, tap by tap.

There may be a hundred thousand rows: each is made once and filled in place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .align import Aligner, matches
from .cache import missing_rows, spans
from .case import CachePolicy
from .comparison import Row
from .gather import gathered
from .judge import Floor, Judgement, judge_bound, judge_floor
from .measuring import measure_pair
from .pairs import Pair
from .slices import worst_slice
from .values import TapRows, batch_positions, positional, records_of

if TYPE_CHECKING:
    from .mapping import TapMap
    from .metrics import Metrics
    from .tolerance import Bound, Tolerance
    from .trace import Record, Run

#: Rows that only the candidate has come after all that the reference executed.
LATE = 1 << 62
#: How the report names the part that moves rows between segments.
CACHE = "cache"


@dataclass(frozen=True)
class Rules:
    """How records are judged: the tolerance, and the noise floor per tap where one is known."""

    tolerance: Tolerance
    floors: Mapping[str, Floor]

    def of(self, tap: str, expected: str, actual: str) -> Rule:
        """What holds for the records of a tap in these number formats."""
        floor = None if self.tolerance.overrides(tap) else self.floors.get(tap)
        return Rule(self.tolerance.bound(tap, expected, actual), floor, self.tolerance.allows_nonfinite(tap))


@dataclass(frozen=True, slots=True)
class Rule:
    """What is allowed at one tap; the floor goes before the bound."""

    bound: Bound
    floor: Floor | None
    nonfinite: bool

    def judge(self, metrics: Metrics) -> Judgement:
        """The judgement of one measured record."""
        if self.floor is None:
            return judge_bound(metrics, self.bound, allow_nonfinite=self.nonfinite)
        return judge_floor(metrics, self.floor, dtype=metrics.dtype_actual, allow_nonfinite=self.nonfinite)


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
        self._needed = _Needed(reference, candidate)
        self._known: dict[tuple[str, str, str], Rule] = {}

    def rows(self, tap: str, place: int) -> list[Row]:
        """Rows of one tap in step order, local errors filled in; `place` is the tap's in execution order."""
        rows = []
        detail = _Detail()
        for pair in self.aligner.pairs(tap):
            self.fired[pair.rule] = self.fired.get(pair.rule, 0) + 1
            row = self._row(pair, place)
            detail.keep(row)
            rows.append(row)
        local = self._local(tap)
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
            self._measured(row, pair)
        if row.status in ("missing", "shape") and pair.reference is not None and _holds_nan(pair.reference):
            self.unsound = self.unsound or f"the reference itself holds NaN: {row.tap} at step {row.step}"
        if pair.lost:
            row.status, row.reason, row.slice, row.ratio = "missing", pair.lost, pair.lost, math.inf
        return row

    def _absent(self, row: Row) -> None:
        """Nothing answers a reference record: skipped when the target said so, else missing."""
        for item in self._candidate.provenance.get("unobserved", ()):
            if matches(row.tap, [item["taps"]]) and (item["steps"] is None or row.step in item["steps"]):
                row.status, row.reason = "skipped", item["reason"]
                return
        row.status, row.reason = "missing", "the candidate promised this tap and did not record it"

    def _measured(self, row: Row, pair: Pair) -> None:
        key = row.tap, row.expected_dtype, row.dtype
        rule = self._known.get(key) or self._known.setdefault(key, self._rules.of(*key))
        metrics, row.logits = measure_pair(pair, rule.bound)
        judgement = rule.judge(metrics)
        row.floor = rule.floor.rms if rule.floor else None
        row.status, row.reason, row.ratio = judgement.status, judgement.reason, judgement.ratio
        row.error, row.shape, row.metrics = metrics.rel_l2, metrics.shape, metrics
        if not judgement.passed:
            row.slice = worst_slice(metrics, positions=pair.positions)

    def _local(self, tap: str) -> dict[tuple[int, int], Row]:
        """Rows of the same tap judged in isolation, by step and call."""
        if tap in self._sources:
            return self._moved(tap, self._sources[tap])
        if self._isolated is None or tap not in self._isolated.order:
            return {}
        pairs = (pair for pair in self._isolated.pairs(tap) if pair.candidate is not None)
        return {(pair.step, pair.call): self._row(pair, 0) for pair in pairs}

    def _moved(self, tap: str, source: str) -> dict[tuple[int, int], Row]:
        """A cache only moves rows: each must be what its own source tap was when its token was new."""
        records = records_of(self._candidate, source)
        if not records or not all(map(positional, records)):
            return {}
        resets = self._candidate.provenance.get("scenario", {}).get("resets", ())
        trusted = records_of(self._reference, source)
        own = _Handed(TapRows(records, resets), TapRows(trusted, resets) if trusted else None)
        out = {}
        for record in filter(positional, records_of(self._candidate, tap)):
            pair = gathered(tap, record.step, [record], [], own)
            if not pair.problem:
                out[record.step, 0] = self._row(pair, 0)
        return out


class _Detail:
    """Keeps histogram, rows and slices of what someone will look at: the worst record, the first that fail.

    All of them for every record would be some 30 KB each.
    """

    FAILING = 16

    def __init__(self) -> None:
        self._worst: Row | None = None
        self._failing = 0

    def keep(self, row: Row) -> None:
        """Take note of the next row; what need not be kept in full is slimmed."""
        if row.metrics is None:
            return
        if row.failing and self._failing < self.FAILING:
            self._failing += 1
            return
        before = self._worst
        if before is None or (row.ratio or 0.0) > (before.ratio or 0.0):
            self._worst, row = row, before  # type: ignore[assignment]
        if row is not None and row.metrics is not None:
            row.metrics = row.metrics.slim()


class _Handed:
    """What a cache should hold: the rows that its run appended; where others filled it, the reference's."""

    def __init__(self, own: TapRows, reference: TapRows | None) -> None:
        self._own, self._reference = own, reference
        self.axes = own.axes

    def at(self, step: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `TapRows.at`."""
        rows, found = self._own.at(step, positions)
        if self._reference is None or found[positions >= 0].all():
            return rows, found
        others, known = self._reference.at(step, positions)
        rows[~found] = others[~found].astype(rows.dtype)
        return rows, found | known


class _Needed:
    """Positions that a token may attend to must be in the cache that it is handed."""

    def __init__(self, reference: Run, candidate: Run) -> None:
        policy = candidate.provenance.get("policy", "none")
        self._known = policy != "none"
        self._window = CachePolicy.parse(policy).window if self._known else None
        self._queries = {record.step: record for record in records_of(candidate, "ids") if positional(record)}
        self._candidate = candidate
        if candidate.provenance.get("cache_records") == "rows":
            last = max((record.step for record in records_of(reference, "ids")), default=-1)
            self._queries = {step: query for step, query in self._queries.items() if step == last}

    def check(self, tap: str, rows: Sequence[Row]) -> None:
        """Mark rows of a cache tap that lack a position; the fault is the cache's own."""
        held = {record.step: record for record in records_of(self._candidate, tap) if positional(record)}
        for row in rows:
            if self._known and row.step in held and row.step in self._queries:
                lost = self._lost(self._queries[row.step], held[row.step])
                if lost:
                    row.status, row.reason, row.slice = "fail", lost, lost
                    row.ratio = row.local_ratio = float("inf")

    def _lost(self, query: Record, held: Record) -> str:
        lacking = missing_rows(batch_positions(query), batch_positions(held), self._window)
        for sequence, positions in enumerate(lacking):
            if positions:
                return f"sequence {sequence}: no row for position {spans(positions)}"
        return ""


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
        status="skipped",
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
