"""Which stage of a pipeline did it: each is held against the one before, the first that departs is guilty.

Two neighbours execute the same case; where both were also run on the reference's inputs, those runs are
compared, so that what one stage passes on is not charged to the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .compare import compare_runs, floors_from
from .comparison import COMPARED, Cause, Comparison, Side, Stage
from .judge import Floor
from .progress import Progress, Silent
from .rows import Rules
from .tolerance import Tolerance

if TYPE_CHECKING:
    from .trace import Run

INSTRUMENTATION = "instrumentation"
EXACT = Rules(Tolerance("exact"), {})


@dataclass(frozen=True)
class Played:
    """One stage as it was executed; without a `run`, `failure` says why there is none.

    `makes` is what happens between the stage before and this one (export, quantization ...), empty for the
    reference. `rules` judge it against that; `as_moved`: by as much as the stage before moved things itself,
    where that was seen. `closer` is the same stage built so that it shows more taps. `stand_in`: what was
    executed is not quite this stage, but what leads to that closer build.
    """

    label: str
    makes: str
    run: Run | None
    isolated: Run | None = None
    rules: Rules | None = None
    as_moved: bool = False
    closer: Played | None = None
    failure: str = ""
    stand_in: bool = False


def hold_stages(played: Sequence[Played], *, progress: Progress | None = None) -> tuple[Stage, ...]:
    """Neighbours in order, the reference first: one entry per stage after it, and one per closer build."""
    found: list[Stage] = []
    floors: Mapping[str, Floor] = {}
    before, unseen = played[0], []
    with (progress or Silent()).stage("holding stages against each other", len(played) - 1) as bar:
        for after in played[1:]:
            if after.run is None:
                found.append(Stage(after.makes, before.label, after.label, "failed", reason=after.failure))
                unseen.append(after.makes)
            else:
                # What a stage that could not be run would have shown apart is charged to the next one.
                after = replace(after, makes=" or ".join([*unseen, after.makes]))
                moved = floors if after.as_moved and not unseen else {}
                found += _held(before, after, _rules(after, moved))
                floors, before, unseen = _moved(before, after), after, []
            bar.advance()
    return tuple(found)


def guilty(stages: Sequence[Stage]) -> Cause | None:
    """The first stage that departs from the one before it; the first of the last ones that cannot be run.

    A stage that fails while a later one runs could only not be looked at. None if there is no guilty one.
    """
    chain = [stage for stage in stages if stage.name != INSTRUMENTATION]
    ran = max((at for at, stage in enumerate(chain) if stage.verdict != "failed"), default=-1)
    bad = (at for at, stage in enumerate(chain) if stage.verdict == "divergence" or at == ran + 1)
    at = next(bad, None)
    if at is None:
        return None
    stage, right = chain[at], [other.name for other in chain[:at] if other.verdict != "failed"]
    evidence = [stage.reason or f"{stage.later} departs from {stage.earlier} at {_place(stage)}"]
    if right:
        evidence.append(f"before it, {', '.join(right)} changed no more than allowed")
    return Cause(stage.tap, stage.name, "; ".join(evidence))


def _place(stage: Stage) -> str:
    return f"{stage.tap}, step {stage.step}" + (f", {stage.slice}" if stage.slice else "")


def _rules(after: Played, moved: Mapping[str, Floor]) -> Rules:
    """Its own; a tap that was seen to move may move as much again."""
    own = after.rules or EXACT
    return Rules(own.tolerance, {**own.floors, **moved})


def _of_two_builds(rules: Rules, own: Rules | None) -> Rules:
    """What two builds may differ by, of which each may depart as far from what they are builds of."""
    floors = dict(rules.floors)
    for tap, floor in (own.floors if own else {}).items():
        floors[tap] = floors[tap].merge(floor)
    return Rules(rules.tolerance, {tap: Floor(2 * f.rms, 2 * f.peak) for tap, f in floors.items()})


def _held(before: Played, after: Played, rules: Rules) -> list[Stage]:
    """The stage; a divergence is placed where its closer build shows it first."""
    stage = _stage(before, after, after.makes, rules)
    if after.closer is None or after.closer.run is None:
        return [stage]
    effect = _stage(after, after.closer, INSTRUMENTATION, _of_two_builds(rules, after.rules))
    if stage.verdict == "divergence":
        closer = _stage(before, after.closer, after.makes, rules)
        if closer.verdict == "divergence":
            stage = closer
        elif before.stand_in:
            # The stand-in leads to the closer build, which is right; what leads to this one was not seen.
            stage = replace(stage, name=f"{before.makes} or {after.makes}")
    return [stage, effect]


def _moved(before: Played, after: Played) -> Mapping[str, Floor]:
    one, two = _facing(before, after)
    return floors_from(one, [two])


def _facing(before: Played, after: Played) -> tuple[Run, Run]:
    """Their runs: both on the reference's inputs if they were; the reference itself is its own such run."""
    assert before.run is not None
    assert after.run is not None
    if after.isolated is not None and (before.isolated is not None or not before.makes):
        return before.isolated or before.run, after.isolated
    return before.run, after.run


def _stage(before: Played, after: Played, name: str, rules: Rules) -> Stage:
    one, two = _facing(before, after)
    sides = (Side(before.label, one.name, one.target, ""), Side(after.label, two.name, two.target, ""))
    return _summary(compare_runs(one, two, rules=rules, sides=sides), name)


def _summary(found: Comparison, name: str) -> Stage:
    first, worst = found.first, found.worst
    errors = [row.error for row in found.records if row.error is not None]
    return Stage(
        name,
        found.reference.label,
        found.candidate.label,
        found.verdict,
        tap=first.tap if first else worst.tap if worst else "",
        step=first.step if first else worst.step if worst else 0,
        slice=first.slice if first else "",
        ratio=worst.ratio if worst else None,
        error=max(errors, default=None),
        compared=sum(found.counts.get(status, 0) for status in COMPARED),
        reason=found.inconclusive or found.unsound,
    )
