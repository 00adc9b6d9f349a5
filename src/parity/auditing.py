"""`parity.audit`: what a tolerance policy would miss, and where it would cry wolf."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parity.harness.compare import compare_runs, floors_from
from parity.harness.comparison import Side
from parity.harness.errors import UserError, did_you_mean
from parity.harness.judge import Floor
from parity.harness.progress import Progress, Silent
from parity.harness.quantized import QUANTIZED, around
from parity.harness.tolerance import Tolerance, load_tolerance
from parity.harness.trace import Run, Trace, TraceWriter
from parity.harness.traps import FORMATS, Trap, shipped, users
from parity.harness.traps import Side as Recorded
from parity.reports import words

from .floors import rules_of

#: Formats that a profile is meant for; a policy that measures noise is meant for all.
MEANT_FOR = {"fp32": ("float32",), "fp16": ("float16",), "bf16": ("bfloat16",), "w8a8": ("w8a8",)}
FOLDERS = {"bugs": False, "harmless": True}


@dataclass(frozen=True)
class Sprung:
    """One trap and what the policy said of it."""

    name: str
    format: str
    harmless: bool
    why: str
    verdict: str
    ratio: float | None
    doubt: str = ""

    @property
    def missed(self) -> bool:
        """A fault that passed."""
        return not self.harmless and self.verdict == "parity"

    @property
    def cried(self) -> bool:
        """Noise that was flagged."""
        return self.harmless and self.verdict == "divergence"

    @property
    def undecided(self) -> bool:
        """A harmless change of which nothing could be said, for the reason in `doubt`."""
        return self.harmless and self.verdict not in ("parity", "divergence")


@dataclass(frozen=True)
class Audit:
    """What a policy said of every trap; `exit_code` 1 where it misses a fault, flags noise or cannot say."""

    policy: str
    traps: tuple[Sprung, ...]

    @property
    def missed(self) -> tuple[Sprung, ...]:
        return tuple(trap for trap in self.traps if trap.missed)

    @property
    def cried(self) -> tuple[Sprung, ...]:
        return tuple(trap for trap in self.traps if trap.cried)

    @property
    def undecided(self) -> tuple[Sprung, ...]:
        return tuple(trap for trap in self.traps if trap.undecided)

    @property
    def exit_code(self) -> int:
        return 1 if self.missed or self.cried or self.undecided else 0

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        rows = [
            {
                "name": trap.name,
                "format": trap.format,
                "harmless": trap.harmless,
                "verdict": trap.verdict,
                "missed": trap.missed,
                "cried": trap.cried,
                "undecided": trap.undecided,
                "doubt": trap.doubt,
                "ratio": trap.ratio if trap.ratio is None or np.isfinite(trap.ratio) else str(trap.ratio),
            }
            for trap in self.traps
        ]
        return {"policy": self.policy, "exit_code": self.exit_code, "traps": rows}


def audit(
    tol: str = "auto",
    *,
    formats: tuple[str, ...] = (),
    traps: str | Path | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Run a tolerance policy against the shipped traps, and against a folder of one's own.

    `formats` are the number formats of the candidates; by default those that the profile is meant for, all
    for `auto`. `traps` holds `bugs/*.npz` and `harmless/*.npz` with arrays `expected`, `actual` and, for a
    noise floor, `twin0`, `twin1` ... UserError: unknown policy or format, a folder without traps.
    """
    tolerance = load_tolerance(tol)
    wanted = formats or MEANT_FOR.get(tolerance.profile, tuple(FORMATS))
    for name in wanted:
        if name not in FORMATS:
            raise UserError(f"format={name!r}: no traps in it. {did_you_mean(name, FORMATS)}")
    found = [*shipped(tuple(wanted)), *(_own(Path(traps)) if traps else ())]
    with (
        tempfile.TemporaryDirectory(prefix="parity-audit-") as folder,
        (progress or Silent()).stage(f"auditing {tolerance.name}", len(found)) as bar,
    ):
        sprung = []
        for verdict in _sprung(found, tolerance, Path(folder) / "traps.h5"):
            sprung.append(verdict)
            bar.advance()
    return Audit(tolerance.name, tuple(sprung))


def _sprung(traps: list[Trap], tolerance: Tolerance, path: Path) -> Iterator[Sprung]:
    """Every trap goes the whole way: recorded, aligned, measured, judged."""
    with TraceWriter(path) as writer:
        for number, trap in enumerate(traps):
            sides = {"expected": trap.expected, "actual": trap.actual}
            sides |= {f"twin{i}": twin for i, twin in enumerate(trap.twins)}
            for name, recorded in sides.items():
                _write(writer, f"{number}-{name}", recorded, trap.format if name == "actual" else "float32")
    trace = Trace(path)
    for number, trap in enumerate(traps):
        runs = [trace[f"{number}-{name}"] for name in ("expected", "actual")]
        twins = [trace[f"{number}-twin{i}"] for i in range(len(trap.twins))]
        yield _judged(trap, runs[0], runs[1], _floors(trap, runs[0], twins), tolerance)


def _write(writer: TraceWriter, name: str, recorded: Recorded, dtype: str) -> None:
    with writer.run(name, provenance={"dtype": dtype}) as run:
        for tap, shown in recorded:
            run.record(tap, shown.values, step=shown.step, axes=shown.axes, positions=shown.positions)


def _floors(trap: Trap, reference: Run, twins: list[Run]) -> Mapping[str, Floor]:
    floors = floors_from(reference, twins)
    return around(floors, trap.format) if trap.format in QUANTIZED else floors


def _judged(
    trap: Trap, reference: Run, candidate: Run, floors: Mapping[str, Floor], tolerance: Tolerance
) -> Sprung:
    used = floors if tolerance.kind == "auto" else {}
    comparison = compare_runs(
        reference,
        candidate,
        rules=rules_of(tolerance, used, reference, candidate),
        sides=(Side("expected", reference.name, "", ""), Side("actual", candidate.name, "", "")),
    )
    worst = comparison.worst.ratio if comparison.worst else None
    doubt = "" if comparison.verdict in ("parity", "divergence") else words.doubt(comparison)
    return Sprung(trap.name, trap.format, trap.harmless, trap.why, comparison.verdict, worst, doubt)


def _own(folder: Path) -> Iterator[Trap]:
    """Traps of a user's folder."""
    found = {name: sorted((folder / name).glob("*.npz")) for name in FOLDERS}
    if not any(found.values()):
        raise UserError(
            f"traps={str(folder)!r}: holds neither bugs/*.npz nor harmless/*.npz; save some there"
        )
    for name, paths in found.items():
        yield from users({path.stem: _arrays(path) for path in paths}, harmless=FOLDERS[name])


def _arrays(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            arrays = {key: held[key] for key in held.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"traps={str(path)!r}: cannot be read as npz ({error}); save it again") from error
    for key in ("expected", "actual"):
        if key not in arrays:
            raise UserError(
                f"traps={str(path)!r}: has no array {key!r}, but {sorted(arrays)}; save expected and actual"
            )
    return arrays
