"""From aligned pairs to judged rows, tap by tap.

There may be a hundred thousand rows: each is made once and filled in place when its pair was measured,
which happens to many pairs at a time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from .align import Aligner, matches
from .comparison import Row
from .detail import Detail, Room
from .filling import WAITING, Waiting, fill, mark_lost
from .handed import Needed, moved
from .isolation import Isolation, isolation_of
from .measuring import in_batches, measure_all, measure_pair, pieces
from .outputs import is_output
from .pairs import Pair
from .rules import Rule as Rule
from .rules import Rules as Rules
from .series import Series
from .trace import column

if TYPE_CHECKING:
    from .mapping import TapMap
    from .trace import Record, Run

#: Rows that only the candidate has come after all that the reference executed.
LATE = 1 << 62
#: How the report names the part that moves rows between segments.
CACHE = "cache"


@dataclass(slots=True)
class _Tap:
    """The rows of one tap and of its isolated replay, full when `due` pairs were measured."""

    tap: str
    detail: Detail
    rows: list[Row] = field(default_factory=list)
    local: list[Row] = field(default_factory=list)
    due: int = 0


class RowMaker:
    """Makes the rows of one comparison; remembers which alignment rules fired."""

    def __init__(
        self, reference: Run, candidate: Run, isolated: Run | None, rules: Rules, mapping: TapMap | None
    ) -> None:
        self.aligner = Aligner(reference, candidate, mapping=mapping)
        self.fired: dict[str, int] = {}
        self.unsound = ""
        self.spread: dict[str, str] = {}
        self.wiring: Mapping[str, Any] = (
            candidate.provenance.get("wiring") or reference.provenance.get("wiring") or {}
        )
        self._reference, self._candidate, self._rules = reference, candidate, rules
        self._isolated = Aligner(reference, isolated) if isolated is not None else None
        self.isolation = isolation_of(isolated.provenance) if isolated is not None else Isolation()
        self._sources = {row["cache"]: row["source"] for row in self.wiring.get("caches", ())}
        self._segments = _producers(self.wiring)
        self._needed = Needed(reference, candidate)
        self._known: dict[tuple[str, str, str], Rule] = {}
        self._room = Room()

    def rows(self, taps: Iterable[str]) -> Iterator[list[Row]]:
        """The rows of each tap in step order, local errors filled in; `taps` are in execution order."""
        begun: deque[_Tap] = deque()
        measured = 0
        for batch in in_batches(self._begin(taps, begun), attrgetter("source")):
            found = measure_all([(waiting.source, waiting.rule.asked) for waiting in batch])
            for waiting, one in zip(batch, found, strict=True):
                fill(waiting, one)
            measured += len(batch)
            while begun and begun[0].due <= measured:
                yield self._finished(begun.popleft())
        yield from map(self._finished, begun)

    def _begin(self, taps: Iterable[str], begun: deque[_Tap]) -> Iterator[Waiting]:
        """Make the rows of each tap; what is still to be measured."""
        count = 0
        for place, tap in enumerate(taps):
            made = _Tap(tap, Detail(self._room))
            for waiting in self._make(made, place):
                yield waiting
                count += 1
            made.due = count
            begun.append(made)

    def _make(self, made: _Tap, place: int) -> Iterator[Waiting]:
        for item in self.aligner.aligned(made.tap):
            self.fired[item.rule] = self.fired.get(item.rule, 0) + len(item)
            yield from self._rows_of(item, place, made.rows, made.detail)
        for item in self._local(made.tap):
            yield from self._rows_of(item, 0, made.local, None)

    def _rows_of(
        self, item: Series | Pair, place: int, rows: list[Row], detail: Detail | None
    ) -> Iterator[Waiting]:
        """Add the rows of a series or pair to `rows`; what of it is still to be measured."""
        if isinstance(item, Series):
            new = _bare_series(item, self._segment(item.tap))
            rows += new
            for start, stop in pieces(item):
                yield Waiting(new[start:stop], item.part(start, stop), self._rule(new[0]), detail)
        else:
            row = self._row(item, place)
            rows.append(row)
            if row.status == WAITING:
                yield Waiting([row], item, self._rule(row), detail)

    def _finished(self, made: _Tap) -> list[Row]:
        """The rows of a tap of which every pair was measured."""
        tap, rows = made.tap, made.rows
        made.detail.finish()
        local = {(row.step, row.call): row for row in made.local}
        for row in rows:
            _add_local(row, local, self.isolation.refused.get(tap, "not isolated"))
        if tap in self._sources:
            self._needed.check(tap, rows)
        if rows and self._is_output(tap) and all(_never_came(row) for row in rows):
            rows[0].status, rows[0].reason = "missing", "a model output is always promised, and never came"
        return rows

    def _is_output(self, tap: str) -> bool:
        """Isolated runs have no output of the whole call."""
        if self._candidate.name.endswith("@isolated"):
            return False
        return tap == self.wiring.get("output", "logits") or tap.partition(".")[0] == "output"

    def _row(self, pair: Pair, place: int) -> Row:
        """The row of a pair; its status is settled unless there are two sides to be measured."""
        row = _bare(pair, place, self._segment(pair.tap))
        if pair.problem:
            row.status, row.reason = "shape", pair.problem
        elif pair.candidate is None:
            self._absent(row)
        elif pair.reference is None and pair.expected is None:
            row.status, row.reason = "extra", "the reference has no such record"
        elif (shapes := pair.shapes) and shapes[0] != shapes[1] and self._spread(pair, row):
            return row
        elif shapes and shapes[0] != shapes[1]:
            row.status, row.reason = "shape", f"shape={shapes[0]}, but should be {shapes[1]}"
        else:
            return row
        if row.status in ("missing", "shape") and pair.reference is not None and _holds_nan(pair.reference):
            self.unsound = self.unsound or f"the reference itself holds NaN: {row.tap} at step {row.step}"
        mark_lost(row, pair)
        return row

    def _spread(self, pair: Pair, row: Row) -> bool:
        """Whether one row of an inner value is what all should be; what the model returns has its shape."""
        shapes, alone = pair.shapes, replace(pair)
        if is_output(pair.tap) or pair.tap == self.wiring.get("output", "logits") or not alone.spread():
            return False
        rule = self._rule(row)
        if not rule.judge(*measure_pair(alone, rule.asked), (alone, 0)).passed:
            return False
        pair.spread()
        row.rule = pair.rule
        self.spread.setdefault(pair.tap, f"{pair.tap}: {shapes[0]} against {shapes[1]}" if shapes else "")
        return True

    def _absent(self, row: Row) -> None:
        """Nothing answers a reference record: skipped when the target said so, else missing."""
        for item in self._candidate.provenance.get("unobserved", ()):
            if matches(row.tap, [item["taps"]]) and (item["steps"] is None or row.step in item["steps"]):
                row.status, row.reason = "skipped", item["reason"]
                return
        row.status, row.reason = "missing", "the candidate promised this tap and did not record it"

    def _segment(self, tap: str) -> str | None:
        return CACHE if tap in self._sources else self._segments.get(tap)

    def _rule(self, row: Row) -> Rule:
        key = row.tap, row.expected_dtype, row.dtype
        return self._known.get(key) or self._known.setdefault(key, self._rules.of(*key))

    def _local(self, tap: str) -> Iterable[Series | Pair]:
        """The same tap in isolation: of a cache, what it was handed and what it should hold."""
        if tap in self._sources:
            return moved(self._reference, self._candidate, tap, self._sources[tap])
        if self._isolated is None or tap not in self._isolated.order:
            return ()
        items = self._isolated.aligned(tap)
        return (item for item in items if isinstance(item, Series) or item.candidate is not None)


def _producers(wiring: Mapping[str, Any]) -> dict[str, str]:
    """Tap -> the segment that computes it."""
    out: dict[str, str] = {}
    for segment in wiring.get("segments", ()):
        for tap in (*segment["taps"], *(port["value"] for port in segment["outputs"])):
            out.setdefault(tap, segment["name"])
    return out


def _bare_series(series: Series, segment: str | None) -> list[Row]:
    same: dict[str, Any] = {
        "tap": series.tap,
        "status": WAITING,
        "segment": segment,
        "axes": series.axes,
        "shape": series.shape,
        "dtype": series.candidates[0].dtype,
        "expected_dtype": series.references[0].dtype,
        "rule": series.rule,
    }
    columns = column(series.references, "order").tolist(), column(series.references, "step").tolist()
    each = zip(*columns, series.calls, strict=True)
    return [Row(order=order, step=step, call=call, **same) for order, step, call in each]


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


def _never_came(row: Row) -> bool:
    return row.status == "skipped" and row.metrics is None and bool(values_of(row))


def _add_local(row: Row, local: Mapping[tuple[int, int], Row], otherwise: str) -> None:
    found = local.get((row.step, row.call))
    if found is not None:
        row.local, row.local_ratio, row.local_reason = found.error, found.ratio, found.reason
    elif row.status not in ("skipped", "extra", "missing"):
        row.local_reason = otherwise


def values_of(row: Row) -> int:
    """Number of values in a row's tensor."""
    return math.prod(row.shape)
