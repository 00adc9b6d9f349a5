"""`parity toolchain use`: a toolchain that exists, wherever it came from, probed by executing it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from parity.harness.errors import UserError
from parity.harness.progress import Progress

from .choice import folder, read_facts, to_facts, write_choice
from .hostlibs import host
from .install import MARKER
from .interpreter import candidates, try_python
from .lock import locked
from .probe import Probe, bindings_reason, probe
from .toolchain import Toolchain

#: Where the package lies below a folder that a person names: itself, a release's or a docker image's folder,
#: a source tree's result, an environment.
_BELOW = ("", "tpu_mlir", "tpu-mlir", "install", "tpu-mlir/install", "lib/python3.*/*-packages/tpu_mlir")


def adopt(path: Path, progress: Progress, *, python: str | None = None) -> Toolchain:
    """Choose the toolchain at `path`; nothing in it is written. UserError if it is none or does not start."""
    if problems := host().problems():
        raise UserError("; ".join(problems))
    package = find_package(path.expanduser().absolute())
    with locked(progress.say):
        facts = _ours(package) if python is None else None
        if facts is None:
            facts = _examined(path.expanduser().absolute(), package, python, progress)
        write_choice(facts)
    return Toolchain(
        Path(facts["root"]), package, facts["python"] and Path(facts["python"]), facts["version"],
        facts["adopted"],
    )  # fmt: skip


def find_package(path: Path) -> Path:
    """The folder with bin/tpuc-opt and lib/ at or below `path`. UserError says where it was looked for.

    An environment has a bin/tpuc-opt too, a script; its package lies deeper.
    """
    for below in _BELOW:
        for package in sorted(path.glob(below)) if below else [path]:
            if (package / "bin" / "tpuc-opt").is_file() and (package / "python").is_dir():
                return package
    if not path.is_dir():
        raise UserError(f"path={str(path)!r}: is not a folder")
    places = ", ".join(f"{below or '.'}/bin/tpuc-opt" for below in _BELOW)
    raise UserError(f"path={str(path)!r}: is no TPU-MLIR toolchain: there is none of {places}")


def _ours(package: Path) -> dict[str, Any] | None:
    """The facts of one that `install` made: choosing it again does not make it a stranger's."""
    for marker in folder().glob(f"tpu-mlir-*/{MARKER}"):
        facts = read_facts(marker)
        if facts and facts["package"] == str(package):
            return facts
    return None


def _examined(root: Path, package: Path, python: str | None, progress: Progress) -> dict[str, Any]:
    bare = Toolchain(root, package, None, "", adopted=True)
    chosen, reasons = _interpreter(bare, python)
    toolchain = replace(bare, python=chosen)
    found = probe(toolchain)
    if found.compiler:
        raise UserError(f"path={str(root)!r}: its tpuc-opt does not start here: {found.compiler}")
    for line in _remarks(found, reasons):
        progress.say(line)
    facts = to_facts(replace(toolchain, version=found.version))
    return {**facts, "made_by": None, "bytes": None, "probe": asdict(found), "selftest": None}


def _interpreter(toolchain: Toolchain, named: str | None) -> tuple[Path | None, list[str]]:
    """The first Python that loads the bindings, and why the ones before it do not. A named one must."""
    reasons = []
    for path in [Path(named).expanduser().absolute()] if named else _pythons(toolchain.package):
        reason = _why_not(toolchain, path)
        if not reason:
            return path, []
        reasons.append(f"{path} {reason}")
    if named:
        raise UserError(f"python={named!r}: cannot load the bindings: {reasons[0]}")
    return None, reasons


def _why_not(toolchain: Toolchain, path: Path) -> str | None:
    """Why an interpreter does not load the bindings; one that could not make an environment may well."""
    tried = try_python(path)
    if not tried.version.startswith("3.10."):
        return tried.reason
    return bindings_reason(replace(toolchain, python=path))


def _pythons(package: Path) -> Iterator[Path]:
    """The environment that holds the package; ours, whose packages fit; whatever else there is."""
    if package.parent.name in ("site-packages", "dist-packages"):
        yield package.parents[3] / "bin" / "python"
    for marker in sorted(folder().glob(f"tpu-mlir-*/{MARKER}")):
        yield marker.parent / "bin" / "python"
    yield from candidates()


def _remarks(found: Probe, reasons: list[str]) -> Iterator[str]:
    if found.bindings:
        tried = f" ({'; '.join(reasons)})" if reasons else ""
        yield f"no Python loads its bindings{tried}: it converts no ONNX, the rest works (--python)"
    for chip, reason in found.chips.items():
        if reason:
            yield f"{chip}: cannot be simulated with it: {reason}"
