"""One writer per trace file: a lock on the file itself that neither HDF5 nor a closing reader can disturb."""

from __future__ import annotations

import fcntl
import os
import struct

from ..errors import UserError

_FAR = 1 << 62
"""The locked byte lies where no data ever will, so that the lock never meets HDF5's own."""


class FileLock:
    """An exclusive lock held from creation to `release`; UserError when another writer has it.

    Open-file-description locks where the system has them: they belong to this descriptor alone (POSIX locks
    vanish when *any* descriptor of the file is closed). Elsewhere a lock file beside the trace.
    """

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR) if hasattr(fcntl, "F_OFD_SETLK") else _beside(path)
        try:
            self._take()
        except OSError as error:
            os.close(self._fd)
            raise UserError(
                f"path={path}: another writer has this trace open; wait for it, or write to another file"
            ) from error

    def _take(self) -> None:
        if hasattr(fcntl, "F_OFD_SETLK"):
            request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, _FAR, 1, 0)
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, request)
        else:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _beside(path: str) -> int:
    return os.open(path + ".lock", os.O_RDWR | os.O_CREAT, 0o666)
