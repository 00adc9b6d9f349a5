"""The .npz as a container: a zip whose directory is checked before anything in it is inflated.

Refused: sizes that cannot be (a bomb), members that lie over one another, two members of one name, bytes
before the first member or behind the directory (two files in one), encryption, foreign compressions.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from parity.harness.errors import UserError

from .core import LARGEST_TENSOR, bad, first_bytes, opened, size_of
from .npy import Header, read_header, read_values, write_npy

MAGIC = b"PK\x03\x04"
#: Bytes of the largest zip directory: some 300,000 members.
LARGEST_DIRECTORY = 1 << 25
#: A member that inflates by more than this and beyond `HARMLESS` bytes is taken for a bomb.
LARGEST_RATIO = 250
HARMLESS = 1 << 26
#: The same for all members together.
LARGEST_TOTAL = 1 << 30
_END = b"PK\x05\x06"
_END_SIZE = 22


@contextmanager
def mishaps(path: Path, what: str) -> Iterator[None]:
    """Whatever zipfile and zlib raise for a damaged file, as one UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # theirs share no base class
        raise bad(path, f"{what} cannot be read: {_line(error)}; the file is damaged") from error


def _line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:120]


class Npz:
    """An open .npz: names in the order of the file, headers and arrays on demand.

    With `repeats` a name may stand several times, as programs that append to one file write it; the second
    is then called NAME#1.
    """

    def __init__(self, path: Path, *, repeats: bool = False) -> None:
        self.path = path
        self.size = size_of(path)
        self._repeats: dict[str, tuple[str, int]] = {}
        self._members = self._by_name(check_zip(path, self.size), repeats=repeats)
        with mishaps(path, "the zip"):
            self._zip = zipfile.ZipFile(path)
        self._headers: dict[str, Header] = {}

    @property
    def names(self) -> list[str]:
        """Names of the arrays, as numpy gives them: without `.npy`."""
        return list(self._members)

    def header(self, name: str) -> Header:
        """Shape and type of one array; UserError if the member holds less or more than its header says."""
        if name not in self._headers:
            info = self._member(name)
            with mishaps(self.path, repr(name)), self._zip.open(info) as stream:
                self._headers[name] = read_header(stream, self.path, repr(name))
            header = self._headers[name]
            if header.length + header.nbytes != info.file_size:
                raise bad(
                    self.path,
                    f"{name!r} of shape {list(header.shape)} needs {header.nbytes} bytes of values, but its "
                    f"member holds {info.file_size - header.length}; it is cut short or appended to",
                )
        return self._headers[name]

    def array(self, name: str) -> np.ndarray:
        """The values of one array; the member's checksum is verified."""
        info = self._member(name)
        with mishaps(self.path, repr(name)), self._zip.open(info) as stream:
            header = read_header(stream, self.path, repr(name))
            return read_values(stream, header, info.file_size - header.length, self.path, repr(name))

    def repeat(self, key: str) -> tuple[str, int]:
        """The name that a key stands for, and which of its times it is, from 0 on."""
        return self._repeats.get(key, (key, 0))

    def _by_name(self, infos: list[zipfile.ZipInfo], *, repeats: bool) -> dict[str, zipfile.ZipInfo]:
        """Members in the order of the file, by their names without `.npy`."""
        members: dict[str, zipfile.ZipInfo] = {}
        seen: dict[str, int] = {}
        for info in infos:
            name = info.filename.removesuffix(".npy")
            times = seen[name] = seen.get(name, -1) + 1
            key = f"{name}#{times}" if times else name
            if times and not repeats:
                raise bad(
                    self.path, f"holds {name!r} twice: two dumps were written into one file; dump again"
                )
            if key in members:
                raise bad(self.path, f"holds {name!r} several times, and {key!r}; rename that")
            members[key] = info
            self._repeats[key] = (name, times)
        return members

    def _member(self, name: str) -> zipfile.ZipInfo:
        if name not in self._members:
            raise bad(self.path, f"has no array {name!r}; the dump is incomplete")
        return self._members[name]


def _check_end(path: Path, size: int) -> None:
    """The directory's end must be the file's; its own size is bounded before it is read."""
    if first_bytes(path, 4) not in (MAGIC, _END):
        raise bad(path, "is no zip: it does not begin with PK")
    with opened(path) as file:
        length = min(size, _END_SIZE + (1 << 16))
        file.seek(size - length)
        tail = file.read(length)
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < _END_SIZE:
        raise bad(path, "has no directory at its end; the file is cut short")
    comment = int.from_bytes(tail[at + 20 : at + 22], "little")
    if len(tail) - at - _END_SIZE != comment:
        raise bad(path, "goes on behind its zip directory; something is appended to it")
    declared = int.from_bytes(tail[at + 12 : at + 16], "little")
    if declared != 0xFFFFFFFF and declared > LARGEST_DIRECTORY:
        raise bad(path, f"has a zip directory of {declared} bytes, too many for a dump")
    if tail[max(at - 20, 0) : at].startswith(b"PK\x06\x07"):
        _check_wide_end(path, int.from_bytes(tail[at - 12 : at - 4], "little"), size)


def _check_wide_end(path: Path, at: int, size: int) -> None:
    """The same for the 64-bit form, whose record the locator points to."""
    if not 0 <= at <= size - 56:
        raise bad(path, "has a zip directory that lies outside the file; it is damaged")
    with opened(path) as file:
        file.seek(at)
        record = file.read(56)
    if not record.startswith(b"PK\x06\x06") or int.from_bytes(record[40:48], "little") > LARGEST_DIRECTORY:
        raise bad(path, "has a zip directory that is damaged or too large for a dump")


def check_zip(path: Path, size: int) -> list[zipfile.ZipInfo]:
    """The members of a zip, none of them inflated; UserError for what this module refuses."""
    _check_end(path, size)
    with mishaps(path, "the zip"), zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    end = 0
    for place, info in enumerate(sorted(infos, key=lambda info: info.header_offset)):
        _check_member(info, path)
        if info.header_offset < end or (place == 0 and info.header_offset):
            raise bad(
                path,
                f"{info.filename!r} begins at byte {info.header_offset}, but should be behind byte {end}: "
                "two files lie in one, or members lie over one another",
            )
        end = info.header_offset + 30 + info.compress_size
    if end > size:
        raise bad(path, "has members that reach beyond its end; the file is cut short")
    total = sum(info.file_size for info in infos)
    if total > LARGEST_RATIO * size and total > LARGEST_TOTAL:
        raise bad(path, f"would inflate from {size} to {total} bytes, which looks like a zip bomb")
    return infos


def verify(path: Path, infos: list[zipfile.ZipInfo]) -> None:
    """Read every member once, piece by piece, against its checksum."""
    with mishaps(path, "the zip"), zipfile.ZipFile(path) as archive:
        for info in infos:
            with archive.open(info) as stream:
                while stream.read(1 << 20):
                    pass


def _check_member(info: zipfile.ZipInfo, path: Path) -> None:
    name = info.filename
    if info.flag_bits & 1:
        raise bad(path, f"{name!r} is encrypted; write the dump without a password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise bad(path, f"{name!r} is compressed in a way that .npz has not; write it with numpy")
    if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
        raise bad(path, f"{name!r} is stored, yet of two sizes; the file is damaged")
    ratio = info.file_size / max(info.compress_size, 1)
    if info.file_size > LARGEST_TENSOR or (ratio > LARGEST_RATIO and info.file_size > HARMLESS):
        raise bad(
            path,
            f"{name!r} would inflate from {info.compress_size} to {info.file_size} bytes, which looks like a "
            "zip bomb; write the dump uncompressed if it is real",
        )


class Archives:
    """The last few opened .npz files; a dump of many would run out of file handles."""

    LIMIT = 8

    def __init__(self) -> None:
        self._open: dict[Path, tuple[tuple[int, int], Npz]] = {}

    def get(self, path: Path) -> Npz:
        """The open file; again if it has changed since."""
        try:
            state = os.stat(path)
        except OSError as error:
            raise bad(path, f"cannot be read ({error.strerror})") from error
        stamp = (state.st_mtime_ns, state.st_size)
        known = self._open.pop(path, None)
        if known is None or known[0] != stamp:
            known = (stamp, Npz(path))
        self._open[path] = known
        if len(self._open) > self.LIMIT:
            del self._open[next(iter(self._open))]
        return known[1]


def write_npz(
    path: Path, arrays: dict[str, np.ndarray], *, deflate: bool = False, suffix: str = ".npy"
) -> None:
    """Write arrays as numpy does; the checkers of the chip's toolchain deflate and leave the suffix out."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            write_member(archive, name + suffix, array)


def write_member(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    """Write one array under the member's whole name."""
    with archive.open(name, "w", force_zip64=True) as stream:
        write_npy(stream, array)


def looks_like_npz(path: Path) -> bool:
    """Whether a file is a zip by name and first bytes."""
    return path.suffix == ".npz" and re.match(rb"PK(\x03\x04|\x05\x06)", first_bytes(path, 4)) is not None
