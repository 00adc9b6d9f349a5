"""From a tap that was hit to a record in a sink: step, call, rows to keep, positions, cast."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import UserError
from .alias import AliasQueue, Entry

if TYPE_CHECKING:
    import numpy as np


class Sink(Protocol):
    """Where records go: a run of a trace file, or anything else that copies what it is given at once."""

    def record(
        self,
        tap: str,
        array: Any,
        *,
        step: int = 0,
        call: int = 0,
        axes: str = "",
        positions: np.ndarray[Any, Any] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None: ...


class Nowhere:
    """A sink that keeps nothing."""

    def record(self, tap: str, array: Any, **about: Any) -> None:
        """Let it go."""


@dataclass(frozen=True, slots=True)
class StepMark:
    """What step() says of the records inside it; positions are int64 `[T]` or `[B, T]`."""

    index: int = 0
    rows: int | None = None
    whole_caches: bool = False
    positions: np.ndarray[Any, Any] | None = None


class Recorder:
    """One recording: counts calls and hands finished records to its sink.

    Gradients arrive on autograd's own threads, hence the lock.
    """

    def __init__(self, sink: Sink, dtype: str | None = None) -> None:
        self.open = True
        self._sink = sink
        self._dtype = dtype
        self._calls: defaultdict[int, dict[str, int]] = defaultdict(dict)
        self._queue = AliasQueue(self._write)
        self._lock = threading.RLock()

    def take(
        self,
        tap: str,
        x: Any,
        mark: StepMark | None,
        axes: str = "",
        positions: Any = None,
        *,
        hook: bool = False,
        wait: bool = False,
    ) -> None:
        """Record x under the tap, now: it has been copied when this returns.

        hook: whether a module hook saw it. wait: it may turn up again under a name of the other kind, so
        hold the copy back for a while.
        """
        if not tap:
            raise UserError("name='': a tap needs a name")
        x = _plain(x)
        kept, given = _narrow(tap, x, axes, positions, mark or _NO_STEP)
        kept, was = _cast(kept, self._dtype)
        meta = {"original_dtype": was} if was else {}
        index = (mark or _NO_STEP).index
        with self._lock:
            entry = Entry(tap, kept, index, self._next_call(tap, index), axes, given, meta)
            if wait:
                self._queue.add(entry, x, hook=hook)
            else:
                self._queue.flush()
                self._write(entry)

    def flush(self) -> None:
        """Hand over what was held back."""
        with self._lock:
            self._queue.flush()

    def close(self) -> None:
        """No more records."""
        self.open = False
        self.flush()

    def _next_call(self, tap: str, step: int) -> int:
        calls = self._calls[step]
        number = calls.get(tap, 0)
        calls[tap] = number + 1
        return number

    def _write(self, entry: Entry) -> None:
        self._sink.record(
            entry.tap,
            entry.array,
            step=entry.step,
            call=entry.call,
            axes=entry.axes,
            positions=entry.positions,
            meta=entry.meta or None,
        )


_NO_STEP = StepMark()


def as_positions(positions: Any) -> np.ndarray[Any, Any]:
    """Absolute token positions as int64 `[T]` or `[B, T]`; UserError for anything else."""
    import numpy as np

    from ..dtypes import from_any

    array, _ = from_any(positions)
    if array.dtype.kind not in "iu" or array.ndim not in (1, 2):
        raise UserError(
            f"positions={array.dtype}{list(array.shape)}: must be whole numbers of shape [T] or [B, T]"
        )
    return np.asarray(array, dtype=np.int64)


def _plain(x: Any) -> Any:
    """Something with a shape that no gradient hangs on."""
    if hasattr(x, "detach"):
        return x.detach()
    if hasattr(x, "shape"):
        return x
    from ..dtypes import from_any

    return from_any(x)[0]


def _narrow(
    tap: str, x: Any, axes: str, positions: Any, mark: StepMark
) -> tuple[Any, np.ndarray[Any, Any] | None]:
    """Keep the last rows along the token axis and find the positions that go with them."""
    given = None if positions is None else as_positions(positions)
    letters = axes.split()
    if not letters:
        return x, given
    shape = tuple(x.shape)
    if len(letters) != len(shape):
        raise UserError(f"axes={axes!r}: {len(letters)} letters, but tap {tap!r} has shape {list(shape)}")
    if "t" not in letters and "p" not in letters:
        return x, given
    axis = letters.index("t" if "t" in letters else "p")
    all_rows = mark.rows is None or (mark.whole_caches and letters[axis] == "p")
    kept = shape[axis] if all_rows else min(mark.rows or 0, shape[axis])
    if kept < shape[axis]:
        x = x[(slice(None),) * axis + (slice(shape[axis] - kept, None),)]
        given = None if given is None else given[..., given.shape[-1] - kept :]
    return x, given if given is not None else _default_positions(tap, kept, mark)


def _default_positions(tap: str, kept: int, mark: StepMark) -> np.ndarray[Any, Any] | None:
    """The step's positions of the last `kept` rows; a tap that has more rows than the step is an error."""
    if mark.positions is None:
        return None
    known = mark.positions.shape[-1]
    if kept > known:
        raise UserError(
            f"positions: step {mark.index} gives {known}, but tap {tap!r} has {kept} rows; "
            "give trace_tensor(positions=...) or step(rows=...)"
        )
    return mark.positions[..., known - kept :]


def _cast(x: Any, dtype: str | None) -> tuple[Any, str]:
    """x in the wanted floating type, and the name of the type that it had ("" if it was not cast).

    Whole numbers and booleans (token ids, masks) stay what they are.
    """
    if dtype is None:
        return x, ""
    from ..dtypes import from_any, logical_dtype

    array, name = from_any(x)
    if name == dtype or not name.startswith(("float", "bfloat")):
        return x, ""
    return array.astype(logical_dtype(dtype)), name
