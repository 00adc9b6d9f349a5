"""Calibration tables for int8: thresholds from the case's own activations.

The graphs are played in ONNX Runtime over the first steps of the scenario; what each segment was handed is
then run through the compiler's float interpreter, whose tensor names are those of the table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from parity.harness.case import Case, Scenario, Wiring
from parity.harness.errors import UserError
from parity.harness.progress import Progress, Silent
from parity.harness.replay import replay
from parity.harness.segmented import Executor, Recorded
from parity.harness.target import Facts
from parity.harness.tracer.memory import MemoryRun
from parity.harness.values import Values

from ..onnx.session import CachePlan, assemble
from .asked import Asked
from .compile import Interpreter
from .compile.job import sha256
from .compile.tables import Calibration, ranges, write_calibration
from .compile.top import convert
from .graphs import ChipGraph
from .toolchain import Toolchain

#: Decode steps that are looked at; more of one text moves the ranges little.
SAMPLES = 8
OURS = "parity"

Inputs = Mapping[str, np.ndarray]


@dataclass
class Samples:
    """An executor that keeps the newest inputs of each segment."""

    inner: Executor
    kept: dict[str, list[Inputs]] = field(default_factory=dict)

    def call(self, segment: str, inputs: Inputs) -> Sequence[Recorded]:
        """Note the inputs, then run the segment."""
        held = self.kept.setdefault(segment, [])
        held.append(dict(inputs))
        del held[:-SAMPLES]
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
    steps = min(SAMPLES, case.scenario.steps)
    resets = tuple(step for step in case.scenario.resets if step <= steps)
    return replace(case.scenario, steps=steps, resets=resets)


def calibration_tables(
    asked: Asked,
    made: Mapping[str, ChipGraph],
    samples: Mapping[str, Sequence[Inputs]],
    toolchain: Toolchain,
    cache: Path,
    progress: Progress,
) -> dict[str, Path]:
    """Segment -> table, kept by the graph and the samples."""
    tables = {}
    with progress.stage(f"calibrating {asked.mode.name}", len(made)) as bar:
        for name, graph in made.items():
            onnx = graph.tapped if asked.level == "tapped" else graph.clean
            tables[name] = _table(name, onnx, samples.get(name, ()), toolchain, cache)
            bar.advance()
    return tables


def given_tables(path: Path, made: Mapping[str, ChipGraph]) -> dict[str, Path]:
    """Tables of a user's: a folder with one `SEGMENT_calibration.txt` each, or the one of a single graph."""
    if path.is_file() and len(made) == 1:
        return dict.fromkeys(made, path)
    found = {name: path / f"{name}_calibration.txt" for name in made}
    lacking = [file for file in found.values() if not file.is_file()]
    if lacking:
        raise UserError(f"table={str(path)!r}: should be a folder that has {lacking[0].name}")
    return found


def _table(name: str, onnx: bytes, samples: Sequence[Inputs], toolchain: Toolchain, cache: Path) -> Path:
    place = cache / "calibration" / f"{name}-{_digest(onnx, samples, toolchain)}.txt"
    if place.is_file():
        return place
    top = convert(name, onnx, toolchain, cache)
    with Interpreter(toolchain, top.mlir, cache / "logs" / f"calibrate-{name}") as interpreter:
        fed = ({key: np.ascontiguousarray(a, np.float32) for key, a in one.items()} for one in samples)
        found = ranges(map(interpreter.call, fed))
    facts = {"onnx": sha256(onnx), "net": name, "calibrator": OURS, "samples": str(len(samples))}
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = place.with_suffix(".tmp")
    write_calibration(draft, Calibration(found, facts))
    draft.replace(place)
    return place


def _digest(onnx: bytes, samples: Sequence[Inputs], toolchain: Toolchain) -> str:
    digest = hashlib.sha256(onnx + toolchain.version.encode())
    for sample in samples:
        for key, array in sorted(sample.items()):
            digest.update(f"{key} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:24]
