"""Writes AscendCL dumps, for tests and round trips: its own encoder, which knows nothing of the reader's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parity.harness.dtypes import as_storage

from .dtypes import ADUMP

_LAYOUTS = {"NCHW": 0, "NHWC": 1, "ND": 2, "NC1HWC0": 3, "FRACTAL_Z": 4, "FRACTAL_NZ": 29}


@dataclass(frozen=True)
class Written:
    """One tensor to write: the array as it lies on the device, and what is said about it."""

    array: np.ndarray
    layout: str = "ND"
    original: Sequence[int] | None = None
    origin: tuple[str, int] | None = None
    padding: int = 0
    address: int = 0

    @property
    def raw(self) -> bytes:
        """The bytes that a device leaves: 4-bit numbers two in a byte, the buffer rounded up."""
        storage, name = as_storage(np.ascontiguousarray(self.array))
        if name not in ("int4", "uint4"):
            return storage.astype(storage.dtype.newbyteorder("<")).tobytes() + b"\xa5" * self.padding
        halves = storage.reshape(-1).astype(np.uint8) & 0xF
        halves = np.append(halves, np.zeros(halves.size % 2, np.uint8))
        return (halves[0::2] | halves[1::2] << 4).tobytes() + b"\xa5" * self.padding

    @property
    def code(self) -> int:
        """The data type's number in the protobuf's enum."""
        return ADUMP.code(as_storage(self.array)[1])


def write_adump(
    path: Path,
    name: str,
    *,
    inputs: Sequence[Written] = (),
    outputs: Sequence[Written] = (),
    buffers: Sequence[bytes] = (),
    spaces: Sequence[bytes] = (),
    attributes: Mapping[str, str] | None = None,
    time: int = 0,
    tail: bytes = b"",
) -> None:
    """One operator's dump: the header's length, the header, then inputs, outputs, buffers, spaces."""
    header = _text(1, "2.0") + _number(2, time)
    header += b"".join(_part(3, _output(one)) for one in outputs)
    header += b"".join(_part(4, _input(one)) for one in inputs)
    header += b"".join(_part(5, _number(3, len(raw))) for raw in buffers)
    header += _text(6, name)
    header += b"".join(_part(7, _text(1, key) + _text(2, word)) for key, word in (attributes or {}).items())
    header += b"".join(_part(8, _number(3, len(raw))) for raw in spaces)
    data = b"".join([*(one.raw for one in (*inputs, *outputs)), *buffers, *spaces])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data + tail)


def _output(one: Written) -> bytes:
    origin = b""
    if one.origin is not None:
        origin = _part(4, _text(1, one.origin[0]) + _number(2, one.origin[1]))
    return (
        _number(1, one.code)
        + _number(2, _LAYOUTS[one.layout])
        + _part(3, _shape(one.array.shape))
        + origin
        + _number(6, len(one.raw))
        + (b"" if one.original is None else _part(7, _shape(one.original)))
        + _number(9, one.address)
    )


def _input(one: Written) -> bytes:
    return (
        _number(1, one.code)
        + _number(2, _LAYOUTS[one.layout])
        + _part(3, _shape(one.array.shape))
        + _number(5, len(one.raw))
        + (b"" if one.original is None else _part(6, _shape(one.original)))
        + _number(8, one.address)
    )


def _shape(sizes: Sequence[int]) -> bytes:
    return _part(1, b"".join(_varint(size) for size in sizes)) if sizes else b""


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    """A number; proto3 leaves zeros out."""
    return _varint(field << 3) + _varint(value) if value else b""


def _part(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _text(field: int, text: str) -> bytes:
    return _part(field, text.encode())


def fractal_nz(array: np.ndarray, columns: int = 16, fill: float = 77.0) -> np.ndarray:
    """(..., M, N) as FRACTAL_NZ (..., N1, M1, 16, columns), padded with a value that must never be seen."""
    height, width = array.shape[-2:]
    m1, n1 = -(-height // 16), -(-width // columns)
    out = np.full((*array.shape[:-2], n1, m1, 16, columns), fill, array.dtype)
    for row in range(height):
        for block in range(n1):
            part = array[..., row, block * columns : (block + 1) * columns]
            out[..., block, row // 16, row % 16, : part.shape[-1]] = part
    return out


def nc1hwc0(array: np.ndarray, channels: int = 16, fill: float = 77.0) -> np.ndarray:
    """(N, C, H, W) as NC1HWC0 (N, C1, H, W, channels), padded with a value that must never be seen."""
    n, c, h, w = array.shape
    out = np.full((n, -(-c // channels), h, w, channels), fill, array.dtype)
    for channel in range(c):
        out[:, channel // channels, :, :, channel % channels] = array[:, channel]
    return out
