"""What a dump holds, what a reader of one promises, and the helpers that keep strangers' files harmless.

A dump is data, never code, and nothing it says is believed before it is checked: a size is held against
the file before memory is asked for, a path never leaves the dump's folder, what follows the last byte that
belongs to the dump is an error. Every mistake in a file is a UserError with one clear sentence.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from parity.harness.dtypes import as_logical, storage_dtype
from parity.harness.errors import UserError, did_you_mean

#: Bytes of the largest tensor that is taken into memory.
LARGEST_TENSOR = 1 << 33
#: Bytes of the largest text (manifest, sidecar, csv) that is taken into memory.
LARGEST_TEXT = 1 << 28
#: Characters of an error: names inside a file may be as long as they like.
LONGEST_ERROR = 1000
#: Dimensions of a tensor; physical layouts have one or two more than a trace keeps.
MOST_DIMENSIONS = 16


@dataclass(frozen=True)
class Dumped:
    """One tensor of a dump. `load` reads it when it is wanted: the logical array of `shape` and `dtype`.

    `name` is what the dump calls it and `tap` what the dump itself says it is (None: it does not say).
    `axes` and `positions` are as in a record of a trace. `meta` names what was undone: scale, layout.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], np.ndarray]
    step: int = 0
    call: int = 0
    axes: str = ""
    positions: np.ndarray | None = None
    tap: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Contents:
    """A dump that was opened: its entries come in execution order, one at a time.

    `facts` goes into the provenance; the keys `chip`, `versions`, `precision`, `model`, `weights` (digest)
    and `scenario` have the meaning that their names say, others are free. `tokens` are the prompt's ids
    `[B, T]` and `fed` the ids of each step `[B, T]`, where the dump holds them. `count` is the number of
    entries where it is known beforehand.
    """

    kind: str
    facts: Mapping[str, Any]
    entries: Iterable[Dumped]
    tokens: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    fed: Mapping[int, np.ndarray] = field(default_factory=dict)
    count: int | None = None


@dataclass(frozen=True)
class ReadOptions:
    """What a person says about a dump that the dump cannot say itself.

    `manifest` is a sidecar given by hand; `settings` are the reader's own words (see `Reader.settings`).
    """

    manifest: Path | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    def text(self, name: str, default: str) -> str:
        """A setting as it was written."""
        return self.settings.get(name, default)

    def number(self, name: str, default: int) -> int:
        """A setting that is a whole number; UserError for anything else."""
        said = self.settings.get(name)
        if said is None:
            return default
        try:
            return int(said)
        except ValueError as error:
            raise UserError(f"{name}={said!r}: should be a whole number") from error


class Reader(Protocol):
    """A way of reading one kind of dump."""

    kind: str
    summary: str
    settings: Mapping[str, str]
    """What a person may set for this kind, and what it means; empty for most."""

    def detects(self, path: Path) -> bool:
        """Whether a file or folder looks like this kind, from names and first bytes only; never raises."""

    def read(self, path: Path, options: ReadOptions) -> Contents:
        """Open a dump; UserError for what is none, is cut short or has bytes too many."""


def bad(path: str | os.PathLike[str], what: str) -> UserError:
    """The error of a dump: which file, what is wrong, what to do."""
    shown = what if len(what) <= LONGEST_ERROR else f"{what[:LONGEST_ERROR]} ..."
    return UserError(f"dump={os.fspath(path)!r}: {shown}")


#: Kinds that a sidecar can be named for by hand.
WITH_MANIFEST = ("cvi-npz", "bmrt", "raw", "adump", "nano", "atb", "msprobe", "aisbench", "logits")


def checked_settings(reader: Reader, options: ReadOptions) -> None:
    """UserError for a setting, or a sidecar, that this kind of dump does not have."""
    if options.manifest is not None and reader.kind not in WITH_MANIFEST:
        raise UserError(
            f"manifest={str(options.manifest)!r}: a dump of kind {reader.kind!r} takes none; those of kind "
            f"{', '.join(WITH_MANIFEST)} do (say which with kind=NAME)"
        )
    for name in options.settings:
        if name not in reader.settings:
            raise UserError(
                f"{name}={options.settings[name]!r}: is no setting of a dump of kind {reader.kind!r}. "
                + did_you_mean(name, reader.settings)
            )


def inside(folder: Path, name: str | os.PathLike[str]) -> Path:
    """The path of a file that a dump names, links followed; UserError where it leaves the folder."""
    text = os.fspath(name)
    if "\0" in text or not text:
        raise bad(folder, f"names a file {text!r}, which is no name")
    try:
        root, path = folder.resolve(), (folder / text).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise bad(folder, f"names a file {text!r} that cannot be followed ({error})") from error
    if Path(text).is_absolute() or not path.is_relative_to(root):
        raise bad(folder, f"names a file {text!r} outside its folder; only files inside it are read")
    return path


def opened(path: Path) -> BinaryIO:
    """A regular file, opened for reading; UserError for pipes, devices, folders and what is not there."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise bad(path, f"cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise bad(path, "is no regular file")
    return os.fdopen(descriptor, "rb")


def size_of(path: Path) -> int:
    """Bytes of a regular file."""
    with opened(path) as file:
        return os.fstat(file.fileno()).st_size


def first_bytes(path: Path, count: int) -> bytes:
    """At most `count` bytes from the start; empty for what cannot be read. For `detects`."""
    try:
        with opened(path) as file:
            return file.read(count)
    except (UserError, OSError):
        return b""


def read_exactly(file: BinaryIO, count: int, path: Path, what: str) -> bytes:
    """`count` bytes from where the file stands; UserError, before memory is taken, if they are not there."""
    left = os.fstat(file.fileno()).st_size - file.tell()
    if count < 0 or count > left:
        raise bad(path, f"{what} needs {count} bytes, but {max(left, 0)} are left; the file is cut short")
    if count > LARGEST_TENSOR:
        raise bad(path, f"{what} has {count} bytes, more than the {LARGEST_TENSOR} that are taken at once")
    try:
        found = file.read(count)
    except OSError as error:
        raise bad(path, f"cannot be read ({error.strerror})") from error
    if len(found) != count:
        raise bad(
            path, f"{what} ends after {len(found)} of {count} bytes; the file changed while it was read"
        )
    return found


def checked_shape(shape: Any, path: str | os.PathLike[str], what: str) -> tuple[int, ...]:
    """A shape that a file states, as whole numbers; UserError for what cannot be one."""
    if not isinstance(shape, Sequence) or isinstance(shape, (str, bytes)) or len(shape) > MOST_DIMENSIONS:
        raise bad(path, f"{what} has a shape that is no list of at most {MOST_DIMENSIONS} numbers")
    if not all(type(size) is int and 0 <= size < 1 << 48 for size in shape):
        raise bad(path, f"{what} has an impossible shape {str(list(shape))[:80]}")
    return tuple(shape)


def nbytes(shape: Sequence[int], dtype: str) -> int:
    """Bytes that a tensor of a logical dtype takes as a dump stores it (4-bit types one to a byte)."""
    return math.prod(shape) * storage_dtype(dtype).itemsize


def array_at(path: Path, offset: int, shape: tuple[int, ...], dtype: str, what: str) -> np.ndarray:
    """The logical array that lies at a place of a file, little endian; UserError if the file is too short."""
    with opened(path) as file:
        if offset < 0 or offset > os.fstat(file.fileno()).st_size:
            raise bad(path, f"{what} should begin at byte {offset}, beyond the file's end")
        file.seek(offset)
        raw = read_exactly(file, nbytes(shape, dtype), path, what)
    return array_of(raw, shape, dtype)


def array_of(raw: bytes, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Little-endian bytes as a logical array of their own; `raw` has the right length."""
    storage = storage_dtype(dtype)
    flat = np.frombuffer(raw, storage.newbyteorder("<")).astype(storage)
    if dtype == "bool":
        flat = (flat != 0).view(np.uint8)
    return as_logical(flat, dtype).reshape(shape)


def read_text(path: Path) -> str:
    """A text file of bounded size; UserError for what is too long or no UTF-8."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > LARGEST_TEXT:
            raise bad(path, f"has {size} bytes, too many for a text that describes a dump")
        raw = read_exactly(file, size, path, "the text")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise bad(path, f"is no UTF-8 text ({error.reason} at byte {error.start})") from error


def read_json(path: Path) -> Any:
    """A JSON file of bounded size; UserError for what is none."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise bad(path, f"is no JSON ({str(error)[:120]}); the dump is damaged or incomplete") from error


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object at its top."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise bad(path, f"holds a {type(content).__name__} where an object is expected")
    return content
