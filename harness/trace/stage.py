"""Where records wait for the disk: reused buffers, one per stream that is being recorded.

The recording thread only copies into a buffer and notes where; checksums and writes happen elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from .format import BUFFER

_SPARE = 3

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Piece(NamedTuple):
    """Bytes start..stop of a buffer belong to the record in `slot` of the current block of index rows."""

    slot: int
    start: int
    stop: int
    first: bool
    last: bool


@dataclass(slots=True)
class Job:
    """Bytes low..high of a buffer are ready for the stream; `start` is the buffer's first byte in the stream.

    `whole`: the buffer is full, or padded, and comes back to the pool.
    """

    stream: str
    buffer: Bytes
    start: int
    low: int
    high: int
    whole: bool
    pieces: list[Piece] = field(default_factory=list)


class Pool:
    """Staging buffers, made when first needed: one per active stream and three on their way to the disk."""

    def __init__(self) -> None:
        self._free: SimpleQueue[Bytes] = SimpleQueue()
        self._made = 0

    def take(self, active: int) -> Bytes:
        """A buffer; waits for the disk when all are on their way."""
        try:
            return self._free.get_nowait()
        except Empty:
            if self._made < active + _SPARE:
                self._made += 1
                return np.empty(BUFFER, np.uint8)
            return self._free.get()

    def give(self, buffer: Bytes) -> None:
        """A buffer that is on the disk."""
        self._free.put(buffer)


class Stage:
    """The recording end of one stream: `position` is the next record's offset in bytes."""

    def __init__(
        self, name: str, position: int, tail: Bytes, take: Callable[[], Bytes], send: Callable[[Job], None]
    ) -> None:
        """`tail`: what the stream already holds of the chunk that `position` lies in."""
        self.name = name
        self._dtype = np.dtype(name)
        self._itemsize = self._dtype.itemsize
        self._take, self._send = take, send
        self._start = position - tail.size
        self._sent = self._fill = tail.size
        self._renew()
        self._buffer[: tail.size] = tail
        self._pieces: list[Piece] = []

    @property
    def position(self) -> int:
        return self._start + self._fill

    def put(self, array: np.ndarray[Any, Any], slot: int) -> None:
        """Copy an array of the stream's dtype, in row-major order, behind what is there."""
        start, stop = self._fill, self._fill + array.nbytes
        if start == stop:
            return  # the row's checksum is 0 already, the CRC-32 of nothing
        if stop > BUFFER:
            self._put_long(np.ascontiguousarray(array).reshape(-1).view(np.uint8), slot)
            return
        size = self._itemsize
        np.copyto(self._typed[start // size : stop // size].reshape(array.shape), array)
        self._pieces.append(Piece(slot, start, stop, True, True))
        self._fill = stop
        if stop == BUFFER:
            self._turn()

    def _put_long(self, data: Bytes, slot: int) -> None:
        """A record that crosses the end of the buffer."""
        done = 0
        while done < data.size:
            taken = min(data.size - done, BUFFER - self._fill)
            self._buffer[self._fill : self._fill + taken] = data[done : done + taken]
            last = done + taken == data.size
            self._pieces.append(Piece(slot, self._fill, self._fill + taken, done == 0, last))
            self._fill += taken
            done += taken
            if self._fill == BUFFER:
                self._turn()

    def _turn(self) -> None:
        """Hand the full buffer over and take another."""
        self._hand_over(whole=True)
        self._start += BUFFER
        self._fill = self._sent = 0
        self._renew()

    def _renew(self) -> None:
        self._buffer = self._take()
        self._typed = self._buffer.view(self._dtype)

    def flush(self, *, pad_to: int) -> None:
        """Hand over what was copied since; `pad_to` > 1 first fills up to a multiple of it."""
        if self._fill == self._sent:
            return
        padded = -(-self._fill // pad_to) * pad_to
        self._buffer[self._fill : padded] = 0
        self._fill = padded
        if self._fill == BUFFER:
            self._turn()
        else:
            self._hand_over(whole=False)

    def _hand_over(self, *, whole: bool) -> None:
        self._send(Job(self.name, self._buffer, self._start, self._sent, self._fill, whole, self._pieces))
        self._sent = self._fill
        self._pieces = []
