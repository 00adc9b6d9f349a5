"""Writes ATB tensors and trees, for tests and round trips: its own encoder."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from parity.harness.dtypes import as_storage

from .dtypes import ACL

_HEADER = (
    "Device and PID,Execution Count,Op Name,Op Type,Op Id,Input/Output,Index,Dtype,Format,Shape,"
    "Max,Min,Mean,Norm,Tensor Path"
)
_WORDS = {"float32": "float", "bfloat16": "bf16", "float64": "double"}


def write_atb(path: Path, array: np.ndarray, *, append: bool = False, other: str = "") -> None:
    """A tensor's file; `other` names the tensor that holds the data instead of this one."""
    storage, name = as_storage(np.ascontiguousarray(array).reshape(array.shape))
    raw = b"" if other else storage.astype(storage.dtype.newbyteorder("<")).tobytes()
    lines = ["$Version=1.0", f"$Object.Count={0 if other else 1}", f"$Object.Length={len(raw)}", "format=2"]
    lines += [f"dtype={ACL.code(name)}", "dims=" + ",".join(map(str, array.shape))]
    lines += [f"data={other}" if other else f"$Object.data=0,{len(raw)}", "$End=1", ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab" if append else "wb") as out:
        out.write("\n".join(lines).encode() + raw)


def write_atb_tree(
    root: Path,
    tensors: Mapping[str, np.ndarray],
    *,
    execution: int = 0,
    device: str = "0_4711",
    task: str = "tensor",
) -> Path:
    """msprobe's `atb_dump_data` with one execution; tensors: `0_Layer/1_Linear/after/outtensor0` -> array.

    Returns the execution's folder.
    """
    top = root / "atb_dump_data" / "data" / device / str(execution)
    top.mkdir(parents=True, exist_ok=True)
    rows = [_HEADER.split(",")]
    for name, array in tensors.items():
        path = top / f"{name}.bin"
        if task != "statistics":
            write_atb(path, array)
        rows.append(_row(name, array, path, device, execution, task))
    with (top / "statistic.csv").open("w", newline="") as out:
        csv.writer(out, lineterminator="\n").writerows(rows)
    return top


def _row(name: str, array: np.ndarray, path: Path, device: str, execution: int, task: str) -> list[str]:
    *ops, _, file = name.split("/")
    ids, names = zip(*(op.split("_", 1) for op in ops), strict=True)
    side = "input" if file.startswith("in") else "output"
    index = file.removeprefix("intensor").removeprefix("outtensor")
    dtype = as_storage(array)[1]
    numbers = ["N/A"] * 4
    if task != "tensor":
        wide = array.astype(np.float64)
        numbers = [str(number) for number in (wide.max(), wide.min(), wide.mean(), np.linalg.norm(wide))]
    return [
        *(device, str(execution), "/".join(names), names[-1], "_".join(ids), side, index),
        *(_WORDS.get(dtype, dtype), "nd", "x".join(map(str, array.shape)), *numbers),
        "N/A" if task == "statistics" else str(path.absolute()),
    ]
