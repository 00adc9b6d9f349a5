"""Sums of a residual stream: what is missing, taken twice, or taken at the wrong place."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .maths import layer_norm, rms_norm, rounded
from .op import Op, Variant, hypothesis

ADD = frozenset({"add"})


@hypothesis("residual", ADD)
def summand_missing(op: Op) -> Iterator[Variant]:
    for place, tap in enumerate(op.reads):
        yield Variant(f"{tap} not added", op.total - op.inputs[place])


@hypothesis("residual", ADD)
def summand_twice(op: Op) -> Iterator[Variant]:
    for place, tap in enumerate(op.reads):
        yield Variant(f"{tap} added twice", op.total + op.inputs[place])


@hypothesis("residual", ADD)
def summand_subtracted(op: Op) -> Iterator[Variant]:
    for place, tap in enumerate(op.reads):
        yield Variant(f"{tap} subtracted", op.total - 2.0 * op.inputs[place])


@hypothesis("residual", ADD)
def summand_normalised(op: Op) -> Iterator[Variant]:
    """Taken after a norm instead of before it: a norm without weights, or one that another tap shows."""
    for place, tap in enumerate(op.reads):
        rest, own = op.total - op.inputs[place], op.inputs[place]
        yield Variant(f"{tap} normalised before it is added", rest + layer_norm(own, eps=1e-5))
        yield Variant(f"{tap} RMS-normalised before it is added", rest + rms_norm(own, eps=1e-5))


@hypothesis("residual", ADD)
def summand_from_elsewhere(op: Op) -> Iterator[Variant]:
    """Another tap of this shape in place of a summand: after the norm, of another layer or branch."""
    for tap in op.around.alike():
        found = op.around.rows(tap)
        if found is None or not found[1].all() or found[0].shape != op.expected.shape:
            continue
        for place, own in enumerate(op.reads):
            yield Variant(f"{tap} added in place of {own}", op.total - op.inputs[place] + found[0])


@hypothesis("residual", ADD)
def summand_of_another_token(op: Op) -> Iterator[Variant]:
    for place, tap in enumerate(op.reads):
        for shift, words in ((-1, "before"), (1, "after")):
            found = op.around.rows(tap, shift)
            if found is not None and found[1].any():
                values = op.total - op.inputs[place] + found[0]
                yield Variant(f"{tap} of the token {words}", values, found[1])


@hypothesis("residual", ADD)
def sum_scaled(op: Op) -> Iterator[Variant]:
    yield Variant("the sum halved", op.total / 2.0)
    yield Variant("the sum divided by the root of 2", op.total / np.sqrt(2.0))


@hypothesis("residual", ADD)
def multiplied(op: Op) -> Iterator[Variant]:
    yield Variant("a product in place of the sum", np.prod(np.stack(op.inputs), axis=0))


@hypothesis("residual", ADD)
def summand_in_low_precision(op: Op) -> Iterator[Variant]:
    for name in ("bfloat16", "float16"):
        for place, tap in enumerate(op.reads):
            own = op.inputs[place]
            yield Variant(f"{tap} rounded to {name}", op.total - own + rounded(own, name))
        low = sum(rounded(part, name) for part in op.inputs)
        yield Variant(f"summands rounded to {name}", np.asarray(low))
        yield Variant(f"a sum in {name}", rounded(np.asarray(low), name))
