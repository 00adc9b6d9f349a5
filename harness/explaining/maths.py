"""The ops, written from their definitions in numpy, with the knobs that mistakes turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from .op import Memory, Op, Values

Function = Callable[[Values], Values]
FORMATS: dict[str, Any] = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def rounded(x: Values, name: str) -> Values:
    """Rounded to the nearest number of a float format; what it cannot hold becomes infinite."""
    with np.errstate(over="ignore"):
        return x.astype(np.float32).astype(FORMATS[name]).astype(x.dtype)


def cut(x: Values) -> Values:
    """bfloat16 by dropping the low half of a float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return np.asarray(bits.view(np.float32).astype(x.dtype))


def whole(
    x: Values, most: Values | float, low: int = -127, high: int = 127, by: Function = np.rint
) -> Values:
    """Whole multiples of the scale `most / high`, saturated, in float32 as quantizers compute."""
    scale = np.asarray(most, np.float32) / np.float32(high)
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.nan_to_num(np.clip(by(x.astype(np.float32) / scale), low, high))
    return np.asarray(codes.astype(np.float64) * scale)


def linear(x: Values, weight: Values, bias: Values | float = 0.0) -> Values:
    """`x W^T + b` with `W` `[out, in]`."""
    return np.asarray(x @ weight.T + bias)


def layer_norm(
    x: Values, weight: Values | float = 1.0, bias: Values | float = 0.0, *, eps: float, lost: int = 0
) -> Values:
    """`(x - mean) / sqrt(var + eps) * w + b`; the variance is divided by one less for each `lost`."""
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred * centred).sum(-1, keepdims=True) / (x.shape[-1] - lost)
    return np.asarray(centred / np.sqrt(variance + eps) * weight + bias)


def rms_norm(x: Values, weight: Values | float = 1.0, bias: Values | float = 0.0, *, eps: float) -> Values:
    """`x / sqrt(mean(x^2) + eps) * w + b`."""
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight + bias)


def sigmoid(x: Values) -> Values:
    """`1 / (1 + e^-x)`."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def silu(x: Values) -> Values:
    """`x sigmoid(x)`."""
    return np.asarray(x * sigmoid(x))


def gelu_tanh(x: Values) -> Values:
    """GELU by the tanh formula."""
    return np.asarray(0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))))


def gelu_quick(x: Values) -> Values:
    """`x sigmoid(1.702 x)`."""
    return x * sigmoid(1.702 * x)


def gelu(x: Values) -> Values:
    """`x Phi(x)` with the exact normal distribution."""
    return 0.5 * x * (1.0 + erf(x / np.sqrt(2.0)))


def erf(x: Values) -> Values:
    """The error function to 1.2e-7 (Numerical Recipes' rational Chebyshev fit for erfc)."""
    t = 1.0 / (1.0 + 0.5 * np.abs(x))
    terms = (-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806,
             0.27886807, -1.13520398, 1.48851587, -0.82215223, 0.17087277)  # fmt: skip
    power = np.zeros_like(t)
    for term in reversed(terms):
        power = power * t + term
    return np.sign(x) * (1.0 - t * np.exp(-x * x + power))


def hard_silu(x: Values) -> Values:
    """`x clip(x / 6 + 1/2, 0, 1)`."""
    return x * np.clip(x / 6.0 + 0.5, 0.0, 1.0)


def relu(x: Values) -> Values:
    """`max(x, 0)`."""
    return np.maximum(x, 0.0)


ACTIVATIONS: dict[str, Function] = {
    "silu": silu, "gelu": gelu, "gelu_tanh": gelu_tanh, "relu": relu,
}  # fmt: skip


def turned(x: Values, *, pairs: bool) -> Values:
    """Each channel's partner, a quarter turn on: `(-second, first)` of halves or of pairs."""
    if pairs:
        return np.stack((-x[..., 1::2], x[..., ::2]), -1).reshape(x.shape)
    half = x.shape[-1] // 2
    return np.concatenate((-x[..., half:], x[..., :half]), -1)


def rotate(x: Values, cos: Values, sin: Values, *, pairs: bool = False) -> Values:
    """Rotary positions: `x cos + partner sin`; x `[N, H, D]`, tables `[N, D]`."""
    return np.asarray(x * cos[:, None] + turned(x, pairs=pairs) * sin[:, None])


def unrotate(x: Values, cos: Values, sin: Values, *, pairs: bool = False) -> Values:
    """What `rotate` was given, exactly, for tables that repeat each angle for both partners."""
    size = cos * cos + sin * sin
    return rotate(x, cos / size, -sin / size, pairs=pairs)


def tables(position: Values, frequency: Values, *, pairs: bool = False) -> tuple[Values, Values]:
    """Cosines and sines `[N, D]` for D/2 frequencies, float32 angles as tables are made of."""
    angle = position.astype(np.float32)[:, None] * frequency.astype(np.float32)
    angle = (np.repeat(angle, 2, -1) if pairs else np.concatenate((angle, angle), -1)).astype(np.float64)
    return np.cos(angle), np.sin(angle)


def frequencies(base: float, width: int, exponent: float | None = None) -> Values:
    """`base^(-2i / width)` for each of width / 2 pairs; `exponent` in place of the width below."""
    return 1.0 / base ** (np.arange(0, width, 2) / (exponent or width))


def softmax(scores: Values, axis: int = -1) -> Values:
    """Softmax; rows of nothing but -inf give zeros."""
    most = scores.max(axis, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(most), most, 0.0))
    total = weights.sum(axis, keepdims=True)
    return np.asarray(weights / np.where(total == 0.0, 1.0, total))


def repeat_heads(heads: int, groups: int) -> Values:
    """The key/value head of each query head: neighbours share one."""
    return np.arange(heads) // max(heads // groups, 1)


def may_attend(op: Op, memory: Memory, *, ahead: int = 0, wider: int = 0, window: bool = True) -> Values:
    """`[N, S]`: rows that exist, not later than `ahead` behind the token, not older than the window."""
    at = np.arange(memory.known.shape[1])
    ahead += 0 if op.number("causal", 1.0) else len(at)
    allowed = memory.known[op.sequence] & (at <= op.position[:, None] + ahead)
    if window and op.around.window is not None:
        allowed = allowed & (at > op.position[:, None] - (op.around.window + wider))
    return allowed


def attend(
    op: Op,
    *,
    q: Values | None = None,
    memory: Memory | None = None,
    scale: float | None = None,
    allowed: Values | None = None,
    hidden: float = -np.inf,
    bias: Values | float = 0.0,
    heads: Values | None = None,
    shape: Function = lambda scores: scores,
    weigh: Function = softmax,
) -> Values:
    """Attention `[N, H, D]`. Scores are `[H, n, S]` per sequence; `shape` acts before the mask.

    `hidden` is added where a token may not attend, `bias` `[N, S]` everywhere.
    """
    memory = memory or op.memory
    assert memory is not None
    q = op.inputs[0] if q is None else q
    scale = op.number("scale", q.shape[-1] ** -0.5) if scale is None else scale
    allowed = may_attend(op, memory) if allowed is None else allowed
    heads = repeat_heads(q.shape[1], memory.keys.shape[2]) if heads is None else heads
    out = np.empty((*q.shape[:2], memory.values.shape[-1]), q.dtype)
    for sequence in np.unique(op.sequence):
        rows = np.flatnonzero(op.sequence == sequence)
        keys = memory.keys[sequence][:, heads].transpose(1, 2, 0)
        values = memory.values[sequence][:, heads].transpose(1, 0, 2)
        scores = shape((q[rows].transpose(1, 0, 2) @ keys) * scale)
        masked = np.where(allowed[rows], scores, scores + hidden if np.isfinite(hidden) else -np.inf)
        seen = np.where(memory.known[sequence], masked, -np.inf)
        added = bias if isinstance(bias, float) else bias[rows]
        out[rows] = (weigh(seen + added) @ values).transpose(1, 0, 2)
    return out
