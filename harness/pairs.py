"""What alignment hands on: one reference record, or one of the candidate's, and what answers it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from .trace import Record


class Rows(Protocol):
    """Rows of one tap by absolute position; see `TapRows`."""

    axes: str

    def at(self, step: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(slots=True)
class Pair:
    """One reference record, or one candidate record without a counterpart, and what answers it.

    `direct` pairs are streamed from both files; the others were put in order by position and lie in
    memory as `expected` and `actual`. `hidden` counts values at padding, which are left out,
    `padded` those of them that stay inside the arrays as equal zeros. `problem` says
    why nothing can be measured, `lost` which rows of the reference nothing answers.
    """

    tap: str
    step: int
    call: int
    rule: str
    reference: Record | None = None
    candidate: Record | None = None
    expected: np.ndarray | None = None
    actual: np.ndarray | None = None
    positions: np.ndarray | None = None
    axes: str = ""
    hidden: int = 0
    padded: int = 0
    problem: str = ""
    lost: str = ""

    def __len__(self) -> int:
        return 1

    def pair(self, place: int = 0) -> Pair:
        """As of a series of one."""
        assert place == 0
        return self

    @property
    def measurable(self) -> bool:
        """Whether there are two sides to be measured."""
        return (
            not self.problem
            and self.candidate is not None
            and (self.reference is not None or self.expected is not None)
        )

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Shapes of what is going to be measured, the candidate's first; None where a side is missing."""
        if self.actual is not None and self.expected is not None:
            return self.actual.shape, self.expected.shape
        if self.candidate is not None and self.reference is not None:
            return tuple(self.candidate.shape), tuple(self.reference.shape)
        return None

    def spread(self) -> bool:
        """Where one side has a single leading row, and the other several: let it stand for each of them.

        Done where nothing else tells the shapes apart and no axes are declared; the rule says so.
        """
        if self.axes or self.shapes is None or self.reference is None or self.candidate is None:
            return False
        own, other = self.shapes
        if len(own) < 2 or own[1:] != other[1:] or min(own[0], other[0]) != 1 or self.actual is not None:
            return False
        shape = max(own, other)
        self.actual = np.broadcast_to(self.candidate.read(), shape)
        self.expected = np.broadcast_to(self.reference.read(), shape)
        self.rule += f"; one row stands for all {shape[0]}"
        return True

    @property
    def direct(self) -> bool:
        """Whether both records can be streamed as they lie."""
        return self.reference is not None and self.candidate is not None and self.actual is None
