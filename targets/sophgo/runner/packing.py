"""From a case to a board package: exported, compiled, prefilled if its build needs that, written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from parity.harness.case import Case, Wiring
from parity.harness.errors import UserError
from parity.harness.progress import Progress
from parity.harness.values import Values

from ...onnx.build import choose_segments
from ...onnx.runtime import OnnxExecutor, Runtime
from ...onnx.session import CachePlan, plan_cache
from ...prefilled import collect
from ..asked import Asked
from ..calibrating import calibration_tables, given_tables, segment_inputs
from ..compile import Artefact
from ..executor import tensor_values
from ..graphs import ChipGraph, graphs, plain
from ..levels import compiled
from ..toolchain import Toolchain, installed
from .package import ROPE_ROWS, BoardModel, Build, Shown, write_package


def pack(
    folder: Path,
    case: Case,
    asked: Asked,
    reference: Values,
    *,
    free: bool,
    cache: Path,
    progress: Progress,
    rope_rows: int = ROPE_ROWS,
) -> Path:
    """Write the package of a case into `folder`; what was compiled before comes from the cache.

    The board is fed the reference's tokens, or with `free` its own. UserError for what a board cannot step.
    """
    check(asked)
    toolchain = installed()
    rows = plan_cache(case, masked=asked.masked, reference=True)
    wiring = case.model.masked_wiring if rows.masked else case.model.wiring
    chosen = choose_segments(None, wiring)
    made = graphs(case, wiring, chosen, masked=rows.masked, rows=rows.rows, cache=cache / "onnx")
    tables = _tables(case, asked, wiring, rows, made, reference, toolchain, cache, progress)
    artefacts = compiled(asked, made, tables, toolchain, cache, progress)
    inner = asked.chip.family == "cvi" and asked.level == "sim"
    build = Build(
        asked.chip.name,
        wiring,
        rows.rows,
        {name: _model(made[name], artefact, asked, inner=inner) for name, artefact in artefacts.items()},
        all_tensors=inner,
        facts={"mode": asked.mode.name, "level": asked.level, "toolchain": toolchain.version},
    )
    return write_package(
        folder,
        case,
        build,
        prefilled=collect(case, reference, rope_rows=rope_rows) if rows.hosted else None,
        forced=reference,
        free=free,
        rope_rows=rope_rows,
    )


def check(asked: Asked) -> None:
    """UserError for what is no build of a board."""
    if asked.path is not None or asked.level not in ("sim", "tapped"):
        raise UserError(f"cand: a board runs compiled models; leave out {str(asked.path or asked.level)!r}")


def _tables(
    case: Case,
    asked: Asked,
    wiring: Wiring,
    rows: CachePlan,
    made: Mapping[str, ChipGraph],
    reference: Values,
    toolchain: Toolchain,
    cache: Path,
    progress: Progress,
) -> Mapping[str, Path]:
    """Calibration, where the mode needs it."""
    if asked.table is not None:
        return given_tables(asked.table, made)
    if not asked.mode.calibrated:
        return {}
    builds = {name: graph.build for name, graph in made.items()}
    onnx = OnnxExecutor(wiring.segments, builds, Runtime(None), case.model.taps)
    try:
        samples = segment_inputs(case, wiring, rows, onnx, reference)
    finally:
        onnx.close()
    return calibration_tables(asked, made, samples, toolchain, cache / "sophgo", progress)


def _model(graph: ChipGraph, artefact: Artefact, asked: Asked, *, inner: bool) -> BoardModel:
    tapped = asked.level == "tapped"
    outputs = (*graph.outputs, *graph.inner) if tapped else graph.outputs
    known = tensor_values(artefact, "final").items() if inner else ()
    return BoardModel(
        artefact.file,
        [_shown(graph, value) for value in outputs],
        {tensor: _shown(graph, value) for tensor, value in known if value in graph.inner},
    )


def _shown(graph: ChipGraph, value: str) -> Shown:
    return Shown(plain(value), graph.axes[value], graph.shapes[value])
