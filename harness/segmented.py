"""Drives a segmented model over steps, whatever executes the segments and wherever the cache rows lie.

The wiring table says who feeds whom. A target brings an `Executor` (torch, ONNX Runtime, a chip) and a
`Cache` (growing, rolling window ...); this file brings the loop, the taps and the isolated second call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from . import cache as bookkeeping
from .errors import InconclusiveError
from .isolation import SEGMENTS, TAPS, Isolation
from .tracer import Nowhere, Recorder, recording, trace_tensor
from .tracer import step as mark_step

if TYPE_CHECKING:
    from .case import Segment, Step, Wiring
    from .target import Facts
    from .tracer import Sink
    from .values import Values

#: What a hidden slot adds to a score: exp(-1e4) is exactly 0 in fp32, fp16 and bf16, and all can hold it.
HIDDEN = -1.0e4
#: The same where floats are wide: no finite garbage in a hidden slot outweighs it (fp16 takes it for -inf).
FAR = -1.0e30


@dataclass(frozen=True, slots=True)
class Recorded:
    """One value that a segment showed: a tap name, the array, its axes."""

    tap: str
    array: np.ndarray
    axes: str


class Executor(Protocol):
    """Runs one segment."""

    def call(self, segment: str, inputs: Mapping[str, np.ndarray]) -> Sequence[Recorded]:
        """Inputs by port name; outputs and inner taps in execution order, each name once."""

    def close(self) -> None: ...


Right = Callable[[Recorded], np.ndarray | None]
"""What the reference had in place of a value that a segment shows; None where it had nothing of the kind."""


@runtime_checkable
class Pinning(Protocol):
    """An executor that can go on with the reference's value wherever a segment shows one."""

    @property
    def unpinned(self) -> Mapping[str, str]:
        """Taps of which the segment's own value flows on, and why."""

    def pinned(self, segment: str, inputs: Mapping[str, np.ndarray], right: Right) -> Sequence[Recorded]:
        """As `call`; each value is shown as it was computed from right ones."""


class Cache(Protocol):
    """Keys and values of every layer, in one layout."""

    #: True where a step must be fed token by token.
    single: bool

    def reset(self) -> None: ...

    def append(self, cache: str, rows: np.ndarray, positions: np.ndarray) -> None:
        """Take the new rows `[B, h, T, d]` at absolute positions `[B, T]`."""

    def view(self, cache: str) -> np.ndarray:
        """What the segment is handed, `[B, h, W, d]`."""

    def positions(self, cache: str) -> np.ndarray:
        """Absolute position of each row of the view, int64 `[B, W]`, -1 where nothing is."""


Rope = Callable[[np.ndarray], np.ndarray]


@dataclass
class SegmentedSession:
    """A `Session` over segments.

    `rope` gives rotary rows `[2, B, T, d]` for positions `[B, T]`. Where the wiring has a `mask` port, the
    additive mask `[B, 1, T, W]` of the cache policy (`window`, None for full) goes in. With `repeat`
    (layout recompute) every step feeds the whole history again, and only the new rows are recorded.
    """

    wiring: Wiring
    executor: Executor
    cache: Cache
    rope: Rope
    facts: Facts
    window: int | None = None
    isolated_sink: Sink | None = None
    repeat: bool = False
    hidden: float = HIDDEN
    _isolated: Recorder | None = None
    _history: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    _unfed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.facts = replace(self.facts, single=self.cache.single)

    def step(
        self, step: Step, tokens: np.ndarray, positions: np.ndarray, isolate: Values | None
    ) -> np.ndarray | None:
        """Execute one step; see `Session`."""
        if self.facts.isolated_steps is not None and step.index not in self.facts.isolated_steps:
            isolate = None
        if step.reset:
            self.cache.reset()
            self._history.clear()
        rows = None
        if self.repeat:
            self.cache.reset()
            self._history.append((tokens, positions))
            rows = tokens.shape[1]
            tokens, positions = (np.concatenate(part, axis=1) for part in zip(*self._history, strict=True))
        width = tokens.shape[1]
        logits = [
            self._pass(_Pass(step, positions[:, at], rows, isolate, at.stop >= width), tokens[:, at])
            for at in self._chunks(width)
        ]
        return last_real(np.concatenate(logits, axis=1), positions)

    @property
    def isolation(self) -> Isolation:
        """How finely the isolated call separates local errors; known once it has run."""
        if isinstance(self.executor, Pinning):
            return Isolation(TAPS, dict(self.executor.unpinned), self._unfed)
        return Isolation(SEGMENTS, refused=self._unfed)

    def close(self) -> None:
        """Free the executor."""
        self.executor.close()

    def _chunks(self, width: int) -> Iterator[slice]:
        size = 1 if self.cache.single else width
        return (slice(at, at + size) for at in range(0, width, size))

    def _pass(self, now: _Pass, tokens: np.ndarray) -> np.ndarray:
        values: dict[str, np.ndarray] = {"ids": tokens, "rope": self.rope(now.positions)}
        with now.marked():
            trace_tensor("rope", values["rope"], axes="c b t d")
            for segment in self.wiring.segments:
                self._append(segment, values, now)
                self._mask(segment, values, now.positions)
                inputs = {port.name: values[port.value] for port in segment.inputs}
                with recording(Nowhere()):  # what an executor runs may hold taps of its own
                    shown = self.executor.call(segment.name, inputs)
                for item in shown:
                    trace_tensor(item.tap, item.array, axes=item.axes)
                    values[item.tap] = item.array
                if now.isolate is not None and self.isolated_sink is not None:
                    self._isolated = self._isolated or Recorder(self.isolated_sink)
                    self._isolate(segment, inputs, now, now.isolate, self._isolated)
        return values[self.wiring.output]

    def _append(self, segment: Segment, values: dict[str, np.ndarray], now: _Pass) -> None:
        """Caches are recorded as appended rows, and as the whole view that a step's last token is handed."""
        for row in self.wiring.appends(segment.name):
            self.cache.append(row.cache, values[row.source], now.positions)
            values[row.cache] = self.cache.view(row.cache)
            held, view = self.cache.positions(row.cache), values[row.cache]
            if not now.final:
                new = now.positions.shape[1]
                held, view = held[:, -new:], view[:, :, -new:]
            trace_tensor(row.cache, view, axes="b h p d", positions=held)

    def _mask(self, segment: Segment, values: dict[str, np.ndarray], positions: np.ndarray) -> None:
        if not any(port.value == "mask" for port in segment.inputs):
            return
        held = self.cache.positions(next(self.wiring.appends(segment.name)).cache)
        allowed = bookkeeping.attendable(positions, held, self.window)
        values["mask"] = np.where(allowed, 0.0, self.hidden).astype(np.float32)[:, None]

    def _isolate(
        self,
        segment: Segment,
        inputs: Mapping[str, np.ndarray],
        now: _Pass,
        reference: Values,
        recorder: Recorder,
    ) -> None:
        """The same call on the reference's inputs: what is wrong now was born in this segment."""
        try:
            swapped = self._swapped(segment, inputs, now, reference)
        except (
            InconclusiveError
        ) as error:  # rows that the reference never had: the forced replay tells of them
            self._unfed |= dict.fromkeys(
                (*segment.taps, *(port.value for port in segment.outputs)), str(error)
            )
            return
        with recording(Nowhere()):
            shown = self._alone(segment.name, swapped, now, reference)
        with recording(recorder), now.marked():
            for item in shown:
                trace_tensor(item.tap, item.array, axes=item.axes)

    def _swapped(
        self, segment: Segment, inputs: Mapping[str, np.ndarray], now: _Pass, reference: Values
    ) -> dict[str, np.ndarray]:
        """What the reference would hand to the segment."""
        caches = {row.cache for row in self.wiring.caches}
        swapped = dict(inputs)
        for port in segment.inputs:
            if port.value != "mask":
                at = self.cache.positions(port.value) if port.value in caches else now.positions
                swapped[port.name] = reference.like(port.value, now.step.index, at, inputs[port.name])
        return swapped

    def _alone(
        self, segment: str, inputs: Mapping[str, np.ndarray], now: _Pass, reference: Values
    ) -> Sequence[Recorded]:
        if not isinstance(self.executor, Pinning):
            return self.executor.call(segment, inputs)

        def right(item: Recorded) -> np.ndarray | None:
            return reference.beside(item.tap, now.step.index, now.positions, item.array, item.axes)

        return self.executor.pinned(segment, inputs, right)


@dataclass(frozen=True, slots=True)
class _Pass:
    """One run through the segments: a whole step, or one token of it."""

    step: Step
    positions: np.ndarray
    rows: int | None
    isolate: Values | None
    final: bool

    def marked(self) -> AbstractContextManager[None]:
        kept = self.positions if self.rows is None else self.positions[:, -self.rows :]
        whole = self.step.last
        return mark_step(self.step.index, rows=self.rows, positions=kept, whole_caches=whole)


def last_real(logits: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Logits `[B, T, V]` of each sequence's newest token that is no padding -> `[B, V]`."""
    newest = positions.argmax(axis=1)
    return np.asarray(logits[np.arange(len(logits)), newest])


def needs_mask(*, padded: bool, windowed: bool, layout: str, static: bool) -> bool:
    """Whether an unmasked build would attend to rows that the cache policy or the padding hides."""
    if padded or static:
        return True
    return windowed and layout in ("recompute", "grow")
