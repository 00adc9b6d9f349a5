"""One level of the way to a chip, ready to be called: ONNX, the compiler's interpreters, the simulator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parity.harness.case import Case, Wiring
from parity.harness.progress import Progress
from parity.harness.segmented import Executor
from parity.harness.target import Options
from parity.harness.values import Values

from ..onnx.build import choose_segments
from ..onnx.runtime import OnnxExecutor, Runtime
from ..onnx.session import CachePlan
from .asked import Asked
from .calibrating import Inputs, calibration_tables, given_tables, segment_inputs
from .compile import Artefact, CompileJob, Interpreter, compile_model
from .executor import InterpreterExecutor, SimExecutor
from .graphs import ChipGraph, graphs, plain
from .runner.client import Device
from .toolchain import Toolchain, installed

FUSED = "fused away or overwritten on the chip; the level `tapped` shows it"
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
    onnx = onnx_executor(made, options, case.model.taps)

    def samples() -> dict[str, list[Inputs]]:
        return segment_inputs(case, wiring, rows, onnx, reference)

    return _level(asked, made, onnx, samples, case.model.taps, cache, progress)


def whole_level(
    asked: Asked,
    graph: ChipGraph,
    feed: Inputs,
    options: Options,
    cache: Path,
    progress: Progress,
) -> Level:
    """The same for a graph that is called once, with these inputs."""
    made = {graph.segment.name: graph}
    order = (*graph.segment.taps, *graph.outputs)
    onnx = onnx_executor(made, options, order)
    return _level(asked, made, onnx, lambda: {graph.segment.name: [feed]}, order, cache, progress)


def onnx_executor(made: Mapping[str, ChipGraph], options: Options, order: Sequence[str]) -> OnnxExecutor:
    """The same graphs in ONNX Runtime."""
    segments = [graph.segment for graph in made.values()]
    builds = {name: graph.build for name, graph in made.items()}
    return OnnxExecutor(segments, builds, Runtime(options.threads), order)


def _level(
    asked: Asked,
    made: Mapping[str, ChipGraph],
    onnx: OnnxExecutor,
    samples: Callable[[], Mapping[str, Sequence[Inputs]]],
    order: Sequence[str],
    cache: Path,
    progress: Progress,
) -> Level:
    rank = {plain(tap): at for at, tap in enumerate(order)}
    if asked.level == "onnx":
        return Level(onnx, frozenset(rank), details=Runtime().facts())
    with ExitStack() as stack:
        stack.callback(onnx.close)
        toolchain, tables = installed(), {}
        if asked.table is not None:
            tables = given_tables(asked.table, made)
        elif asked.mode.calibrated:
            tables = calibration_tables(asked, made, samples(), toolchain, cache / "sophgo", progress)
        artefacts = compiled(asked, made, tables, toolchain, cache, progress)
    return _loaded(asked, made, artefacts, toolchain, rank, cache)


def compiled(
    asked: Asked,
    made: Mapping[str, ChipGraph],
    tables: Mapping[str, Path],
    toolchain: Toolchain,
    cache: Path,
    progress: Progress,
) -> dict[str, Artefact]:
    """Every segment's artefact, from the cache where it was compiled before."""
    artefacts = {}
    with progress.stage(f"compiling for {asked.chip.name} {asked.mode.name}", len(made)) as bar:
        for name, graph in made.items():
            tapped = asked.level == "tapped"
            job = CompileJob(
                name,
                graph.tapped if tapped else graph.clean,
                asked.chip.name,
                asked.mode.name,
                group_size=asked.group_size or None,
                calibration=tables.get(name),
                qtable=asked.qtable,
                outputs=(*graph.outputs, *graph.inner) if tapped else graph.outputs,
                taps=graph.taps,
            )
            artefacts[name] = compile_model(job, toolchain, cache / "sophgo", progress)
            bar.advance()
    return artefacts


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
    if asked.level in ("top", "tpu"):
        players = {
            name: Interpreter(toolchain, getattr(artefact, asked.level), logs / f"{asked.level}-{name}")
            for name, artefact in artefacts.items()
        }
        interpreted = InterpreterExecutor(made, artefacts, players, rank, asked.level)
        return Level(interpreted, frozenset(interpreted.shown()), NO_TENSOR, _said(artefacts), details)
    files = {name: artefact.file for name, artefact in artefacts.items()}
    tapped = asked.level == "tapped"
    inner = asked.chip.family == "cvi" and not tapped
    device = Device(asked.chip.name, files, toolchain, log=logs / f"{asked.chip.name}.log", all_tensors=inner)
    simulated = SimExecutor(made, artefacts, device, rank, tapped)
    return Level(simulated, frozenset(simulated.shown()), FUSED, _said(artefacts), details)


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
