"""Measures pairs of arrays: at once, or streamed in constant memory with the same result to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..dtypes import from_any
from ..errors import UserError
from .lane import Lane, join
from .layout import CHUNK, LANES, layout
from .metrics import Metrics
from .setup import FULL, PLAIN, setup
from .threads import processors, share
from .widen import parts

Array = np.ndarray[Any, Any]

SMALL = CHUNK // 2
"""Up to this many elements a tensor is one chunk, whatever its shape, and takes the short way."""


def measure(
    actual: Any,
    expected: Any,
    *,
    axes: str = "",
    atol: float = 0.0,
    rtol: float = 0.0,
    profiles: bool = True,
    threads: int | None = None,
) -> Metrics:
    """Every metric of two arrays of equal shape and any number formats, in one pass.

    `axes` names the dimensions ("b h t d"); complex arrays get one more, `z`: real and imaginary part.
    `profiles=False` leaves out histogram, ULP distance and slices. `threads` (default: one
    per processor, at most 4, for large arrays) never changes a result. UserError when shapes differ.
    """
    a, name_a = from_any(actual)
    e, name_e = from_any(expected)
    if a.shape != e.shape:
        raise UserError(
            f"shape={list(a.shape)}, but should be {list(e.shape)}; "
            "only arrays of equal shape are measured, nothing is broadcast or reshaped"
        )
    if 0 < a.size <= SMALL and a.dtype.kind != "c" and e.dtype.kind != "c":
        pair, lane = setup(a.shape, axes, name_a, name_e, FULL if profiles else PLAIN), Lane.take()
        lane.start(pair, (atol, rtol))
        sums = lane.finish((a.reshape(-1), e.reshape(-1)))
        return Metrics(pair.plan, (atol, rtol), (name_a, name_e), *sums, profiles)
    measurer = Measurer(a.shape, axes=axes, atol=atol, rtol=rtol, profiles=profiles, threads=threads)
    measurer.feed(a, e)
    return measurer.finish()


class Measurer:
    """Measures a pair that arrives in pieces: `feed` consecutive elements in flat order, then `finish`.

    Memory is that of one chunk and of one statistic per row, whatever the size. Neither the pieces nor the
    number of threads change any bit of the result.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        axes: str = "",
        atol: float = 0.0,
        rtol: float = 0.0,
        profiles: bool = True,
        threads: int | None = None,
    ) -> None:
        self._shape, self._axes, self._bound = tuple(shape), axes, (atol, rtol)
        self._full = profiles
        self._threads = min(threads or processors(), LANES)
        self._plan = layout(self._shape, axes)
        self._names: tuple[str, str] | None = None
        self._lanes: list[Lane] = []
        self._fed = self._held = 0

    def feed(self, actual: Any, expected: Any) -> None:
        """The next elements of both sides, as many of each; UserError when there are too many."""
        a, name_a = from_any(actual)
        e, name_e = from_any(expected)
        if a.size != e.size:
            raise UserError(f"elements={a.size}, but should be {e.size}: both sides are fed alike")
        if a.dtype.kind == "c" or e.dtype.kind == "c":
            a, e = _complex_parts(a, e)
        if self._names is None:
            self._begin(a, e, (name_a, name_e))
        elif self._names != (name_a, name_e):
            raise UserError(
                f"dtype={name_a} against {name_e}, but should be {self._names[0]} against {self._names[1]}"
            )
        if self._fed + a.size > self._plan.size:
            raise UserError(
                f"elements={self._fed + a.size}, but should be {self._plan.size}: shape={list(self._shape)}"
            )
        self._consume(a.reshape(-1), e.reshape(-1))

    def finish(self) -> Metrics:
        """The metrics; UserError when fewer elements came than the shape has."""
        if self._names is None:
            self.feed(np.empty(0, np.float32), np.empty(0, np.float32))
        if self._fed != self._plan.size:
            raise UserError(
                f"elements={self._fed}, but should be {self._plan.size} of shape {list(self._shape)}; feed on"
            )
        if self._held:
            self._chunks(self._hold[0][: self._held], self._hold[1][: self._held], self._fed - self._held)
        plan = self._plan
        sums = join([lane.finish() for lane in self._lanes], shared_rows=plan.shared_rows)
        assert self._names is not None
        return Metrics(plan, self._bound, self._names, *sums, self._full)

    def _begin(self, a: Array, e: Array, names: tuple[str, str]) -> None:
        """Settle what depends on the number formats."""
        self._names = names
        if names[0].startswith("complex"):
            self._shape, self._axes = (*self._shape, 2), f"{self._axes} z" if self._axes.split() else ""
        detail = FULL if self._full else PLAIN
        self._pair = setup(self._shape, self._axes, a.dtype.name, e.dtype.name, detail)
        self._plan = self._pair.plan
        self._dtypes = a.dtype, e.dtype
        self._grow(1)

    def _grow(self, lanes: int) -> None:
        while len(self._lanes) < lanes:
            shared = self._lanes[0].rows if self._lanes and self._plan.shared_rows else None
            lane = Lane.take()
            lane.start(self._pair, self._bound, shared)
            self._lanes.append(lane)

    def _consume(self, a: Array, e: Array) -> None:
        """Whole chunks are measured where they lie; what is left over is copied and waits."""
        chunk, start = self._plan.chunk, 0
        last = self._fed + a.size == self._plan.size
        if self._held:
            start = min(chunk - self._held, a.size)
            self._keep(a[:start], e[:start])
            if self._held == chunk:
                self._chunks(*self._hold, self._fed - chunk)
                self._held = 0
        end = a.size if last and not self._held else start + (a.size - start) // chunk * chunk
        if end > start:
            self._chunks(a[start:end], e[start:end], self._fed)
            self._fed += end - start
        self._keep(a[end:], e[end:])

    def _keep(self, a: Array, e: Array) -> None:
        if not a.size:
            return
        if not self._held:
            self._hold = (
                np.empty(self._plan.chunk, self._dtypes[0]),
                np.empty(self._plan.chunk, self._dtypes[1]),
            )
        place = slice(self._held, self._held + a.size)
        self._hold[0][place], self._hold[1][place] = a, e
        self._held += a.size
        self._fed += a.size

    def _chunks(self, a: Array, e: Array, start: int) -> None:
        """Measure chunks that begin at the flat place `start`, each in its own lane."""
        chunk = self._plan.chunk
        first, count = start // chunk, -(-a.size // chunk)
        self._grow(min(first + count, LANES))

        workers = min(self._threads, count)

        def work(worker: int) -> None:
            for i in range(count):
                lane = (first + i) % LANES
                if lane % workers == worker:
                    place = slice(i * chunk, (i + 1) * chunk)
                    self._lanes[lane].feed(a[place], e[place], start + i * chunk)

        share(work, workers)


def _complex_parts(a: Array, e: Array) -> tuple[Array, Array]:
    if a.dtype.kind != e.dtype.kind:
        raise UserError(
            f"dtype={a.dtype.name}, but should be {e.dtype.name}: complex and real are not compared"
        )
    return parts(a), parts(e)
