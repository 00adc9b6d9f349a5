"""Telling kinds of dumps apart from names and first bytes, without ever raising."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Container, Iterator
from pathlib import Path

from ..core import first_bytes
from .names import converted, parse_name, stands_in

#: Folder entries that are looked at before a folder is said to be no dump.
LOOKED_AT = 4000
#: Files named like a dump whose first bytes decide.
TRIED = 8
NANO_MAGIC = 0x5A5A5A5A


def files_below(path: Path) -> Iterator[Path]:
    """The file itself, or files below a folder, breadth first; ends quietly after `LOOKED_AT` entries."""
    try:
        if path.is_file():
            yield path
            return
    except (OSError, ValueError):
        return
    waiting, looked = deque([path]), 0
    while waiting and looked < LOOKED_AT:
        for entry in _entries(waiting.popleft()):
            looked += 1
            if entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))
            else:
                yield Path(entry.path)
            if looked >= LOOKED_AT:
                return


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return [entry for _, entry in zip(range(LOOKED_AT), found, strict=False)]
    except (OSError, ValueError):
        return []


def dump_files(path: Path) -> Iterator[Path]:
    """At most `TRIED` files that are named as a device names its dumps."""
    tried = 0
    for found in files_below(path):
        made = converted(found.name)
        plain = made[0] if made else found.name.removesuffix(".csv")
        if parse_name(plain) is not None or stands_in(plain):
            yield found
            tried += 1
        if tried >= TRIED:
            return


def begins(path: Path, first: Container[int]) -> bool:
    """Whether a file has a header's length that fits into it and a byte of `first` after that."""
    head = first_bytes(path, 12)
    if len(head) < 10 or is_nano(path):
        return False
    try:
        fits = int.from_bytes(head[:8], "little") <= path.stat().st_size - 8
    except OSError:
        return False
    return fits and head[8] in first


def is_nano(path: Path) -> bool:
    """Whether a file has the nano dump's magic number."""
    return first_bytes(path, 12)[8:] == NANO_MAGIC.to_bytes(4, "little")
