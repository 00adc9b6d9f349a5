"""Index rows as arrays: trusted only after every one was checked."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from ..dtypes import storage_dtype
from ..errors import UserError
from . import format as f
from .schema import Stream

KIND = np.dtype([(name, f.ROW[name]) for name in ("tap", "axes", "dtype", "ndim", "shape")])
"""What many rows have in common."""


def kinds(rows: np.ndarray[Any, Any]) -> list[bytes]:
    """The kind of each row as bytes, for `np.frombuffer(..., KIND)`."""
    packed = np.empty(len(rows), KIND)
    for name in KIND.names or ():
        packed[name] = rows[name]
    found: list[bytes] = packed.view(f"V{KIND.itemsize}").tolist()
    return found


def sizes(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Elements of each row's record."""
    return _product(rows, np.int64)


def _product(rows: np.ndarray[Any, Any], number: type) -> np.ndarray[Any, Any]:
    """Product of each row's shape, in a type that may round but must not wrap when shapes are not trusted."""
    product: np.ndarray[Any, Any] = np.ones(len(rows), number)
    ndim = rows["ndim"]
    for dim in range(min(int(ndim.max(initial=0)), f.MAX_DIMS)):
        product *= np.where(ndim > dim, rows["shape"][:, dim], 1)
    return product


def trusted(
    rows: np.ndarray[Any, Any], streams: dict[str, Stream], dtypes: list[str], path: str
) -> np.ndarray[Any, Any]:
    """Rows that were written, every one checked before anything is read or allocated after it."""
    rows = rows[: _written(rows)]
    raw = rows.tobytes()
    found = [zlib.crc32(raw[at : at + f.ROW_CRC_AT]) for at in range(0, len(raw), f.ROW.itemsize)]
    damaged = np.flatnonzero(rows["row_crc"] != np.array(found, np.uint32))
    if damaged.size:
        raise UserError(f"path={path}: index row {damaged[0]} fails its checksum; the file is damaged")
    absurd = np.flatnonzero(_absurd(rows, streams, dtypes))
    if absurd.size:
        row = rows[absurd[0]]
        raise UserError(
            f"path={path}: index row {absurd[0]} points outside the file (dtype {row['dtype']}, "
            f"offset {row['offset']}, shape {row['shape'][: row['ndim']].tolist()}); the file is damaged"
        )
    return rows


def _written(rows: np.ndarray[Any, Any]) -> int:
    """How many rows there are before the room at the end that was never written."""
    some = np.flatnonzero(rows.view("<u8").reshape(-1, f.ROW.itemsize // 8).any(axis=1))
    return int(some[-1]) + 1 if some.size else 0


def _absurd(
    rows: np.ndarray[Any, Any], streams: dict[str, Stream], dtypes: list[str]
) -> np.ndarray[Any, Any]:
    """Which rows cannot be true."""
    bad = (rows["dtype"] >= len(dtypes)) | (rows["ndim"] > f.MAX_DIMS) | (rows["offset"] < 0)
    bad |= (rows["shape"] < 0).any(axis=1)
    extents = np.array([streams[f"data/{storage_dtype(name).name}"].extent for name in dtypes], np.float64)
    bad |= rows["offset"] + _product(rows, np.float64) > extents[np.minimum(rows["dtype"], len(dtypes) - 1)]
    return np.asarray(bad)
