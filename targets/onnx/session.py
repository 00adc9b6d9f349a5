"""A session over segments with a window of cache rows, and its variant whose prompt the host prefills.

A graph without mask attends to every row that it is handed, so all of them must be real from the first step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from parity.harness.case import Case, Step, Wiring, plan
from parity.harness.segmented import HIDDEN, Executor, Rope, SegmentedSession
from parity.harness.target import Facts, Session, Unobserved
from parity.harness.values import Values, records_of

from ..caches import WindowCache
from ..hosted import Filled, HostedSession
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
    decodes = any(step.kind == "decode" for step in plan(scenario))
    whole = scenario.prompt_length >= rows and not (masked or scenario.padded or scenario.chunks)
    hosted = reference and decodes and whole
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
    rope: Rope | None = None,
    hidden: float = HIDDEN,
) -> Session:
    """The session over segments, its prompt prefilled on the host where the layout says so.

    `rope` gives the rotary rows; None: the case's own table does. `hidden` is added to hidden scores.
    """
    cache = WindowCache(case.scenario.batch, rows.rows, static=static)
    inner = SegmentedSession(
        wiring=wiring,
        executor=executor,
        cache=cache,
        rope=rope or RopeTable(case, torch.float32),
        facts=facts,
        window=case.scenario.policy.window,
        hidden=hidden,
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
    return HostedSession(inner, reference_rows(wiring, reference, rows.rows), facts)


def reference_rows(wiring: Wiring, reference: Values, rows: int) -> Callable[..., list[Filled]]:
    """What a prefill step takes from the reference: its newest `rows` keys and values, in float32."""
    ports = {port.value: port for segment in wiring.segments for port in segment.outputs}

    def fill(step: Step, positions: np.ndarray) -> list[Filled]:
        newest, filled = positions[:, -rows:], []
        for row in wiring.caches:
            heads, channels = int(ports[row.source].shape[1]), int(ports[row.source].shape[3])
            blank = np.zeros((len(newest), heads, newest.shape[1], channels), np.float32)
            filled.append((row.cache, reference.like(row.source, step.index, newest, blank), newest))
        return filled

    return fill
