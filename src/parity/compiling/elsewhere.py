"""A dry run: the folder that the vendor's own tools take, and the lines to run in it, as they stand."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from parity.harness.errors import UserError
from parity.targets.sophgo.compile.chips import Mode
from parity.targets.sophgo.compile.job import CompileJob
from parity.targets.sophgo.compile.tables import read_calibration

from .deliver import folder_name, qtables_of, tables_in
from .exports import Graph
from .files import FileGraphs
from .model import ModelGraphs
from .order import Order

if TYPE_CHECKING:
    from collections.abc import Sequence

    Inputs = Mapping[str, np.ndarray]


def sophgo_lines(
    order: Order, source: FileGraphs | ModelGraphs, graphs: Mapping[str, Graph], modes: Mapping[str, Mode]
) -> tuple[str, ...]:
    """TPU-MLIR's lines; graphs, tables and the samples of int8 that they name are written into the folder.

    UserError for tables that do not fit, int8 without samples, and a folder that cannot be written to.
    """
    from parity.targets.sophgo.compile.stock import stock_lines

    qtables = qtables_of(order, modes)
    calibrated = [name for name, mode in modes.items() if mode.calibrated]
    tables = _tables(order, calibrated)
    samples = source.samples() if calibrated and not tables else {}
    folder = _folder(order, {name: mode.name for name, mode in modes.items()})
    lines = [f"cd {shlex.quote(str(folder))}"]
    for name in graphs:
        data = source.content(name)
        (folder / f"{name}.onnx").write_bytes(data)
        table = _copied(tables.get(name), folder / f"{name}_calibration.txt")
        qtable = _copied(qtables.get(name), folder / f"{name}_qtable.txt")
        kept = samples.get(name, ()) if modes[name].calibrated else ()
        _write_samples(folder / f"{name}_samples", kept)
        size = order.group_size if modes[name].group_size else None
        job = CompileJob(name, data, order.row.name, modes[name].name, size, table, qtable)
        lines += stock_lines(job, samples=len(kept))
    return tuple(lines)


def ascend_lines(
    order: Order, source: FileGraphs | ModelGraphs, graphs: Mapping[str, Graph]
) -> tuple[str, ...]:
    """The lines for Ascend's compiler; `--mode` is its precision mode. The graphs are written."""
    from parity.targets.ascend import atc_lines

    sources = {name: source.content(name) for name in graphs}
    plan = (
        atc_lines(sources, order.chip)
        if order.mode is None
        else atc_lines(sources, order.chip, precision=order.mode)
    )
    folder = _folder(order, dict.fromkeys(graphs, order.mode or "origin"))
    for name, data in sources.items():
        (folder / f"{name}.onnx").write_bytes(data)
    findings = (f"# {finding}" for finding in plan.findings)
    return (f"cd {shlex.quote(str(folder))}", *plan.lines, *findings)


def _tables(order: Order, calibrated: Sequence[str]) -> dict[str, Path]:
    """Name -> table of the user's, each read once, so that a bad one is said here."""
    if order.calibration is None:
        return {}
    found = tables_in("calibration", order.calibration, calibrated, "calibration.txt")
    for path in found.values():
        read_calibration(path)
    lacking = [name for name in calibrated if name not in found]
    if lacking:
        raise UserError(f"calibration={str(order.calibration)!r}: holds no {lacking[0]}_calibration.txt")
    return found


def _folder(order: Order, modes: Mapping[str, str]) -> Path:
    folder = order.out or Path(folder_name(order, modes))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _copied(source: Path | None, place: Path) -> Path | None:
    """A table under the name that a line gives it: bare, since the lines run in the folder."""
    if source is None:
        return None
    if not (place.exists() and place.samefile(source)):
        shutil.copyfile(source, place)
    return Path(place.name)


def _write_samples(folder: Path, samples: Sequence[Inputs]) -> None:
    """One .npz per call; those of an earlier dry run go."""
    if not samples:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for at, sample in enumerate(samples):
        np.savez(folder / f"{at:03}.npz", **sample)  # type: ignore[arg-type]
