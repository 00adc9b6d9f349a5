"""Cache forensics: which rows of a cache are stale, shifted, missing, doubled, or of another place.

A cache only moves rows. Where a record of a cache tap is not what was appended, every wrong row is matched by
content against what the run had: zeros, the slot's own past, other positions, heads, sequences and layers,
keys before their rotation, narrower formats. The origin that explains most rows is named, then the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..comparison import Comparison, Finding, Row
from ..judge import FACTOR
from ..pages import page_of, places_in_words
from ..rows import CACHE
from ..values import token_axis
from . import origins
from .origins import Origin, Pool
from .rows import Array, Source, View, Wrong, cache_records, view_of, wrong_rows

if TYPE_CHECKING:
    from ..trace import Record, Run

#: Cache taps that are looked into, in execution order; the others are counted.
MOST_TAPS = 4
#: Origins named of one tap, and earlier records that a slot is held against.
MOST_ORIGINS, PAST = 6, 4
#: Values of a view, and of one side's rows, beyond which nothing is matched: 128 MB in float64.
LARGEST = 1 << 24


@dataclass(frozen=True)
class CacheFault:
    """Rows of one cache tap with one origin; empty `heads` or `sequences` mean all of them."""

    tap: str
    step: int
    kind: str
    sequences: tuple[int, ...]
    heads: tuple[int, ...]
    positions: tuple[int, ...]
    words: str
    shift: int = 0

    def sentence(self, page: int | None = None) -> str:
        """`head 1 of layer0.ks: rows 16..510 stale (as of step 3)`."""
        rows = places_in_words(np.array(self.positions), page, one="row", many="rows")
        said = f"{_named('head', self.heads)}{self.tap}: {rows} {self.words}"
        return f"sequence {_listed(self.sequences)}, {said}" if self.sequences else said


def _named(word: str, numbers: tuple[int, ...]) -> str:
    plural = "s" if len(numbers) > 1 else ""
    return f"{word}{plural} {_listed(numbers)} of " if numbers else ""


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


def with_forensics(comparison: Comparison, reference: Run, candidate: Run) -> Comparison:
    """The comparison with what wrong rows of caches hold: in its culprit's evidence and as findings."""
    rows = _suspects(comparison, reference, candidate)
    if not rows:
        return comparison
    page = page_of(candidate.provenance)
    told: dict[str, list[str]] = {}
    for row in rows[:MOST_TAPS]:
        told[row.tap] = [fault.sentence(page) for fault in examine(row, reference, candidate)]
    culprits = tuple(
        replace(culprit, evidence="; ".join(told.pop(culprit.tap)) + _since(comparison, culprit.tap))
        if culprit.segment == CACHE and told.get(culprit.tap)
        else culprit
        for culprit in comparison.culprits
    )
    found = [Finding("error", said) for sentences in told.values() for said in sentences]
    if len(rows) > MOST_TAPS:
        more = ", ".join(row.tap for row in rows[MOST_TAPS : MOST_TAPS + 6])
        found.append(Finding("note", f"{len(rows) - MOST_TAPS} more caches hold wrong rows: {more}"))
    large = [row.tap for row in rows[:MOST_TAPS] if prod(row.shape) > LARGEST]
    if large:
        told_of = f"more than {LARGEST:,} values: what the wrong rows hold was not looked into"
        found.append(Finding("note", f"{', '.join(large)}: {told_of}"))
    return replace(comparison, culprits=culprits, findings=(*comparison.findings, *found))


def _since(comparison: Comparison, tap: str) -> str:
    """How often it goes on."""
    steps = [row.step for row in comparison.records if row.tap == tap and _own(row)]
    more = len(steps) - 1
    return f"; wrong at {more} later step{'s' if more > 1 else ''} too" if more else ""


def _own(row: Row) -> bool:
    return row.local_ratio is not None and row.local_ratio > 1.0


def _suspects(comparison: Comparison, reference: Run, candidate: Run) -> list[Row]:
    """Per cache tap its first record that is not what was appended, or that cannot be held against it.

    A run without a failure has no suspects.
    """
    if not any(row.failing for row in comparison.records):
        return []
    sources = _sources(reference, candidate)
    found: dict[str, Row] = {}
    for row in comparison.records:
        undecided = row.failing and row.local_ratio is None
        letters = row.axes.split()
        if row.tap not in found and "p" in letters and (_own(row) or undecided) and token_axis(row.axes):
            if undecided and row.tap in sources and not _observed(candidate, sources[row.tap], row.step):
                continue  # what was appended is not known, and may itself be wrong
            found[row.tap] = row
    return list(found.values())


def _observed(candidate: Run, tap: str, step: int) -> bool:
    return tap in candidate.taps and any(record.step == step for record in candidate.records(tap))


def _sources(reference: Run, candidate: Run) -> dict[str, str]:
    """Cache tap -> the tap whose rows are appended to it."""
    wiring: Mapping[str, Any] = candidate.provenance.get("wiring") or reference.provenance.get("wiring") or {}
    return {row["cache"]: row["source"] for row in wiring.get("caches", ())}


def examine(row: Row, reference: Run, candidate: Run) -> tuple[CacheFault, ...]:
    """What the wrong rows of one record of a cache tap hold, the largest share first."""
    records = cache_records(candidate, row.tap)
    now = records.get(row.step, ())
    if not now or sum(record.size for record in now) > LARGEST:
        return ()
    view = view_of(now)
    return (
        *_table_faults(row, view_of(now[-1:]).positions),
        *_Examiner(row, view, records, reference, candidate).faults(),
    )


def _table_faults(row: Row, positions: Array) -> Iterator[CacheFault]:
    """Positions `[B, W]` that stand in several slots of a sequence."""
    for sequence, held in enumerate(positions):
        known, count = np.unique(held[held >= 0], return_counts=True)
        if (count > 1).any():
            which = (sequence,) if len(positions) > 1 else ()
            twice = tuple(known[count > 1].tolist())
            yield CacheFault(row.tap, row.step, "table", which, (), twice, "in more than one slot")


class _Examiner:
    """Explains the wrong rows of one view, the commonest origin first."""

    def __init__(
        self,
        row: Row,
        view: View,
        records: Mapping[int, Sequence[Record]],
        reference: Run,
        candidate: Run,
    ) -> None:
        self.row, self.view, self.records = row, view, records
        self.reference, self.candidate = reference, candidate
        self.sources = _sources(reference, candidate)
        self.source = self.sources.get(row.tap, row.tap)
        self.noise = FACTOR * (row.floor or 0.0)
        self.resets = [r for r in candidate.provenance.get("scenario", {}).get("resets", ()) if r <= row.step]
        self._pools: dict[tuple[str, int], Pool | None] = {}
        self._length = int(view.positions.max(initial=0)) + 1

    def faults(self) -> Iterator[CacheFault]:
        """One per origin, then the rows that nothing explains if something explained others."""
        wrong = self._wrong()
        if wrong is None or not len(wrong):
            return
        shape = self.view.rows.shape
        found: list[tuple[Origin, Wrong]] = []
        while len(wrong) and len(found) < MOST_ORIGINS:
            origin = self._origin(wrong)
            if origin is None:
                break
            found.append((origin[0], wrong.only(origin[1])))
            wrong = wrong.only(~origin[1])
        if len(wrong) and (found or self.row.segment == CACHE):
            rest = Origin("unknown", "of no known origin", origins.every)
            found.append((rest, wrong))
        for kind, rows in _exchanged(found):
            yield from _grouped(self.row, kind, rows, shape)

    def _wrong(self) -> Wrong | None:
        own, at = self._pool(self.source, self.row.step, "", ""), self.view.positions
        if own is None or own.rows.shape[2:] != self.view.rows.shape[2:]:
            return None
        places = np.arange(len(at))[:, None], np.maximum(at, 0)
        return wrong_rows(self.view, own.rows[places], own.known[places] & (at >= 0), self.noise)

    def _at(self, tap: str, step: int, positions: Array) -> tuple[Array, Array] | None:
        if self.source == self.row.tap:  # no table says what is appended: the reference's own rows
            return Source(tap, self.reference, self.reference).at(step, positions)
        return Source(tap, self.reference, self.candidate).at(step, positions)

    def _origin(self, wrong: Wrong) -> tuple[Origin, Array] | None:
        """The best of the near origins; where it explains less than half, of other layers and times too."""
        near = origins.best(wrong, self._near(wrong))
        if near is not None and 2 * int(near[1].sum()) >= len(wrong):
            return near
        far = origins.best(wrong, self._far(wrong))
        return max(filter(None, (near, far)), key=lambda found: int(found[1].sum()), default=None)

    def _near(self, wrong: Wrong) -> Iterator[Origin]:
        yield from origins.never_written()
        yield from origins.stale(wrong, self._earlier())
        yield from origins.rounded()
        yield from origins.scaled(wrong)
        own = self._pool(self.source, self.row.step, "", "")
        if own is not None:
            yield from origins.elsewhere(wrong, own)
        tables = self._rotary()
        if tables is not None:
            yield from origins.rotated_otherwise(tables)

    def _far(self, wrong: Wrong) -> Iterator[Origin]:
        for reset in reversed(self.resets):
            words = f"stale (from before the reset at step {reset})"
            past = self._pool(self.source, reset - 1, "stale", words)
            if past is not None:
                yield from origins.same_place(wrong, past)
        for cache, source in self.sources.items():
            if source != self.source:
                pool = self._pool(source, self.row.step, *self._relation(cache, source))
                if pool is not None:
                    yield from origins.same_place(wrong, pool)
                    moved = replace(pool, words=f" of {source}")
                    yield from origins.elsewhere(wrong, moved)

    def _relation(self, cache: str, source: str) -> tuple[str, str]:
        """Another cache of the same segment holds the values of these keys; others belong to other layers."""
        wiring = self.candidate.provenance.get("wiring") or self.reference.provenance.get("wiring") or {}
        segment = {row["cache"]: row["segment"] for row in wiring.get("caches", ())}
        if segment.get(cache) == segment.get(self.row.tap):
            return "swapped", f"holding the rows of {source}: keys and values swapped"
        return "other layer", f"holding the rows of {source}"

    def _pool(self, tap: str, step: int, kind: str, words: str) -> Pool | None:
        key = tap, step
        if key not in self._pools:
            batch = len(self.view.positions)
            positions = np.broadcast_to(np.arange(self._length), (batch, self._length))
            at = self._at(tap, step, positions) if step >= 0 else None
            fits = at is not None and at[0].size <= LARGEST
            self._pools[key] = Pool(kind, words, *at) if at is not None and fits else None
        return self._pools[key]

    def _earlier(self) -> list[tuple[int, View]]:
        """The newest earlier views of the same width."""
        found = []
        for step in sorted((step for step in self.records if step < self.row.step), reverse=True)[:PAST]:
            record = self.records[step][-1]
            view = view_of([record])
            if view.rows.shape == self.view.rows.shape:
                found.append((step, view))
        return found

    def _rotary(self) -> origins.Rotate | None:
        """Rotary rows where the role table says that the source is rotated by them."""
        roles = self.candidate.provenance.get("roles") or self.reference.provenance.get("roles") or ()
        role = next((role for role in roles if role["taps"] == self.source), None)
        if role is None or role["role"] != "rotated_projection":
            return None
        source = Source(role["inputs"][1], self.reference, self.reference)

        def tables(sequence: Array, position: Array) -> tuple[Array, Array]:
            shape = len(self.view.positions), self._length + 2
            wanted = np.broadcast_to(np.arange(shape[1]), shape)
            at = source.at(self.row.step, wanted)
            assert at is not None
            rows = at[0][sequence, position, 0]
            return rows[:, : rows.shape[1] // 2], rows[:, rows.shape[1] // 2 :]

        return tables if source else None


def _exchanged(found: list[tuple[Origin, Wrong]]) -> list[tuple[Origin, Wrong]]:
    """Two shifts that undo each other are rows in each other's place."""
    out = list(found)
    for one, rows in found:
        for other, theirs in found:
            opposite = one.shift > 0 and other.shift == -one.shift
            if opposite and set((rows.position + one.shift).tolist()) == set(theirs.position.tolist()):
                words = f"exchanged with position p+{one.shift}"
                out = [pair for pair in out if pair[0] is not one and pair[0] is not other]
                out.insert(0, (Origin("exchanged", words, origins.every), rows))
    return out


def _grouped(row: Row, origin: Origin, rows: Wrong, shape: tuple[int, ...]) -> Iterator[CacheFault]:
    """Rows of one origin, the heads and sequences of equal positions together."""
    groups: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for sequence in np.unique(rows.sequence):
        for head in np.unique(rows.head[rows.sequence == sequence]):
            here = (rows.sequence == sequence) & (rows.head == head)
            groups.setdefault(tuple(np.unique(rows.position[here]).tolist()), []).append(
                (int(sequence), int(head))
            )
    for positions, places in groups.items():
        sequences, heads = sorted({s for s, _ in places}), sorted({h for _, h in places})
        yield CacheFault(
            row.tap,
            row.step,
            origin.kind,
            () if len(sequences) == shape[0] else tuple(sequences),
            () if len(heads) == shape[2] else tuple(heads),
            positions,
            origin.words,
            origin.shift,
        )
