"""Puts artefacts where a person wants them: the files, their tables, one manifest, one combined file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.harness.errors import UserError
from parity.targets.sophgo.compile.artefact import CALIBRATION, QTABLE
from parity.targets.sophgo.compile.chips import Mode
from parity.targets.sophgo.compile.job import Artefact
from parity.targets.sophgo.compile.tables import check_formats, read_qtable

from .files import FileGraphs
from .model import ModelGraphs
from .order import Order

if TYPE_CHECKING:
    from parity.targets.sophgo.toolchain import Toolchain

KIND, VERSION = "parity-compiled", 1


def deliver(
    order: Order,
    source: FileGraphs | ModelGraphs,
    artefacts: Sequence[Artefact],
    toolchain: Toolchain,
    cache: Path,
) -> tuple[Path, Path | None]:
    """The folder, and the combined file if one was asked for. UserError where it cannot be written."""
    folder = order.out or Path(_name(order, artefacts))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for artefact in artefacts:
            _place(artefact.file, folder / artefact.file.name)
            for table, suffix in ((CALIBRATION, "calibration.txt"), (QTABLE, "qtable.txt")):
                if (artefact.folder / table).is_file():
                    _place(artefact.folder / table, folder / f"{artefact.manifest['name']}_{suffix}")
        combined = _combined(order, artefacts, toolchain, cache, folder) if order.combine else None
        _write(folder / "manifest.json", _manifest(order, source, artefacts, combined))
    except OSError as error:
        raise UserError(
            f"out={str(folder)!r}: cannot be written ({error.strerror}); choose another folder"
        ) from error
    return folder, combined


def tables_in(what: str, path: Path, names: Collection[str], ending: str) -> dict[str, Path]:
    """Name -> table: the file for an only graph, or those of a folder called `NAME_<ending>`."""
    if path.is_file():
        if len(names) == 1:
            return dict.fromkeys(names, path)
        raise UserError(
            f"{what}={str(path)!r}: is one table for {len(names)} graphs; give a folder with one "
            f"NAME_{ending} each, or choose a graph by --segments"
        )
    if not path.is_dir():
        raise UserError(f"{what}={str(path)!r}: there is no such file or folder")
    found = {name: path / f"{name}_{ending}" for name in names if (path / f"{name}_{ending}").is_file()}
    if not found:
        raise UserError(f"{what}={str(path)!r}: holds no {next(iter(names))}_{ending}")
    return found


def qtables_of(order: Order, modes: Mapping[str, Mode]) -> dict[str, Path]:
    """Name -> qtable, for the graphs that have one. UserError for formats that the chip has not."""
    if order.qtable is None:
        return {}
    found = tables_in("qtable", order.qtable, modes, QTABLE)
    for name, path in found.items():
        check_formats(path, read_qtable(path), order.row, modes[name])
    return found


def folder_name(order: Order, modes: Mapping[str, str]) -> str:
    """`klm-cv181x-bf16`, for the name and mode of each graph; several modes are `mixed`."""
    kinds = set(modes.values())
    whose = next(iter(modes)) if order.files else order.model_name
    return f"{whose}-{order.chip}-{kinds.pop() if len(kinds) == 1 else 'mixed'}"


def _name(order: Order, artefacts: Sequence[Artefact]) -> str:
    return folder_name(order, {one.manifest["name"]: one.manifest["mode"] for one in artefacts})


def _combined(
    order: Order, artefacts: Sequence[Artefact], toolchain: Toolchain, cache: Path, folder: Path
) -> Path:
    from parity.targets.sophgo.compile import combine

    place = folder / f"{_name(order, artefacts)}{order.row.suffix}"
    return combine(artefacts, place, toolchain, cache / "logs" / f"combine-{os.getpid()}")


def _manifest(
    order: Order, source: FileGraphs | ModelGraphs, artefacts: Sequence[Artefact], combined: Path | None
) -> dict[str, Any]:
    facts: dict[str, Any] = {"format": KIND, "version": VERSION, "chip": order.row.name}
    if isinstance(source, ModelGraphs):
        facts |= {"model": order.model_name, "weights": order.weights, "rows": source.rows}
        facts |= {"masked": order.masked, "tapped": order.tapped}
    return {
        **facts,
        "combined": combined and combined.name,
        "segments": {artefact.manifest["name"]: artefact.manifest for artefact in artefacts},
    }


def _place(source: Path, place: Path) -> None:
    """Beside, then renamed: what a board or a run reads meanwhile stays whole."""
    beside = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        shutil.copyfile(source, beside)
        beside.replace(place)
    finally:
        beside.unlink(missing_ok=True)


def _write(place: Path, data: Any) -> None:
    beside = place.with_name(f".{place.name}.{os.getpid()}")
    beside.write_text(json.dumps(data, indent=1))
    beside.replace(place)
