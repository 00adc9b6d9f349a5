"""What `parity doctor` says about the toolchain: each piece that is there, what to do about the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from parity.harness.errors import UserError

from .board import Runtime, runtimes
from .hostlibs import NEEDED_GLIBCXX
from .install import space_problem
from .interpreter import find_python
from .status import status


@dataclass(frozen=True)
class Advice:
    """A piece, its state in words, and whether it keeps real chips from working here."""

    name: str
    state: str
    missing: bool = False


def advise() -> list[Advice]:
    """Everything that compiling, simulating or running on a board needs; up to 2 s."""
    boards = (Advice(f"board {runtime.library}", _runtime(runtime)) for runtime in runtimes())
    return [*advise_toolchain(), *boards]


def advise_toolchain() -> list[Advice]:
    """The same without what only a board needs."""
    found = status()
    state = _toolchain(found) if found["usable"] else _absent(found)
    return [*_host(found["host"]), *state, *_leftovers(found)]


def _host(facts: dict[str, Any]) -> Iterator[Advice]:
    for problem in facts["problems"]:
        yield Advice("tpu-mlir host", problem, missing=True)
    if not facts["problems"]:
        own = f"has {NEEDED_GLIBCXX}" if facts[NEEDED_GLIBCXX] else "is too old, the toolchain's own is used"
        yield Advice("tpu-mlir host", f"glibc {facts['glibc']}, libtinfo.so.6; libstdc++ {own}")


def _toolchain(found: dict[str, Any]) -> Iterator[Advice]:
    facts = found["toolchain"]
    python = f"Python {facts['python_version']}" if facts["python"] else "no Python 3.10"
    yield Advice("tpu-mlir", f"{facts['version']}, {python}, {facts['root']}")
    if not facts["python"]:
        mend = f"use {facts['root']} --python PATH" if facts["adopted"] else "install tpu-mlir"
        what = "without a Python 3.10 for it no ONNX is converted; what was compiled elsewhere runs"
        yield Advice("tpu-mlir python", f"{what}. `parity toolchain {mend}`", missing=True)
    if absent := [chip for chip, reason in facts["probe"]["chips"].items() if reason]:
        yield Advice("tpu-mlir chips", f"cannot simulate {', '.join(absent)}")
    if facts["python"]:
        yield _selftest(facts["selftest"])


def _selftest(result: dict[str, Any] | None) -> Advice:
    if result is None:
        return Advice("tpu-mlir self-test", "not run yet; `parity toolchain selftest`")
    if result["passed"]:
        return Advice("tpu-mlir self-test", f"passed on {result['when'][:10]}")
    reasons = "; ".join(f"{chip}: {one['reason']}" for chip, one in result["chips"].items() if one["reason"])
    return Advice("tpu-mlir self-test", f"FAILED on {result['when'][:10]}: {reasons}", missing=True)


def _absent(found: dict[str, Any]) -> Iterator[Advice]:
    yield Advice("tpu-mlir", found["reason"], missing=True)
    try:
        python, _ = find_python()
        yield Advice("tpu-mlir python", f"{python} will do")
    except UserError as error:
        yield Advice("tpu-mlir python", str(error), missing=True)
    if problem := space_problem(downloads=True):
        yield Advice("tpu-mlir space", problem, missing=True)


def _leftovers(found: dict[str, Any]) -> Iterator[Advice]:
    if found["changing"]:
        yield Advice("tpu-mlir", "is being changed by another process now")
    elif found["half_made"]:
        what = "was left by an interrupted install; the next one makes it anew, or `parity toolchain remove`"
        yield Advice("tpu-mlir leftovers", f"{', '.join(found['half_made'])} {what}")


def _runtime(runtime: Runtime) -> str:
    if runtime.file is None:
        return f"absent; only a board needs it ({runtime.reason})"
    if runtime.lacks:
        return (
            f"{runtime.file} LACKS {', '.join(runtime.lacks)}: the board's software is too old for the runner"
        )
    return runtime.file
