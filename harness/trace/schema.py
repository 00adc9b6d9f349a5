"""The file on disk: an empty skeleton made at one stroke, and the handles of a reader or writer."""

from __future__ import annotations

import functools
import json
import os
import zlib
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import h5py
import numpy as np

from ..dtypes import STORAGE_NAMES
from ..errors import UserError
from . import format as f
from .overlay import Overlay


@functools.cache
def skeleton(level: int) -> bytes:
    """The image of an empty trace; `level` 1..9 deflates the streams after a byte shuffle, 0 does not."""
    with h5py.File("skeleton", "w", driver="core", backing_store=False, libver="latest") as file:
        file.attrs.update(f.root_attributes())
        _dataset(file, "index", f.ROW, 0)
        _dataset(file, "text", np.dtype("u1"), 0)
        for name in STORAGE_NAMES:
            _dataset(file, f"data/{name}", np.dtype(name), level)
        file.create_group("runs", track_order=True)
        file.flush()
        return bytes(file.id.get_file_image())


def _dataset(file: Any, name: str, dtype: np.dtype[Any], level: int) -> None:
    """Streams of data get their room when they grow, so that chunks can be written without HDF5's lock."""
    options: dict[str, Any] = {"compression": level, "shuffle": True} if level else {}
    if name.startswith("data/") and not level:
        options["dcpl"] = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        options["dcpl"].set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    file.create_dataset(
        name,
        shape=(0,),
        maxshape=(None,),
        chunks=(chunk_length(name, dtype),),
        dtype=dtype,
        fill_time="never",
        track_times=False,
        **options,
    )


def create(path: str, level: int) -> None:
    """Put an empty trace at `path` unless there is a file already; nobody ever sees half of one."""
    image = skeleton(level)
    draft = f"{path}.{os.getpid()}.new"
    try:
        with open(draft, "wb") as out:
            out.write(image)
        os.link(draft, path)
    except FileExistsError:
        return
    except OSError as error:
        raise UserError(f"path={path}: cannot be written ({error.strerror}); choose another place") from error
    finally:
        if os.path.lexists(draft):
            os.unlink(draft)


def open_for_writing(path: str) -> Any:
    """An h5py file in SWMR mode; our own lock keeps other writers out, so HDF5's locks stay off."""
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_LATEST, h5py.h5f.LIBVER_LATEST)
    access.set_file_locking(False, True)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_cache(0, 521, 0, 0.75)
    flags = h5py.h5f.ACC_RDWR | h5py.h5f.ACC_SWMR_WRITE
    return h5py.File(h5py.h5f.open(os.fsencode(path), flags, access))


@dataclass(frozen=True)
class Stream:
    """Where the chunks of one dataset lie in the file: read without HDF5 from then on.

    `chunks` maps a chunk number to (byte address, stored bytes); `extent` and `chunk` count elements.
    """

    name: str
    dtype: np.dtype[Any]
    extent: int
    chunk: int
    deflated: bool
    chunks: dict[int, tuple[int, int]]

    def load(self, fd: int, number: int) -> np.ndarray[Any, Any]:
        """One chunk; UserError where the file does not have it."""
        out = np.empty(self.chunk, self.dtype)
        self._fill(fd, number, 0, out)
        return out

    def _fill(self, fd: int, number: int, start: int, out: np.ndarray[Any, Any]) -> None:
        """Elements of one chunk from `start` on into `out`."""
        if number not in self.chunks and self.name in ("index", "text"):
            out[:] = np.zeros(1, self.dtype)  # grown, but the disk was full: zeros are no rows
            return
        if number not in self.chunks:
            raise UserError(f"data={self.name}: chunk {number} was never written; the file is damaged")
        address, stored = self.chunks[number]
        if self.deflated:
            out[:] = self._inflate(os.pread(fd, stored, address), number)[start : start + out.size]
            return
        memory = out.view(np.uint8)
        got = os.preadv(fd, [memory.data], address + start * self.dtype.itemsize)
        if got < out.nbytes:
            memory[got:] = 0

    def read(self, fd: int, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Elements start..stop as a fresh array."""
        out = np.empty(max(stop - start, 0), self.dtype)
        self.fill(fd, start, stop, out)
        return out

    def fill(self, fd: int, start: int, stop: int, out: np.ndarray[Any, Any]) -> None:
        """Elements start..stop into `out`, a contiguous array of as many."""
        at = start
        while at < stop:
            number, inside = divmod(at, self.chunk)
            end = min(stop, at - inside + self.chunk)
            self._fill(fd, number, inside, out[at - start : end - start])
            at = end

    def _inflate(self, stored: bytes, number: int) -> np.ndarray[Any, Any]:
        size = self.chunk * self.dtype.itemsize
        try:
            plain = zlib.decompressobj().decompress(stored, size)
        except zlib.error as error:
            raise UserError(
                f"data={self.name}: chunk {number} cannot be decompressed; the file is damaged"
            ) from error
        if len(plain) != size:
            raise UserError(f"data={self.name}: chunk {number} is cut off; the file is damaged")
        return unshuffle(plain, self.dtype)


def _check_room(stream: Stream, size: int, path: str) -> None:
    """No stream may claim more than the file has room for, so that nothing absurd is ever allocated.

    A killed writer may leave one buffer of chunks per stream that were promised and never written, also
    behind the end of the file; a file that was closed and then cut may not.
    """
    places = sorted(stream.chunks.values())
    apart = all(a + stored <= b for (a, stored), (b, _) in pairwise(places))
    inside = not places or places[-1][0] <= size
    granted = (len(places) + f.BUFFER // f.CHUNK + 1) * stream.chunk
    if stream.chunk != chunk_length(stream.name, stream.dtype) or not apart or not inside:
        raise UserError(f"path={path}: the chunks of {stream.name} are not those of a trace; it is damaged")
    if stream.extent > granted:
        raise UserError(
            f"path={path}: {stream.name} claims {stream.extent} elements, the file has room for {granted}; "
            "it is damaged"
        )


def chunk_length(name: str, dtype: np.dtype[Any]) -> int:
    """Elements of a chunk of a dataset."""
    return {"index": 8192, "text": 1 << 16}.get(name, f.CHUNK // dtype.itemsize)


def deflate(chunk: np.ndarray[Any, Any], level: int) -> bytes:
    """What HDF5's shuffle and deflate filters make of a chunk."""
    return zlib.compress(chunk.view(np.uint8).reshape(-1, chunk.itemsize).T.tobytes(), level)


def unshuffle(plain: bytes, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Undo HDF5's byte shuffle."""
    planes = np.frombuffer(plain, np.uint8).reshape(dtype.itemsize, -1)
    return np.ascontiguousarray(planes.T).reshape(-1).view(dtype)


@dataclass(frozen=True)
class Layout:
    """What the datasets of a trace file are and where; read once when a file is opened."""

    streams: dict[str, Stream]
    dtypes: list[str]
    level: int
    published: frozenset[str]


def read_layout(path: str, *, ours: bool = False) -> tuple[Overlay, Layout]:
    """Open a trace in whatever state it is; UserError with the reason when it is none.

    `ours`: this process wrote it and ran out of room, so it may end before what HDF5 made room for.
    """
    overlay = Overlay(path)
    try:
        with h5py.File(overlay, "r") as file:
            size = os.fstat(overlay.fd).st_size
            room = size if overlay.cut and not ours else size + f.BUFFER * len(STORAGE_NAMES)
            return overlay, _layout(file, path, room)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        overlay.close()
        raise UserError(
            f"path={path}: HDF5 cannot read it ({_first(error)}); it is damaged or cut off"
        ) from error
    except UserError:
        overlay.close()
        raise


def _first(error: BaseException) -> str:
    return str(error).splitlines()[0].strip("'\"") if str(error) else type(error).__name__


def _layout(file: Any, path: str, size: int) -> Layout:
    _check_version(file, path)
    streams = {name: _stream(file[name], name, path) for name in f.DATASETS if _is_ours(file, name)}
    for stream in streams.values():
        _check_room(stream, size, path)
    missing = [name for name in ("index", "text") if name not in streams]
    if missing or streams["index"].dtype != f.ROW:
        raise UserError(f"path={path}: its index or text is not that of a trace; the file is damaged")
    level = max((file[name].compression_opts or 0) for name in streams)
    dtypes = json.loads(_text(file, "dtypes"))
    runs = frozenset(file["runs"]) if "runs" in file else frozenset()
    return Layout(streams, [str(name) for name in dtypes], level, runs)


def _text(file: Any, name: str) -> str:
    """A text attribute of fixed length, or nothing: HDF5 hangs on a damaged one of variable length."""
    if name not in file.attrs or file.attrs.get_id(name).dtype.kind != "S":
        return ""
    return bytes(file.attrs[name]).decode(errors="replace")


def _check_version(file: Any, path: str) -> None:
    if _text(file, "format") != f.FORMAT:
        raise UserError(f"path={path}: an HDF5 file, but not a trace written by parity")
    version = int(file.attrs["version"])
    if version > f.VERSION:
        raise UserError(
            f"path={path}: written in trace format {version}, this parity reads up to {f.VERSION}; "
            "update parity"
        )


def _is_ours(file: Any, name: str) -> bool:
    """Whether a dataset is there as a plain member: no link leads out of the file."""
    return isinstance(file.get(name, getlink=True), h5py.HardLink) and isinstance(file[name], h5py.Dataset)


def _stream(dataset: Any, name: str, path: str) -> Stream:
    if dataset.ndim != 1 or dataset.chunks is None:
        raise UserError(f"path={path}: {name} is not the flat chunked stream of a trace")
    chunks: dict[int, tuple[int, int]] = {}
    step = int(dataset.chunks[0])

    def add(info: Any) -> None:
        chunks[info.chunk_offset[0] // step] = (int(info.byte_offset), int(info.size))

    dataset.id.chunk_iter(add)
    return Stream(name, dataset.dtype, int(dataset.shape[0]), step, bool(dataset.compression), chunks)
