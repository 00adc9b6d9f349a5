"""A dump held against the case that it should be of: model, weights, scenario, token ids, taps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from parity.harness.case import Case, ModuleCase, plan
from parity.harness.errors import UserError
from parity.harness.values import Values

from .core import Contents
from .facts import said_of_case
from .naming import Shapes
from .recording import IDS, Player, check_ids, fed_by

#: Names that are listed of a dump where none is a tap.
LISTED = 6


def taps_of(case: Case | ModuleCase, reference: Values | None) -> list[str]:
    """The taps that a dump may hold, in execution order; the reference's, where there is one."""
    if reference is not None:
        return list(reference.run.taps)
    return [] if isinstance(case, ModuleCase) else [IDS, *case.model.taps]


def originals_of(case: Case | ModuleCase) -> Mapping[str, str]:
    """Names that other programs used -> tap."""
    return {} if isinstance(case, ModuleCase) else case.model.renames


def shapes_of(reference: Values | None) -> Shapes:
    """Shapes of the reference's records."""
    records = reference.run.records() if reference is not None else ()
    return {(record.tap, record.step, record.call): record.shape for record in records}


def steps_of(case: Case | ModuleCase) -> list[int]:
    """Indices of the case's steps."""
    return [0] if isinstance(case, ModuleCase) else [step.index for step in plan(case.scenario)]


def refuse_other_case(contents: Contents, case: Case | ModuleCase) -> None:
    """UserError for a dump that says it is of another model, other weights or another scenario."""
    if isinstance(case, ModuleCase):
        return
    own = {"model": case.model.name, "weights": case.weights, "policy": str(case.scenario.policy)}
    for name, wanted in own.items():
        found = said_of_case(contents.facts, name)
        if found is not None and found != wanted:
            raise UserError(f"dump: is of {name} {found[:60]!r}, but this case has {wanted[:60]!r}")
    scenario = contents.facts.get("scenario")
    said = scenario if isinstance(scenario, Mapping) else {}
    ours = case.scenario.to_json()
    for name in ("policy", "resets", "padding"):
        if name in said and not _same(said[name], ours[name]):
            raise UserError(
                f"dump: is of a scenario with {name} {said[name]!r}, but this case has {ours[name]!r}"
            )


def _same(one: Any, other: Any) -> bool:
    return list(one) == list(other) if isinstance(one, (list, tuple)) else bool(one == other)


def refuse_strange(player: Player, path: Path) -> None:
    """UserError where nothing in the dump is a tap of the case."""
    matching = player.summary.matching
    if not matching.rules:
        names = ", ".join(name[:80] for name in list(matching.unmatched)[:LISTED]) or "nothing"
        taps = ", ".join(player.summary.absent[:LISTED])
        raise UserError(
            f"dump:{path}: holds {names} ..., none of which is a tap of this case ({taps} ...); it is of "
            "another model, or its names need a --map file"
        )


def check_tokens(player: Player, case: Case | ModuleCase, reference: Values | None) -> None:
    """UserError, before anything is played, for ids other than those that the case or its reference fixes."""
    if isinstance(case, ModuleCase):
        return
    steps = {step.index: step for step in plan(case.scenario)}
    for index, tokens in fed_by(player).items():
        step = steps.get(index)
        if step is None:
            continue
        wanted = reference.tokens(index) if reference is not None else None
        if wanted is None and step.tokens is not None:
            wanted = np.array(step.tokens, np.int64)
        if wanted is not None:
            check_ids("the dump", index, tokens, wanted)
