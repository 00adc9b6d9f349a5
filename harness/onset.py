"""When a candidate departs, and what brought it, as a report renders it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Onset:
    """Divergence in time: the first step that departs, and what brought it.

    `brought` is input, position, mask, cache or computation. `wrong` of `steps` steps from there on depart;
    `first_step` says that no step before it was compared.
    """

    step: int
    wrong: int
    steps: int
    brought: str
    tap: str
    where: str = ""
    detail: str = ""
    first_step: bool = False
