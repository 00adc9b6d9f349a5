"""Writes trees like msprobe's, for tests and round trips."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from parity.harness.arrays import to_tensor
from parity.harness.dtypes import as_storage

_WORDS = {"input_args": "input", "input_kwargs": "kwargs"}
#: Statistics are null for whole numbers, as msprobe writes them.
_NOTHING = {"Max": None, "Min": None, "Mean": None, "Norm": None}


def write_msprobe(
    folder: Path, calls: Mapping[str, Mapping[str, Any]], *, task: str = "tensor", crc: bool = False
) -> None:
    """`dump.json` and its tensors; calls: key -> section (input_args, output ...) -> nested arrays."""
    data = folder / "dump_tensor_data"
    data.mkdir(parents=True, exist_ok=True)
    told = {
        key: {
            section: _told(given, f"{key}.{_WORDS.get(section, section)}", data, task, crc=crc)
            for section, given in sections.items()
        }
        for key, sections in calls.items()
    }
    head = {"task": task, "level": "mix", "framework": "pytorch"}
    head["dump_data_dir"] = f"somewhere/{data.name}" if task == "tensor" else None  # type: ignore[assignment]
    (folder / "dump.json").write_text(json.dumps({**head, "data": told}, indent=1))


def _told(given: Any, name: str, data: Path, task: str, *, crc: bool) -> Any:
    if isinstance(given, np.ndarray):
        return _tensor(given, name, data, task, crc=crc)
    if isinstance(given, dict):
        return {key: _told(one, f"{name}.{key}", data, task, crc=crc) for key, one in given.items()}
    if isinstance(given, list) and len(given) == 1 and ".parameters_grad" in name:
        return [_told(given[0], name, data, task, crc=crc)]  # a gradient's name has no index
    if isinstance(given, (list, tuple)):
        return [_told(one, f"{name}.{at}", data, task, crc=crc) for at, one in enumerate(given)]
    return None if given is None else {"type": type(given).__name__, "value": given}


def _tensor(array: np.ndarray, name: str, data: Path, task: str, *, crc: bool) -> dict[str, Any]:
    storage, dtype = as_storage(np.ascontiguousarray(array).reshape(array.shape))
    told: dict[str, Any] = {
        "type": "torch.Tensor",
        "dtype": f"torch.{dtype}",
        "shape": list(array.shape),
        **_statistics(array),
        "requires_grad": False,
    }
    if task == "tensor":
        import torch

        torch.save(to_tensor(array).reshape(array.shape), data / f"{name}.pt")
        told["data_name"] = f"{name}.pt"
    if crc:
        told["md5"] = f"{zlib.crc32(storage.tobytes()):08x}"
    return told


def _statistics(array: np.ndarray) -> dict[str, Any]:
    if not array.size or array.dtype.kind == "c":
        return dict(_NOTHING)
    if array.dtype.kind in "iub":
        return {**_NOTHING, "Max": array.max().item(), "Min": array.min().item()}
    with np.errstate(all="ignore"):
        wide = array.astype(np.float64)
        mean, norm = wide.mean(), np.sqrt((wide**2).sum())
    return {"Max": float(wide.max()), "Min": float(wide.min()), "Mean": float(mean), "Norm": float(norm)}
