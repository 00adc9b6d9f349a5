"""One value under two names is one record: a hook's `module:<path>` and a tap of trace_tensor.

The two names come one after the other, and a sink cannot change a record that it has. So while
tap_modules() is open, copies wait in a short queue before they are written, in order.

How to read it: `record.meta["alias"]` maps each other name of the record to its call number, such as
`{"module:blocks.0.q_proj": 0}`. The record stands under trace_tensor's name.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..dtypes import from_any

MAX_WAITING = 64
MAX_BYTES = 64 << 20


@dataclass(slots=True, eq=False)
class Entry:
    """One record on its way to the sink."""

    tap: str
    array: Any
    step: int
    call: int
    axes: str
    positions: np.ndarray[Any, Any] | None
    meta: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """A copied record; `source` keeps the tensor's memory from being reused for another one."""

    entry: Entry
    identity: tuple[Any, ...] | None
    source: Any
    hook: bool


class AliasQueue:
    """Holds back up to 64 records or 64 MB, so that the second name of a value finds the first."""

    def __init__(self, write: Callable[[Entry], None]) -> None:
        self._write = write
        self._waiting: deque[_Waiting] = deque()
        self._bytes = 0

    def add(self, entry: Entry, source: Any, *, hook: bool) -> None:
        """Copy the record; a waiting tap of the same value takes it over, and a tap takes over hooks."""
        entry.array = from_any(entry.array)[0]
        whole = entry.array.shape == tuple(source.shape)
        identity = _identity(source) if whole else None
        same = [w for w in self._waiting if w.hook != hook and _same(w, entry, identity)]
        if hook and same:
            _alias(same[0].entry, entry)
            return
        entry.array = np.array(entry.array)
        for other in same:
            _alias(entry, other.entry)
            self._waiting.remove(other)
            self._bytes -= other.entry.array.nbytes
        self._waiting.append(_Waiting(entry, identity, source, hook))
        self._bytes += entry.array.nbytes
        while len(self._waiting) > MAX_WAITING or self._bytes > MAX_BYTES:
            self._pop()

    def flush(self) -> None:
        """Write all that waits, in order."""
        while self._waiting:
            self._pop()

    def _pop(self) -> None:
        oldest = self._waiting.popleft()
        self._bytes -= oldest.entry.array.nbytes
        self._write(oldest.entry)


def _same(waiting: _Waiting, entry: Entry, identity: tuple[Any, ...] | None) -> bool:
    """The same memory in the same step, not edited since: the bits still are what was copied."""
    if identity is None or waiting.identity != identity or waiting.entry.step != entry.step:
        return False
    return bool(waiting.entry.array.tobytes() == entry.array.tobytes())


def _alias(kept: Entry, other: Entry) -> None:
    kept.meta.setdefault("alias", {})[other.tap] = other.call


def _identity(x: Any) -> tuple[Any, ...] | None:
    """Where a torch tensor's values lie: storage and layout. None for anything else."""
    if not hasattr(x, "untyped_storage"):
        return None
    return (x.untyped_storage()._cdata, x.storage_offset(), tuple(x.shape), x.stride(), x.dtype)
