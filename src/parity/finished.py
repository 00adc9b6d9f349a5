"""What a run left behind, opened again: its result, and the stored runs of every candidate.

Commands that look closer at a finished run (`explain`, `judge`, `power` ...) all begin here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from parity.harness.comparison import Comparison, Result, Side
from parity.harness.errors import UserError, did_you_mean
from parity.harness.trace import Run, Trace

from .emulating import emulated_of
from .provenance import isolated_of


@dataclass(frozen=True)
class Finished:
    """One candidate of a finished run: what was found, and both sides as recorded."""

    comparison: Comparison
    reference: Run
    reference_path: Path
    candidate: Run
    isolated: Run | None
    emulated: Run | None = None


def open_result(path: str | Path) -> tuple[Result, Path]:
    """The result of a run's folder or of its report.json, and the folder; UserError for anything else."""
    from parity.reports.json_report import read_json

    given = Path(path)
    file = given / "report.json" if given.is_dir() else given
    if not file.exists():
        raise UserError(f"result={str(path)!r}: holds no report.json; give the folder of a finished run")
    if not _braced(file):
        raise UserError(
            f"result={str(path)!r}: is no result; give the folder of a finished run, or the report.json in it"
        )
    return read_json(file), file.parent


def _braced(file: Path) -> bool:
    """Whether a file begins as a report does, and a trace does not; one that is shut is told later."""
    try:
        with file.open("rb") as opened:
            return opened.read(64).lstrip().startswith(b"{")
    except OSError:
        return True


def candidates(path: str | Path, *, cand: str | None = None) -> Iterator[Finished]:
    """Every candidate that ran, or the one that is named; UserError when its traces are gone."""
    result, folder = open_result(path)
    labels = [comparison.label for comparison in result]
    if cand is not None and cand not in labels:
        raise UserError(f"cand={cand!r}: is not in {path}. {did_you_mean(cand, labels)}")
    chosen = [comparison for comparison in result if cand in (None, comparison.label)]
    ran = [comparison for comparison in chosen if comparison.candidate.path]
    if not ran:
        raise UserError(f"result={str(path)!r}: no candidate of it ran, so nothing was recorded")
    for comparison in ran:
        where, reference = _run(comparison.reference, folder)
        _, candidate = _run(comparison.candidate, folder)
        trace = candidate[0]
        found, trusted = trace[candidate[1]], reference[0][reference[1]]
        isolated, emulated = isolated_of(trace, candidate[1]), emulated_of(trace, candidate[1])
        yield Finished(comparison, trusted, where, found, isolated, emulated)


def _run(side: Side, folder: Path) -> tuple[Path, tuple[Trace, str]]:
    """The trace of a side: where it was, or beside the report when the folder has moved."""
    places = (Path(side.path), folder / side.path, folder / Path(side.path).name)
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise UserError(
            f"trace={side.path!r}: is gone, and {side.label} with it; keep trace.h5 beside report.json"
        )
    return path, (Trace(path), side.run)
