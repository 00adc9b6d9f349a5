"""The 48 bytes at the front of an HDF5 file (format specification, superblock version 2 and 3).

Byte 8 version, 9 size of offsets, 11 consistency flags, 28..36 end of file, 44..48 lookup3 checksum of the
44 bytes before it. HDF5 sets a flag while a writer has the file open; a killed writer leaves it behind.
"""

from __future__ import annotations

SIGNATURE = b"\x89HDF\r\n\x1a\n"
SIZE = 48
_MASK = 0xFFFFFFFF


def is_hdf5(head: bytes) -> bool:
    """Whether this is the front of a file that we could have written."""
    return len(head) >= SIZE and head[:8] == SIGNATURE and head[8] in (2, 3) and head[9] == 8


def is_open(head: bytes) -> bool:
    """Whether a writer has the file open, or was killed while it had."""
    return head[11] != 0


def end_of_file(head: bytes) -> int:
    """The end of file that HDF5 believes in."""
    return int.from_bytes(head[28:36], "little")


def closed(head: bytes, end: int) -> bytes:
    """The same superblock with its flags cleared and another end of file."""
    body = head[:11] + b"\0" + head[12:28] + end.to_bytes(8, "little") + head[36:44]
    return body + lookup3(body).to_bytes(4, "little")


def lookup3(data: bytes) -> int:
    """Bob Jenkins' public-domain hash `hashlittle` with initial value 0, as HDF5 uses it for metadata."""
    a = b = c = (0xDEADBEEF + len(data)) & _MASK
    words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
    while len(words) > 3:
        a, b, c = _mix((a + words[0]) & _MASK, (b + words[1]) & _MASK, (c + words[2]) & _MASK)
        words = words[3:]
    if not words:
        return c
    x, y, z = (*words, 0, 0)[:3]
    return _final((a + x) & _MASK, (b + y) & _MASK, (c + z) & _MASK)


def _rot(x: int, k: int) -> int:
    return ((x << k) | (x >> (32 - k))) & _MASK


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    for k in (4, 6, 8, 16, 19, 4):
        a = ((a - c) & _MASK) ^ _rot(c, k)
        c = (c + b) & _MASK
        a, b, c = b, c, a
    return a, b, c


def _final(a: int, b: int, c: int) -> int:
    for k in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - _rot(b, k)) & _MASK
        a, b, c = b, c, a
    return b
