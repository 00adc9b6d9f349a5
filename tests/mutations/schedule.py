"""Which patch is tried on which target: every day, and in the whole matrix."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

from .plant import Harmless, Plant

#: Further places of the matrix that a plain run adds, drawn from its seed.
ROTATED = 12

Item = TypeVar("Item", Plant, Harmless)


@dataclass(frozen=True)
class Chosen:
    """What to choose from the catalogue: a glob of names, targets (none: those of the schedule)."""

    names: str = "*"
    cands: tuple[str, ...] = ()
    full: bool = False
    seed: int = 0


def planted(plants: Sequence[Plant], chosen: Chosen) -> list[tuple[Plant, str]]:
    """Every bug in its targets of every day, and a seeded few of the rest; with `full` all of it."""
    named = _named(plants, chosen)
    if chosen.cands:
        return [(plant, cand) for plant in named for cand in chosen.cands if plant.reaches(cand)]
    pairs = [(plant, cand) for plant in named for cand in plant.targets(full=chosen.full)]
    if chosen.full or chosen.names != "*":
        return pairs
    rest = [(plant, cand) for plant in named for cand in plant.also if cand not in plant.on]
    drawn = random.Random(chosen.seed).sample(range(len(rest)), min(ROTATED, len(rest)))
    return [*pairs, *(rest[place] for place in sorted(drawn))]


def harmless(changes: Sequence[Harmless], chosen: Chosen) -> list[tuple[Harmless, str]]:
    """Every change on its targets."""
    return [
        (change, cand)
        for change in _named(changes, chosen)
        for cand in change.on
        if not chosen.cands or cand in chosen.cands
    ]


def _named(items: Sequence[Item], chosen: Chosen) -> list[Item]:
    return [item for item in items if fnmatchcase(item.name, chosen.names)]
