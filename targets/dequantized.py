"""Codes with their scales undone: what integers of a file stand for."""

from __future__ import annotations

from typing import Any

import numpy as np

from parity.harness.weights import Weight

Array = np.ndarray[Any, Any]


def dequantized(name: str, codes: Array, scale: Array, zero: Array | None, axis: int, block: int) -> Weight:
    """Real numbers of codes: `(code - zero) * scale`, per tensor, along `axis`, or by blocks of it."""
    real = np.asarray(codes, np.float32)
    kind = str(codes.dtype)
    zeros = zero if zero is not None else np.zeros(1)
    step, offset = (_spread(numbers, real.shape, axis, block) for numbers in (scale, zeros))
    low, high = _range(kind)
    spread = float(np.abs(real - offset).max(initial=0.0)) / max(high, 1)
    ends = float(((real <= low) | (real >= high)).mean()) if real.size else 0.0
    return Weight(name, np.asarray((real - offset) * step, np.float32), kind, step, ends, spread)


def _spread(numbers: Array, shape: tuple[int, ...], axis: int, block: int) -> Array:
    """Scales or zero points over the shape of their codes."""
    real = np.asarray(numbers, np.float32)
    if real.size == 1 or not shape:
        return real.reshape(())
    if block:
        return np.repeat(real, block, axis=axis)[tuple(slice(size) for size in shape)]
    sizes = [1] * len(shape)
    sizes[axis % len(shape)] = real.size
    return real.reshape(sizes)


def _range(kind: str) -> tuple[float, float]:
    bits = 4 if kind.endswith("4") else 8 if kind.endswith("8") else 16
    return (0.0, 2.0**bits - 1) if kind.startswith("u") else (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1)
