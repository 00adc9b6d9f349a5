"""One .npy: its header read without trust, its values without pickle.

numpy's own reader evaluates a header of any declared length and allocates what the header says; here the
length is bounded first, and the values must be exactly what is there.
"""

from __future__ import annotations

import ast
import math
import os
import re
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from parity.harness.dtypes import logical_name

from .core import LARGEST_TENSOR, bad, checked_shape, opened

MAGIC = b"\x93NUMPY"
#: Characters of the longest header; numpy's own limit.
LONGEST_HEADER = 10_000
_NUMBERS = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248]|c(?:8|16)|\?)")


@dataclass(frozen=True)
class Header:
    """What stands before the values: `length` bytes that say `shape`, type and order."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    length: int

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def logical(self) -> str:
        """The logical name of the values' type."""
        return logical_name(np.empty(0, self.dtype))


def read_header(stream: IO[bytes], path: Path, what: str) -> Header:
    """The header at the start of a stream; UserError for what is no .npy, for texts and for objects."""
    start = stream.read(8)
    if len(start) < 8 or not start.startswith(MAGIC):
        raise bad(path, f"{what} is no .npy: it does not begin with numpy's magic bytes")
    wide = 2 if start[6] == 1 else 4
    if start[6] not in (1, 2, 3):
        raise bad(path, f"{what} is a .npy of version {start[6]}, which is unknown")
    raw = stream.read(wide)
    length = struct.unpack("<H" if wide == 2 else "<I", raw)[0] if len(raw) == wide else -1
    if not 0 <= length <= LONGEST_HEADER:
        raise bad(path, f"{what} has a .npy header of {length} bytes; it is damaged")
    text = stream.read(length)
    if len(text) != length:
        raise bad(path, f"{what} ends within its .npy header; the file is cut short")
    return _parsed(text.decode("latin-1"), 8 + wide + length, path, what)


def _parsed(text: str, length: int, path: Path, what: str) -> Header:
    try:
        fields = _fields(text.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise bad(path, f"{what} has a .npy header that cannot be read; it is damaged") from error
    if not isinstance(fields, dict) or fields.keys() != {"descr", "fortran_order", "shape"}:
        raise bad(path, f"{what} has a .npy header without descr, fortran_order and shape; it is damaged")
    order, shape = fields["fortran_order"], fields["shape"]
    if type(order) is not bool or not isinstance(shape, tuple):
        raise bad(path, f"{what} has a .npy header of wrong types; it is damaged")
    return Header(checked_shape(shape, path, what), _dtype(fields["descr"], path, what), order, length)


@lru_cache(maxsize=512)
def _fields(text: str) -> Any:
    """The dict of a header; a dump has many files of few shapes."""
    return ast.literal_eval(text)


def _dtype(descr: Any, path: Path, what: str) -> np.dtype[Any]:
    if isinstance(descr, str) and descr.lstrip("|<>=").startswith("O"):
        raise bad(path, f"{what} holds Python objects (a pickle), which is code; only numbers are read")
    if not isinstance(descr, str) or not _NUMBERS.fullmatch(descr):
        raise bad(
            path,
            f"{what} holds items of type {str(descr)[:60]!r}, which are no numbers; bits of another format "
            "belong into a `raw` dump whose manifest names it",
        )
    return np.dtype(descr)


def read_values(stream: IO[bytes], header: Header, available: int, path: Path, what: str) -> np.ndarray:
    """The values behind the header, native and in C order; the `available` bytes must all belong."""
    if header.nbytes > LARGEST_TENSOR:
        raise bad(path, f"{what} has {header.nbytes} bytes, more than the {LARGEST_TENSOR} taken at once")
    if header.nbytes != available:
        fault = "the file is cut short" if header.nbytes > available else "something is appended to it"
        raise bad(
            path,
            f"{what} of shape {list(header.shape)} needs {header.nbytes} bytes, but {available} follow its "
            f"header; {fault}",
        )
    raw = stream.read(header.nbytes)
    if len(raw) != header.nbytes or stream.read(1):
        raise bad(path, f"{what} has {len(raw)} bytes of values where {header.nbytes} were declared")
    values = np.frombuffer(raw, header.dtype).reshape(header.shape, order="F" if header.fortran else "C")
    return np.ascontiguousarray(values, header.dtype.newbyteorder("=")).reshape(header.shape)


def npy_header(path: Path) -> Header:
    """The header of a .npy file; UserError if the values that it promises are not all there, or more."""
    with opened(path) as file:
        header = read_header(file, path, path.name)
        left = os.fstat(file.fileno()).st_size - header.length
    if header.nbytes != left:
        fault = "the file is cut short" if header.nbytes > left else "bytes are appended"
        raise bad(
            path,
            f"shape {list(header.shape)} needs {header.nbytes} bytes, but {left} follow its header; {fault}",
        )
    return header


def npy_array(path: Path, header: Header | None = None) -> np.ndarray:
    """The array of a .npy file, whose header may have been read before."""
    with opened(path) as file:
        if header is None:
            header = read_header(file, path, path.name)
        file.seek(header.length)
        left = os.fstat(file.fileno()).st_size - header.length
        return read_values(file, header, left, path, path.name)


def write_npy(stream: IO[bytes], array: np.ndarray) -> None:
    """Write an array of a type that numpy knows, in C order."""
    np.lib.format.write_array(stream, np.asarray(array, order="C"), version=(1, 0), allow_pickle=False)
