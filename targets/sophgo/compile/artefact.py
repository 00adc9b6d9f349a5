"""A job through the compiler: lowered, laid out, generated, read back. Whole in the cache or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.harness.errors import CandidateError, UserError
from parity.harness.progress import Progress

from . import arguments, crash, manifest, process, store
from .chips import Chip, Mode
from .formats import Effective, effective
from .job import Artefact, CompileJob, Top, sha256
from .lint import Finding, lint
from .mlir import read_graph
from .names import Names, tensors
from .opset import load
from .tables import check_calibration, check_qtable, read_calibration, read_qtable
from .top import convert

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
    chip, mode, group_size = job.checked()
    graph = job.graph()
    _check_tables(job, mode)
    place = (
        cache
        / "artefacts"
        / f"{job.name}-{chip.name}-{mode.name}-{_digest(job, group_size, graph, toolchain)}"
    )
    found = stored(place, chip, job.name)
    if found is not None:
        _warn(job, [Finding(**entry) for entry in found.manifest["lint"]], progress)
        return found
    findings = tuple(lint(graph, chip.name, mode.name, taps=job.taps))
    _warn(job, findings, progress)
    top = convert(job.name, graph, toolchain, cache, beat, taps=job.taps)
    for note in top.notes:
        progress.say(f"{job.name}: {note}")
    return _Compilation(job, chip, mode, group_size, graph, top, toolchain, beat, findings).run(place)


def _warn(job: CompileJob, findings: Sequence[Finding], progress: Progress) -> None:
    """Say what is known to go wrong; it is tried all the same."""
    for finding in findings:
        progress.say(f"{job.name}: {finding}")


def stored(place: Path, chip: Chip, name: str) -> Artefact | None:
    """The artefact that lies in a folder, if it is whole."""
    data = manifest.read(place)
    return None if data is None else _artefact(place, chip, name, data)


def _artefact(place: Path, chip: Chip, name: str, data: dict[str, Any]) -> Artefact:
    files = arguments.Files(name, chip.suffix)
    return Artefact(
        place, place / files.artefact, place / files.top, place / files.tpu, place / files.final, data
    )


def _check_tables(job: CompileJob, mode: Mode) -> None:
    if mode.calibrated and job.calibration is None:
        raise UserError(
            f"calibration: mode {mode.name} needs the ranges of the activations; "
            "calibrate first, or name a table"
        )
    if not mode.calibrated and job.calibration is not None:
        raise UserError(f"calibration={str(job.calibration)!r}: mode {mode.name} takes none; leave it out")


def _digest(job: CompileJob, group_size: int, graph: bytes, toolchain: Toolchain) -> str:
    """Everything that decides what the compiler writes and what the manifest says."""
    files = arguments.Files(job.name, "")
    tables = {
        name: sha256(path.read_bytes()) if path is not None and path.is_file() else None
        for name, path in ((CALIBRATION, job.calibration), (QTABLE, job.qtable))
    }
    plain = {
        "layout": manifest.VERSION,
        "toolchain": toolchain.version,
        "onnx": sha256(graph),
        "lowering": arguments.lower(files, "", _lowering(job, group_size)),
        "layout_passes": arguments.lay_out(files),
        "codegen": arguments.generate(files),
        "tables": tables,
        "outputs": job.outputs,
        "taps": sorted(job.taps.items()),
    }
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:24]


def _lowering(job: CompileJob, group_size: int) -> arguments.Lowering:
    return arguments.Lowering(
        job.chip,
        job.mode.upper(),
        group_size,
        CALIBRATION if job.calibration else None,
        QTABLE if job.qtable else None,
    )


@dataclass(frozen=True)
class _Compilation:
    """One job on its way."""

    job: CompileJob
    chip: Chip
    mode: Mode
    group_size: int
    graph: bytes
    top: Top
    toolchain: Toolchain
    beat: Callable[[], None]
    findings: tuple[Finding, ...]

    def run(self, place: Path) -> Artefact:
        """Make the folder and put it in its place."""
        store.discard(place)
        with store.fresh(place.parent, place.name) as folder:
            self._bring(folder)
            seconds = {"convert": self.top.seconds}
            for stage, command in self._stages():
                ended = process.run(
                    [self.toolchain.tool("tpuc-opt"), *command],
                    env=self.toolchain.environment(self.chip.name, folder),
                    cwd=folder,
                    log=folder / "log.txt",
                    beat=self.beat,
                )
                if ended.status:
                    kept = store.keep(folder, place.with_name(f"{place.name}.failed"))
                    raise crash.compiler(self._where, stage, ended, kept / "log.txt", self._known())
                seconds[stage] = ended.seconds
            made = self._read_back(folder, seconds)
            self._tidy(folder)
            manifest.write(folder, made)
            store.publish(folder, place)
        found = stored(place, self.chip, self.job.name)
        if found is None:
            raise CandidateError(f"{self._where}: {place} was taken away while it was made; try again")
        return found

    def _known(self) -> crash.Known:
        onnx_of = {tensor: value for value, tensor in self.top.values.items()}
        return crash.Known(read_graph(self.top.mlir), onnx_of, self.job.taps, self.findings)

    @property
    def _where(self) -> str:
        return f"{self.job.name} ({self.chip.name}, {self.mode.name})"

    @property
    def _files(self) -> arguments.Files:
        return arguments.Files(self.job.name, self.chip.suffix)

    def _stages(self) -> list[tuple[str, list[str]]]:
        files = self._files
        return [
            ("lowering", arguments.lower(files, files.top, _lowering(self.job, self.group_size))),
            ("layout", arguments.lay_out(files)),
            ("codegen", arguments.generate(files)),
        ]

    def _bring(self, folder: Path) -> None:
        """The Top graph and its weights, linked; the tables, copied once they are known to fit."""
        for path in self.top.folder.iterdir():
            if path.suffix in (".mlir", ".npz"):
                _link(path, folder / path.name)
        graph = read_graph(self.top.mlir)
        known = [name for name, *_ in tensors(graph)]
        if self.job.calibration is not None:
            table = read_calibration(self.job.calibration)
            check_calibration(self.job.calibration, table, sha256(self.graph), known)
            shutil.copyfile(self.job.calibration, folder / CALIBRATION)
        if self.job.qtable is not None:
            check_qtable(self.job.qtable, read_qtable(self.job.qtable), known)
            shutil.copyfile(self.job.qtable, folder / QTABLE)

    def _read_back(self, folder: Path, seconds: Mapping[str, float]) -> dict[str, Any]:
        """The manifest, from what the compiler wrote; CandidateError where that is not what was asked."""
        files, described = self._files, manifest.describe_graph(load(self.graph))
        outputs = tuple(entry["name"] for entry in described["outputs"])
        if self.job.outputs and self.job.outputs != outputs:
            raise UserError(f"outputs={self.job.outputs}: the graph of {self.job.name} has {outputs}")
        names = Names(
            tuple(described["computed"]),
            self.top.values,
            outputs,
            self.job.taps,
            *(read_graph(folder / name) for name in (files.top, files.tpu, files.final)),
        )
        if len(names.final.list_of("outputs")) != len(outputs):
            raise CandidateError(
                f"{self._where}: the artefact has {len(names.final.list_of('outputs'))} outputs, the graph "
                f"{len(outputs)}: one value under two names, or one that the compiler dropped"
            )
        formats = self._formats(names)
        facts = {
            "name": self.job.name,
            "chip": self.chip.name,
            "family": self.chip.family,
            "mode": self.mode.name,
            "group_size": self.group_size,
            "toolchain": self.toolchain.version,
            "onnx_sha256": sha256(self.graph),
            "calibration": dict(read_calibration(folder / CALIBRATION).facts)
            if self.job.calibration
            else None,
            "qtable": read_qtable(folder / QTABLE) if self.job.qtable else None,
            "notes": [*self.top.notes, *([self.chip.note] if self.chip.note else [])],
            "lint": [asdict(finding) for finding in self.findings],
            "seconds": dict(seconds),
        }
        return manifest.compose(described, names, formats, facts, folder / files.artefact)

    def _formats(self, names: Names) -> Effective:
        table = read_qtable(self.job.qtable) if self.job.qtable else {}
        try:
            return effective(names.tpu, names.top, self.chip, self.mode, table)
        except CandidateError as error:
            raise CandidateError(f"{self.job.name}: {error}") from error

    def _tidy(self, folder: Path) -> None:
        """Leave what the interpreter and a person may want; addresses and copies of weights go."""
        files = self._files
        tpu_weights = read_graph(folder / files.tpu).facts.get("weight_file", "")
        top_weights = [path.name for path in self.top.folder.glob("*.npz")]
        wanted = {
            *(files.top, files.tpu, files.final, files.artefact, f"{files.artefact}.json", tpu_weights),
            *(f"{self.job.name}_tensor_info.txt", CALIBRATION, QTABLE, "log.txt", *top_weights),
        }
        for path in list(folder.iterdir()):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name not in wanted:
                path.unlink()


def _link(source: Path, place: Path) -> None:
    """A hard link costs no space; across file systems, a copy."""
    try:
        place.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, place)
