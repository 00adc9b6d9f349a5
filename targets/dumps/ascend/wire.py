"""Protobuf's wire form, decoded without a library: varints, fixed numbers and counted bytes.

Works on a header that was read already, so nothing here can ask for more memory than that header has.
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, COUNTED, FIXED32 = 0, 1, 2, 5
#: Bytes of the longest varint: 64 bits, seven at a time.
LONGEST = 10


class WireError(ValueError):
    """Bytes that are no protobuf message."""


def varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """The unsigned number that begins at a place, and the place after it."""
    value = 0
    for count in range(LONGEST):
        if at + count >= len(data):
            raise WireError("a number is cut short")
        byte = data[at + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, at + count + 1
    raise WireError("a number is longer than 64 bits")


def fields(data: memoryview) -> Iterator[tuple[int, int, int, memoryview]]:
    """(field number, wire type, number, bytes) of a message in file order; one of the last two is empty."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        number, kind = key >> 3, key & 7
        if not 0 < number < 1 << 29:
            raise WireError(f"field number {number} is impossible")
        if kind == VARINT:
            value, at = varint(data, at)
            yield number, kind, value, data[:0]
            continue
        size, at = _size(data, at, kind)
        if size > len(data) - at:
            raise WireError(f"field {number} wants {size} bytes where {len(data) - at} are left")
        value = int.from_bytes(data[at : at + size], "little") if kind != COUNTED else 0
        yield number, kind, value, data[at : at + size]
        at += size


def _size(data: memoryview, at: int, kind: int) -> tuple[int, int]:
    if kind == COUNTED:
        return varint(data, at)
    if kind in (FIXED64, FIXED32):
        return (8 if kind == FIXED64 else 4), at
    raise WireError(f"wire type {kind} is not used by dumps")


def signed(value: int) -> int:
    """An int32 or enum as it was meant: negative numbers travel as 64-bit two's complement."""
    return value - (1 << 64) if value >= 1 << 63 else value


def text(data: memoryview) -> str:
    """A string field; WireError for what is no UTF-8."""
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise WireError("a text is no UTF-8") from error
