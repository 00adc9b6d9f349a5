"""A file as HDF5 should see it: flags cleared for reading, or with changes that are held back.

HDF5 refuses a file whose writer was killed, and writes its metadata in whatever order suits it. Opened
through an overlay a killed or live file reads like a clean one, and a change reaches the disk in one short
ordered step: what is new first, then the few bytes that are replaced, the superblock last. A kill at
any moment leaves a file that opens.
"""

from __future__ import annotations

import bisect
import io
import os

from ..errors import UserError
from . import superblock

_PAGE = 4096


class Overlay(io.RawIOBase):
    """A seekable file object over `path` for h5py's fileobj driver; writes stay in memory until `commit`.

    UserError where the file is missing, unreadable or not HDF5.
    """

    fd = -1

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._pages: dict[int, bytearray] = {}
        self._at = 0
        self.fd = _open(path)
        head = os.pread(self.fd, superblock.SIZE, 0)
        if not superblock.is_hdf5(head):
            raise UserError(
                f"path={path}: not an HDF5 file, or cut off at its front; give a trace written by parity"
            )
        self.was_open = superblock.is_open(head)
        self._old_size = os.fstat(self.fd).st_size
        self._size = max(self._old_size, superblock.end_of_file(head))
        self.cut = not self.was_open and self._size > self._old_size
        self._put(0, superblock.closed(head, self._size))

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        got = os.preadv(self.fd, [view], self._at)
        view[got:] = bytes(len(view) - got)
        first, last = self._at // _PAGE, (self._at + len(view)) // _PAGE
        for number in range(first, last + 1) if last - first < len(self._pages) else sorted(self._pages):
            if number in self._pages and first <= number <= last:
                self._show(number, view)
        self._at += len(view)
        return len(view)

    def write(self, data: object) -> int:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        self._put(self._at, view)
        self._at += len(view)
        self._size = max(self._size, self._at)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        self._size = self._at if size is None else size
        return self._size

    def close(self) -> None:
        if not self.closed and self.fd >= 0:
            os.close(self.fd)
        super().close()

    def commit(self) -> None:
        """Bring the held changes to the disk, new bytes before replaced ones, the superblock last."""
        fd = os.open(self._path, os.O_WRONLY)
        try:
            os.ftruncate(fd, max(self._size, self._old_size))
            cut = bisect.bisect_left(ordered := sorted(self._pages), self._old_size // _PAGE)
            for number in ordered[cut:]:
                self._store(fd, number)
            os.fsync(fd)
            for number in reversed(ordered[:cut]):
                self._store(fd, number)
            os.fsync(fd)
        finally:
            os.close(fd)

    def _store(self, fd: int, number: int) -> None:
        at = number * _PAGE
        page = memoryview(self._pages[number])[: max(0, self._size - at)]
        while page:
            done = os.pwrite(fd, page, at)
            at, page = at + done, page[done:]

    def _put(self, at: int, data: bytes | memoryview) -> None:
        done = 0
        while done < len(data):
            number, inside = divmod(at + done, _PAGE)
            taken = min(len(data) - done, _PAGE - inside)
            self._page(number)[inside : inside + taken] = data[done : done + taken]
            done += taken

    def _page(self, number: int) -> bytearray:
        if number not in self._pages:
            old = os.pread(self.fd, _PAGE, number * _PAGE)
            self._pages[number] = bytearray(old.ljust(_PAGE, b"\0"))
        return self._pages[number]

    def _show(self, number: int, view: memoryview) -> None:
        """Copy the part of a held page that a read wants."""
        start = max(self._at, number * _PAGE)
        stop = min(self._at + len(view), (number + 1) * _PAGE)
        page = self._pages[number]
        view[start - self._at : stop - self._at] = page[start - number * _PAGE : stop - number * _PAGE]


def _open(path: str) -> int:
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"path={path}: is no file; give a trace written by parity")
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError as error:
        raise UserError(f"path={path}: no such file; record one first, or check the name") from error
    except OSError as error:
        raise UserError(f"path={path}: cannot be read ({error.strerror})") from error
