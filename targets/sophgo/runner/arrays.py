"""Arrays into a tensor's own bytes and back, by declared rules; nothing is reshaped or cast unasked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from parity.harness.dtypes import logical_dtype
from parity.harness.errors import CandidateError

if TYPE_CHECKING:
    from .client import Tensor

#: How float32 becomes bfloat16: to the nearest even, or cut off as the vendor's own runner does.
ROUNDINGS = ("nearest", "truncate")


def lowered(tensor: Tensor, array: np.ndarray, rounding: str = "nearest") -> memoryview:
    """The bytes that a model takes for `array`.

    An array in the tensor's own format goes in as it is. Whole numbers go into integer formats if they fit.
    float32 becomes bfloat16 and float16 by `rounding`, and int8 and uint8 as
    clip(round_half_away(x * scale + zero_point)) in float32, as the vendor computes it. CandidateError for
    anything else, and for a shape that does not lie in memory as the tensor's does.
    """
    if not folds(array.shape, tensor.shape):
        raise CandidateError(
            f"{tensor.name} has shape {list(array.shape)}, the artefact takes {list(tensor.shape)}"
        )
    dtype = logical_dtype(tensor.format)
    if array.dtype != dtype:
        array = _cast(tensor, array, dtype, rounding)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def real(tensor: Tensor, raw: np.ndarray) -> np.ndarray:
    """float32 of a model's own numbers: (q - zero_point) * scale for 8-bit integers, else the value."""
    if tensor.format in ("int8", "uint8"):
        centred = raw.astype(np.float32) - np.float32(tensor.zero_point)
        return np.asarray(centred * np.float32(tensor.scale))
    return raw.astype(np.float32)


def folds(shape: Sequence[int], into: Sequence[int]) -> bool:
    """Whether two shapes are the same block of memory but for axes of size 1 and merged neighbours."""
    if tuple(shape) == tuple(into):
        return True
    sizes = [size for size in shape if size != 1]
    for target in (size for size in into if size != 1):
        product = 1
        while product < target and sizes:
            product *= sizes.pop(0)
        if product != target:
            return False
    return not sizes


def _cast(tensor: Tensor, array: np.ndarray, dtype: np.dtype[Any], rounding: str) -> np.ndarray:
    if array.dtype.kind in "iu" and dtype.kind in "iu":
        return _whole(tensor, array, dtype)
    if array.dtype == np.float32 and tensor.format in ("bfloat16", "float16"):
        if tensor.format == "bfloat16" and rounding == "truncate":
            return (array.view(np.uint32) >> 16).astype(np.uint16)
        with np.errstate(over="ignore"):
            return array.astype(dtype)
    if array.dtype == np.float32 and tensor.format in ("int8", "uint8"):
        return _quantized(tensor, array, dtype)
    raise CandidateError(f"{tensor.name} is {array.dtype}, the artefact takes {tensor.format}")


def _whole(tensor: Tensor, array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    limits = np.iinfo(dtype)
    if array.size and (array.min() < limits.min or array.max() > limits.max):
        raise CandidateError(
            f"{tensor.name} holds {array.min()}..{array.max()}, which does not fit into {tensor.format}"
        )
    return array.astype(dtype)


def _quantized(tensor: Tensor, array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    if np.isnan(array).any():
        raise CandidateError(f"{tensor.name} holds NaN, which {tensor.format} cannot")
    scaled = array * np.float32(tensor.scale) + np.float32(tensor.zero_point)
    rounded = np.sign(scaled) * np.floor(np.abs(scaled) + np.float32(0.5))
    limits = np.iinfo(dtype)
    return np.asarray(np.clip(rounded, limits.min, limits.max).astype(dtype))
