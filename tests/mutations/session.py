"""The whole score: every patch that was chosen, one after the other, in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from . import catalogue, schedule, score
from .lab import Lab
from .schedule import Chosen

Case = TypeVar("Case")
Found = TypeVar("Found")


def run(
    folder: Path,
    *,
    names: str = "*",
    cands: Sequence[str] = (),
    full: bool = False,
    seed: int = 0,
    progress: Any,
) -> score.Score:
    """Score what `names` (a glob) and `cands` (targets; none: those of the schedule) choose."""
    chosen, lab = Chosen(names, tuple(cands), full, seed), Lab(folder)
    bugs = schedule.planted(catalogue.plants(), chosen)
    changes = schedule.harmless(catalogue.changes(), chosen)
    outcomes = _each("planting bugs", bugs, lambda one: score.judge(*one, lab), progress)
    alarms = _each("changing what does not matter", changes, lambda one: score.tried(*one, lab), progress)
    return score.scored(outcomes, alarms, seed=seed, full=full, **score.costs(lab))


def _each(title: str, cases: Sequence[Case], work: Callable[[Case], Found], progress: Any) -> list[Found]:
    found = []
    if not cases:
        return found
    with progress.stage(title, len(cases)) as bar:
        for case in cases:
            found.append(work(case))
            bar.advance()
    return found
