"""The artefact of a job: out of the cache where this very job was compiled before, else by the compiler."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.harness.errors import UserError
from parity.harness.progress import Progress

from . import arguments, manifest
from .chips import Chip, Mode
from .finding import Finding
from .job import Artefact, CompileJob, sha256
from .tables import check_formats, read_calibration, read_qtable

if TYPE_CHECKING:
    from ..toolchain import Toolchain

#: Bare names of the tables in a work folder.
CALIBRATION, QTABLE = "calibration_table.txt", "qtable.txt"


def nothing() -> None:
    """What is done while the compiler runs, where nobody waits."""


def compile_model(
    job: CompileJob,
    toolchain: Toolchain,
    cache: Path,
    progress: Progress,
    *,
    beat: Callable[[], None] = nothing,
) -> Artefact:
    """The artefact of a job, from the cache if this very job was compiled before.

    UserError for what the chip has not, for tables of another graph, for names that cannot be; CandidateError
    with the compiler's own reason where it fails, and where it silently took another number format.
    """
    graph = job.graph()
    digest = sha256(graph)
    found = stored_artefact(job, digest, toolchain, cache)
    if found is not None:
        _warn(job, [Finding(**entry) for entry in found.manifest["lint"]], progress)
        return found
    from .compilation import Compilation
    from .linter import lint
    from .top import convert

    chip, mode, group_size = job.checked()
    findings = tuple(lint(graph, chip.name, mode.name, taps=job.taps))
    _warn(job, findings, progress)
    top = convert(job.name, graph, toolchain, cache, beat, taps=job.taps)
    for note in top.notes:
        progress.say(f"{job.name}: {note}")
    made = Compilation(job, chip, mode, group_size, graph, digest, top, toolchain, beat, findings)
    return made.run(place_of(job, digest, toolchain, cache))


def stored_artefact(job: CompileJob, onnx_digest: str, toolchain: Toolchain, cache: Path) -> Artefact | None:
    """The artefact of a job whose graph has this digest (SHA-256), if it lies whole in the cache."""
    chip, mode, _ = job.checked()
    _check_tables(job, chip, mode)
    return artefact_in(place_of(job, onnx_digest, toolchain, cache), chip, job.name)


def artefact_in(place: Path, chip: Chip, name: str) -> Artefact | None:
    """The artefact that lies in a folder, if it is whole."""
    data = manifest.read(place)
    return None if data is None else _artefact(place, chip, name, data)


def lowering(job: CompileJob, group_size: int) -> arguments.Lowering:
    """What decides a job's number formats."""
    return arguments.Lowering(
        job.chip,
        job.mode.upper(),
        group_size,
        CALIBRATION if job.calibration else None,
        QTABLE if job.qtable else None,
    )


def _artefact(place: Path, chip: Chip, name: str, data: dict[str, Any]) -> Artefact:
    files = arguments.Files(name, chip.suffix)
    return Artefact(
        place, place / files.artefact, place / files.top, place / files.tpu, place / files.final, data
    )


def _warn(job: CompileJob, findings: Sequence[Finding], progress: Progress) -> None:
    """Say what is known to go wrong; it is tried all the same."""
    for finding in findings:
        progress.say(f"{job.name}: {finding}")


def _check_tables(job: CompileJob, chip: Chip, mode: Mode) -> None:
    if mode.calibrated and job.calibration is None:
        raise UserError(
            f"calibration: mode {mode.name} needs the ranges of the activations; "
            "calibrate first, or name a table"
        )
    if not mode.calibrated and job.calibration is not None:
        raise UserError(f"calibration={str(job.calibration)!r}: mode {mode.name} takes none; leave it out")
    if job.calibration is not None:
        read_calibration(job.calibration)
    if job.qtable is not None:
        check_formats(job.qtable, read_qtable(job.qtable), chip, mode)


def place_of(job: CompileJob, onnx_digest: str, toolchain: Toolchain, cache: Path) -> Path:
    """The folder of a job, named after everything that decides what the compiler writes into it."""
    chip, mode, group_size = job.checked()
    files = arguments.Files(job.name, chip.suffix)
    tables = {
        name: sha256(path.read_bytes()) if path is not None and path.is_file() else None
        for name, path in ((CALIBRATION, job.calibration), (QTABLE, job.qtable))
    }
    plain = {
        "layout": manifest.VERSION,
        "toolchain": toolchain.version,
        "onnx": onnx_digest,
        "lowering": arguments.lower(files, "", lowering(job, group_size)),
        "layout_passes": arguments.lay_out(files),
        "codegen": arguments.generate(files),
        "tables": tables,
        "outputs": job.outputs,
        "taps": sorted(job.taps.items()),
    }
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:24]
    return cache.absolute() / "artefacts" / f"{job.name}-{chip.name}-{mode.name}-{digest}"
