"""AscendCL and GE model dumps: u64 length, protobuf header, then the tensors' bytes.

There is neither magic nor checksum. What can be checked is: the header lies inside the file, it parses, and
every tensor it announces is there. A tail is tolerated (and noted) unless a second dump begins in it; a
deficit is a dump that was cut short.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from ..core import Contents, ReadOptions, bad, checked_settings, opened, read_exactly
from . import adump_message
from .device import DEVICE_SETTINGS, read_device
from .glance import begins, dump_files
from .operation import LARGEST_HEADER, Operation, placed
from .tree import CSV
from .wire import WireError

#: First bytes of a header: version, dump_time, output, input or op_name come first.
_FIRST = frozenset({0x0A, 0x10, 0x1A, 0x22, 0x32})


def parse_adump(path: Path) -> Operation:
    """The operator of one file, with the places of its tensors; UserError for what is no dump."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(read_exactly(file, 8, path, "the header's length"), "little")
        if length > min(size - 8, LARGEST_HEADER):
            raise bad(path, f"announces a header of {length} bytes in a file of {size}; this is no dump")
        header = read_exactly(file, length, path, "the header")
        try:
            operation = adump_message.parse(header)
        except WireError as error:
            raise bad(path, f"has a header that is no dump's: {error}") from error
        tensors, end = placed(list(operation.tensors), 8 + length)
        if end > size:
            raise bad(path, f"announces {end} bytes and has {size}; the dump was cut short")
        if _dump_begins(file, end, size):
            raise bad(path, f"goes on with another dump at byte {end}: two dumps appended into one file")
    return replace(operation, tensors=tensors, tail=size - end)


def _dump_begins(file: BinaryIO, at: int, size: int) -> bool:
    """Whether a header that fits into the file, and says what was dumped, stands at a place."""
    file.seek(at)
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= min(size - at - 8, LARGEST_HEADER):
        return False
    try:
        second = adump_message.parse(file.read(length))
    except WireError:
        return False
    return bool(second.tensors or second.name)


class AdumpReader:
    """`adump`: what `aclmdlSetDump`, `aclInit` and an operator's crash leave on a device."""

    kind = "adump"
    summary = "AscendCL / GE model dump (protobuf), with device layouts undone"
    settings = DEVICE_SETTINGS

    def detects(self, path: Path) -> bool:
        """A file that is named like a dump and begins like one, or a folder with such a file."""
        return any(found.suffix in (CSV, ".npy") or begins(found, _FIRST) for found in dump_files(path))

    def read(self, path: Path, options: ReadOptions) -> Contents:
        """Open a dump: one file, an iteration's folder, or any folder above it."""
        checked_settings(self, options)
        return read_device(self.kind, path, options, parse_adump)
