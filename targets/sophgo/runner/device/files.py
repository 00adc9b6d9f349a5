"""A board package: a folder with models, the wiring table, rotary rows, tokens and perhaps a prefilled cache.

package.json   format "parity-board", version 1: chip, models, sizes, window, rope, prefilled, steps ...
wiring.json    segments, their ports, what is appended to which cache
rope.npy       rotary rows [2, 1, N, D] float32
past_k.npy, past_v.npy   prefilled keys and values [L, 1, G, S, D] float32, in the order of the caches
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import struct
from typing import Any

from .tensors import Failure

FORMAT, VERSION = "parity-board", 1


class Array:
    """A float32 .npy file, read piece by piece."""

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self.shape, self._start = _header(path)
        except (ValueError, SyntaxError, KeyError, IndexError, struct.error) as error:
            raise Failure(f"{path}: is no .npy file of float32 in C order ({error})") from error

    def values(self, first: int, count: int) -> bytes:
        """`count` values from the `first` on, row-major."""
        with _opened(self._path) as file:
            file.seek(self._start + 4 * first)
            found: bytes = file.read(4 * count)
        if len(found) != 4 * count:
            raise Failure(f"{self._path}: breaks off; copy the package again")
        return found


class Package:
    """The folder; Failure for what does not fit together."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.facts = _read_json(os.path.join(folder, "package.json"))
        if self.facts.get("format") != FORMAT or self.facts.get("version") != VERSION:
            raise Failure(f"{folder}: is no board package of version {VERSION}; write it again")
        self.wiring = _read_json(os.path.join(folder, "wiring.json"))
        try:
            self.models: dict[str, dict[str, Any]] = self.facts["models"]
            self.rows: int = self.facts["sizes"]["W"]
            self.window: int | None = self.facts["window"]
            self.steps: list[dict[str, Any]] = self.facts["steps"]
            rope = self.facts["rope"]
            self._rope, self._rope_start = Array(self.path(rope["file"])), rope["start"]
        except (KeyError, TypeError) as error:
            raise Failure(f"{folder}: package.json lacks {error}; write the package again") from error

    def path(self, name: str) -> str:
        """A file of the package; nothing outside it is reached."""
        path = os.path.normpath(name)
        if os.path.isabs(path) or path.startswith(".."):
            raise Failure(f"{self.folder}: names {name!r}, which lies outside of it")
        return os.path.join(self.folder, path)

    def check_models(self) -> None:
        """Every model is the file that the package was written with."""
        for name, facts in self.models.items():
            if facts["file"] is None:
                raise Failure(f"{name}: the package has no model file; name the object that plays it")
            if digest(self.path(facts["file"])) != facts["sha256"]:
                raise Failure(f"{name}: {facts['file']} is not the file of this package; copy it again")

    def rope(self, position: int) -> bytes:
        """Rotary rows `[2, 1, 1, D]` of an absolute position."""
        planes, _, count, width = self._rope.shape
        at = position - self._rope_start
        if not 0 <= at < count:
            last = self._rope_start + count - 1
            raise Failure(
                f"rope: rows for positions {self._rope_start}..{last} are shipped, but position {position} "
                "is needed; write the package with more"
            )
        return b"".join(self._rope.values((plane * count + at) * width, width) for plane in range(planes))

    def prefilled(self) -> tuple[list[int], list[list[bytes]]] | None:
        """Positions, and for each cache the rows of each head; None where the package has none."""
        facts = self.facts["prefilled"]
        if facts is None:
            return None
        planes = [Array(self.path(facts[name])) for name in ("past_k", "past_v")]
        layers, _, heads, rows, width = planes[0].shape
        caches = self.wiring["caches"]
        if planes[1].shape != planes[0].shape or len(caches) != 2 * layers:
            raise Failure(
                f"{self.folder}: past_k and past_v do not hold the {len(caches)} caches of the wiring"
            )
        block = rows * width
        filled = [
            [planes[at % 2].values(((at // 2) * heads + head) * block, block) for head in range(heads)]
            for at in range(len(caches))
        ]
        return list(facts["positions"]), filled


def _header(path: str) -> tuple[tuple[int, ...], int]:
    """Shape, and where the values begin."""
    with _opened(path) as file:
        magic = file.read(8)
        if magic[:6] != b"\x93NUMPY" or magic[6] not in (1, 2):
            raise ValueError("another magic number")
        (size,) = struct.unpack("<H", file.read(2)) if magic[6] == 1 else struct.unpack("<I", file.read(4))
        header = ast.literal_eval(file.read(size).decode("latin-1"))
        if header["descr"] != "<f4" or header["fortran_order"]:
            raise ValueError(f"{header['descr']}")
        return tuple(header["shape"]), file.tell()


def npy(values: bytes, format: str, shape: list[int]) -> bytes:
    """A .npy file: bfloat16 as its bits in uint16."""
    kinds = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2", "int8": "|i1", "uint8": "|u1"}
    kind = kinds.get(format) or f"<{'u' if format[0] == 'u' else 'i'}{int(format.strip('uint')) // 8}"
    header = repr({"descr": kind, "fortran_order": False, "shape": tuple(shape)})
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + values


def digest(path: str) -> str:
    """sha256 in hex."""
    found = hashlib.sha256()
    with _opened(path) as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            found.update(block)
    return found.hexdigest()


def _opened(path: str) -> Any:
    try:
        return open(path, "rb")
    except OSError as error:
        raise Failure(f"{path}: cannot be read ({error.strerror})") from error


def _read_json(path: str) -> dict[str, Any]:
    with _opened(path) as file:
        try:
            content: dict[str, Any] = json.load(file)
        except ValueError as error:
            raise Failure(f"{path}: is no JSON ({error}); write the package again") from error
    return content
