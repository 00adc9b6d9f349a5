"""Why each culprit is wrong: the mistake that, made on the reference's inputs, gives the candidate's output.

A cause is named only if it explains the error away, with how far, and how far the next best gets: never as
certainty. Where several do equally well, all are named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..comparison import Cause, Comparison, Culprit, Row
from ..isolation import HANDED
from ..sketch import capture_of
from .catalogue import CATALOGUE
from .gather import Evidence, Facing
from .maths import FORMATS
from .nearby import op_of
from .op import Op
from .search import (
    NOISE,
    SHARE,
    Found,
    Scale,
    Tried,
    attempt,
    constant,
    distance,
    failure,
    narrowed,
    search,
    search_layouts,
    settled,
)
from .unchanged import ROLES, unchanged

if TYPE_CHECKING:
    from ..trace import Run
    from .gather import Ops, Weights

#: Larger records are not searched for layouts: each of some 60 touches every value.
LARGEST = 1 << 20
#: Further steps that are looked at when the first one cannot tell hypotheses apart.
FURTHER = 3


@dataclass(frozen=True)
class Explanation:
    """What was found out about one culprit.

    `kinds` are the names of the hypotheses that explain it, `tried` all that were tried, the best first.
    """

    culprit: Culprit
    cause: Cause | None = None
    error: float | None = None
    kinds: tuple[str, ...] = ()
    tried: tuple[Tried, ...] = ()
    notes: tuple[str, ...] = field(default_factory=tuple)


def causes_of(
    comparison: Comparison,
    reference: Run,
    candidate: Run,
    isolated: Run | None,
    weights: Weights | Ops | None = None,
) -> tuple[Cause, ...]:
    """A cause for every culprit that the catalogue or the layout search explains."""
    made = explanations(comparison, reference, candidate, isolated, weights)
    return tuple(item.cause for item in made if item.cause is not None)


def explanations(
    comparison: Comparison,
    reference: Run,
    candidate: Run,
    isolated: Run | None,
    weights: Weights | Ops | None = None,
) -> Iterator[Explanation]:
    """One per culprit, in execution order; `weights` is the case's state by key, where it is at hand.

    Sketches are not explained: they hold no values.
    """
    if any(capture_of(run) is not None for run in (reference, candidate)):
        return
    evidence = Evidence(reference, candidate, isolated, weights)
    for culprit in comparison.culprits:
        yield _explained(evidence, comparison, culprit)
        evidence.forget()


def _explained(evidence: Evidence, comparison: Comparison, culprit: Culprit) -> Explanation:
    """A role table that is wrong about shapes or weights must not cost the verdict: it is said instead."""
    try:
        return _Case(evidence, comparison, culprit).explained()
    except Exception as error:  # whatever it is, it must not cost the verdict
        return Explanation(culprit, notes=(failure(error, "what is said of its op"),))


class _Case:
    """One culprit under examination."""

    def __init__(self, evidence: Evidence, comparison: Comparison, culprit: Culprit) -> None:
        self.evidence, self.culprit = evidence, culprit
        handed = culprit.tap + HANDED + "."
        self.rows = [row for row in comparison.handed if row.tap.startswith(handed)]
        self.rows = self.rows or [row for row in comparison.records if row.tap == culprit.tap and _wrong(row)]
        self.notes: list[str] = []
        declared = str(evidence.candidate.provenance.get("dtype", ""))
        self.declared = declared if declared in FORMATS else ""

    def explained(self) -> Explanation:
        row = next((row for row in self.rows if row.step == self.culprit.step), None)
        facing = None if row is None else self._facing(row)
        if row is None or facing is None:
            told = "both sides must show it at this step, in one shape and with finite values"
            return Explanation(self.culprit, notes=(told,))
        found = self._catalogue(facing, row)
        if not found.best or found.best[0].rank:
            plain = constant(facing.expected, facing.seen)
            found = found if plain is None else replace(plain, tried=(*plain.best, *found.tried))
        if len(found.best) > 1 or (found.best and found.best[0].also):
            found = self._at_more_steps(found, row)
        elif not found.best:
            found = self._at_another_step(found, row)
        found = self._supported(found, row, self._catalogue)
        if not found.best and facing.expected.size <= LARGEST:
            plain = self._supported(_layouts(facing, row), row, _layouts)
            tried = sorted((*found.tried, *plain.tried), key=lambda item: item.residual)
            found = replace(plain, tried=tuple(tried))
        elif not found.best:
            self.notes.append("too large for the search of layouts")
        cause = _cause(self.culprit, found) if found.best else None
        kinds = tuple(item.name for item in found.best)
        return Explanation(self.culprit, cause, found.error, kinds, found.tried, tuple(self.notes))

    def _facing(self, row: Row) -> Facing | None:
        if HANDED in row.tap:
            facing = self.evidence.handed(row.tap, row.step, row.call)
        else:
            facing = self.evidence.facing(row.tap, row.step, row.call)
            if facing is not None and distance(facing.seen, facing.expected, None) <= NOISE:
                facing = self.evidence.facing(row.tap, row.step, row.call, alone=False)
        return facing if facing is not None and facing.expected.size > 1 else None

    def _catalogue(self, facing: Facing, row: Row) -> Found:
        """The catalogue on the op behind the tap; on its output alone where the op is not understood."""
        floor = row.floor or 0.0
        op, base = self._op(facing, floor)
        if op is None:
            return Found(distance(facing.seen, facing.expected, None), NOISE, ())
        found = search(op, base=base, floor=floor, declared=self.declared)
        for note in found.failed:
            self._note(note)
        return self._confirmed(found, op, facing)

    def _op(self, facing: Facing, floor: float) -> tuple[Op | None, float]:
        """The op and how exactly it gives the reference's output; without its role where it does not."""
        role = self.evidence.role(facing.tap, facing.call)
        op = None if role is not None and role.role not in ROLES else op_of(self.evidence, facing, role)
        if op is not None and not op.role:
            op = None
        if role is None and op is None:
            self._note("the reference says nothing of the op behind it")
        elif op is None and role is not None:
            self._note(f"the op behind it ({role.role}) or its inputs are not known here")
        if op is not None:
            right = unchanged(op)
            if right is None:
                self._note("its weights are not at hand: hypotheses about them are left out")
                return op, 0.0
            base = distance(op.expected, right, None)
            if base <= max(1e-3, 3.0 * floor) and base <= SHARE * Scale(op.expected, op.seen).error:
                return op, base
            self._note(f"its role ({op.role}) gives the reference's own output only to {base:.2g}")
        return op_of(self.evidence, facing, None), 0.0

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _confirmed(self, found: Found, op: Op, facing: Facing) -> Found:
        """Without what explains the rows that were computed but not all of them."""
        role = self.evidence.role(facing.tap, facing.call) if op.role else None
        whole = op_of(self.evidence, facing, role, whole=True) if found.best else None
        if whole is None or len(whole.expected) <= len(op.expected):
            return found
        names = {item.name for item in found.best}
        scale = Scale(whole.expected, whole.seen)
        held = [
            attempt(hypothesis, whole, scale, self.declared)
            for hypothesis in CATALOGUE
            if hypothesis.name in names
        ]
        kept = tuple(
            item
            for item in held
            if item is not None and item.residual <= max(SHARE * scale.error, found.noise)
        )
        return replace(found, best=kept)

    def _at_more_steps(self, found: Found, row: Row) -> Found:
        """Position 0 has no rotation, a first token no history: later steps may tell."""
        later = [other for other in self.rows if other.step > row.step]
        for other in (*later[:1], *later[1:][-FURTHER + 1 :]):
            facing = self._facing(other)
            if facing is None or (len(found.best) < 2 and not (found.best and found.best[0].also)):
                continue
            both = narrowed(found, self._catalogue(facing, other))
            found = both if both.best else found
        return found

    def _supported(self, found: Found, row: Row, search_at: Callable[[Facing, Row], Found]) -> Found:
        """Without numbers that have one sample each, unless other steps that are wrong give the same."""
        while thin := [item for item in found.best if item.fit]:
            others = [other for other in self.rows if other.step != row.step]
            facings = [(self._facing(other), other) for other in others[:FURTHER]]
            again = [search_at(at, other).tried for at, other in facings if at is not None and _differ(at)]
            lost = [item for item in thin if not (again and all(_again(item, tried) for tried in again))]
            if not lost:
                break
            found = settled(replace(found, tried=tuple(item for item in found.tried if item not in lost)))
        return found

    def _at_another_step(self, found: Found, row: Row) -> Found:
        """What a step of many calls does not show a later one may: the slots of a cache, a full window."""
        later = [other for other in self.rows if other.step > row.step]
        for other in {other.step: other for other in (*later[:1], *later[-1:])}.values():
            facing = self._facing(other)
            again = found if facing is None else self._catalogue(facing, other)
            if again.best:
                self._note(f"step {row.step} does not tell; step {other.step} does")
                return again
        return found


def _layouts(facing: Facing, row: Row) -> Found:
    return search_layouts(facing.expected, facing.seen, tuple(facing.axes.split()), floor=row.floor or 0.0)


def _differ(facing: Facing) -> bool:
    return distance(facing.seen, facing.expected, None) > NOISE


def _again(item: Tried, tried: tuple[Tried, ...]) -> bool:
    """Whether what was fitted at one step was fitted so at another, and explains that too."""
    return any(other.residual <= SHARE and other.confirms(item) for other in tried)


def _wrong(row: Row) -> bool:
    return row.failing or (row.local_ratio is not None and row.local_ratio > 1.0)


def _cause(culprit: Culprit, found: Found) -> Cause:
    best, other = found.best[0], found.next_best
    name = ", or ".join(item.told for item in found.best)
    after = "" if other is None else f"; next best {told(other.residual)}"
    several = len(found.best) > 1 or best.also
    tied = " (cannot be told apart on this input)" if several else ""
    link = "reference, but" if best.rank >= 2 else "reference with"
    evidence = f"candidate = {link} {name}{tied} (residual {told(best.residual)}{after})"
    return Cause(
        culprit.tap,
        name,
        evidence,
        residual=best.residual,
        next_best=None if other is None else other.residual,
    )


def told(residual: float) -> str:
    """A relative residue in print; rounding of float32 is 0."""
    if residual < NOISE:
        return "0"
    return f"{residual:.2f}" if 0.01 <= residual < 100 else f"{residual:.1e}"
