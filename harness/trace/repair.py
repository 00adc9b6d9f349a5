"""Making a killed file writable again, and a trace whole, without touching a record."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..errors import UserError
from . import superblock, views
from .lock import FileLock
from .reader import Trace
from .schema import read_layout


@dataclass(frozen=True)
class Repaired:
    """What `repair` found and did."""

    path: str
    was_open: bool
    records: int
    incomplete: tuple[str, ...]
    failures: tuple[str, ...]


def repair(path: str | os.PathLike[str]) -> Repaired:
    """Mend a file whose writer was killed, verify every record and publish the views that are missing.

    UserError while a writer has it open, or when it cannot be written.
    """
    name = os.fspath(path)
    Trace(name).close()
    lock = _lock(name)
    try:
        was_open = mend(name)
        views.publish(name)
    finally:
        lock.release()
    with Trace(name) as trace:
        failures = tuple(line for run in trace.runs for line in run.verify())
        incomplete = tuple(run.label for run in trace.runs if not run.complete)
        return Repaired(name, was_open, trace.num_records, incomplete, failures)


def _lock(path: str) -> FileLock:
    try:
        return FileLock(path)
    except OSError as error:
        raise UserError(
            f"path={path}: cannot be written ({error.strerror}); copy it to another place first"
        ) from error


def mend(path: str, *, grow: bool = True) -> bool:
    """Clear the superblock's flags and set its end of file behind everything that is in use.

    The caller holds the lock. Space that was given to a chunk but never written is part of the file
    afterwards, or the next writer would use it twice; with `grow` false (no room left) the file ends where
    its bytes end, which is enough for readers. Returns whether there was anything to mend.
    """
    overlay, layout = read_layout(path, ours=not grow)
    with overlay:
        size = os.fstat(overlay.fd).st_size
        head = os.pread(overlay.fd, superblock.SIZE, 0)
    used = [at + stored for stream in layout.streams.values() for at, stored in stream.chunks.values()]
    end = max(size, superblock.end_of_file(head), *used, 0) if grow else size
    if head == superblock.closed(head, size) and end == size:
        return False
    _rewrite(path, head, end)
    return True


def _rewrite(path: str, head: bytes, end: int) -> None:
    try:
        fd = os.open(path, os.O_WRONLY)
        try:
            os.ftruncate(fd, end)
            os.pwrite(fd, superblock.closed(head, end), 0)
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise UserError(
            f"path={path}: cannot be mended ({error.strerror}); its records can be read, to go on recording "
            "free some space or choose another place"
        ) from error
