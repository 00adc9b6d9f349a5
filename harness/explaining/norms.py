"""Layer norm and RMS norm: eps, what is subtracted, what is multiplied, in which number format."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .maths import layer_norm, rms_norm, rounded
from .op import NORMS, Op, Values, Variant, hypothesis

EPSILONS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-12, 0.0)
LAYER = frozenset({"layernorm"})


def norm(
    op: Op,
    *,
    x: Values | None = None,
    weight: Values | float | None = None,
    bias: Values | float | None = None,
    eps: float | None = None,
    role: str = "",
) -> Values:
    """The op's own norm with what is given in place of its own."""
    kind = rms_norm if (role or op.role) == "rmsnorm" else layer_norm
    return kind(
        op.total if x is None else x,
        _weight(op) if weight is None else weight,
        op.bias if bias is None else bias,
        eps=_eps(op) if eps is None else eps,
    )


def _weight(op: Op) -> Values | float:
    return op.weight if op.weights else 1.0


def _eps(op: Op) -> float:
    return op.number("eps", 1e-5)


@hypothesis("norm", NORMS, weights=True)
def other_eps(op: Op) -> Iterator[Variant]:
    for eps in dict.fromkeys((*EPSILONS, _eps(op) * 10, _eps(op) / 10, _eps(op) * 100)):
        if not np.isclose(eps, _eps(op), rtol=1e-6, atol=0.0):
            yield Variant(f"eps {eps:g} instead of {_eps(op):g}", norm(op, eps=eps))


@hypothesis("norm", NORMS, weights=True)
def eps_outside_the_root(op: Op) -> Iterator[Variant]:
    x = op.total - op.total.mean(-1, keepdims=True) if op.role in LAYER else op.total
    root = np.sqrt((x * x).mean(-1, keepdims=True))
    for eps in (_eps(op), *(eps for eps in EPSILONS if eps and eps != _eps(op))):
        words = f"eps {eps:g} added to the root instead of under it"
        yield Variant(words, x / (root + eps) * op.weight + op.bias)


@hypothesis("norm", NORMS, weights=True)
def the_other_norm(op: Op) -> Iterator[Variant]:
    if op.role == "rmsnorm":
        yield Variant("LayerNorm instead of RMSNorm", norm(op, role="layernorm"))
    else:
        yield Variant("RMSNorm instead of LayerNorm", norm(op, role="rmsnorm"))
        yield Variant("RMSNorm without bias instead of LayerNorm", norm(op, role="rmsnorm", bias=0.0))


@hypothesis("norm", NORMS, weights=True)
def bias_dropped(op: Op) -> Iterator[Variant]:
    if len(op.weights) > 1:
        yield Variant("the norm's bias left out", norm(op, bias=0.0))


@hypothesis("norm", NORMS, weights=True)
def bias_twice(op: Op) -> Iterator[Variant]:
    if len(op.weights) > 1:
        yield Variant("the norm's bias added twice", norm(op, bias=2.0 * np.asarray(op.bias)))


@hypothesis("norm", NORMS, weights=True)
def weight_dropped(op: Op) -> Iterator[Variant]:
    yield Variant("the norm's weight left out", norm(op, weight=1.0))


@hypothesis("norm", NORMS, weights=True)
def weight_and_bias_dropped(op: Op) -> Iterator[Variant]:
    if len(op.weights) > 1:
        yield Variant("the norm's weight and bias left out", norm(op, weight=1.0, bias=0.0))


@hypothesis("norm", NORMS, weights=True)
def weight_off_by_one(op: Op) -> Iterator[Variant]:
    """Checkpoints may hold the weight less one."""
    yield Variant("1 added to the norm's weight", norm(op, weight=op.weight + 1.0))
    yield Variant("1 taken from the norm's weight", norm(op, weight=op.weight - 1.0))


@hypothesis("norm", NORMS, weights=True)
def weight_and_bias_swapped(op: Op) -> Iterator[Variant]:
    if len(op.weights) > 1:
        yield Variant("weight and bias of the norm swapped", norm(op, weight=op.bias, bias=op.weight))


@hypothesis("norm", LAYER, weights=True)
def unbiased_variance(op: Op) -> Iterator[Variant]:
    values = layer_norm(op.total, op.weight, op.bias, eps=_eps(op), lost=1)
    yield Variant("the variance divided by n - 1", values)


@hypothesis("norm", NORMS, weights=True)
def no_square_root(op: Op) -> Iterator[Variant]:
    x = op.total - op.total.mean(-1, keepdims=True) if op.role in LAYER else op.total
    variance = (x * x).mean(-1, keepdims=True) + _eps(op)
    yield Variant("the variance in place of its root", x / variance * op.weight + op.bias)


@hypothesis("norm", NORMS, weights=True)
def sum_of_squares(op: Op) -> Iterator[Variant]:
    """L2 normalisation: the sum in place of the mean."""
    x = op.total - op.total.mean(-1, keepdims=True) if op.role in LAYER else op.total
    size = np.sqrt((x * x).sum(-1, keepdims=True) + _eps(op))
    yield Variant("the sum of squares in place of their mean", x / size * op.weight + op.bias)


@hypothesis("norm", LAYER, weights=True)
def mean_not_taken_off(op: Op) -> Iterator[Variant]:
    x = op.total
    size = np.sqrt(x.var(-1, keepdims=True) + _eps(op))
    yield Variant("the mean not taken off", x / size * op.weight + op.bias)


@hypothesis("norm", NORMS)
def norm_missing(op: Op) -> Iterator[Variant]:
    yield Variant("the norm left out", op.total)


@hypothesis("norm", NORMS, weights=True)
def norm_twice(op: Op) -> Iterator[Variant]:
    yield Variant("the norm applied twice", norm(op, x=norm(op)))


@hypothesis("norm", NORMS, weights=True)
def norm_before_the_residual(op: Op) -> Iterator[Variant]:
    """One of the summands is normalised without the other."""
    for tap, part in zip(op.reads, op.inputs, strict=True) if len(op.inputs) > 1 else ():
        yield Variant(f"the norm of {tap} alone", norm(op, x=part))
    for tap in op.around.inputs(op.reads[0]) if len(op.inputs) == 1 else ():
        found = op.around.rows(tap)
        if found is not None and found[0].shape == op.total.shape and found[1].all():
            yield Variant(f"the norm of {tap} alone", norm(op, x=found[0]))


@hypothesis("norm", NORMS, weights=True)
def norm_of_another_layer(op: Op) -> Iterator[Variant]:
    for tap, weights in op.around.others():
        bias = weights[1] if len(weights) > 1 else 0.0
        yield Variant(f"the weights of {tap}", norm(op, weight=weights[0], bias=bias))
        yield Variant(f"the weight of {tap}, its own bias", norm(op, weight=weights[0]))


@hypothesis("norm", NORMS, weights=True)
def norm_over_tokens(op: Op) -> Iterator[Variant]:
    x = op.total
    if len(x) > 2 and len(np.unique(op.sequence)) == 1 and x.ndim == 2:
        values = norm(op, x=x.T, weight=1.0, bias=0.0).T * op.weight + op.bias
        yield Variant("the norm over tokens instead of channels", values)


@hypothesis("norm", NORMS, weights=True)
def norm_in_low_precision(op: Op) -> Iterator[Variant]:
    """Everything in and out rounded and float32 sums; or every step rounded."""
    for name in ("bfloat16", "float16"):
        x, weight, bias = (rounded(np.asarray(part), name) for part in (op.total, op.weight, op.bias))
        yield Variant(
            f"the norm of numbers in {name}", rounded(norm(op, x=x, weight=weight, bias=bias), name)
        )
        yield Variant(f"the norm computed step by step in {name}", _stepwise(op, x, weight, bias, name))
        yield Variant(f"the norm's input rounded to {name}", norm(op, x=x))


def _stepwise(op: Op, x: Values, weight: Values, bias: Values, name: str) -> Values:
    if op.role in LAYER:
        x = rounded(x - rounded(x.mean(-1, keepdims=True), name), name)
    variance = rounded((rounded(x * x, name)).mean(-1, keepdims=True), name)
    with np.errstate(divide="ignore"):
        scale = rounded(1.0 / np.sqrt(rounded(variance + _eps(op), name)), name)
    return rounded(rounded(rounded(x * scale, name) * weight, name) + bias, name)
