"""An order through the compiler: what is cached is taken, what is not is exported, calibrated, compiled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.harness.errors import UserError, did_you_mean
from parity.harness.folders import cache_folder
from parity.harness.progress import Progress, Silent
from parity.targets.sophgo.compile.artefact import stored_artefact
from parity.targets.sophgo.compile.chips import Mode
from parity.targets.sophgo.compile.job import Artefact, CompileJob

from .deliver import deliver, qtables_of, tables_in
from .elsewhere import ascend_lines, sophgo_lines
from .exports import Graph
from .files import FileGraphs
from .model import ModelGraphs
from .order import Order

if TYPE_CHECKING:
    from parity.targets.sophgo.toolchain import Toolchain

#: Where targets keep exports and artefacts, so that a run finds what was compiled here, and the other way.
WORK = "work"


@dataclass(frozen=True)
class Compiled:
    """The folder with the files, the artefacts in execution order, the combined file, lines of a dry run."""

    folder: Path | None = None
    artefacts: tuple[Artefact, ...] = ()
    combined: Path | None = None
    lines: tuple[str, ...] = ()
    cached: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain data, for scripts."""
        if self.folder is None:
            return {"lines": list(self.lines)}
        return {
            "folder": str(self.folder),
            "combined": None if self.combined is None else str(self.combined),
            "cached": self.cached,
            "artefacts": {
                artefact.manifest["name"]: {
                    "file": str(self.folder / artefact.file.name),
                    "log": str(artefact.log),
                    **{key: artefact.manifest[key] for key in ("chip", "mode", "sha256", "size", "formats")},
                    **{key: artefact.manifest[key] for key in ("kept", "lint", "notes", "seconds")},
                }
                for artefact in self.artefacts
            },
        }


def compile_order(order: Order, *, progress: Progress | None = None) -> Compiled:
    """Compile what was ordered and put the files into a folder.

    UserError for what cannot be compiled as asked, CandidateError for what the compiler fails at; with
    `strict`, UserError before compiling a form that is known to go wrong.
    """
    progress = progress or Silent()
    work = cache_folder() / WORK
    source = FileGraphs(order, progress) if order.files else ModelGraphs(order, work, progress)
    graphs = _chosen(order, source.graphs)
    if order.ascend:
        return Compiled(lines=ascend_lines(order, source, graphs))
    modes = order.modes_of(list(graphs))
    if order.dry_run:
        return Compiled(lines=sophgo_lines(order, source, graphs, modes))
    from parity.targets.sophgo.toolchain import installed

    compilation = _Compilation(order, source, graphs, modes, installed(), work / "cache" / "sophgo", progress)
    return compilation.run()


@dataclass(frozen=True)
class _Compilation:
    order: Order
    source: FileGraphs | ModelGraphs
    graphs: Mapping[str, Graph]
    modes: Mapping[str, Mode]
    toolchain: Toolchain
    cache: Path
    progress: Progress

    def run(self) -> Compiled:
        """Look up, compile the rest, deliver."""
        jobs = self._jobs()
        found = {name: self._stored(job) for name, job in jobs.items()}
        todo = {
            name: replace(job, onnx=self.source.content(name))
            for name, job in jobs.items()
            if found[name] is None
        }
        if todo:
            found |= self._compiled(todo)
        for artefact in (artefact for name, artefact in found.items() if name not in todo and artefact):
            self._repeat(artefact)
        artefacts = tuple(artefact for artefact in found.values() if artefact is not None)
        folder, combined = deliver(self.order, self.source, artefacts, self.toolchain, self.cache)
        return Compiled(folder, artefacts, combined, cached=len(jobs) - len(todo))

    def _jobs(self) -> dict[str, CompileJob]:
        """One job per graph, its file left out: the digest is enough to look for its artefact."""
        qtables = qtables_of(self.order, self.modes)
        calibrated = [name for name, mode in self.modes.items() if mode.calibrated]
        tables = self._tables(calibrated) if calibrated else {}
        return {
            name: CompileJob(
                name,
                b"",
                self.order.row.name,
                self.modes[name].name,
                self.order.group_size if self.modes[name].group_size else None,
                tables.get(name),
                qtables.get(name),
                graph.outputs,
                graph.taps,
            )
            for name, graph in self.graphs.items()
        }

    def _stored(self, job: CompileJob) -> Artefact | None:
        return stored_artefact(job, self.graphs[job.name].digest, self.toolchain, self.cache)

    def _repeat(self, artefact: Artefact) -> None:
        """What was known to go wrong when it was compiled still is."""
        from parity.targets.sophgo.compile.finding import Finding

        findings = [Finding(**entry) for entry in artefact.manifest["lint"]]
        for finding in findings:
            self.progress.say(f"{artefact.manifest['name']}: {finding}")
        self._refuse({artefact.manifest["name"]: findings})

    def _compiled(self, todo: Mapping[str, CompileJob]) -> dict[str, Artefact | None]:
        import os

        from parity.targets.sophgo.compile import compile_models, lint
        from parity.targets.sophgo.compile.estimate import announce

        parallel = os.cpu_count() or 1
        announce(todo.values(), self.toolchain, self.cache, self.progress, parallel=parallel)
        if self.order.strict:
            self._refuse({n: lint(job.graph(), job.chip, job.mode, taps=job.taps) for n, job in todo.items()})
        made = compile_models(
            list(todo.values()), self.toolchain, self.cache, self.progress, parallel=parallel
        )
        return dict(zip(todo, made, strict=True))

    def _refuse(self, findings: Mapping[str, Any]) -> None:
        """With `strict`, UserError for forms that abort or compute garbage."""
        bad = [
            f"{name}: {one}" for name, found in findings.items() for one in found if one.severity != "note"
        ]
        if self.order.strict and bad:
            raise UserError(f"strict: {bad[0]}" + (f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""))

    def _tables(self, names: list[str]) -> dict[str, Path]:
        """Tables given, made before, or made now from real activations."""
        if self.order.calibration is not None:
            return tables_in("calibration", self.order.calibration, names, "calibration.txt")
        key = self._calibration_key(names)
        known = self.source.index.tables(key) if isinstance(self.source, ModelGraphs) else None
        if known is not None:
            return known
        from parity.targets.sophgo.compile import CALIBRATORS, calibrate

        samples = self.source.samples()
        with self.progress.stage("calibrating", len(names)) as bar:
            tables = {}
            for name in names:
                tables[name] = calibrate(
                    name,
                    self.source.content(name),
                    samples[name],
                    self.toolchain,
                    self.cache,
                    calibrator=self.order.calibrator or CALIBRATORS[0],
                )
                bar.advance()
        if isinstance(self.source, ModelGraphs):
            self.source.index.add_tables(key, tables)
        return tables

    def _calibration_key(self, names: list[str]) -> str:
        scenario = self.source.scenario.to_json() if isinstance(self.source, ModelGraphs) else None
        plain = [names, scenario, self.order.calibrator, self.toolchain.version]
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:24]


def _chosen(order: Order, graphs: Mapping[str, Graph]) -> dict[str, Graph]:
    glob = order.segments
    chosen = {name: graph for name, graph in graphs.items() if glob is None or fnmatchcase(name, glob)}
    if not chosen:
        raise UserError(f"segments={glob!r}: matches none. {did_you_mean(str(glob), graphs)}")
    return chosen
