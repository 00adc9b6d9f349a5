"""The one thread that writes: checksums, chunks, text, then index rows, so that a prefix always holds."""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import h5py
import numpy as np

from ..errors import UserError
from . import format as f
from .checksum import ROW_BYTES, Digest, checksum
from .schema import deflate
from .stage import Job, Pool

IDLE_SECONDS = 1.0
_put_crc = struct.Struct("<I").pack_into


@dataclass
class Flush:
    """Make everything handed over so far visible: `count` rows of a block, and lines of text.

    `durable` waits for the disk, data before the rows that tell of it.

    Pieces that come later belong to rows of `next_rows`.
    """

    rows: bytearray
    count: int
    text: bytes
    next_rows: bytearray
    durable: bool = False
    done: threading.Event = field(default_factory=threading.Event)


class Drain:
    """Owns the open HDF5 file. After a failure it swallows what comes, and `failure` says what was kept."""

    def __init__(self, file: Any, path: str, ends: dict[str, int], level: int, pool: Pool) -> None:
        """`ends`: used elements of `index` and `text`. `level`: 0 or the deflate level of the streams."""
        self.failure: UserError | None = None
        self.kept = ends["index"]
        self._file, self._path, self._level, self._pool = file, path, level, pool
        self._ends = dict(ends)
        self._datasets = {name: file[name].id for name in f.DATASETS}
        self._touched: set[str] = set()
        self._digests: dict[str, Digest] = {}
        self._fd = file.id.get_vfd_handle()
        self._rows: bytearray = bytearray()
        self._queue: SimpleQueue[Job | Flush | None] = SimpleQueue()
        self._idle: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._work, name="parity-trace", daemon=True)

    def start(self, rows: bytearray, idle: Callable[[], None]) -> None:
        """Begin; `idle` is called when nothing came for a second."""
        self._rows, self._idle = rows, idle
        self._thread.start()

    def send(self, job: Job | Flush) -> None:
        """Queue work, in order."""
        self._queue.put(job)

    def stop(self) -> None:
        """Finish what is queued and end the thread; the file is closed afterwards."""
        self._queue.put(None)
        self._thread.join()
        self._datasets.clear()
        try:
            self._file.close()
        except (OSError, RuntimeError) as error:
            self._fail(error)

    def _work(self) -> None:
        while True:
            try:
                job = self._queue.get(timeout=IDLE_SECONDS)
            except Empty:
                self._idle()
                continue
            if job is None:
                return
            self._attempt(job)
            if isinstance(job, Flush):
                self._rows = job.next_rows
                job.done.set()
            elif job.whole:
                self._pool.give(job.buffer)

    def _attempt(self, job: Job | Flush) -> None:
        if self.failure is not None:
            return
        try:
            self._flush(job) if isinstance(job, Flush) else self._store(job)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, OSError) and error.errno:
            reason = os.strerror(error.errno)
        self.failure = self.failure or UserError(
            f"path={self._path}: recording stopped, the file cannot grow ({reason}); {self.kept} records "
            "were flushed before and stay intact, the run is incomplete; free space or choose another place"
        )

    def _store(self, job: Job) -> None:
        rows, memory = self._rows, job.buffer.data
        for slot, start, stop, first, last in job.pieces:
            if first and last and stop - start < ROW_BYTES:
                crc = zlib.crc32(memory[start:stop])
            elif first and last:
                crc = checksum(job.buffer[start:stop])
            else:
                digest = self._digests.setdefault(job.stream, Digest())
                digest.update(job.buffer[start:stop])
                if not last:
                    continue
                crc = self._digests.pop(job.stream).value()
            _put_crc(rows, slot * 128 + f.DATA_CRC_AT, crc)
        self._write(job)

    def _write(self, job: Job) -> None:
        """Whole chunks directly, the rest of the last chunk as a piece."""
        dataset = self._datasets[f"data/{job.stream}"]
        dtype = np.dtype(job.stream)
        self._touched.add(f"data/{job.stream}")
        _reach(dataset, (job.start + job.high) // dtype.itemsize)
        for low in range(job.low // f.CHUNK * f.CHUNK, job.high, f.CHUNK):
            high = min(low + f.CHUNK, job.high)
            at = (job.start + low) // dtype.itemsize
            if high - low == f.CHUNK:
                self._write_chunk(dataset, at, job.buffer[low:high].view(dtype))
            else:
                fresh = max(low, job.low)
                _write_piece(
                    dataset, (job.start + fresh) // dtype.itemsize, job.buffer[fresh:high].view(dtype)
                )

    def _write_chunk(self, dataset: Any, at: int, chunk: np.ndarray[Any, Any]) -> None:
        """A plain chunk goes where HDF5 made room for it: its own call would stop the recording thread."""
        if self._level:
            dataset.write_direct_chunk((at,), deflate(chunk, self._level))
            return
        address = dataset.get_chunk_info_by_coord((at,)).byte_offset
        memory = chunk.view(np.uint8).data
        while memory:
            done = os.pwrite(self._fd, memory, address)
            memory, address = memory[done:], address + done

    def _flush(self, job: Flush) -> None:
        for name in self._touched:
            self._datasets[name].flush()
        self._touched.clear()
        if job.durable:
            self._sync()
        if job.text:
            self._append("text", np.frombuffer(job.text, np.uint8))
        if job.count:
            with memoryview(job.rows) as memory:
                for start in range(0, job.count * 128, 128):
                    at = start + f.ROW_CRC_AT
                    _put_crc(memory, at, zlib.crc32(memory[start:at]))
            self._append("index", np.frombuffer(job.rows, f.ROW, job.count))
        if job.durable:
            self._sync()
        self.kept += job.count

    def _sync(self) -> None:
        os.fsync(self._fd)

    def _append(self, name: str, array: np.ndarray[Any, Any]) -> None:
        dataset, end = self._datasets[name], self._ends[name]
        _reach(dataset, end + array.size)
        _write_piece(dataset, end, array)
        dataset.flush()
        self._ends[name] = end + array.size


def _reach(dataset: Any, size: int) -> None:
    """Grow a dataset; it is never cut, for someone may be reading what a killed writer left at its end."""
    if dataset.shape[0] < size:
        dataset.set_extent((size,))


def _write_piece(dataset: Any, at: int, array: np.ndarray[Any, Any]) -> None:
    """Write a run of elements through HDF5's ordinary path."""
    there = dataset.get_space()
    there.select_hyperslab((at,), (array.size,))
    here = h5py.h5s.create_simple((array.size,))
    dataset.write(here, there, array)
