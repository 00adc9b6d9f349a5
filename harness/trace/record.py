"""One tensor at one tap, step and call of a run: cheap to list, its values are read when asked for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from ..dtypes import logical_dtype
from ..errors import UserError
from . import format as f
from .checksum import Digest, checksum

if TYPE_CHECKING:
    from .reader import Run


class Record:
    """What the index says of a record; `order` counts all records of the file in append order.

    `dtype` is the logical name, `axes` one letter per dimension or empty, `size` counts elements.
    """

    __slots__ = ("_run", "axes", "call", "dtype", "order", "shape", "size", "step", "tap")

    def __init__(
        self,
        run: Run,
        order: int,
        step: int,
        call: int,
        tap: str,
        dtype: str,
        shape: tuple[int, ...],
        size: int,
        axes: str,
    ) -> None:
        self._run = run
        self.order = order
        self.step = step
        self.call = call
        self.tap = tap
        self.dtype = dtype
        self.shape = shape
        self.size = size
        self.axes = axes

    def __repr__(self) -> str:
        return f"<Record {self._label()} {self.dtype}{list(self.shape)}>"

    @property
    def positions(self) -> np.ndarray[Any, np.dtype[np.int64]] | None:
        """Absolute positions of the token axis, [T] or [B, T]; -1: a hidden slot; None: not told."""
        row = self._row()
        kind = int(row["position_kind"])
        if kind == f.NO_POSITIONS:
            return None
        if kind == f.LISTED:
            return np.array(json.loads(self._run._trace._text(int(row["positions"]))), np.int64)
        start = int(row["position_start"])
        flat = np.arange(start, start + int(row["position_count"]), dtype=np.int64)
        return flat if kind == f.RANGE else flat.reshape(1, -1)

    @property
    def meta(self) -> dict[str, Any]:
        """What the recorder noted beside the values."""
        number = int(self._row()["meta"])
        return dict(json.loads(self._run._trace._text(number))) if number else {}

    @property
    def nbytes(self) -> int:
        """Bytes in the file, before compression."""
        return self.size * self._run._trace._stream(self.dtype).dtype.itemsize

    def read(self) -> np.ndarray[Any, Any]:
        """The values as a fresh array of the logical dtype; UserError when the checksum does not hold."""
        trace, start = self._run._trace, self.offset
        data = trace._blocks.fresh(trace._stream(self.dtype), start, start + self.size)
        self._verify(data)
        return data.view(logical_dtype(self.dtype)).reshape(self.shape)

    def read_flat(self, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Elements start..stop in row-major order, read-only, through the trace's bounded cache.

        The whole record's checksum is verified when the first of its elements are asked for.
        """
        if not 0 <= start <= stop <= self.size:
            raise UserError(
                f"start={start}, stop={stop}: outside the {self.size} elements of {self._label()}"
            )
        if start == stop:
            return np.empty(0, logical_dtype(self.dtype))
        trace = self._run._trace
        stream, base = trace._stream(self.dtype), self.offset
        data = trace._blocks.view(stream, base + start, base + stop)
        if self.order not in trace._verified:
            self._verify(data if stop - start == self.size else None)
            trace._verified.add(self.order)
        return data.view(logical_dtype(self.dtype))

    def _verify(self, data: np.ndarray[Any, Any] | None) -> None:
        """Hold the values, given or read block by block, against the checksum."""
        found = self._streamed_checksum() if data is None else checksum(data.view(np.uint8))
        if found != self._run._trace._crcs[self.order]:
            raise UserError(
                f"path={self._run._trace.path}: {self._label()} fails its checksum; the file is damaged, "
                "record again"
            )

    def _streamed_checksum(self) -> int:
        trace = self._run._trace
        stream, digest = trace._stream(self.dtype), Digest()
        for start in range(self.offset, self.offset + self.size, stream.chunk):
            stop = min(start + stream.chunk, self.offset + self.size)
            digest.update(trace._blocks.view(stream, start, stop).view(np.uint8))
        return digest.value()

    @property
    def offset(self) -> int:
        """Where the record begins in its stream, in elements."""
        return int(self._run._trace._offsets[self.order])

    def _row(self) -> Any:
        return self._run._trace._rows[self.order]

    def _label(self) -> str:
        call = f", call {self.call}" if self.call else ""
        return f"{self._run.label}: {self.tap!r} at step {self.step}{call}"
