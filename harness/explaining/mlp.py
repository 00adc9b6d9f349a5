"""Activations, and the product of two branches of which one is activated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from .maths import (
    ACTIVATIONS,
    Function,
    gelu_quick,
    hard_silu,
    linear,
    rounded,
    sigmoid,
)
from .op import GATED, PLAIN, Op, Values, Variant, hypothesis

WORDS = {"silu": "SiLU", "gelu": "GELU", "gelu_tanh": "GELU by tanh", "relu": "ReLU"}
BOTH = GATED | PLAIN


def own(op: Op) -> str:
    """The activation of the role, by its name in the table."""
    return op.role.removeprefix("gated_")


def branches(op: Op) -> tuple[Values, Values]:
    """`w0 x + b0`, which is activated, and `w1 x + b1`, which multiplies."""
    first, first_bias, second, second_bias = parts(op)
    return linear(op.x, first, first_bias), linear(op.x, second, second_bias)


def parts(op: Op) -> tuple[Values, Values | float, Values, Values | float]:
    """Weight and bias of both branches; two weights alone have no biases."""
    if len(op.weights) == 4:
        return op.weights[0], op.weights[1], op.weights[2], op.weights[3]
    return op.weights[0], 0.0, op.weights[1], 0.0


def gated(op: Op, function: Function | None = None) -> Values:
    """The op with another activation; of a plain activation, that function of its input."""
    function = function or ACTIVATIONS[own(op)]
    if op.role in PLAIN:
        return op.shaped(function(op.x))
    active, other = branches(op)
    return function(active) * other


def needs(op: Op) -> bool:
    """Whether the op can be computed: a plain activation needs no weights."""
    return op.role in PLAIN or bool(op.weights)


@hypothesis("mlp", BOTH)
def other_activation(op: Op) -> Iterator[Variant]:
    tried = {WORDS[name]: function for name, function in ACTIVATIONS.items() if name != own(op)}
    tried |= {"GELU by sigmoid": gelu_quick, "hard SiLU": hard_silu, "tanh": np.tanh, "sigmoid": sigmoid}
    tried["squared ReLU"] = lambda x: np.maximum(x, 0.0) ** 2
    for words, function in tried.items() if needs(op) else ():
        yield Variant(f"{words} in place of {WORDS[own(op)]}", gated(op, function))


@hypothesis("mlp", BOTH)
def activation_missing(op: Op) -> Iterator[Variant]:
    if needs(op):
        yield Variant(f"{WORDS[own(op)]} left out", gated(op, lambda x: x))


@hypothesis("mlp", BOTH)
def activation_twice(op: Op) -> Iterator[Variant]:
    function = ACTIVATIONS[own(op)]
    if needs(op):
        yield Variant(f"{WORDS[own(op)]} applied twice", gated(op, lambda x: function(function(x))))


@hypothesis("mlp", BOTH)
def activation_in_low_precision(op: Op) -> Iterator[Variant]:
    function = ACTIVATIONS[own(op)]
    for name in ("bfloat16", "float16") if needs(op) else ():
        words = f"{WORDS[own(op)]} in {name}"
        yield Variant(words, gated(op, partial(_low, function=function, name=name)))


def _low(x: Values, function: Function, name: str) -> Values:
    return rounded(function(rounded(x, name)), name)


@hypothesis("mlp", GATED, weights=True)
def activation_on_the_other_branch(op: Op) -> Iterator[Variant]:
    """The same numbers as with both weights swapped."""
    active, other = branches(op)
    words = f"{WORDS[own(op)]} on the other branch (or the two weights swapped)"
    yield Variant(words, active * ACTIVATIONS[own(op)](other))


@hypothesis("mlp", GATED, weights=True)
def activation_on_both_branches(op: Op) -> Iterator[Variant]:
    active, other = branches(op)
    function = ACTIVATIONS[own(op)]
    yield Variant(f"{WORDS[own(op)]} on both branches", function(active) * function(other))


@hypothesis("mlp", GATED, weights=True)
def activation_after_the_product(op: Op) -> Iterator[Variant]:
    active, other = branches(op)
    yield Variant(f"{WORDS[own(op)]} of the product", ACTIVATIONS[own(op)](active * other))


@hypothesis("mlp", GATED, weights=True)
def gate_missing(op: Op) -> Iterator[Variant]:
    active, other = branches(op)
    yield Variant("the branch without activation left out", ACTIVATIONS[own(op)](active))
    yield Variant("the branch with the activation left out", other)


@hypothesis("mlp", GATED, weights=True)
def branches_added(op: Op) -> Iterator[Variant]:
    active, other = branches(op)
    yield Variant("the branches added instead of multiplied", ACTIVATIONS[own(op)](active) + other)


@hypothesis("mlp", GATED, weights=True)
def branch_used_twice(op: Op) -> Iterator[Variant]:
    """One weight loaded into both places."""
    active, other = branches(op)
    function = ACTIVATIONS[own(op)]
    yield Variant("the first weight in both branches", function(active) * active)
    yield Variant("the second weight in both branches", function(other) * other)


@hypothesis("mlp", GATED, weights=True)
def branch_bias_dropped(op: Op) -> Iterator[Variant]:
    _, first_bias, _, second_bias = parts(op)
    if len(op.weights) < 4:
        return
    function = ACTIVATIONS[own(op)]
    active, other = branches(op)
    without = active - first_bias, other - second_bias
    yield Variant("the bias of the activated branch left out", function(without[0]) * other)
    yield Variant("the bias of the other branch left out", function(active) * without[1])
    yield Variant("both biases left out", function(without[0]) * without[1])


@hypothesis("mlp", GATED, weights=True)
def branches_packed_otherwise(op: Op) -> Iterator[Variant]:
    """One weight of both branches, cut in halves where rows alternate, or the reverse."""
    active, other = branches(op)
    both = np.concatenate((active, other), -1)
    function = ACTIVATIONS[own(op)]
    yield Variant("rows of the two branches read alternately", function(both[:, ::2]) * both[:, 1::2])
    mixed = np.stack((active, other), -1).reshape(both.shape)
    half = active.shape[-1]
    yield Variant("rows of the two branches read as halves", function(mixed[:, :half]) * mixed[:, half:])


@hypothesis("mlp", GATED, weights=True)
def branch_weights_transposed(op: Op) -> Iterator[Variant]:
    first, first_bias, second, second_bias = parts(op)
    if first.shape[0] == first.shape[1]:
        function = ACTIVATIONS[own(op)]
        turned = function(linear(op.x, first.T, first_bias)) * linear(op.x, second.T, second_bias)
        yield Variant("both weights transposed", turned)


@hypothesis("mlp", GATED, weights=True)
def branch_weights_in_low_precision(op: Op) -> Iterator[Variant]:
    function = ACTIVATIONS[own(op)]
    for name in ("bfloat16", "float16"):
        first, first_bias, second, second_bias = (rounded(np.asarray(part), name) for part in parts(op))
        active, other = linear(op.x, first, first_bias), linear(op.x, second, second_bias)
        yield Variant(f"both weights rounded to {name}", function(active) * other)


@hypothesis("mlp", GATED, weights=True)
def branches_of_another_layer(op: Op) -> Iterator[Variant]:
    for tap, weights in op.around.others():
        yield Variant(f"the weights of {tap}", gated(replace(op, weights=weights)))
