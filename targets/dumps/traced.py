"""`traced_tensors.pt` of the original tracer: one torch file, name -> run -> tensor.

Names begin with a dot, which is left out; only the last value of a name survived, so there is one step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from parity.harness.arrays import to_array, to_tensor
from parity.harness.dtypes import from_any, storage_dtype

from .core import Contents, Dumped, ReadOptions, bad, checked_settings
from .torch_files import checked_tensor, load_torch, looks_like_torch


class TracedReader:
    """`traced`: the file, and which of its runs."""

    kind = "traced"
    summary = "traced_tensors.pt of the original tracer, one of its runs"
    settings: Mapping[str, str] = {"run": "which run of the file, where it holds several"}

    def detects(self, path: Path) -> bool:
        """By the name that the tool gives."""
        return looks_like_torch(path) and path.name.startswith("traced_tensors")

    def read(self, path: Path, options: ReadOptions) -> Contents:
        """The tensors of one run, in the order in which their names first came."""
        checked_settings(self, options)
        table = _table(path, load_torch(path))
        runs = list(dict.fromkeys(run for values in table.values() for run in values))
        run = options.text("run", runs[0] if len(runs) == 1 else "")
        if run not in runs:
            listed = ", ".join(map(repr, runs[:12])) or "none"
            raise bad(path, f"holds the runs {listed}; say which with run=NAME")
        names = [name for name in table if run in table[name]]
        others = sorted(table.keys() - set(names))
        notes = (f"{len(others)} names have no record of run {run!r}, first {others[0]!r}",) if others else ()
        entries = _entries(path, table, names, run)
        return Contents(self.kind, {"run": run}, entries, notes=notes, count=len(names))


def _table(path: Path, found: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(runs, dict) and all(isinstance(run, str) for run in runs)
        for name, runs in found.items()
    ):
        raise bad(path, "does not hold name -> run -> tensor, as the original tracer's file does")
    return found


def _entries(path: Path, table: Mapping[str, Any], names: list[str], run: str) -> Iterator[Dumped]:
    for name in names:
        tensor = checked_tensor(path, repr(name), table[name][run])
        dtype = str(tensor.dtype).removeprefix("torch.")
        storage_dtype(dtype)
        tap = name.removeprefix(".") or None
        yield Dumped(name, tuple(tensor.shape), dtype, partial(_load, tensor), tap=tap)


def _load(tensor: Any) -> np.ndarray:
    """A copy: the tensor lies in the file."""
    return np.array(to_array(tensor), copy=True)


def write(path: Path, table: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Write name -> run -> array as the original tool does."""
    import torch

    tensors = {
        name: {run: to_tensor(from_any(array)[0]) for run, array in runs.items()}
        for name, runs in table.items()
    }
    torch.save(tensors, path)
