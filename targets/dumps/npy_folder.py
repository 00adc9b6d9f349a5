"""A folder of .npy files, one per tensor.

    layer0.q.npy                   the name is the file's
    sub/layer0.q.npy               sub/layer0.q
    NAME.INDEX.TIME.npy            output INDEX of NAME, TIME in digits (10 at least): several of one name and
                                   index are its calls, in the order of their times
    OP.input|output.INDEX.npy      as converters of device dumps write them; the name keeps that part

Names too long for a file system stand in `mapping.csv`, lines `file name,original name`. Links that leave
the folder are refused.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np

from .core import Contents, Dumped, ReadOptions, bad, checked_settings, inside, read_text
from .npy import npy_array, npy_header, write_npy

MAPPING = "mapping.csv"
_TIMED = re.compile(r"(?P<name>.+)\.(?P<index>\d{1,6})\.(?P<time>\d{10,20})", re.S)


class NpyReader:
    """`npy`: a folder with .npy files in it, or one such file."""

    kind = "npy"
    summary = "a folder of .npy: NAME.npy, NAME.INDEX.TIME.npy, long names in mapping.csv"
    settings: Mapping[str, str] = {}

    def detects(self, path: Path) -> bool:
        """An .npy file, or a folder that holds one at its top or one level below."""
        if path.is_dir():
            return any(any(path.glob(pattern)) for pattern in ("*.npy", "*/*.npy"))
        return path.suffix == ".npy"

    def read(self, path: Path, options: ReadOptions) -> Contents:
        """Every .npy below the folder: those that carry a time in the order of their times, then by name."""
        checked_settings(self, options)
        folder = path if path.is_dir() else path.parent
        names = _mapping(folder)
        files = sorted(path.rglob("*.npy")) if path.is_dir() else [path]
        if not files:
            raise bad(path, "holds no .npy file")
        found = [_File.of(folder, file, names) for file in files]
        found.sort(key=lambda file: (file.time, file.name))
        lost = sorted(names.keys() - {file.path.name for file in found} - {file.path.stem for file in found})
        notes = (f"{MAPPING} names {len(lost)} files that are not there, first {lost[0]!r}",) if lost else ()
        return Contents(self.kind, {}, _entries(found), notes=notes, count=len(found))


@dataclass(frozen=True)
class _File:
    """One file and what its name says; `time` is -1 where it says none."""

    path: Path
    name: str
    time: int

    @classmethod
    def of(cls, folder: Path, path: Path, names: Mapping[str, str]) -> _File:
        inside(folder, path.relative_to(folder))
        stem = path.name.removesuffix(".npy")
        original = names.get(path.name, names.get(stem, stem)).removesuffix(".npy")
        sub = path.parent.relative_to(folder).as_posix()
        name = original if sub == "." else f"{sub}/{original}"
        if not name:
            raise bad(path, "has no name in front of .npy")
        match = _TIMED.fullmatch(name)
        return (
            cls(path, name, -1)
            if match is None
            else cls(path, f"{match['name']}.{match['index']}", int(match["time"]))
        )


def _mapping(folder: Path) -> dict[str, str]:
    """File name -> original name."""
    path = folder / MAPPING
    if not path.is_file():
        return {}
    names: dict[str, str] = {}
    try:
        rows = [row for row in csv.reader(read_text(inside(folder, MAPPING)).splitlines()) if row]
    except csv.Error as error:
        raise bad(path, f"is no list of names ({error})") from error
    for row in rows:
        if len(row) != 2 or not all(row):
            raise bad(path, f"has a line of {len(row)} fields; each should be `file name,original name`")
        if names.setdefault(row[0], row[1]) != row[1]:
            raise bad(path, f"gives {row[0]!r} two names")
    return names


def _entries(files: list[_File]) -> Iterator[Dumped]:
    calls: dict[str, int] = {}
    for file in files:
        header = npy_header(file.path)
        call = calls.get(file.name, 0)
        if call and file.time < 0:
            raise bad(file.path, f"is the second file that is named {file.name!r}")
        calls[file.name] = call + 1
        meta = {} if file.time < 0 else {"time": file.time}
        load = partial(npy_array, file.path, header)
        yield Dumped(file.name, header.shape, header.logical, load, call=call, meta=meta)


def write(folder: Path, arrays: Mapping[str, np.ndarray], *, longest: int = 255) -> None:
    """Write one file per array; names too long for a file go into mapping.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (name, array) in enumerate(arrays.items()):
        file = f"{name}.npy"
        if len(file.encode()) > longest or "/" in name:
            file = f"{number:032d}.npy"
            rows.append((file, f"{name}.npy"))
        stream = BytesIO()
        write_npy(stream, array)
        (folder / file).write_bytes(stream.getvalue())
    if rows:
        with (folder / MAPPING).open("w", newline="") as out:
            csv.writer(out).writerows(rows)
