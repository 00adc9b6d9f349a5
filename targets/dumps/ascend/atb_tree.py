"""The folders of an ATB dump, of msprobe (`atb_dump_data/data`) and of msit (`msit_dump_*/tensors`).

`{device}_{pid}/{execution}/{id}_{Op}/{id}_{Child}/.../{before|after}/{intensorN|outtensorN}[_name].bin`. An
operation's inputs come before its children, its outputs after them; ids count in execution order.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..core import bad, inside
from .tree import folders

FILE = re.compile(r"(?P<side>in|out)[tT]ensor(?P<index>\d{1,6})(?:_(?P<param>.+))?\.bin")
_OP = re.compile(r"(\d{1,9})_(.+)")
_DEVICE = re.compile(r"-?\d+(_\d+)?")
BEFORE, AFTER = "before", "after"
STATISTICS = "statistic.csv"
_LAST = 1 << 30


@dataclass(frozen=True)
class AtbPlace:
    """Where a tensor's file lies: `ops` are the operation's folders from the outermost one."""

    path: Path
    top: Path
    device: str
    execution: int
    ops: tuple[str, ...]
    when: str
    side: str
    index: int
    param: str

    @property
    def name(self) -> str:
        """The tensor's path in its execution: `0_Layer/2_Linear/after/outtensor0`."""
        return "/".join((*self.ops, self.when, self.path.name.removesuffix(".bin")))

    @property
    def ids(self) -> tuple[int, ...]:
        """The operation's ids, outermost first."""
        return tuple(op_id(op) for op in self.ops)

    @property
    def order(self) -> tuple[int, tuple[int, ...], int, str]:
        """Execution order within a dump."""
        place = _LAST if self.when == AFTER else -1
        return self.execution, (*self.ids, place), self.index, self.path.name


def op_id(folder: str) -> int:
    """The id that an operation's folder begins with."""
    match = _OP.fullmatch(folder)
    assert match is not None, folder
    return int(match[1])


def walk_atb(root: Path) -> tuple[list[AtbPlace], list[Path]]:
    """Tensors in execution order, and the tables of statistics; UserError for a tree that is none."""
    places, tables = [], []
    for folder, names in folders(root):
        for name in names:
            if name == STATISTICS:
                tables.append(folder / name)
            elif name.endswith(".bin"):
                places.append(_place(folder / name))
    if not places and not tables:
        raise bad(root, "holds no ATB tensor (intensorN.bin, outtensorN.bin) and no statistic.csv")
    return sorted(places, key=lambda place: (place.device, *place.order)), tables


def _place(path: Path) -> AtbPlace:
    match = FILE.fullmatch(path.name)
    if match is None:
        raise bad(path, "is not named intensorN.bin or outtensorN.bin, as ATB names tensors")
    when, above = path.parent.name, path.parent.parent.absolute()
    if when not in (BEFORE, AFTER):
        raise bad(path, "lies neither in before/ nor in after/")
    ops: list[str] = []
    while (part := above.name) and _OP.fullmatch(part) and not part.isdecimal():
        ops.insert(0, part)
        above = above.parent
    if not ops or not above.name.isdecimal() or len(above.name) > 9:
        raise bad(path, "should lie in {execution}/{id}_{Op}/.../{before|after}")
    device = above.parent.name if _DEVICE.fullmatch(above.parent.name) else ""
    side, index, param = match["side"], int(match["index"]), match["param"] or ""
    return AtbPlace(path, above, device, int(above.name), tuple(ops), when, side, index, param)


Holders = dict[tuple[int, tuple[int, ...], str], AtbPlace]


def holders(places: Iterable[AtbPlace]) -> Holders:
    """Tensors by what another file may call them: execution, ids, file name."""
    return {(place.execution, place.ids, place.path.name): place for place in places}


def holder(place: AtbPlace, other: str, known: Holders, root: Path) -> Path:
    """The file that holds the numbers of one that says `data=other` instead of holding them.

    `other` is `{ids}_{intensorN|outtensorN}.bin` of an operation of the same execution, a path relative to
    the file or its execution, or, from a kernel, the file's own name: its operation has the same tensor.
    """
    ids, _, name = other.rpartition("_")
    found: AtbPlace | None = None
    if ids and all(part.isdecimal() for part in ids.split("_")):
        found = known.get((place.execution, tuple(int(part) for part in ids.split("_")), name))
    elif other == place.path.name:
        found = known.get((place.execution, place.ids[:-1], other))
    if found is not None:
        return found.path
    top = root if root.is_dir() else root.parent
    for start in (place.path.parent, place.top):
        path = inside(top, os.path.relpath(start, top) + f"/{other}")
        if path.is_file() and path != place.path.resolve():
            return path
    raise bad(place.path, f"names {other!r} for its data, but the dump has no such tensor")
