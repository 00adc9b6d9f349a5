"""A session whose prompt is prefilled on the host: a static graph without mask needs a full window of rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from parity.harness.case import Step
from parity.harness.segmented import SegmentedSession
from parity.harness.target import Facts
from parity.harness.tracer import Sink
from parity.harness.values import Values

from ..caches import WindowCache


@dataclass
class HostedSession:
    """Prefill steps take the reference's rows into the cache; decode steps run the segments."""

    inner: SegmentedSession
    cache: WindowCache
    reference: Values
    rows: int
    facts: Facts

    def step(
        self, step: Step, tokens: np.ndarray, positions: np.ndarray, isolate: Values | None
    ) -> np.ndarray | None:
        """None for a prefill: its logits stayed on the host."""
        if step.kind != "prefill":
            return self.inner.step(step, tokens, positions, isolate)
        self.cache.reset()
        newest = positions[:, -self.rows :]
        ports = {port.value: port for segment in self.inner.wiring.segments for port in segment.outputs}
        for row in self.inner.wiring.caches:
            heads, channels = ports[row.source].shape[1], ports[row.source].shape[3]
            blank = np.zeros((len(newest), int(heads), newest.shape[1], int(channels)), np.float32)
            self.cache.append(row.cache, self.reference.like(row.source, step.index, newest, blank), newest)
        return None

    @property
    def isolated_sink(self) -> Sink | None:
        """Where isolated records go."""
        return self.inner.isolated_sink

    @isolated_sink.setter
    def isolated_sink(self, sink: Sink | None) -> None:
        self.inner.isolated_sink = sink

    def close(self) -> None:
        """Free the segments."""
        self.inner.close()
