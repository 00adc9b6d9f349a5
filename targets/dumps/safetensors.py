"""A .safetensors file: 8 bytes with the header's length, a JSON header, the tensors one behind the other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from parity.harness.dtypes import as_storage

from .core import (
    Contents,
    Dumped,
    ReadOptions,
    array_at,
    bad,
    checked_settings,
    first_bytes,
    nbytes,
    opened,
    read_exactly,
    size_of,
)
from .manifests import Fields
from .raw import check_spans

#: Bytes of the longest header; the format's own limit.
LONGEST_HEADER = 100_000_000
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "BOOL": "bool",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "C64": "complex64",
}


class SafetensorsReader:
    """`safetensors`: one file."""

    kind = "safetensors"
    summary = "one .safetensors file, one tensor per name"
    settings: Mapping[str, str] = {}

    def detects(self, path: Path) -> bool:
        """By name, and a JSON header behind its length."""
        return path.suffix == ".safetensors" and first_bytes(path, 9)[8:] == b"{"

    def read(self, path: Path, options: ReadOptions) -> Contents:
        """Every tensor, in the order of the file's bytes."""
        checked_settings(self, options)
        header, start = _header(path)
        said = header.take("__metadata__", dict, {})
        tensors = [_Tensor(path, name, header) for name in header.content if name != "__metadata__"]
        tensors.sort(key=lambda tensor: tensor.begin)
        spans = [(tensor.begin, tensor.end, repr(tensor.name)) for tensor in tensors]
        check_spans(path, spans, size_of(path) - start)
        facts = {"metadata": said} if said else {}
        return Contents(self.kind, facts, _entries(path, tensors, start), count=len(tensors))


def _header(path: Path) -> tuple[Fields, int]:
    with opened(path) as file:
        length = int.from_bytes(read_exactly(file, 8, path, "the length of the header"), "little")
        if length > LONGEST_HEADER:
            raise bad(path, f"should have a header of {length} bytes, which no such file has; it is damaged")
        raw = read_exactly(file, length, path, "the header")
    try:
        content = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise bad(path, f"has a header that is no JSON ({str(error)[:80]}); it is damaged") from error
    return Fields(path, "the header", content), 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


class _Tensor:
    """One line of the header; UserError where its bytes and its shape do not fit."""

    def __init__(self, path: Path, name: str, header: Fields) -> None:
        fields = Fields(path, repr(name), header.content[name])
        word = fields.text("dtype")
        if word not in DTYPES:
            raise bad(path, f"{name!r} has the type {word[:20]!r}; known: {', '.join(DTYPES)}")
        if not name:
            raise bad(path, "holds a tensor without a name")
        self.name, self.dtype, self.shape = name, DTYPES[word], fields.shape("shape")
        offsets = fields.take("data_offsets", list)
        if len(offsets) != 2 or any(type(at) is not int for at in offsets):
            raise bad(path, f"{name!r} has data_offsets that are no two numbers")
        self.begin, self.end = offsets
        needed = nbytes(self.shape, self.dtype)
        if self.end - self.begin != needed or self.begin < 0:
            raise bad(path, f"{name!r} of shape {list(self.shape)} needs {needed} bytes, not those from "
                      f"{self.begin} to {self.end}")  # fmt: skip


def _entries(path: Path, tensors: list[_Tensor], start: int) -> Iterator[Dumped]:
    for tensor in tensors:
        at = start + tensor.begin
        load = partial(array_at, path, at, tensor.shape, tensor.dtype, repr(tensor.name))
        yield Dumped(tensor.name, tensor.shape, tensor.dtype, load)


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays in their order, the header padded with blanks to a multiple of eight."""
    words = {name: word for word, name in DTYPES.items()}
    header: dict[str, Any] = {}
    parts, at = [], 0
    for name, array in arrays.items():
        bits, dtype = as_storage(array)
        raw = bits.astype(bits.dtype.newbyteorder("<")).tobytes()
        header[name] = {
            "dtype": words[dtype],
            "shape": list(array.shape),
            "data_offsets": [at, at + len(raw)],
        }
        parts.append(raw)
        at += len(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))
