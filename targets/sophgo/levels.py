"""One level of the way to a chip, ready to be called: ONNX, the compiler's interpreters, the simulator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from parity.harness.case import Case, Wiring, plan
from parity.harness.progress import Progress
from parity.harness.segmented import Executor
from parity.harness.target import Options
from parity.harness.values import Values

from ..onnx.build import choose_segments
from ..onnx.executor import OnnxExecutor
from ..onnx.runtime import Runtime
from ..onnx.session import CachePlan
from .asked import Asked, qtables
from .calibrating import Inputs, calibration_tables, segment_inputs
from .compile import Artefact, CompileJob, Interpreter, compile_model
from .compile.estimate import announce
from .compile.job import Top
from .compile.mlir import read_graph
from .compile.names import holding
from .compile.top import convert
from .executor import InterpreterExecutor, SimExecutor
from .given import unmatched
from .graphs import ChipGraph, graphs, plain, with_taps
from .interpreting import Instrumented, interpreted
from .runner.client import Device
from .toolchain import Toolchain, installed

#: Steps at which segments are also run on the reference's inputs: a simulator is slow.
ISOLATED_STEPS = 4
#: Seconds of one segment on a simulator, and for each megabyte of its graph; measured on 2 cores.
SECONDS = {"cvi": (0.02, 0.012), "bm": (1.0, 0.18)}
FUSED = "fused away or overwritten on the chip; the level `tapped` may show it"
NO_TENSOR = "fused into another operator by the compiler"


@dataclass(frozen=True)
class Level:
    """What runs the segments, which taps it shows, and why it hides the others."""

    executor: Executor
    shown: frozenset[str]
    why_hidden: str = ""
    substitutions: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


def prepare_level(
    case: Case,
    asked: Asked,
    wiring: Wiring,
    rows: CachePlan,
    options: Options,
    reference: Values | None,
    cache: Path,
    progress: Progress,
) -> Level:
    """Export every segment of a model, compile it as far as the level needs, and load it."""
    chosen = choose_segments(None, wiring)
    with progress.stage("exporting", 1) as bar:
        made = graphs(case, wiring, chosen, masked=rows.masked, rows=rows.rows, cache=cache / "onnx")
        bar.advance()

    if asked.level == "tapped" and asked.table is not None:
        toolchain = installed()
        made = {name: _convertible(asked, graph, toolchain, cache, progress) for name, graph in made.items()}

    def onnx() -> OnnxExecutor:
        return onnx_executor(made, options, case.model.taps)

    def samples() -> dict[str, list[Inputs]]:
        with closing(onnx()) as executor:
            return segment_inputs(case, wiring, rows, executor, reference)

    if asked.level in ("sim", "tapped"):
        progress.say(_expectation(case, asked, made))
    return _level(asked, made, onnx, samples, case.model.taps, cache, progress)


def _expectation(case: Case, asked: Asked, made: Mapping[str, ChipGraph]) -> str:
    """How long the simulator will take, in words."""
    each, per_mb = SECONDS[asked.chip.family]
    once = sum(each + per_mb * len(graph.clean) / 1e6 for graph in made.values())
    decodes = sum(step.kind == "decode" for step in plan(case.scenario))
    passes = decodes + len(isolated_steps(case))
    seconds = passes * once * case.scenario.batch
    return f"{asked.chip.name}: about {max(1, round(seconds))} s on its simulator ({passes} passes)"


def isolated_steps(case: Case) -> tuple[int, ...]:
    """The first and the last decode step and some between."""
    decodes = [step.index for step in plan(case.scenario) if step.kind == "decode"]
    if len(decodes) <= ISOLATED_STEPS:
        return tuple(decodes)
    places = np.linspace(0, len(decodes) - 1, ISOLATED_STEPS).round().astype(int)
    return tuple(decodes[place] for place in places)


def whole_level(
    asked: Asked,
    graph: ChipGraph,
    feed: Inputs,
    options: Options,
    cache: Path,
    progress: Progress,
) -> Level:
    """The same for a graph that is called once, with these inputs."""
    order = (*graph.segment.taps, *graph.outputs)
    if asked.level == "tapped":
        graph = _convertible(asked, graph, installed(), cache, progress)
    made = {graph.segment.name: graph}
    onnx = partial(onnx_executor, made, options, order)
    return _level(asked, made, onnx, lambda: {graph.segment.name: [feed]}, order, cache, progress)


def _convertible(
    asked: Asked, graph: ChipGraph, toolchain: Toolchain, cache: Path, progress: Progress
) -> ChipGraph:
    """With those taps alone that the converter makes tensors of: it cannot hand out what it fuses.

    Beside a table of the user's, those that are tensors of the clean graph too: the table names no others.
    """
    top = converted({graph.segment.name: graph}, toolchain, cache, progress)[graph.segment.name]
    if asked.table is None:
        return with_taps(graph, top.values)
    return with_taps(graph, holding(read_graph(top.mlir), top.values, graph.outputs))


def onnx_executor(made: Mapping[str, ChipGraph], options: Options, order: Sequence[str]) -> OnnxExecutor:
    """The same graphs in ONNX Runtime."""
    segments = [graph.segment for graph in made.values()]
    builds = {name: graph.build for name, graph in made.items()}
    return OnnxExecutor(segments, builds, Runtime(options.threads), order)


def _level(
    asked: Asked,
    made: Mapping[str, ChipGraph],
    onnx: Callable[[], OnnxExecutor],
    samples: Callable[[], Mapping[str, Sequence[Inputs]]],
    order: Sequence[str],
    cache: Path,
    progress: Progress,
) -> Level:
    rank = {plain(tap): at for at, tap in enumerate(order)}
    if asked.level == "onnx":
        return Level(onnx(), frozenset(rank), details=Runtime().facts())
    toolchain = installed()
    if asked.level == "top":
        return _float(made, converted(made, toolchain, cache, progress), toolchain, rank, cache)

    def built(asked: Asked, made: Mapping[str, ChipGraph]) -> dict[str, Artefact]:
        tables = calibration_tables(asked, made, samples, toolchain, cache / "sophgo", progress)
        return compiled(asked, made, tables, toolchain, cache, progress)

    def instrumented(name: str) -> tuple[ChipGraph, Artefact]:
        graph = _convertible(asked, made[name], toolchain, cache, progress)
        return graph, built(replace(asked, level="tapped"), {name: graph})[name]

    artefacts = built(asked, made)
    if asked.level == "tpu":
        level = _quantized(asked, made, artefacts, instrumented, toolchain, rank, cache)
    else:
        level = _loaded(asked, made, artefacts, toolchain, rank, cache)
    warnings = list(unmatched(asked, made, toolchain, cache / "sophgo"))
    return replace(level, details={**level.details, "warnings": warnings}) if warnings else level


def compiled(
    asked: Asked,
    made: Mapping[str, ChipGraph],
    tables: Mapping[str, Path],
    toolchain: Toolchain,
    cache: Path,
    progress: Progress,
) -> dict[str, Artefact]:
    """Every segment's artefact, from the cache where it was compiled before.

    What the others will take is said first; UserError where the disk has no room for it.
    """
    tapped, kept = asked.level == "tapped", qtables(asked.qtable, made)
    jobs = [
        CompileJob(
            name,
            graph.tapped if tapped else graph.clean,
            asked.chip.name,
            asked.mode.name,
            group_size=asked.group_size or None,
            calibration=tables.get(name),
            qtable=kept.get(name),
            outputs=(*graph.outputs, *graph.inner) if tapped else graph.outputs,
            taps=graph.taps,
        )
        for name, graph in made.items()
    ]
    announce(jobs, toolchain, cache / "sophgo", progress)
    artefacts = {}
    with progress.stage(f"compiling for {asked.chip.name} {asked.mode.name}", len(made)) as bar:
        for job in jobs:
            artefacts[job.name] = compile_model(job, toolchain, cache / "sophgo", progress)
            bar.advance()
    return artefacts


def converted(
    made: Mapping[str, ChipGraph], toolchain: Toolchain, cache: Path, progress: Progress
) -> dict[str, Top]:
    """Every segment's float graph: what the compiler starts from, whatever it makes of it later."""
    tops = {}
    with progress.stage("converting", len(made)) as bar:
        for name, graph in made.items():
            tops[name] = convert(name, graph.clean, toolchain, cache / "sophgo", taps=graph.taps)
            bar.advance()
    return tops


def _float(
    made: Mapping[str, ChipGraph],
    tops: Mapping[str, Top],
    toolchain: Toolchain,
    rank: Mapping[str, int],
    cache: Path,
) -> Level:
    """The converter's graphs in the interpreter: nothing of chip and mode is in them."""
    players, held = {}, {}
    for name, top in tops.items():
        players[name] = Interpreter(toolchain, top.mlir, cache / "sophgo" / "logs" / f"top-{name}")
        held[name] = holding(read_graph(top.mlir), top.values, made[name].outputs)
    executor = InterpreterExecutor(made, held, players, rank)
    notes = tuple(dict.fromkeys(note for top in tops.values() for note in top.notes))
    details = {"toolchain": toolchain.version, "instrumented": False}
    return Level(executor, frozenset(executor.shown()), NO_TENSOR, notes, details)


def _quantized(
    asked: Asked,
    made: Mapping[str, ChipGraph],
    artefacts: Mapping[str, Artefact],
    instrumented: Instrumented,
    toolchain: Toolchain,
    rank: Mapping[str, int],
    cache: Path,
) -> Level:
    """The quantized graphs in the interpreter; `stand_ins` in the details where others are in their place."""
    found = interpreted(made, artefacts, instrumented, toolchain, cache / "sophgo" / "logs")
    executor = InterpreterExecutor(found.graphs, found.held, found.players, rank)
    details = {**_details(asked, artefacts, toolchain), "stand_ins": list(found.stand_ins)}
    notes = (*_said(artefacts), *found.stand_ins)
    return Level(executor, frozenset(executor.shown()), NO_TENSOR, notes, details)


def _loaded(
    asked: Asked,
    made: Mapping[str, ChipGraph],
    artefacts: Mapping[str, Artefact],
    toolchain: Toolchain,
    rank: Mapping[str, int],
    cache: Path,
) -> Level:
    logs = cache / "sophgo" / "logs"
    details = _details(asked, artefacts, toolchain)
    files = {name: artefact.file for name, artefact in artefacts.items()}
    tapped = asked.level == "tapped"
    inner = asked.chip.family == "cvi" and not tapped
    device = Device(asked.chip.name, files, toolchain, log=logs / f"{asked.chip.name}.log", all_tensors=inner)
    simulated = SimExecutor(made, artefacts, device, rank, tapped)
    why = NO_TENSOR if tapped else FUSED
    return Level(simulated, frozenset(simulated.shown()), why, _said(artefacts), details)


def _details(asked: Asked, artefacts: Mapping[str, Artefact], toolchain: Toolchain) -> dict[str, Any]:
    """Effective number formats as the compiler left them, counted over all segments."""
    formats: dict[str, int] = {}
    for artefact in artefacts.values():
        for name, count in artefact.manifest["formats"].items():
            formats[name] = formats.get(name, 0) + count
    return {
        "toolchain": toolchain.version,
        "effective_formats": formats,
        "artefacts": {name: artefact.manifest["sha256"] for name, artefact in artefacts.items()},
        "instrumented": asked.level == "tapped",
    }


def _said(artefacts: Mapping[str, Artefact]) -> tuple[str, ...]:
    """Notes of the compiler's side, each once."""
    notes = (note for artefact in artefacts.values() for note in artefact.manifest.get("notes", ()))
    return tuple(dict.fromkeys(notes))
