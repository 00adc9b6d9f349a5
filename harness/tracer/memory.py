"""Runs that are kept in memory: `running(save=False)`. They read like the runs of a trace file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from ..dtypes import from_any


@dataclass(slots=True)
class MemoryRecord:
    """One record; `read()` gives the logical array."""

    tap: str
    step: int
    call: int
    order: int
    dtype: str
    array: np.ndarray[Any, Any]
    axes: str
    positions: np.ndarray[Any, Any] | None
    meta: dict[str, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions."""
        return tuple(self.array.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return int(self.array.size)

    def read(self) -> np.ndarray[Any, Any]:
        """The values."""
        return self.array

    def read_flat(self, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Elements start..stop in row-major order."""
        return self.array.reshape(-1)[start:stop]


@dataclass
class MemoryRun:
    """A sink and a run in one; `complete` is set when the recording ended without an exception."""

    name: str
    generation: int = 1
    target: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    complete: bool = False
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    _records: list[MemoryRecord] = field(default_factory=list)

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
    ) -> None:
        """Copy the array and keep it."""
        values, dtype = from_any(array)
        where = None if positions is None else np.array(positions)
        order = len(self._records)
        self._records.append(
            MemoryRecord(tap, step, call, order, dtype, np.array(values), axes, where, dict(meta or {}))
        )

    @property
    def taps(self) -> list[str]:
        """Tap names in execution order."""
        return list(dict.fromkeys(record.tap for record in self._records))

    def records(self, tap: str | None = None) -> Sequence[MemoryRecord]:
        """Records in execution order."""
        return [record for record in self._records if tap is None or record.tap == tap]
