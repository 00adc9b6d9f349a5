"""From a case to a board package: exported, compiled, prefilled if its build needs that, written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from parity.harness.case import Case
from parity.harness.errors import UserError
from parity.harness.progress import Progress
from parity.harness.target import Options
from parity.harness.values import Values

from ...onnx.build import choose_segments
from ...onnx.session import plan_cache
from ...prefilled import collect
from ..asked import Asked
from ..calibrating import Inputs, calibration_tables, segment_inputs
from ..compile import Artefact
from ..executor import tensor_values
from ..graphs import ChipGraph, graphs, plain
from ..levels import compiled, onnx_executor
from ..toolchain import installed
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
    onnx = onnx_executor(made, Options(), case.model.taps)

    def samples() -> Mapping[str, Sequence[Inputs]]:
        return segment_inputs(case, wiring, rows, onnx, reference)

    with closing(onnx):
        tables = calibration_tables(asked, made, samples, toolchain, cache / "sophgo", progress)
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
