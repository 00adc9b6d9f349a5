"""A job through the compiler: lowered, laid out, generated, read back."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.harness.errors import CandidateError, UserError

from . import arguments, crash, manifest, process, store
from .artefact import CALIBRATION, QTABLE, artefact_in, lowering
from .chips import Chip, Mode
from .described import compose, describe_graph
from .finding import Finding
from .formats import Effective, effective
from .job import Artefact, CompileJob, Top
from .mlir import read_graph
from .names import Names, tensors
from .opset import load
from .tables import check_calibration, check_qtable, read_calibration, read_qtable

if TYPE_CHECKING:
    from ..toolchain import Toolchain


@dataclass(frozen=True)
class Compilation:
    """One job on its way."""

    job: CompileJob
    chip: Chip
    mode: Mode
    group_size: int
    graph: bytes
    digest: str
    top: Top
    toolchain: Toolchain
    beat: Callable[[], None]
    findings: tuple[Finding, ...]

    def run(self, place: Path) -> Artefact:
        """Make the folder and put it in its place."""
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
            store.publish(folder, place, manifest.read)
        shutil.rmtree(place.with_name(f"{place.name}.failed"), ignore_errors=True)
        found = artefact_in(place, self.chip, self.job.name)
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
            ("lowering", arguments.lower(files, files.top, lowering(self.job, self.group_size))),
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
            check_calibration(self.job.calibration, table, self.digest, known)
            shutil.copyfile(self.job.calibration, folder / CALIBRATION)
        if self.job.qtable is not None:
            check_qtable(self.job.qtable, read_qtable(self.job.qtable), known)
            shutil.copyfile(self.job.qtable, folder / QTABLE)

    def _read_back(self, folder: Path, seconds: Mapping[str, float]) -> dict[str, Any]:
        """The manifest, from what the compiler wrote; CandidateError where that is not what was asked."""
        files, described = self._files, describe_graph(load(self.graph))
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
                f"{crash.suspect(self.findings)}"
            )
        formats = self._formats(names)
        facts = {
            "name": self.job.name,
            "chip": self.chip.name,
            "family": self.chip.family,
            "mode": self.mode.name,
            "group_size": self.group_size,
            "toolchain": self.toolchain.version,
            "onnx_sha256": self.digest,
            "calibration": dict(read_calibration(folder / CALIBRATION).facts)
            if self.job.calibration
            else None,
            "qtable": read_qtable(folder / QTABLE) if self.job.qtable else None,
            "notes": [*self.top.notes, *([self.chip.note] if self.chip.note else [])],
            "lint": [asdict(finding) for finding in self.findings],
            "seconds": dict(seconds),
        }
        return compose(described, names, formats, facts, folder / files.artefact)

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
