"""File names of device dumps: `{op_type}.{op_name}.{task}.{stream}.{time}`, and what stands in for long ones.

An operator's name has '/', '\\', '.' and blanks turned into '_', so the true name is the one in the header.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

from ..core import bad, read_text

OVERFLOW, CRASH = "Opdebug", "exception_info"
#: `mode.context.thread.device` after the time: one slice of an operator that FFTS+ cut up.
_NAME = re.compile(
    r"(?P<type>[^.]+)\.(?P<op>[^.]+)\.(?P<task>\d{1,20})(?:\.(?P<stream>\d{1,20}))?\.(?P<time>\d{10,20})"
    r"(?:\.(?P<slice>\d+\.\d+\.\d+(?:\.\d+)?))?"
)
#: What msaccucmp and `msprobe parse` turn a dump's tensors into: the dump's name, the part, the index.
_CONVERTED = re.compile(r"(?P<dump>.+)\.(?P<part>input|output|buffer|space)\.(?P<index>\d{1,6})\.npy")
_CRASH = re.compile(r"exception_info\.(?P<stream>\d{1,20})\.(?P<task>\d{1,20})\.(?P<time>\d{1,20})")
#: Names that a device makes up for operators whose file name would be too long.
_STANDS_IN = re.compile(r"\d{16}|\d{32}")


@dataclass(frozen=True)
class FileName:
    """What a dump's file name says. `part` numbers the slice of an operator that was cut up."""

    op_type: str
    op_name: str
    task: int
    time: int
    stream: int | None = None
    part: str = ""

    @property
    def overflow(self) -> bool:
        """Whether this is the overflow detector's record, which holds no tensors."""
        return self.op_type == OVERFLOW

    @property
    def crash(self) -> bool:
        """Whether the device wrote it when a kernel failed."""
        return self.op_type == CRASH


def parse_name(name: str) -> FileName | None:
    """The parts of a file name; None for a name that no device gives."""
    if match := _CRASH.fullmatch(name):
        return FileName(CRASH, "", int(match["task"]), int(match["time"]), int(match["stream"]))
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    stream = None if match["stream"] is None else int(match["stream"])
    return FileName(
        match["type"], match["op"], int(match["task"]), int(match["time"]), stream, match["slice"] or ""
    )


def converted(name: str) -> tuple[str, str, int] | None:
    """(the dump's name, part, index) of a .npy that the vendor's tools made of a tensor; None for others."""
    match = _CONVERTED.fullmatch(name)
    return None if match is None else (match["dump"], match["part"], int(match["index"]))


def flattened(name: str) -> str:
    """An operator's name as file names have it."""
    return re.sub(r"[/\\. ]", "_", name)


def stands_in(name: str) -> bool:
    """Whether a file's name is one that `mapping.csv` must explain."""
    return _STANDS_IN.fullmatch(name) is not None


def read_mapping(folder: Path) -> dict[str, str]:
    """`mapping.csv` of a folder: name on disk -> the name that was too long. Empty where there is none."""
    path = folder / "mapping.csv"
    if not path.exists():
        return {}
    found: dict[str, str] = {}
    try:
        for row in csv.reader(io.StringIO(read_text(path)), strict=True):
            if not row:
                continue
            if len(row) != 2:
                raise bad(path, f"has a line with {len(row)} columns; should be `mapped,original`")
            if row[0] in found:
                raise bad(path, f"explains {row[0]!r} twice")
            found[row[0]] = row[1]
    except csv.Error as error:
        raise bad(path, f"is no csv ({error})") from error
    return found
