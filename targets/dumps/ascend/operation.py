"""One operator of a device dump: its tensors as they lie in the file, and as a trace wants them.

AscendCL and nano dumps say the same things in different bytes; both become an `Operation` here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from parity.harness.dtypes import logical_dtype

from ..core import Dumped, array_at, bad, checked_shape, nbytes
from .dtypes import Numbering
from .layouts import format_name, logical_shape, undo

INPUT, OUTPUT, BUFFER, SPACE = PARTS = ("input", "output", "buffer", "space")
#: Tensors of one operator; the largest concatenation has some hundred.
MOST_TENSORS = 1 << 16
#: Bytes of a header; usual ones have a few thousand.
LARGEST_HEADER = 1 << 24


@dataclass(frozen=True)
class Origin:
    """Where the compiler says an output comes from: a node of the original graph."""

    name: str
    output: int
    dtype: int
    layout: int


@dataclass(frozen=True)
class Tensor:
    """One tensor as its file states it. `place` is the offset of its first byte in the file."""

    part: str
    index: int
    dtype: int = 0
    layout: int = 2
    shape: tuple[int, ...] = ()
    size: int = 0
    original: tuple[int, ...] = ()
    origin: Origin | None = None
    place: int = 0
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Operation:
    """A file's header: who ran, and which tensors follow. `tail` counts the bytes after the last tensor."""

    name: str
    numbering: Numbering
    tensors: tuple[Tensor, ...]
    version: str = ""
    time: int = 0
    attributes: tuple[tuple[str, str], ...] = ()
    message: str = ""
    tail: int = 0


def placed(tensors: list[Tensor], start: int) -> tuple[tuple[Tensor, ...], int]:
    """Tensors with their places, in the order inputs, outputs, buffers, spaces; and the end of the last.

    That is the order of the bytes, although the message lists outputs first.
    """
    found, at = [], start
    for tensor in sorted(tensors, key=lambda tensor: PARTS.index(tensor.part)):
        found.append(replace(tensor, place=at))
        at += tensor.size
    return tuple(found), at


def named(operation: Operation) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of each tensor that holds anything, named `op:output:0`."""
    for tensor in operation.tensors:
        if tensor.size or tensor.shape:  # else an optional input that was not connected
            yield f"{operation.name}:{tensor.part}:{tensor.index}", tensor


def entry(name: str, tensor: Tensor, operation: Operation, path: Path, meta: Mapping[str, Any]) -> Dumped:
    """A tensor as an entry, its type, layout and size checked; nothing is read yet."""
    if tensor.part in (BUFFER, SPACE):
        return _bytes_entry(name, tensor, path, meta, "uint8")
    if operation.numbering.words.get(tensor.dtype) == "undefined" and not tensor.shape:
        return _bytes_entry(name, tensor, path, meta, "int8")
    return _LazyEntry(name, tensor, operation, path).dumped(meta)


def _bytes_entry(name: str, tensor: Tensor, path: Path, meta: Mapping[str, Any], dtype: str) -> Dumped:
    """Bytes that no number format is stated for, as they are."""
    shape = (tensor.size,)
    return Dumped(
        name,
        shape,
        dtype,
        lambda: array_at(path, tensor.place, shape, dtype, name),
        meta={**meta, "raw": True},
    )


class _LazyEntry:
    """The shapes and formats of one tensor, checked; its bytes are read when they are wanted."""

    def __init__(self, name: str, tensor: Tensor, operation: Operation, path: Path) -> None:
        self.name, self.tensor, self.path = name, tensor, path
        self.dtype = operation.numbering.logical(tensor.dtype, path, name)
        self.layout = format_name(tensor.layout, path, name)
        self.physical = checked_shape(tensor.shape, path, name)
        original = checked_shape(tensor.original, path, name)
        self.shape = logical_shape(self.layout, self.physical, original, path, name)
        if (needed := stored_bytes(self.physical, self.dtype)) > tensor.size:
            raise bad(
                path,
                f"{name} has {tensor.size} bytes, but {list(self.physical)} of {self.dtype} needs {needed}"
                + ("; no data was dumped" if not tensor.size else ""),
            )

    def dumped(self, meta: Mapping[str, Any]) -> Dumped:
        told = dict(meta)
        if self.shape != self.physical:
            told["layout"] = f"{self.layout} {list(self.physical)} undone"
        if self.tensor.origin is not None and self.tensor.origin.name:
            told["origin"] = f"{self.tensor.origin.name}:{self.tensor.origin.output}"
        return Dumped(self.name, self.shape, self.dtype, self.load, meta=told)

    def load(self) -> np.ndarray:
        place, shape, dtype = self.tensor.place, self.physical, self.dtype
        if dtype in PACKED:
            packed = (stored_bytes(shape, dtype),)
            array = unpacked(array_at(self.path, place, packed, "uint8", self.name), shape, dtype)
        else:
            array = array_at(self.path, place, shape, dtype, self.name)
        return undo(self.layout, array, self.shape)


#: Formats of which a device stores two in a byte, the even element in the low half.
PACKED = frozenset({"int4", "uint4"})


def stored_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes that a device stores for a tensor: 4-bit numbers lie two in a byte."""
    return (math.prod(shape) + 1) // 2 if dtype in PACKED else nbytes(shape, dtype)


def unpacked(packed: np.ndarray, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """4-bit numbers out of bytes, the low half first."""
    halves = np.stack((packed & 0xF, packed >> 4), axis=-1).reshape(-1)[: math.prod(shape)]
    if dtype == "int4":
        halves = ((halves ^ 8).astype(np.int8) - 8).astype(np.int8)
    return halves.astype(logical_dtype(dtype)).reshape(shape)
