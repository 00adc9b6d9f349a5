"""Recording: one writer per file, many runs, records copied at once and written behind the caller's back."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from ..dtypes import logical_dtype, storage_dtype
from ..errors import UserError
from . import format as f
from . import schema, views
from .drain import Drain, Flush
from .labels import Labels, created, environment
from .lock import FileLock
from .reader import Trace
from .repair import mend
from .run_writer import RunWriter
from .stage import Pool, Stage

FLUSH_BYTES = (1 << 20, 64 << 20)
"""A flush is due after an eighth of what the file holds, between these: a small full disk keeps most, too."""
FLUSH_SECONDS = 1.0
_BLOCK_ROWS = 4096
_LEVELS = {None: 0, "gzip": 1} | {f"gzip:{level}": level for level in range(1, 10)}


class _Lane(NamedTuple):
    """How one logical dtype is recorded; `plain` when it is its own storage type."""

    code: int
    storage: np.dtype[Any]
    itemsize: int
    plain: bool
    stage: Stage


class TraceWriter:
    """Creates a trace file or appends to one, repairing it first when its last writer was killed.

    `max_bytes`: recording stops with UserError before records and index would take more (as recorded:
    HDF5 adds a few per mille, compression is not counted off). `compress`: None, "gzip" or "gzip:1" to
    "gzip:9", lossless, decided when the file is made. What was recorded is visible to readers, and safe from
    a kill, at latest a second later, after 1 to 64 MiB, or on `flush`; `close` also brings it to the disk and
    publishes the natural views. UserError: unwritable place, second writer, file of another kind.
    """

    def __init__(
        self, path: str | Path, *, max_bytes: int | None = None, compress: str | None = None
    ) -> None:
        self.path = os.fspath(path)
        level = _level(compress)
        _make(self.path, level)
        self._file_lock = FileLock(self.path)
        try:
            before = self._open(level, compress)
        except BaseException:
            self._file_lock.release()
            raise
        self._resume(before, max_bytes)
        self._process = os.getpid()
        atexit.register(self._close_at_exit)

    def _open(self, level: int, compress: str | None) -> Trace:
        """What the file holds already, once it is fit to be appended to."""
        mend(self.path)
        before = Trace(self.path)
        if compress is not None and before.layout.level != level:
            raise UserError(
                f"compress={compress!r}: {self.path} was made with another setting; use a new file"
            )
        self._file = _open_file(self.path)
        return before

    def _resume(self, before: Trace, max_bytes: int | None) -> None:
        """Set up recording behind the records that are there."""
        self._codes = {name: code for code, name in enumerate(before.layout.dtypes)}
        self._labels = Labels(before.texts)
        self._generations = before.generations()
        self._num_runs = before.num_runs
        self._streams = before.layout.streams
        self._ends = before.stream_ends()
        self._fd = os.open(self.path, os.O_RDONLY)
        self._max_bytes = max_bytes
        self._bytes = before.num_bytes
        self._pad = f.CHUNK if before.layout.level else 1
        self._lock = threading.RLock()
        self._pool = Pool()
        self._stages: dict[str, Stage] = {}
        self._lanes: dict[str, _Lane] = {}
        self._rows, self._count = bytearray(_BLOCK_ROWS * f.ROW.itemsize), 0
        self._text: list[bytes] = []
        self._unflushed, self._due = 0, time.monotonic() + FLUSH_SECONDS
        self._enough = FLUSH_BYTES[0]
        self._closed = False
        self._open_runs: list[RunWriter] = []
        ends = {"index": before.num_records, "text": before.text_size}
        self._drain = Drain(self._file, self.path, ends, before.layout.level, self._pool)
        self._drain.start(self._rows, self._idle)

    @property
    def num_records(self) -> int:
        """Records that are flushed and safe, of all runs."""
        return self._drain.kept

    def run(self, name: str, *, target: str = "", provenance: Mapping[str, Any] | None = None) -> RunWriter:
        """Begin a run; a name that exists already makes a new generation, which `notice` says."""
        if not name or "#" in name:
            raise UserError(
                f"name={name!r}: a run needs a name without '#'; 'torch#2' names the second run of a name"
            )
        with self._lock:
            self._check()
            generation = self._generations.get(name, 0) + 1
            self._generations[name] = generation
            run = RunWriter(self, self._num_runs, name, generation)
            self._num_runs += 1
            self._open_runs.append(run)
            self._say(
                {
                    "run": run._number,
                    "name": name,
                    "generation": generation,
                    "target": target,
                    "created": created(),
                    "provenance": {**environment(), **(provenance or {})},
                }
            )
            self.flush()
        return run

    def flush(self, *, durable: bool = False) -> None:
        """Return when everything recorded so far is in the file and visible to readers.

        That survives a kill; with `durable` the disk has it too, so that it survives a power cut.
        """
        with self._lock:
            self._check()
            flush = self._send_flush(durable=durable)
        flush.done.wait()
        self._check()

    def close(self) -> None:
        """End runs that are still open as incomplete, publish the views and free the file."""
        with self._lock:
            if self._closed:
                return
            for run in list(self._open_runs):
                run._end(complete=False)
            self._send_flush()
            self._closed = True
        self._drain.stop()
        atexit.unregister(self._close_at_exit)
        self._leave()

    def _close_at_exit(self) -> None:
        """A program that ends without closing; a forked child has nothing to close."""
        if os.getpid() == self._process:
            with contextlib.suppress(UserError):
                self.close()

    def _leave(self) -> None:
        os.close(self._fd)
        try:
            if self._drain.failure is not None:
                mend(self.path, grow=False)
                raise self._drain.failure
            views.publish(self.path)
        finally:
            self._file_lock.release()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            self.close()
        except UserError:
            if error is None:
                raise

    def _record(
        self,
        run: int,
        tap: str,
        data: np.ndarray[Any, Any],
        dtype: str,
        where: tuple[int, int],
        axes: str,
        positions: Any,
        meta: Mapping[str, Any] | None,
    ) -> None:
        """Copy one record into its stream's buffer and note its row; `where` is step and call."""
        step, call = where
        with self._lock:
            self._check()
            nbytes, labels, shape = data.nbytes, self._labels, data.shape
            lane = self._lanes.get(dtype) or self._lane(dtype)
            numbers = labels.tap(tap), labels.axes(axes, len(shape)), labels.meta(meta) if meta else 0
            kind, start, count, listed = (
                f.NOT_TOLD if positions is None else labels.positions(positions, axes, shape)
            )
            self._admit(tap, nbytes)
            f.PACK(
                self._rows, self._count * 128, run, *numbers, listed, call, kind, lane.code, len(shape),
                count, step, lane.stage.position // lane.itemsize, start, *shape, *_NO_DIMS[len(shape)],
            )  # fmt: skip
            if labels.fresh:
                self._text += labels.take()
            lane.stage.put(data if lane.plain else data.view(lane.storage), self._count)
            self._count += 1
            self._unflushed += nbytes
            if self._count == _BLOCK_ROWS or self._unflushed >= self._enough or time.monotonic() >= self._due:
                self._send_flush()

    def _admit(self, tap: str, nbytes: int) -> None:
        self._bytes += nbytes + f.ROW.itemsize
        if self._max_bytes is not None and self._bytes > self._max_bytes:
            self._bytes -= nbytes + f.ROW.itemsize
            self._send_flush().done.wait()
            raise UserError(
                f"max_bytes={self._max_bytes}: recording {tap!r} ({nbytes} bytes) would exceed it; "
                f"{self._drain.kept} records ({self._bytes} bytes) are kept, the run is incomplete; "
                "allow more, or record fewer taps or steps"
            )

    def _lane(self, dtype: str) -> _Lane:
        """What recording a logical dtype needs; its stream goes on inside the chunk where it ended."""
        storage = storage_dtype(dtype)
        name = storage.name
        stage = self._stages.get(name) or self._stage(name)
        plain = storage == logical_dtype(dtype)
        lane = self._lanes[dtype] = _Lane(self._codes[dtype], storage, storage.itemsize, plain, stage)
        return lane

    def _stage(self, name: str) -> Stage:
        stream = self._streams[f"data/{name}"]
        end = self._ends.get(name, 0)
        whole = end // stream.chunk * stream.chunk
        tail = stream.read(self._fd, whole, end).view(np.uint8)
        stage = Stage(name, end * stream.dtype.itemsize, tail, self._take, self._drain.send)
        self._stages[name] = stage
        return stage

    def _take(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return self._pool.take(len(self._stages) + 1)

    def _say(self, content: Mapping[str, Any]) -> None:
        self._text.append(f.line(content))

    def _send_flush(self, *, durable: bool = False) -> Flush:
        """Hand over everything; the caller holds the lock."""
        for stage in self._stages.values():
            stage.flush(pad_to=self._pad)
        rows, count = self._rows, self._count
        self._rows, self._count = (bytearray(_BLOCK_ROWS * f.ROW.itemsize), 0) if count else (rows, 0)
        flush = Flush(rows, count, b"".join(self._text), self._rows, durable)
        self._text = []
        self._unflushed, self._due = 0, time.monotonic() + FLUSH_SECONDS
        self._enough = min(max(FLUSH_BYTES[0], self._bytes // 8), FLUSH_BYTES[1])
        self._drain.send(flush)
        return flush

    def _idle(self) -> None:
        """The drain has had nothing to do: let what lies in the buffers be seen."""
        if self._lock.acquire(blocking=False):
            try:
                if not self._closed and (self._count or self._text):
                    self._send_flush()
            finally:
                self._lock.release()

    def _check(self) -> None:
        if self._drain.failure is not None:
            raise self._drain.failure
        if self._closed:
            raise UserError(f"path={self.path}: this trace writer is closed; open another")


_NO_DIMS = [(0,) * (f.MAX_DIMS - ndim) for ndim in range(f.MAX_DIMS + 1)]


def _level(compress: str | None) -> int:
    if compress not in _LEVELS:
        raise UserError(f"compress={compress!r}: unknown; use gzip, gzip:1 ... gzip:9 or nothing")
    return _LEVELS[compress]


def _make(path: str, level: int) -> None:
    if os.path.isdir(path):
        raise UserError(
            f"path={path}: is a folder; give a file name such as {os.path.join(path, 'trace.h5')}"
        )
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise UserError(f"path={path}: its folder does not exist; make it first")
    if not os.path.exists(path):
        schema.create(path, level)
    if not os.access(path, os.R_OK | os.W_OK):
        raise UserError(f"path={path}: cannot be written (no permission); choose another place")


def _open_file(path: str) -> Any:
    try:
        return schema.open_for_writing(path)
    except OSError as error:
        raise UserError(
            f"path={path}: HDF5 cannot open it for writing ({error}); close other programs that have it open"
        ) from error
