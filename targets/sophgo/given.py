"""Calibration tables of a user's: which graph they fit, what they lack, and what they name for nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from parity.harness.errors import UserError

from .asked import Asked
from .compile import store
from .compile.job import sha256
from .compile.mlir import read_graph
from .compile.names import tensors
from .compile.tables import Calibration, check_calibration, read_calibration, write_calibration
from .compile.top import convert
from .graphs import ChipGraph
from .toolchain import Toolchain

#: Names that are printed of a long list.
SHOWN = 6


def given_tables(
    asked: Asked, made: Mapping[str, ChipGraph], toolchain: Toolchain, cache: Path
) -> dict[str, Path]:
    """Segment -> table: a folder with one `SEGMENT_calibration.txt` each, or the one of a single graph.

    A table that was made for a clean graph serves its instrumented build too, if it has all its tensors.
    UserError for one that lacks some.
    """
    assert asked.table is not None
    files = _files(asked.table, made)
    if asked.level != "tapped":
        return files
    return {name: _instrumented(file, made[name], toolchain, cache) for name, file in files.items()}


def unmatched(
    asked: Asked, made: Mapping[str, ChipGraph], toolchain: Toolchain, cache: Path
) -> tuple[str, ...]:
    """A sentence for every table of the user's that has names which the compiler passes over in silence."""
    if asked.table is None:
        return ()
    told = []
    for name, file in _files(asked.table, made).items():
        known = set(_tensors(name, _graph(asked, made[name]), toolchain, cache))
        lost = [tensor for tensor in read_calibration(file).thresholds if tensor not in known]
        if lost:
            shown = ", ".join(lost[:SHOWN]) + (f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else "")
            told.append(f"{file.name}: {len(lost)} of its names are no tensor of {name}'s graph: {shown}")
    return tuple(told)


def _files(path: Path, made: Mapping[str, ChipGraph]) -> dict[str, Path]:
    if path.is_file() and len(made) == 1:
        return dict.fromkeys(made, path)
    found = {name: path / f"{name}_calibration.txt" for name in made}
    lacking = [file for file in found.values() if not file.is_file()]
    if lacking:
        raise UserError(f"table={str(path)!r}: should be a folder that has {lacking[0].name}")
    return found


def _graph(asked: Asked, graph: ChipGraph) -> bytes:
    return graph.tapped if asked.level == "tapped" else graph.clean


def _tensors(name: str, onnx: bytes, toolchain: Toolchain, cache: Path) -> list[str]:
    return [tensor for tensor, *_ in tensors(read_graph(convert(name, onnx, toolchain, cache).mlir))]


def _instrumented(file: Path, graph: ChipGraph, toolchain: Toolchain, cache: Path) -> Path:
    """The table as one of the instrumented build, where it says that it is of the clean graph."""
    table, clean = read_calibration(file), sha256(graph.clean)
    if table.facts.get("onnx") != clean:
        return file
    name = graph.segment.name
    check_calibration(file, table, clean, _tensors(name, graph.tapped, toolchain, cache))
    own = sha256(graph.tapped)
    place = cache.absolute() / "calibration" / f"{name}-given-{sha256(file.read_bytes())[:12]}-{own[:12]}.txt"
    with store.fresh(place.parent, place.stem) as folder:
        write_calibration(folder / place.name, Calibration(table.thresholds, {**table.facts, "onnx": own}))
        os.replace(folder / place.name, place)
    return place
