"""A session over segments with a window of cache rows, and its variant whose prompt the host prefills.

A graph without mask attends to every row that it is handed, so all of them must be real from the first step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from parity.harness.case import Case, Step, Wiring, plan
from parity.harness.segmented import Executor, SegmentedSession
from parity.harness.target import Facts, Session, Unobserved
from parity.harness.tracer import Sink
from parity.harness.values import Values, records_of

from ..caches import WindowCache
from ..torch_segments import RopeTable


@dataclass(frozen=True)
class CachePlan:
    """Rows W that a segment is handed, whether a mask hides some, whether the host prefills them."""

    rows: int
    masked: bool
    hosted: bool


def plan_cache(case: Case, *, masked: bool, reference: bool) -> CachePlan:
    """Without a mask each of the W rows must be real: a prompt that fills them comes from the host."""
    scenario = case.scenario
    rows = scenario.policy.window or scenario.prompt_length + scenario.steps
    padded = any(len(row) != scenario.prompt_length for row in scenario.ids)
    decodes = any(step.kind == "decode" for step in plan(scenario))
    hosted = reference and decodes and not (masked or padded) and scenario.prompt_length >= rows
    return CachePlan(rows, masked=not hosted, hosted=hosted)


def assemble(
    case: Case,
    wiring: Wiring,
    executor: Executor,
    rows: CachePlan,
    facts: Facts,
    reference: Values | None,
    *,
    static: bool = True,
) -> Session:
    """The session over segments, its prompt prefilled on the host where the layout says so."""
    cache = WindowCache(case.scenario.batch, rows.rows, static=static)
    inner = SegmentedSession(
        wiring=wiring,
        executor=executor,
        cache=cache,
        rope=RopeTable(case, torch.float32),
        facts=facts,
        window=case.scenario.policy.window,
    )
    if not rows.hosted:
        return inner
    assert reference is not None
    told = f"prompt prefilled on the host: the first {rows.rows} cache rows are the reference's"
    source = records_of(reference.run, wiring.caches[0].source)
    if source and source[0].dtype != "float32":
        told += f", cast from {source[0].dtype} to float32"
    prefills = tuple(step.index for step in plan(case.scenario) if step.kind == "prefill")
    facts = replace(
        facts,
        substitutions=(*facts.substitutions, told),
        unobserved=(*facts.unobserved, Unobserved("*", "prefilled on the host", prefills)),
    )
    return HostedSession(inner, cache, reference, rows.rows, facts)


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
