"""One run being recorded: what targets and tracers hold."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..dtypes import as_logical, from_any
from ..errors import UserError
from . import format as f

if TYPE_CHECKING:
    from .writer import TraceWriter


class RunWriter:
    """One run being recorded. As a context manager: a clean exit completes it, an exception does not."""

    def __init__(self, writer: TraceWriter, number: int, name: str, generation: int) -> None:
        self.name = name
        self.generation = generation
        self.notice: str | None = None
        if generation > 1:
            self.notice = (
                f"run {name!r} exists already in {writer.path}: this one is kept beside it as "
                f"{name}#{generation} and is the one that is compared"
            )
        self._writer = writer
        self._number = number
        self._over = False

    def record(
        self,
        tap: str,
        array: Any,
        *,
        step: int = 0,
        call: int = 0,
        axes: str = "",
        positions: Any = None,
        dtype: str | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        """Copy an array of any shape (at most 8 dimensions) into the trace.

        `axes`: one letter per dimension ("b h t d"), or nothing. `positions`: int64 absolute positions
        [T] or [B, T] of the token axis, -1 hides a slot. `dtype`: the logical name when `array` holds
        storage bits (uint16 that is bfloat16); values are never converted. `meta`: plain JSON data.
        """
        if self._over:
            raise UserError(f"run={self.name!r}: is finished; begin another one to record {tap!r}")
        data, name = from_any(array)
        if dtype is not None and dtype != name:
            data, name = as_logical(data, dtype), dtype
        if data.ndim > f.MAX_DIMS:
            raise UserError(
                f"array={data.ndim} dimensions: {tap!r} has more than {f.MAX_DIMS}; reshape it first"
            )
        if not data.dtype.isnative:
            data = data.astype(data.dtype.newbyteorder("="))
        self._writer._record(self._number, tap, data, name, (step, call), axes, positions, meta)

    def update_provenance(self, **fields: Any) -> None:
        """Add to, or replace in, what is known about the run."""
        with self._writer._lock:
            self._writer._check()
            self._writer._say({"provenance_of": self._number, "fields": fields})

    def finish(self, *, complete: bool = True) -> None:
        """End the run and flush; a second call does nothing."""
        with self._writer._lock:
            if self._over:
                return
            self._end(complete=complete)
        self._writer.flush(durable=True)

    def _end(self, *, complete: bool) -> None:
        self._over = True
        self._writer._open_runs.remove(self)
        self._writer._say({"end_of": self._number, "complete": complete})

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            self.finish(complete=error is None)
        except UserError:
            if error is None:
                raise
