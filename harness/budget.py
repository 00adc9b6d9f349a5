"""How much of an error at the end each part owns: what it does alone, beside what all of them do together.

The KL of the logits is quadratic in small errors. Those of different parts are independent, so their products
average out over tokens and the singles come to about the whole: 107 % was seen in int8, 120 % in bf16.
What they leave open beyond that, and beyond the scatter of so many tokens, is interaction or a fault between
parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

#: Where the singles leave more than this of the whole open, and it is no scatter, something is going on.
RESIDUE = 0.25
#: Standard errors that scatter may come to.
SCATTER = 3.0


@dataclass(frozen=True)
class Share:
    """One part alone: its error in the metric, and the best tokens that it turned over."""

    part: str
    error: float
    flips: int = 0


@dataclass(frozen=True)
class Kept:
    """Parts kept in higher precision, the error that this should leave, and the error that was measured."""

    parts: tuple[str, ...]
    predicted: float
    measured: float
    reached: bool


@dataclass(frozen=True)
class Budget:
    """`shares` in execution order and the error of the `whole` in `metric`, a mean over `count` tokens.

    `scatter` is the standard error of what the singles leave open.
    """

    metric: str
    shares: tuple[Share, ...]
    whole: float
    scatter: float = 0.0
    flips: int = 0
    count: int = 0
    plan: Kept | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def singles(self) -> float:
        """Sum of what the parts do alone."""
        return sum(share.error for share in self.shares)

    @property
    def explained(self) -> float:
        """Share of the whole that the singles come to; above 1 where errors make up for each other."""
        return self.singles / self.whole if self.whole else 1.0

    @property
    def sound(self) -> bool:
        """Whether the singles explain the whole, within the scatter."""
        return self.whole - self.singles <= max(RESIDUE * self.whole, SCATTER * self.scatter)

    def share_of(self, share: Share) -> float:
        """Of the whole, 0 to 1 and a little above."""
        return share.error / self.whole if self.whole else 0.0

    @property
    def ranked(self) -> tuple[Share, ...]:
        """Largest first."""
        return tuple(sorted(self.shares, key=lambda share: -share.error))

    def left(self, kept: Sequence[str]) -> float:
        """What the singles say is left of the error with these parts kept right."""
        rest = sum(share.error for share in self.shares if share.part not in kept)
        return self.whole * rest / self.singles if self.singles else self.whole

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "metric": self.metric,
            "whole": self.whole,
            "singles": self.singles,
            "explained": self.explained,
            "scatter": self.scatter,
            "sound": self.sound,
            "flips": self.flips,
            "count": self.count,
            "shares": [{**asdict(share), "share": self.share_of(share)} for share in self.shares],
            "plan": self.plan and asdict(self.plan),
            "notes": list(self.notes),
        }


def plan(
    budget: Budget, target: float, parts: Sequence[str], measure: Callable[[tuple[str, ...]], float]
) -> Kept:
    """The fewest of `parts` that must be kept right so that the error comes down to `target`.

    The largest go first, for singles add up; `measure` (the error with these kept) decides, from the size on
    that the singles say is within half as much again of the target.
    """
    ranked = [share.part for share in budget.ranked if share.part in parts and share.error > 0]
    order = [share.part for share in budget.shares]
    chosen: tuple[str, ...] = ()
    measured = budget.whole
    for size in range(1, len(ranked) + 1):
        if measured <= target:
            break
        chosen = tuple(sorted(ranked[:size], key=order.index))
        if budget.left(chosen) <= 1.5 * target or size == len(ranked):
            measured = measure(chosen)
    return Kept(chosen, budget.left(chosen), measured, measured <= target)
