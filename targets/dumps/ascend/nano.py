"""Nano dumps (small chips): u64 length, a magic number, two lists in tag-length form, then the bytes.

The numbering of types is ACL's, not the protobuf's. The file must end with its last tensor's last byte.
Source: msprobe's `nano_dump_data.py` and `tlv_parse.py`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core import Contents, ReadOptions, bad, checked_settings, opened, read_exactly
from .device import DEVICE_SETTINGS, read_device
from .dtypes import ACL
from .glance import NANO_MAGIC, dump_files, is_nano
from .operation import INPUT, LARGEST_HEADER, MOST_TENSORS, OUTPUT, Operation, Origin, Tensor, placed

_INPUTS, _OUTPUTS = 4, 5
_LISTS = {_INPUTS: INPUT, _OUTPUTS: OUTPUT}
_SHAPE, _ORIGINAL, _NAME = 0, 1, 2


class CutError(ValueError):
    """The header ends in the middle of something, or holds what it should not."""


@dataclass
class _Cursor:
    """A header's bytes, taken from the front."""

    data: memoryview
    at: int = 0

    def take(self, count: int) -> memoryview:
        if count > len(self.data) - self.at:
            raise CutError(f"{count} bytes are wanted where {len(self.data) - self.at} are left")
        self.at += count
        return self.data[self.at - count : self.at]

    def numbers(self, form: str) -> tuple[int, ...]:
        """Little-endian numbers as `struct` names them."""
        form = f"<{form}"
        return struct.unpack(form, self.take(struct.calcsize(form)))

    @property
    def left(self) -> int:
        return len(self.data) - self.at


def parse_nano(path: Path) -> Operation:
    """The operator of one file; UserError for what is no nano dump, is cut short or too long."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(read_exactly(file, 8, path, "the header's length"), "little")
        if length > min(size - 8, LARGEST_HEADER):
            raise bad(path, f"announces a header of {length} bytes in a file of {size}; this is no dump")
        header = read_exactly(file, length, path, "the header")
    try:
        version, tensors = _header(_Cursor(memoryview(header)))
    except CutError as error:
        raise bad(path, f"has a header that is no nano dump's: {error}") from error
    located, end = placed(tensors, 8 + length)
    if end != size:
        wrong = "the dump was cut short" if end > size else "bytes follow that belong to no tensor"
        raise bad(path, f"announces {end} bytes and has {size}; {wrong}")
    return Operation("", ACL, located, version=str(version))


def _header(cursor: _Cursor) -> tuple[int, list[Tensor]]:
    magic, version = cursor.numbers("II")
    if magic != NANO_MAGIC:
        raise CutError(f"the magic number is {magic:#x}, but should be {NANO_MAGIC:#x}")
    lists: dict[int, list[Tensor]] = {}
    while cursor.left:
        tag, length = cursor.numbers("II")
        inner = _Cursor(cursor.take(length))
        if tag in lists:
            raise CutError(f"list {tag} comes twice")
        lists[tag] = _list(inner, _LISTS[tag]) if tag in _LISTS else []
    return version, [tensor for tag in _LISTS for tensor in lists.get(tag, ())]


def _list(cursor: _Cursor, part: str) -> list[Tensor]:
    (count,) = cursor.numbers("I")
    if count > MOST_TENSORS:
        raise CutError(f"announces {count} {part}s")
    tensors = [_tensor(cursor, part, index) for index in range(count)]
    if cursor.left:
        raise CutError(f"{cursor.left} bytes follow the last of its {part}s")
    return tensors


def _tensor(cursor: _Cursor, part: str, index: int) -> Tensor:
    dtype, layout, place_kind = cursor.numbers("iii")
    origin = cursor.numbers("iii") if part == OUTPUT else (0, 0, 0)
    address, offset, size, length = cursor.numbers("QQQI")
    inner = _Cursor(cursor.take(length))
    found: dict[int, memoryview] = {}
    while inner.left:
        tag, count = inner.numbers("II")
        if tag in found or tag > (_NAME if part == OUTPUT else _ORIGINAL):
            raise CutError(f"{part} {index} has an entry with the tag {tag}")
        found[tag] = inner.take(count)
    name = _name(found.get(_NAME))
    return Tensor(
        part,
        index,
        dtype,
        layout,
        _sizes(found.get(_SHAPE)),
        size,
        _sizes(found.get(_ORIGINAL)),
        Origin(name, *origin) if name else None,
        more={"address": address, "offset": offset, "address_type": place_kind},
    )


def _sizes(data: memoryview | None) -> tuple[int, ...]:
    if data is None:
        return ()
    if len(data) % 8 or len(data) > 8 * 64:
        raise CutError(f"a shape has {len(data)} bytes, which is no list of sizes")
    return struct.unpack(f"<{len(data) // 8}Q", data)


def _name(data: memoryview | None) -> str:
    if data is None:
        return ""
    try:
        return str(data, "utf-8").rstrip("\0")
    except UnicodeDecodeError as error:
        raise CutError("a name is no UTF-8") from error


class NanoReader:
    """`nano`: dumps of the small chips, in folders and under names like AscendCL's."""

    kind = "nano"
    summary = "Ascend nano dump (TLV header, magic 5A5A5A5A)"
    settings = DEVICE_SETTINGS

    def detects(self, path: Path) -> bool:
        """A file with the magic number, or a folder with one."""
        return any(is_nano(found) for found in dump_files(path))

    def read(self, path: Path, options: ReadOptions) -> Contents:
        """Open a dump: one file, an iteration's folder, or any folder above it."""
        checked_settings(self, options)
        return read_device(self.kind, path, options, parse_nano)


@dataclass(frozen=True)
class NanoTensor:
    """One tensor to write: its bytes and what is said about them, codes as numbers."""

    raw: bytes
    dtype: int
    shape: Sequence[int]
    layout: int = 2
    original: Sequence[int] | None = None
    name: str | None = None
    origin_index: int = 0


def write_nano(
    path: Path, inputs: Sequence[NanoTensor] = (), outputs: Sequence[NanoTensor] = (), *, version: int = 1
) -> None:
    """A nano dump of one operator, for tests and round trips."""
    header = NANO_MAGIC.to_bytes(4, "little") + version.to_bytes(4, "little")
    for tag, tensors in ((_INPUTS, inputs), (_OUTPUTS, outputs)):
        body = len(tensors).to_bytes(4, "little")
        body += b"".join(_described(one, output=tag == _OUTPUTS) for one in tensors)
        header += _counted(tag, body)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = b"".join(one.raw for one in (*inputs, *outputs))
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def _described(one: NanoTensor, *, output: bool) -> bytes:
    entries = _counted(_SHAPE, b"".join(size.to_bytes(8, "little") for size in one.shape))
    if one.original is not None:
        entries += _counted(_ORIGINAL, b"".join(size.to_bytes(8, "little") for size in one.original))
    if output and one.name is not None:
        entries += _counted(_NAME, one.name.encode())
    words = [one.dtype, one.layout, 0, *([one.origin_index, one.dtype, one.layout] if output else [])]
    head = b"".join(word.to_bytes(4, "little", signed=True) for word in words)
    head += bytes(16) + len(one.raw).to_bytes(8, "little") + len(entries).to_bytes(4, "little")
    return head + entries


def _counted(tag: int, body: bytes) -> bytes:
    return tag.to_bytes(4, "little") + len(body).to_bytes(4, "little") + body
