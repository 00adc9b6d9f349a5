"""Every known kind of mistake, family by family."""

from __future__ import annotations

from . import (
    attention,
    cache,
    embedding,
    linear,
    linear_rows,
    mlp,
    norms,
    numbers,
    residual,
    rope,
    rotation,
    rows,
    slots,
    softmax,
)
from .op import Hypothesis

FAMILIES = (
    embedding,
    rope,
    rotation,
    attention,
    slots,
    softmax,
    norms,
    mlp,
    linear,
    linear_rows,
    residual,
    cache,
    rows,
    numbers,
)

CATALOGUE: tuple[Hypothesis, ...] = tuple(
    found for family in FAMILIES for found in vars(family).values() if isinstance(found, Hypothesis)
)
