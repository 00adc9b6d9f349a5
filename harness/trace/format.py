"""The layout of a trace file: its datasets, one index row, one line of text.

    /            attributes: format, version, doc, dtypes (JSON list: a dtype's code is its place)
    data/<type>  flat stream per storage type; records lie one behind the other
    index        one row of 128 bytes per record, append order = execution order
    text         UTF-8 lines "crc32-hex JSON": runs, names, axes, positions that are no range, meta

Everything is made before the first record, so that recording only ever grows these datasets.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..dtypes import NAMES, STORAGE_NAMES, storage_dtype
from ..errors import UserError

FORMAT = "parity-trace"
VERSION = 1
CHUNK = 1 << 20
"""Bytes of one chunk of a data stream: the granule of direct writes and of cached reads."""
BUFFER = 8 * CHUNK
"""Bytes of one staging buffer: whole chunks, written in one go."""
MAX_DIMS = 8
DATASETS = ("index", "text", *(f"data/{name}" for name in STORAGE_NAMES))
DOC = (
    "index rows point into the flat streams data/<storage type> (offset and shape in elements); text holds "
    "one JSON object per line behind its CRC-32; /runs/<run>/<tap> are virtual views with steps along axis 0"
)

ROW = np.dtype(
    [
        ("run", "<u4"),
        ("tap", "<u4"),
        ("axes", "<u4"),
        ("meta", "<u4"),
        ("positions", "<u4"),
        ("call", "<i4"),
        ("position_kind", "u1"),
        ("dtype", "u1"),
        ("ndim", "u1"),
        ("reserved", "u1"),
        ("position_count", "<u4"),
        ("step", "<i8"),
        ("offset", "<i8"),
        ("position_start", "<i8"),
        ("shape", "<i8", (MAX_DIMS,)),
        ("data_crc", "<u4"),
        ("row_crc", "<u4"),
    ]
)
PACK = struct.Struct("<IIIIIiBBBxIqqq8q").pack_into
"""Everything of a row but its two checksums, in the order of ROW."""
DATA_CRC_AT = 120
ROW_CRC_AT = 124
NO_POSITIONS, RANGE, RANGE_OF_ONE_SEQUENCE, LISTED = range(4)
NOT_TOLD = (NO_POSITIONS, 0, 0, 0)
"""position_kind: none; start..start+count as [T]; the same as [1, T]; JSON text of id `positions`."""

assert ROW.itemsize == 128


def storage_of(code: int, dtypes: list[str]) -> np.dtype[Any]:
    """Storage type of a dtype code."""
    return storage_dtype(dtypes[code])


def root_attributes() -> dict[str, Any]:
    """What marks a file as a trace of this version; texts of fixed length, which lie in the header itself."""
    texts = {"format": FORMAT, "dtypes": json.dumps(NAMES), "doc": DOC}
    return {name: np.bytes_(text.encode()) for name, text in texts.items()} | {"version": VERSION}


def line(content: Mapping[str, Any]) -> bytes:
    """One line of text."""
    body = dump(content).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def dump(content: Mapping[str, Any]) -> str:
    """Compact JSON; UserError for what is not plain data."""
    return json.dumps(content, separators=(",", ":"), default=_plain)


def _plain(value: Any) -> Any:
    """Numbers of numpy and paths inside provenance or meta; anything else is the caller's mistake."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if hasattr(value, "__fspath__"):
        return str(value)
    raise UserError(
        f"meta={type(value).__name__}: cannot be written as JSON; give plain numbers, texts, lists"
    )


def lines(text: bytes, path: str) -> Iterator[dict[str, Any]]:
    """Parse the text stream; zero bytes at the end are room that was never written. UserError if damaged."""
    for number, raw in enumerate(text.rstrip(b"\0").split(b"\n")[:-1], 1):
        body = raw[9:]
        try:
            good = int(raw[:8], 16) == zlib.crc32(body)
            content = json.loads(body) if good else None
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise UserError(f"path={path}: line {number} of its text fails its checksum; the file is damaged")
        yield content
