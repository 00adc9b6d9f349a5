"""Sessions in which some segments are the candidate's and all others the reference's.

Two ways to put the reference in: its own segments compute on whatever they are handed (`Routed`), or what it
recorded is handed on instead (`Patched`), which needs nothing of it but its trace.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .segmented import Cache, Executor, Recorded, Rope, SegmentedSession

if TYPE_CHECKING:
    from .case import Step, Wiring
    from .target import Session
    from .values import Values


@dataclass(frozen=True)
class Routed:
    """An `Executor`: the segments `taken` by the candidate, the others by the reference."""

    candidate: Executor
    reference: Executor
    taken: Collection[str]

    def call(self, segment: str, inputs: Mapping[str, np.ndarray]) -> Sequence[Recorded]:
        """Hand the segment to whom it belongs."""
        return (self.candidate if segment in self.taken else self.reference).call(segment, inputs)

    def close(self) -> None:
        """Both belong to the caller."""


@dataclass
class Patched:
    """An `Executor`: the segments `taken` by the candidate, the others' outputs out of the reference's trace.

    The recorded outputs hide what came before them, so a fault shows in the stretch of taken segments that it
    lies in and nowhere behind. `begin` says which step and positions are being computed.
    """

    candidate: Executor
    values: Values
    wiring: Wiring
    taken: Collection[str]
    _step: int = 0
    _positions: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))

    def begin(self, step: int, positions: np.ndarray) -> None:
        """What the next calls compute: a step, and the absolute positions `[B, T]` of its tokens."""
        self._step, self._positions = step, positions

    def call(self, segment: str, inputs: Mapping[str, np.ndarray]) -> Sequence[Recorded]:
        """The candidate's records, or the recorded outputs in float32, which every executor takes."""
        if segment in self.taken:
            return self.candidate.call(segment, inputs)
        ports = next(part for part in self.wiring.segments if part.name == segment).outputs
        return [Recorded(port.value, self._recorded(port.value), port.axes) for port in ports]

    def _recorded(self, tap: str) -> np.ndarray:
        array = self.values.at(tap, self._step, self._positions)
        return array.astype(np.float32) if array.dtype.kind not in "iub" else array

    def watched(self) -> list[str]:
        """Outputs of the taken segments: there a fault shows."""
        return [
            port.value for part in self.wiring.segments if part.name in self.taken for port in part.outputs
        ]

    def close(self) -> None:
        """The candidate's executor belongs to the caller."""


@dataclass
class Faithful:
    """A `Cache` that holds for each position that the candidate's claims to hold the row appended there."""

    inner: Cache
    single: bool = False
    _rows: dict[str, dict[tuple[int, int], np.ndarray]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.single = self.inner.single

    def reset(self) -> None:
        """Forget every row."""
        self.inner.reset()
        self._rows.clear()

    def append(self, cache: str, rows: np.ndarray, positions: np.ndarray) -> None:
        """Take new rows `[B, h, T, d]` at absolute positions `[B, T]`."""
        self.inner.append(cache, rows, positions)
        held = self._rows.setdefault(cache, {})
        for sequence, column in zip(*np.nonzero(positions >= 0), strict=True):
            held[int(sequence), int(positions[sequence, column])] = rows[sequence, :, column].copy()

    def view(self, cache: str) -> np.ndarray:
        """The candidate's view `[B, h, W, d]` with the rows that belong there."""
        held, rows = self.positions(cache), self._rows[cache]
        view = self.inner.view(cache).copy()
        if view.shape[2] != held.shape[1]:
            view = np.zeros((*view.shape[:2], held.shape[1], view.shape[3]), view.dtype)
        for sequence, column in zip(*np.nonzero(held >= 0), strict=True):
            row = rows.get((int(sequence), int(held[sequence, column])))
            if row is not None:
                view[sequence, :, column] = row
        return view

    def positions(self, cache: str) -> np.ndarray:
        """As the candidate's, `[B, W]`."""
        return self.inner.positions(cache)


def inner_of(session: Any) -> SegmentedSession | None:
    """The session that drives segments, out of one that may be wrapped; None for one without segments."""
    found = getattr(session, "inner", session)
    return found if isinstance(found, SegmentedSession) else None


def rerouted(
    session: Session, executor: Executor, *, rope: Rope | None = None, cache: Cache | None = None
) -> Session:
    """The same session from its beginning, its segments run by `executor`.

    `rope` and `cache` take the places of its own. It is not closed: its parts belong to the caller.
    """
    inner = inner_of(session)
    assert inner is not None, "sessions without segments are refused before"
    chosen, held = rope or inner.rope, cache or inner.cache
    fresh: SegmentedSession
    if isinstance(executor, Patched):
        names = ("wiring", "facts", "window", "repeat", "hidden")
        kept = {name: getattr(inner, name) for name in names}
        fresh = _Stepping(executor=executor, rope=_Watching(chosen, executor), cache=held, **kept)
    else:
        fresh = replace(
            inner, executor=executor, rope=chosen, cache=held, isolated_sink=None, _isolated=None, _history=[]
        )
    fresh.cache.reset()
    return fresh if inner is session else replace(session, inner=fresh)  # type: ignore[type-var]


@dataclass
class _Watching:
    """A pass begins by asking for the rotary rows of its positions: that is when the executor is told."""

    inner: Rope
    executor: Patched
    step: int = 0

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        self.executor.begin(self.step, positions)
        return self.inner(positions)


class _Stepping(SegmentedSession):
    """A session that tells which step its rotary rows are asked for."""

    def step(
        self, step: Step, tokens: np.ndarray, positions: np.ndarray, isolate: Values | None
    ) -> np.ndarray | None:
        """Execute one step; see `Session`."""
        assert isinstance(self.rope, _Watching)
        self.rope.step = step.index
        return super().step(step, tokens, positions, isolate)
