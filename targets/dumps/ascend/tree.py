"""The folders of a device dump: `{time}/{device}/{model}/{model id}/{iteration}/{file}`, in execution order.

A part of that path may be given as the dump's root; several devices or several runs are never mixed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..core import bad, inside
from .names import FileName, converted, parse_name, read_mapping, stands_in

#: Folders below each other; ATB nests one per operation.
DEEPEST = 64
_FULL = re.compile(r"(?:^|/)(\d{14})/(\d+)/([^/]+)/(\d+)/(\d{1,9})$")
_SINGLE = re.compile(r"(?:^|/)(\d{14})/(\d+)$")
_ITERATION = re.compile(r"\d{1,9}")
CSV = ".csv"


@dataclass(frozen=True)
class DumpFile:
    """A file and what its path says; `statistics` marks a csv that stands in for the tensors."""

    path: Path
    name: FileName
    run: str = ""
    device: str = ""
    model: str = ""
    model_id: str = ""
    iteration: int = 0
    statistics: bool = False
    tensor: tuple[str, int] | None = None
    """Part and index, where the vendor's tools made a .npy of each tensor."""

    @property
    def order(self) -> tuple[int, int, int, str, tuple[str, int]]:
        """Execution order: by iteration, then the device's clock in microseconds; inputs before outputs."""
        return self.iteration, self.name.time, self.name.task, self.name.op_name, self.tensor or ("", 0)


@dataclass
class Tree:
    """The files of a dump, sorted, and what was passed over."""

    files: list[DumpFile] = field(default_factory=list)
    overflow: int = 0
    strangers: list[str] = field(default_factory=list)

    @property
    def models(self) -> list[str]:
        """Names of the models that ran, in order of appearance."""
        return list(dict.fromkeys(file.model for file in self.files))

    def only(self, what: str, value: str, of: Callable[[DumpFile], str], root: Path) -> None:
        """Keep the files of one device, run or model; UserError for several where none was named."""
        known = list(dict.fromkeys(of(file) for file in self.files))
        if value and value not in known:
            raise bad(root, f"{what}={value!r} is not in it; it has {', '.join(known)}")
        if not value and len(known) > 1:
            raise bad(root, f"holds several: {what} {', '.join(known[:8])}; say {what}=NAME")
        self.files = [file for file in self.files if not value or of(file) == value]

    def notes(self) -> Iterator[str]:
        """Sentences on what is not among the entries."""
        if self.overflow:
            yield f"{self.overflow} overflow records (Opdebug) hold no tensors and were passed over"
        if self.strangers:
            few = ", ".join(self.strangers[:3])
            yield f"{len(self.strangers)} files are no dumps of an operator and were passed over: {few}"
        sliced = sum(1 for file in self.files if file.name.part)
        if any(file.tensor for file in self.files):
            yield "the vendor's tool has converted it: what was bfloat16 on the device is float32 here"
        if sliced:
            yield f"{sliced} files hold one slice of an operator (FFTS+); the slices are kept apart"


def walk(root: Path) -> Tree:
    """Every dump file below a folder, or the one file; UserError for a tree that no device writes."""
    tree = Tree()
    if root.is_file():
        _take(root, root.parent, read_mapping(root.parent), tree)
        if not tree.files:
            raise bad(root, "is not named like a dump: {op_type}.{op_name}.{task}.{stream}.{time}")
        return tree
    for folder, names in folders(root):
        mapping = read_mapping(folder)
        for name in names:
            _take(folder / name, root, mapping, tree)
    if not tree.files:
        raise bad(root, "holds no file named like a dump: {op_type}.{op_name}.{task}.{stream}.{time}")
    tree.files.sort(key=lambda file: file.order)
    return tree


def folders(folder: Path, depth: int = 0) -> Iterator[tuple[Path, list[str]]]:
    """(folder, its files) downwards, in the order of names; links to folders are refused."""
    if depth > DEEPEST:
        raise bad(folder, f"lies {depth} folders deep, which no dump does")
    names, below = [], []
    try:
        with os.scandir(folder) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.name)
                elif entry.is_symlink() and entry.is_dir():
                    raise bad(entry.path, "is a link to a folder; give that folder itself")
                else:
                    names.append(entry.name)
    except OSError as error:
        raise bad(folder, f"cannot be read ({error.strerror})") from error
    yield folder, sorted(names)
    for name in sorted(below):
        yield from folders(folder / name, depth + 1)


def _take(path: Path, root: Path, mapping: dict[str, str], tree: Tree) -> None:
    statistics = path.suffix == CSV
    made = converted(path.name)
    shown = made[0] if made else path.name.removesuffix(CSV)
    if shown == "mapping" and statistics:
        return
    if stands_in(shown) and shown not in mapping:
        raise bad(path, "has a made-up name that no mapping.csv beside it explains; copy mapping.csv too")
    name = parse_name(mapping.get(shown, shown))
    if name is None:
        tree.strangers.append(str(path.relative_to(root)))
    elif name.overflow:
        tree.overflow += 1
    else:
        if path.is_symlink():
            path = inside(root, path.relative_to(root))
        found = replace(_placed(path, root, name), statistics=statistics, tensor=made and made[1:])
        tree.files.append(found)


def _placed(path: Path, root: Path, name: FileName) -> DumpFile:
    """Run, device, model and iteration from the folders above a file, those above the root included."""
    above = path.parent.absolute().as_posix()
    if match := _FULL.search(above):
        run, device, model, model_id, iteration = match.groups()
        return DumpFile(path, name, run, device, model, model_id, int(iteration))
    if match := _SINGLE.search(above):
        return DumpFile(path, name, match[1], match[2])
    if path.parent == root:
        return DumpFile(path, name)
    if path.parent.parent == root and _ITERATION.fullmatch(path.parent.name):
        return DumpFile(path, name, iteration=int(path.parent.name))
    raise bad(path.parent, "is no place in a dump; should be {time}/{device}/{model}/{model id}/{iteration}")
