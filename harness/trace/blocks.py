"""Reading without HDF5: chunk addresses are known, so a read is one `pread`, small neighbours share one."""

from __future__ import annotations

import os
import weakref
from itertools import pairwise
from typing import Any

import numpy as np

from .format import CHUNK
from .schema import Stream

Indices = np.ndarray[Any, np.dtype[np.int64]]

MEMORY = 64 << 20
"""Bytes of chunks that one open trace keeps."""


class Blocks:
    """A bounded cache of whole chunks of the data streams; what it returns must not be written to."""

    def __init__(self, fd: int, streams: dict[str, Stream]) -> None:
        self._fd = fd
        self.streams = streams
        self._kept: dict[tuple[str, int], np.ndarray[Any, Any]] = {}
        self.close = weakref.finalize(self, os.close, fd)

    def view(self, stream: Stream, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Elements start..stop of a stream, as a view into a cached chunk where they lie in one."""
        number = start // stream.chunk
        base = number * stream.chunk
        if stop <= base + stream.chunk:
            block = self._kept.get((stream.name, number))
            if block is None:
                block = self._load(stream, number)
            return block[start - base : stop - base]
        return self._gather(stream, start, stop)

    def fresh(self, stream: Stream, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Elements start..stop as an own array; of plain chunks without going through the cache."""
        if stream.deflated and stop - start <= stream.chunk:
            return self.view(stream, start, stop).copy()
        return stream.read(self._fd, start, stop)

    def together(self, stream: Stream, starts: Indices, stops: Indices) -> np.ndarray[Any, Any]:
        """Elements starts[i]..stops[i] one behind the other, those that touch by one read."""
        out = np.empty(int((stops - starts).sum()), stream.dtype)
        apart = np.flatnonzero(starts[1:] != stops[:-1]) + 1
        firsts, lasts = np.append(0, apart), np.append(apart, starts.size) - 1
        at = 0
        for start, stop in zip(starts[firsts].tolist(), stops[lasts].tolist(), strict=True):
            end = at + stop - start
            if stream.deflated:
                out[at:end] = self.fresh(stream, start, stop)
            else:
                stream.fill(self._fd, start, stop, out[at:end])
            at = end
        return out

    def _load(self, stream: Stream, number: int) -> np.ndarray[Any, Any]:
        while len(self._kept) >= MEMORY // CHUNK:
            del self._kept[next(iter(self._kept))]
        block = stream.load(self._fd, number)
        block.flags.writeable = False
        self._kept[stream.name, number] = block
        return block

    def _gather(self, stream: Stream, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Elements that lie in several chunks."""
        if stop - start > 2 * stream.chunk:
            return self.fresh(stream, start, stop)
        edges = [start, *range((start // stream.chunk + 1) * stream.chunk, stop, stream.chunk), stop]
        return np.concatenate([self.view(stream, a, b) for a, b in pairwise(edges)])
