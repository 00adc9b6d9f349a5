"""Masks over the slots of a cache as the candidate has it: empty ones, padding, rows that are too old.

What lies in a hidden slot is what the candidate left there.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .maths import attend
from .op import Op, Values, Variant, hypothesis

ATTENTION = frozenset({"attention"})


def masked(
    op: Op, words: str, allowed: Values, *, hidden: float = -np.inf, bias: Values | float = 0.0
) -> Variant:
    """Attention over the slots, for the rows whose call's slots are known."""
    assert op.slots is not None
    values = attend(op, memory=op.slots.memory, allowed=allowed, hidden=hidden, bias=bias)
    return Variant(words, values, op.slots.rows & np.asarray(allowed.any(1)))


def hides(op: Op) -> bool:
    """Whether a mask has more to hide than tokens."""
    return op.slots is not None and op.slots.tell


@hypothesis("slots", ATTENTION)
def mask_of_slots_missing(op: Op) -> Iterator[Variant]:
    if hides(op):
        assert op.slots is not None
        yield masked(op, "no mask over hidden cache slots", np.ones_like(op.slots.allowed))


@hypothesis("slots", ATTENTION)
def mask_of_slots_too_weak(op: Op) -> Iterator[Variant]:
    for constant in (-2.0, -5.0, -10.0, -20.0, -100.0) if hides(op) else ():
        assert op.slots is not None
        words = f"scores of hidden cache slots lowered by {-constant:g} only"
        yield masked(op, words, np.where(op.slots.allowed, True, False), hidden=constant)


@hypothesis("slots", ATTENTION)
def mask_of_slots_as_number(op: Op) -> Iterator[Variant]:
    if hides(op):
        assert op.slots is not None
        own, every = op.slots.allowed, np.ones_like(op.slots.allowed)
        yield masked(op, "the boolean mask of cache slots added as 0 and 1", every, bias=own.astype(float))
        words = "the boolean mask of cache slots added as 0 and 1, 1 where hidden"
        yield masked(op, words, every, bias=(~own).astype(float))


@hypothesis("slots", ATTENTION)
def mask_of_slots_inverted(op: Op) -> Iterator[Variant]:
    if hides(op):
        assert op.slots is not None
        yield masked(op, "the mask of cache slots inverted", ~op.slots.allowed)


@hypothesis("slots", ATTENTION)
def mask_of_slots_moved(op: Op) -> Iterator[Variant]:
    """Off by one, the end coming round to the beginning."""
    for by in (1, -1) if hides(op) else ():
        assert op.slots is not None
        yield masked(op, f"the mask moved by {by:+d} cache slot", np.roll(op.slots.allowed, by, 1))


@hypothesis("slots", ATTENTION)
def mask_of_another_sequence(op: Op) -> Iterator[Variant]:
    """The first sequence's mask for all of the batch."""
    if hides(op) and len(np.unique(op.sequence)) > 1:
        assert op.slots is not None
        first = np.flatnonzero((op.sequence == op.sequence[0]) & op.slots.rows)
        if first.size == 1:
            allowed = np.repeat(op.slots.allowed[first], len(op.sequence), 0)
            yield masked(op, "the mask of the first sequence for all", allowed)
