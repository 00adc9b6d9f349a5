"""Segments that start from a cache which was filled on the host, as boards do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from parity.harness.case import Step
from parity.harness.isolation import Isolation
from parity.harness.segmented import SegmentedSession
from parity.harness.target import Facts
from parity.harness.tracer import Sink
from parity.harness.values import Values

#: A cache tap, its rows `[B, h, T, d]` and their absolute positions `[B, T]`.
Filled = tuple[str, np.ndarray, np.ndarray]


@dataclass
class HostedSession:
    """Prefill steps take the rows that `fill` gives for a step and its positions; decode steps run."""

    inner: SegmentedSession
    fill: Callable[[Step, np.ndarray], Iterable[Filled]]
    facts: Facts

    def step(
        self, step: Step, tokens: np.ndarray, positions: np.ndarray, isolate: Values | None
    ) -> np.ndarray | None:
        """None for a prefill: its logits stayed on the host."""
        if step.kind != "prefill":
            return self.inner.step(step, tokens, positions, isolate)
        self.inner.cache.reset()
        for cache, rows, at in self.fill(step, positions):
            self.inner.cache.append(cache, rows, at)
        return None

    @property
    def isolated_sink(self) -> Sink | None:
        """Where isolated records go."""
        return self.inner.isolated_sink

    @isolated_sink.setter
    def isolated_sink(self, sink: Sink | None) -> None:
        self.inner.isolated_sink = sink

    @property
    def isolation(self) -> Isolation:
        """How finely local errors are separated."""
        return self.inner.isolation

    def close(self) -> None:
        """Free the segments."""
        self.inner.close()
