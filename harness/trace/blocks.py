"""Reading without HDF5: chunk addresses are known, so a read is one `pread`, small neighbours share one."""

from __future__ import annotations

import os
import weakref
from itertools import pairwise
from typing import Any

import numpy as np

from .format import CHUNK
from .schema import Stream

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
        """Elements start..stop as an own array, without going through the cache."""
        return stream.read(self._fd, start, stop)

    def small(self, stream: Stream, start: int, stop: int) -> bytearray | None:
        """Bytes of a small record, at the price of one system call; None where it takes more."""
        return stream.small(self._fd, start, stop)

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
