"""ONNX -> Top: the float graph that every chip starts from, converted once and kept."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from parity.harness.errors import CandidateError, UserError

from . import arguments, crash, process, store
from .job import Top
from .mlir import unescape
from .opset import load, lowered

if TYPE_CHECKING:
    from ..toolchain import Toolchain

#: Part of every key: another one, whenever what a folder holds changes.
LAYOUT = 1


def convert(
    name: str,
    graph: bytes,
    toolchain: Toolchain,
    cache: Path,
    beat: Callable[[], None] = lambda: None,
    *,
    taps: Mapping[str, str] | None = None,
) -> Top:
    """The Top graph of an ONNX file, from the cache if these bytes were converted before.

    UserError for a net name that cannot be one or a toolchain without Python; CandidateError with the
    converter's reason, in names of `taps` (ONNX value -> tap), for a graph that it cannot take.
    """
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise UserError(f"name={name!r}: a net's name has letters, digits and _ only; choose another")
    digest = hashlib.sha256(f"{LAYOUT} {name} {toolchain.version} ".encode() + graph).hexdigest()[:24]
    place = cache.absolute() / "top" / f"{name}-{digest}"
    return _stored(place, name) or _Conversion(name, graph, toolchain, beat, dict(taps or {})).run(place)


def _stored(place: Path, name: str) -> Top | None:
    try:
        facts = store.unsealed((place / store.MANIFEST).read_text())
        values, notes, seconds = dict(facts["values"]), tuple(facts["notes"]), float(facts["seconds"])
        whole = all((place / file).stat().st_size == size for file, size in facts["files"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Top(place, place / f"{name}.mlir", values, notes, seconds) if whole else None


@dataclass(frozen=True)
class _Conversion:
    """One graph on its way."""

    name: str
    graph: bytes
    toolchain: Toolchain
    beat: Callable[[], None]
    taps: Mapping[str, str]

    def run(self, place: Path) -> Top:
        """Make the folder and put it in its place."""
        if self.toolchain.python is None:
            raise UserError(
                "toolchain: has no Python 3.10, which ONNX is converted by; install one and run "
                "`parity toolchain install tpu-mlir` again, or name it in PARITY_PYTHON310"
            )
        old, notes = lowered(self.graph)
        with store.fresh(place.parent, place.name) as folder:
            (folder / "in.onnx").write_bytes(old)
            converted = self._run(folder, process.worker(self.toolchain, "convert", self.name, "in.onnx"))
            if converted.status:
                log = store.keep(folder, place.with_name(f"{place.name}.failed")) / "log.txt"
                raise crash.converter(self.name, load(old), converted, log, self._known())
            if "ConstantFolding failed" in converted.output:
                notes = (*notes, "the converter could not fold constants: the graph is less optimised")
            tool = str(self.toolchain.tool("tpuc-opt"))
            shaped = self._run(folder, [tool, *arguments.canonical(arguments.Files(self.name, ""))])
            if shaped.status:
                log = store.keep(folder, place.with_name(f"{place.name}.failed")) / "log.txt"
                raise crash.compiler(self.name, "shape inference", shaped, log, self._known())
            values = json.loads((folder / "values.json").read_text())
            facts = {
                "values": {value: unescape(tensor) for value, tensor in values.items()},
                "notes": notes,
                "seconds": converted.seconds + shaped.seconds,
                "files": _tidy(folder, self.name),
            }
            (folder / store.MANIFEST).write_text(store.sealed(facts))
            store.publish(folder, place, lambda found: _stored(found, self.name))
        made = _stored(place, self.name)
        if made is None:
            raise CandidateError(f"{self.name}: {place} was taken away while it was made; try again")
        return made

    def _known(self) -> crash.Known:
        from .linter import lint_conversion

        return crash.Known(taps=self.taps, findings=lint_conversion(self.graph, taps=self.taps))

    def _run(self, folder: Path, command: Sequence[str]) -> process.Ended:
        env = process.worker_environment(self.toolchain, folder)
        return process.run(command, env=env, cwd=folder, log=folder / "log.txt", beat=self.beat)


def _tidy(folder: Path, name: str) -> dict[str, int]:
    """Leave the graph, its weights and the log; file names and sizes of the former two."""
    graph = (folder / f"{name}.mlir").read_text(encoding="utf-8", errors="replace")
    weights = re.search(r'module\.weight_file = "([^"]+)"', graph)
    wanted = [f"{name}.mlir", *([weights[1]] if weights else [])]
    for path in list(folder.iterdir()):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name not in (*wanted, "log.txt"):
            path.unlink()
    return {file: (folder / file).stat().st_size for file in wanted if (folder / file).is_file()}
