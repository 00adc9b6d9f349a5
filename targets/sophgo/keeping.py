"""Mixed precision as the compiler's own tables: every operator of some segments kept in a float format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from parity.harness.errors import UserError
from parity.harness.segmented import Executor

from .asked import ENDING
from .compile import Artefact
from .compile.chips import chip_named
from .compile.mlir import read_graph
from .compile.names import tensors
from .compile.tables import write_qtable
from .executor import SimExecutor

#: What is no operator that computes.
_STILL = ("top.Input", "top.Weight", "top.None")


def write_tables(executor: Executor, segments: Sequence[str], folder: Path) -> list[Path]:
    """One `SEGMENT_qtable.txt` for each of the segments, naming all of its operators."""
    if not isinstance(executor, SimExecutor):
        raise UserError(
            "qtable: needs compiled segments; leave the level (onnx, top, tpu) out of the candidate"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"qtable={str(folder)!r}: cannot be made ({error.strerror}); name another") from error
    written = []
    for name in segments:
        path = folder / f"{name}{ENDING}"
        artefact = executor.artefacts[name]
        write_qtable(path, dict.fromkeys(operators(artefact), kept_format(artefact)))
        written.append(path)
    return written


def operators(artefact: Artefact) -> list[str]:
    """Names that the compiler knows the operators of a graph by."""
    return [name for name, at, op in tensors(read_graph(artefact.top)) if at == 0 and op.kind not in _STILL]


def kept_format(artefact: Artefact) -> str:
    """The widest float format that the chip mixes with codes."""
    modes = chip_named(str(artefact.manifest["chip"])).modes
    return next(word.upper() for word in ("f16", "bf16", "f32") if word in modes)
