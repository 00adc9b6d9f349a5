"""Index rows as arrays: trusted only after every one was checked."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np

from ..dtypes import storage_dtype
from ..errors import UserError
from . import format as f
from .schema import Stream


def shape_keys(rows: np.ndarray[Any, Any]) -> list[bytes]:
    """Bytes that say the shape, one per row: ndim and the eight sizes."""
    packed = np.empty(len(rows), np.dtype([("ndim", "u1"), ("shape", "<i8", (f.MAX_DIMS,))]))
    packed["ndim"], packed["shape"] = rows["ndim"], rows["shape"]
    raw, size = packed.tobytes(), packed.dtype.itemsize
    return [raw[i : i + size] for i in range(0, len(raw), size)]


def shapes(rows: np.ndarray[Any, Any]) -> dict[bytes, tuple[tuple[int, ...], int]]:
    """Shape and size of every shape that occurs."""
    found = {}
    for key in set(shape_keys(rows)):
        shape = tuple(np.frombuffer(key[1:], "<i8")[: key[0]].tolist())
        found[key] = (shape, math.prod(shape))
    return found


def sizes(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Elements of each row's record."""
    used = np.arange(f.MAX_DIMS) < rows["ndim"][:, None]
    sizes: np.ndarray[Any, np.dtype[np.int64]] = np.where(used, rows["shape"], 1).prod(axis=1)
    return sizes


def trusted(
    rows: np.ndarray[Any, Any], streams: dict[str, Stream], dtypes: list[str], path: str
) -> np.ndarray[Any, Any]:
    """Rows that were written, every one checked before anything is read or allocated after it."""
    rows = rows[: _written(rows)]
    raw, size = rows.tobytes(), f.ROW.itemsize
    for number, crc in enumerate(rows["row_crc"].tolist()):
        start = number * size
        if zlib.crc32(raw[start : start + f.ROW_CRC_AT]) != crc:
            raise UserError(f"path={path}: index row {number} fails its checksum; the file is damaged")
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
    used = np.arange(f.MAX_DIMS) < rows["ndim"][:, None]
    sizes = np.where(used, rows["shape"].astype(np.float64), 1.0).prod(axis=1)
    bad |= rows["offset"] + sizes > extents[np.minimum(rows["dtype"], len(dtypes) - 1)]
    return np.asarray(bad)
