"""Calibration tables for int8: thresholds from the case's own activations.

The graphs are played in ONNX Runtime over the first steps of the scenario; what each segment was handed is
then run through the compiler's float interpreter, whose tensor names are those of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from parity.harness.case import Case, Scenario, Wiring
from parity.harness.progress import Progress, Silent
from parity.harness.replay import replay
from parity.harness.segmented import Executor, Recorded
from parity.harness.target import Facts
from parity.harness.tracer.memory import MemoryRun
from parity.harness.values import Values

from ..onnx.session import CachePlan, assemble
from .asked import Asked
from .compile import calibrate
from .given import given_tables
from .graphs import ChipGraph
from .toolchain import Toolchain

#: Decode steps that are looked at, calls that are always kept, and calls kept at most.
STEPS, FIRST, MOST = 32, 4, 48

Inputs = Mapping[str, np.ndarray]


@dataclass
class Samples:
    """An executor that keeps the inputs of some calls of each segment: the first ones, then evenly spread.

    The first tokens of a text have the largest activations of all.
    """

    inner: Executor
    kept: dict[str, list[Inputs]] = field(default_factory=dict)
    _calls: dict[str, int] = field(default_factory=dict)
    _every: dict[str, int] = field(default_factory=dict)

    def call(self, segment: str, inputs: Inputs) -> Sequence[Recorded]:
        """Note the inputs, then run the segment."""
        at, every = self._calls.get(segment, 0), self._every.get(segment, 1)
        self._calls[segment] = at + 1
        held = self.kept.setdefault(segment, [])
        if at < FIRST or at % every == 0:
            held.append(dict(inputs))
        if len(held) > MOST:
            del held[FIRST + 1 :: 2]
            self._every[segment] = 2 * every
        return self.inner.call(segment, inputs)

    def close(self) -> None:
        """What is inside belongs to the caller."""


def segment_inputs(
    case: Case, wiring: Wiring, rows: CachePlan, executor: Executor, reference: Values | None
) -> dict[str, list[Inputs]]:
    """What each segment is handed over the first decode steps of the case."""
    short = replace(case, scenario=_shortened(case))
    samples = Samples(executor)
    facts = Facts(dtype="float32", layout="static", isolated_steps=())
    session = assemble(short, wiring, samples, rows, facts, reference)
    sink = MemoryRun("calibration", target="", provenance={}, complete=False)
    replay(session, short.scenario, sink=sink, progress=Silent(), title="", reference=reference)
    return samples.kept


def _shortened(case: Case) -> Scenario:
    steps = min(STEPS, case.scenario.steps)
    resets = tuple(step for step in case.scenario.resets if step <= steps)
    return replace(case.scenario, steps=steps, resets=resets)


def calibration_tables(
    asked: Asked,
    made: Mapping[str, ChipGraph],
    samples: Callable[[], Mapping[str, Sequence[Inputs]]],
    toolchain: Toolchain,
    cache: Path,
    progress: Progress,
) -> dict[str, Path]:
    """Segment -> table: those that were named, else made from samples; empty for modes that need none."""
    if asked.table is not None:
        return given_tables(asked, made, toolchain, cache)
    if not asked.mode.calibrated:
        return {}
    kept, tables = samples(), {}
    with progress.stage(f"calibrating {asked.mode.name}", len(made)) as bar:
        for name, graph in made.items():
            onnx = graph.tapped if asked.level == "tapped" else graph.clean
            tables[name] = calibrate(name, onnx, kept.get(name, ()), toolchain, cache)
            bar.advance()
    return tables
