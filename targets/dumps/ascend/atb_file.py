"""One tensor of Ascend Transformer Boost: lines `name=value` ended by `$End=1`, then raw bytes.

The writer appends: a second dump into the same folder adds a second file to each first one, of which the
vendor's reader takes all that follows the first header. Such a file is refused.
Source: `bin_file.cpp` and `atb_probe.cpp` of msprobe.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..core import array_at, bad, checked_shape, opened
from .dtypes import ACL
from .layouts import format_name, logical_shape
from .operation import PACKED, stored_bytes, unpacked

MAGIC = b"$Version="
_END = b"$End=1\n"
#: Bytes in which the header has to end; usual ones have about 110.
LONGEST_HEADER = 1 << 14


@dataclass(frozen=True)
class AtbFile:
    """A header: what follows it, or (`other`) the name of the tensor that holds the same numbers."""

    dtype: str
    shape: tuple[int, ...]
    place: int
    other: str = ""


def parse_atb(path: Path) -> AtbFile:
    """Read a header and hold it against the file; UserError for what is damaged, cut short or appended to."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        said, place = _header(file, path)
    if said.get("$Version") != "1.0":
        raise bad(path, f"is version {said.get('$Version', 'none')!r} of the format; 1.0 is read")
    what = path.name
    dtype = ACL.logical(_number(said, "dtype", path), path, what)
    layout = format_name(_number(said, "format", path), path, what)
    shape = checked_shape(_dims(said, path), path, what)
    logical_shape(layout, shape, (), path, what)
    if "data" in said:
        if size != place:
            raise bad(path, f"names {said['data']!r} for its data and has {size - place} bytes of its own")
        return AtbFile(dtype, shape, place, said["data"])
    _check_length(said, path, place, size, stored_bytes(shape, dtype))
    return AtbFile(dtype, shape, place)


def _check_length(said: dict[str, str], path: Path, place: int, size: int, needed: int) -> None:
    length, left = _number(said, "$Object.Length", path), size - place
    if _number(said, "$Object.Count", path) != 1 or said.get("$Object.data") != f"0,{length}":
        raise bad(path, "should hold one object named data that begins at 0")
    if length != needed:
        raise bad(path, f"says {length} bytes, but its dims and dtype need {needed}")
    if left < length:
        raise bad(path, f"has {left} of {length} bytes; the dump was cut short")
    if left > length:
        with opened(path) as file:
            file.seek(place + length)
            second = file.read(len(MAGIC)) == MAGIC
        wrong = (
            "a second dump was appended to the first; the device writes so when it dumps twice into one "
            "folder: dump again into an empty one"
            if second
            else f"{left - length} bytes follow its data"
        )
        raise bad(path, wrong)


def _header(file: BinaryIO, path: Path) -> tuple[dict[str, str], int]:
    """Attributes, and the place of the first byte after them."""
    head = file.read(LONGEST_HEADER)
    if not head.startswith(MAGIC):
        raise bad(path, "does not begin with $Version=; this is no ATB tensor")
    end = head.find(b"\n" + _END)
    if end < 0:
        raise bad(path, "has no line $End=1; its header was cut short")
    found: dict[str, str] = {}
    for line in head[: end + 1].decode("latin-1").splitlines():
        name, equals, value = line.partition("=")
        if not equals or "=" in value or name in found:
            raise bad(path, f"has the header line {line[:60]!r}; should be name=value, each name once")
        found[name] = value
    return found, end + 1 + len(_END)


def _number(said: dict[str, str], name: str, path: Path) -> int:
    value = said.get(name)
    if value is None or not value.removeprefix("-").isdecimal() or len(value) > 15:
        raise bad(path, f"says {name}={value!r}, which is no number")
    return int(value)


def _dims(said: dict[str, str], path: Path) -> list[int]:
    text = said.get("dims")
    if text is None or len(text) > 400:
        raise bad(path, "does not say its dims")
    parts = text.split(",") if text else []
    if not all(part.isdecimal() and part.isascii() for part in parts):
        raise bad(path, f"says dims={text[:60]!r}, which is no shape")
    return [int(part) for part in parts]


def load_atb(path: Path, file: AtbFile) -> np.ndarray:
    """The logical array behind a header."""
    if file.dtype not in PACKED:
        return array_at(path, file.place, file.shape, file.dtype, path.name)
    packed = (stored_bytes(file.shape, file.dtype),)
    return unpacked(array_at(path, file.place, packed, "uint8", path.name), file.shape, file.dtype)
