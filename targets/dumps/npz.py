"""A plain .npz: one array per tap.

Names may say more, as `parity trace export` writes them: `layer0.q/step3` is step 3, `layer0.q/step3.1` its
second call, and `:bfloat16` behind it says that the integers are the bits of that format. A program that
appends each step to one file writes a name again and again: say whether that counts steps or calls.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from parity.harness.dtypes import NAMES, as_logical, as_storage, storage_dtype

from .core import Contents, Dumped, ReadOptions, bad, checked_settings
from .zips import Npz, looks_like_npz, write_npz

_NAME = re.compile(r"(?P<tap>.+)/step(?P<step>\d{1,9})(?:\.(?P<call>\d{1,9}))?(?::(?P<dtype>\w+))?", re.S)
#: Integers that may be the bits of bfloat16, or have a scale.
RAW = ("uint16", "int8", "uint8")


class NpzReader:
    """`npz`: whatever numpy, or `parity trace export`, wrote."""

    kind = "npz"
    summary = "one .npz, one array per name; TAP/stepN.CALL:DTYPE as `parity trace export` names them"
    settings: Mapping[str, str] = {"repeats": "steps or calls: what a name counts that stands several times"}

    def detects(self, path: Path) -> bool:
        """A file that is a zip and is called .npz."""
        return looks_like_npz(path)

    def read(self, path: Path, options: ReadOptions) -> Contents:
        """Every array, in the order of the file."""
        checked_settings(self, options)
        repeats = options.text("repeats", "")
        if repeats not in ("", "steps", "calls"):
            raise bad(path, f"repeats={repeats!r}: should be steps or calls")
        npz = Npz(path, repeats=bool(repeats))
        return Contents(self.kind, {}, _entries(npz, repeats), notes=_unsaid(npz), count=len(npz.names))


def _unsaid(npz: Npz) -> tuple[str, ...]:
    """A sentence on integers beside float32 whose format or scale nothing says, as a CVI board writes them.

    Names of `parity trace export` say it, by what stands behind the step or by nothing there.
    """
    formats = {key: npz.header(key).logical for key in npz.names}
    unsaid = [key for key, name in formats.items() if name in RAW and not _NAME.fullmatch(key)]
    if not unsaid or "float32" not in formats.values():
        return ()
    held = ", ".join(sorted({formats[key] for key in unsaid}))
    return (
        f"{len(unsaid)} arrays of {held} beside float32 ones, first {unsaid[0][:60]!r}, were taken "
        "as raw integers; if a board wrote them, its sidecar (--manifest P_tensor_info.txt) tells bf16 bits "
        "and the scales of int8",
    )


def _entries(npz: Npz, repeats: str) -> Iterator[Dumped]:
    for key in npz.names:
        name, times = npz.repeat(key)
        if not repeats:
            yield _entry(npz, key)
        else:
            where = (times, 0) if repeats == "steps" else (0, times)
            header = npz.header(key)
            yield Dumped(name, header.shape, header.logical, partial(npz.array, key), *where)


def _entry(npz: Npz, key: str) -> Dumped:
    header, match = npz.header(key), _NAME.fullmatch(key)
    if match is None:
        if not key:
            raise bad(npz.path, "holds an array without a name")
        return Dumped(key, header.shape, header.logical, partial(npz.array, key))
    where = int(match["step"]), int(match["call"] or 0)
    dtype = match["dtype"]
    if dtype is None:
        return Dumped(match["tap"], header.shape, header.logical, partial(npz.array, key), *where)
    if dtype not in NAMES or storage_dtype(dtype).name != header.logical:
        raise bad(npz.path, f"{key!r} holds {header.logical}, which are not the bits of {dtype}")
    return Dumped(match["tap"], header.shape, dtype, partial(_logical, npz, key, dtype), *where)


def _logical(npz: Npz, key: str, dtype: str) -> np.ndarray:
    return as_logical(npz.array(key), dtype)


def write(path: Path, entries: Mapping[tuple[str, int, int], np.ndarray]) -> None:
    """Write arrays by (tap, step, call), in the names of `parity trace export`."""
    arrays: dict[str, np.ndarray] = {}
    for (tap, step, call), array in entries.items():
        bits, dtype = as_storage(array)
        name = f"{tap}/step{step}" + (f".{call}" if call else "")
        plain = bits.dtype == array.dtype or dtype == "bool"
        arrays[name if plain else f"{name}:{dtype}"] = array if plain else bits
    write_npz(path, arrays)
