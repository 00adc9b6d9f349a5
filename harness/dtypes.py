"""Logical number formats, the storage types that keep their bits, and arrays from anywhere.

A *logical* name says what the numbers are ("bfloat16"), a *storage* type what HDF5 and numpy keep
("uint16"). Between the two there are only views: no value ever goes through another float type.
Nothing here imports torch; `ml_dtypes` is loaded when one of its types is first asked for.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from .errors import UserError, did_you_mean

_NATIVE = (
    *("float64", "float32", "float16", "int64", "int32", "int16", "int8"),
    *("uint64", "uint32", "uint16", "uint8", "complex64", "complex128"),
)
_ML_DTYPES = {
    "bfloat16": "uint16",
    "float8_e3m4": "uint8",
    "float8_e4m3": "uint8",
    "float8_e4m3b11fnuz": "uint8",
    "float8_e4m3fn": "uint8",
    "float8_e4m3fnuz": "uint8",
    "float8_e5m2": "uint8",
    "float8_e5m2fnuz": "uint8",
    "float8_e8m0fnu": "uint8",
    "int4": "int8",
    "uint4": "uint8",
}
_STORAGE = {name: name for name in _NATIVE} | _ML_DTYPES | {"bool": "uint8"}
NAMES: tuple[str, ...] = tuple(_STORAGE)
"""Every logical dtype name."""

STORAGE_NAMES: tuple[str, ...] = tuple(dict.fromkeys(_STORAGE.values()))
"""Every storage type, each one stream of the trace file."""

_BY_DTYPE: dict[np.dtype[Any], str] = {np.dtype(name): name for name in (*_NATIVE, "bool")}


#: What people write on a command line -> logical name, for the formats that models are computed in.
WORDS = {"fp64": "float64", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def dtype_of_word(word: str) -> str:
    """`bf16` or `bfloat16` -> `bfloat16`; UserError for a format that no model is computed in."""
    if word in WORDS.values():
        return word
    if word not in WORDS:
        raise UserError(f"dtype={word!r}: models are not computed in it here. {did_you_mean(word, WORDS)}")
    return WORDS[word]


@cache
def logical_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype (ml_dtypes' where numpy has none) of a logical name; UserError if unknown."""
    if name not in _STORAGE:
        raise UserError(f"dtype={name!r}: unknown number format. {did_you_mean(name, NAMES)}")
    if name in _ML_DTYPES:
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return found
    return np.dtype(name)


@cache
def storage_dtype(name: str) -> np.dtype[Any]:
    """The type whose bits are kept: bfloat16 -> uint16, float8 -> uint8, int4 -> int8 (one per byte)."""
    logical_dtype(name)
    return np.dtype(_STORAGE[name])


def logical_name(array: np.ndarray[Any, Any]) -> str:
    """The logical name of an array's dtype; UserError for objects, strings, dates and long doubles."""
    known = _BY_DTYPE.get(array.dtype)
    return known if known is not None else _learn(array.dtype)


def _learn(dtype: np.dtype[Any]) -> str:
    """The name of a dtype met for the first time: ml_dtypes' types and swapped byte orders."""
    name = dtype.name
    if name not in _STORAGE or logical_dtype(name) != dtype.newbyteorder("="):
        raise UserError(
            f"dtype={dtype}: not a number format that can be recorded. {did_you_mean(name, NAMES)}"
        )
    if dtype.isnative:
        _BY_DTYPE[dtype] = name
    return name


def as_storage(array: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], str]:
    """The same bits seen as the storage type, and the logical name. A view where byte order allows."""
    name = logical_name(array)
    native = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    return native.view(_STORAGE[name]), name


def as_logical(array: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    """View storage bits as the logical type; UserError where the array is not of that storage type."""
    storage = storage_dtype(name)
    if array.dtype != storage:
        raise UserError(f"dtype={name!r}: is stored as {storage}, but the array holds {array.dtype}")
    return array.view(logical_dtype(name))


def from_any(x: Any) -> tuple[np.ndarray[Any, Any], str]:
    """A numpy array of the logical dtype, and its name, from whatever holds numbers.

    torch tensors of any dtype and device, numpy arrays and scalars, `__array__`, `__dlpack__`, Python
    numbers and nested lists. A view where possible: the caller copies. UserError for what has no numbers.
    """
    if type(x) is np.ndarray:
        return x, logical_name(x)
    if _is_torch(x):
        array = _from_torch(x)
    elif isinstance(x, (np.ndarray, np.generic, int, float, complex, list, tuple)) or hasattr(x, "__array__"):
        array = _from_array_like(x)
    elif hasattr(x, "__dlpack__"):
        array = np.from_dlpack(x)
    else:
        raise UserError(
            f"x={type(x).__name__}: holds no numbers; give a tensor, an array, a number or a list"
        )
    return array, logical_name(array)


def _from_array_like(x: Any) -> np.ndarray[Any, Any]:
    try:
        return np.asarray(x)
    except (ValueError, TypeError) as error:
        raise UserError(f"x={type(x).__name__}: cannot be read as an array ({error})") from error


def _is_torch(x: Any) -> bool:
    """Whether x is a torch.Tensor or a subclass of it, without importing torch."""
    return any(c.__module__ in ("torch", "torch._tensor") and c.__name__ == "Tensor" for c in type(x).__mro__)


def _from_torch(x: Any) -> np.ndarray[Any, Any]:
    """Bits of a torch tensor: detached, on the CPU, lazy conjugates and negations resolved, dense."""
    import torch

    name = str(x.dtype).removeprefix("torch.")
    if x.layout != torch.strided:
        raise UserError(f"x={x.layout}: only dense tensors can be recorded; call .to_dense() first")
    if x.device.type == "meta":
        raise UserError("x=meta tensor: it has a shape but no values; give the real tensor")
    if name not in _STORAGE:
        raise UserError(
            f"dtype={name!r}: torch type without a number format here. {did_you_mean(name, NAMES)}"
        )
    dense = x.detach().cpu().resolve_conj().resolve_neg()
    if name not in _ML_DTYPES:
        return np.asarray(dense.numpy())
    bits = dense.view(getattr(torch, _ML_DTYPES[name]))
    return np.asarray(bits.numpy()).view(logical_dtype(name))
