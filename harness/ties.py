"""Ties between tokens: a choice that the number format alone may turn is no fault by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .case import Step
from .dtypes import logical_dtype
from .judge import FACTOR
from .tokens import last_logits

if TYPE_CHECKING:
    from .rules import Rule
    from .values import Values

Array = np.ndarray[Any, Any]

#: Rounding of a logit, in halves of an epsilon of its format times the RMS of its row.
ROUNDINGS = 16.0


def by_format(dtype: str, logits: Array) -> float:
    """How far two logits of a row `[V]` may move against each other by rounding in a number format."""
    if not dtype.startswith(("float", "bfloat")):
        return 0.0
    import ml_dtypes

    epsilon = float(ml_dtypes.finfo(logical_dtype(dtype)).eps)
    return ROUNDINGS * epsilon * float(np.sqrt(np.mean(np.square(logits.astype(np.float64)))))


def by_rule(rule: Rule, logits: Array, *chosen: int) -> float:
    """How far two chosen logits of a row may move against each other within what is allowed."""
    if rule.floor is not None:
        scale = float(np.sqrt(np.mean(np.square(logits))))
        return 2.0 * FACTOR * rule.floor.peak * scale
    return sum(rule.bound.atol + rule.bound.rtol * abs(float(logits[token])) for token in chosen)


class Ties:
    """Free replay beside a reference: where the choice was a tie, it goes on with the reference's token.

    Once a sequence has parted by more than a tie, the reference's tokens answer another question and it is
    left alone.
    """

    def __init__(self, reference: Values, dtype: str) -> None:
        self._reference, self._dtype = reference, dtype
        output = str(reference.run.provenance.get("wiring", {}).get("output", "logits"))
        self._logits = last_logits(reference.run, output)
        self._parted: set[int] = set()
        self.settled: list[tuple[int, int]] = []

    def settle(self, step: Step, tokens: Array) -> Array:
        """Tokens `[B, T]` that a step is fed; `settled` gains (step, sequence) for each tie."""
        theirs = self._reference.tokens(step.index)
        before = self._logits.get(step.index - 1)
        if step.tokens is not None or theirs is None or before is None or theirs.shape != tokens.shape:
            return tokens
        fed = tokens.copy()
        for sequence in np.flatnonzero((theirs != tokens).any(axis=1)).tolist():
            logits = before[sequence]
            margin = float(logits[theirs[sequence, 0]] - logits[tokens[sequence, 0]])
            if sequence not in self._parted and 0.0 <= margin <= by_format(self._dtype, logits):
                fed[sequence] = theirs[sequence]
                self.settled.append((step.index, sequence))
            else:
                self._parted.add(sequence)
        return fed
