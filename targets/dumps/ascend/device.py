"""Reading a tree of device dumps: what AscendCL and nano dumps have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..core import Contents, Dumped, ReadOptions, bad
from ..npy import npy_array, npy_header
from . import statistics
from .choice import SETTINGS, UNCHECKED, Choice, arithmetic, counted, fed_by
from .operation import BUFFER, INPUT, OUTPUT, PARTS, SPACE, Operation, entry, named
from .tree import DumpFile, Tree, walk

DEVICE_SETTINGS: Mapping[str, str] = {
    **SETTINGS,
    "parts": f"which of {', '.join(PARTS)} are read, parted by commas (default {INPUT},{OUTPUT})",
    "run": "the folder YYYYMMDDhhmmss to read, where a dump holds several",
    "device": "the device to read, where several wrote",
    "model": "the model to read, where several ran (default: all, each name begins with its model's)",
}
Parse = Callable[[Path], Operation]


@dataclass
class DeviceDump:
    """A tree that was walked, and how its files are read; iterating reads one header at a time."""

    root: Path
    tree: Tree
    choice: Choice
    parts: frozenset[str]
    parse: Parse

    def __iter__(self) -> Iterator[Dumped]:
        self.choice.used.clear()
        yield from counted(self._entries())
        self.choice.finish(self.root)

    def _entries(self) -> Iterator[Dumped]:
        many = len(self.tree.models) > 1
        for file in self.tree.files:
            before = f"{file.model}/" if many else ""
            after = f":slice{file.name.part}" if file.name.part else ""
            for part, name, make in self._of(file):
                name = f"{before}{name}{after}"
                if part in self.parts and self.choice.wants(name):
                    yield replace(make(), name=name, step=file.iteration)

    def _of(self, file: DumpFile) -> Iterator[tuple[str, str, Callable[[], Dumped]]]:
        """(part, name, how to make the entry) of each tensor; one that is left out is never made."""
        meta = _meta(file)
        if file.statistics:
            yield from _statistics(file, meta)
            return
        if file.tensor:
            part, index = file.tensor
            name = f"{file.name.op_name}:{part}:{index}"
            yield part, name, partial(_converted, name, file.path, meta)
            return
        operation = self.parse(file.path)
        operation = replace(operation, name=operation.name or file.name.op_name)
        if operation.tail:
            meta["note"] = f"{operation.tail} bytes after the last tensor were passed over"
        for name, tensor in named(operation):
            if tensor.size or not file.name.crash:
                yield tensor.part, name, partial(entry, name, tensor, operation, file.path, meta)


def _converted(name: str, path: Path, meta: Mapping[str, Any]) -> Dumped:
    header = npy_header(path)
    return Dumped(name, header.shape, header.logical, partial(npy_array, path), meta=meta)


def _meta(file: DumpFile) -> dict[str, Any]:
    said = {"file": file.path.name, "op_type": file.name.op_type, "task": file.name.task}
    said |= {"time": file.name.time, "model_id": file.model_id, "stream": file.name.stream}
    return {key: value for key, value in said.items() if value not in ("", None)}


def _statistics(file: DumpFile, meta: Mapping[str, Any]) -> Iterator[tuple[str, str, Callable[[], Dumped]]]:
    for row in statistics.table(file.path):
        part = statistics.column(row, "Input/Output", file.path).strip().lower()
        if part not in PARTS:
            raise bad(file.path, f"has a row for {part!r}; should be one of {', '.join(PARTS)}")
        index = statistics.column(row, "Index", file.path).strip()
        if not index.isdecimal():
            raise bad(file.path, f"has a row with the index {index[:20]!r}")
        told = {**meta, "shape": row.get("Shape", ""), "dtype": row.get("Data Type", "")}
        found = statistics.entry(f"{file.name.op_name}:{part}:{index}", row, file.path, told)
        if found is not None:
            yield part, found.name, partial(_itself, found)


def _itself(found: Dumped) -> Dumped:
    return found


def read_device(kind: str, path: Path, options: ReadOptions, parse: Parse) -> Contents:
    """The contents of a dump whose files `parse` reads."""
    tree = walk(path)
    tree.only("run", options.text("run", ""), lambda file: file.run, path)
    tree.only("device", options.text("device", ""), lambda file: file.device, path)
    if model := options.text("model", ""):
        tree.only("model", model, lambda file: file.model, path)
    choice = Choice.of(options)
    tree.files = choice.chosen(tree.files, lambda file: file.iteration, path)
    dump = DeviceDump(path, tree, choice, _parts(options, path), parse)
    facts, notes = arithmetic(options)
    facts |= {"device": tree.files[0].device, "models": tree.models, "iterations": _iterations(tree)}
    said = [*notes, *tree.notes(), *_crashes(tree, parse)]
    if any(file.statistics for file in tree.files):
        said.append(statistics.NOTE)
    if unread := sorted(set(PARTS) - dump.parts - {BUFFER, SPACE}):
        said.append(f"parts={options.text('parts', '')}: every {' and '.join(unread)} is left out")
    fed = fed_by(dump, choice.ids, path) if choice.ids else {}
    return Contents(kind, facts, dump, notes=(*said, *(() if fed else (UNCHECKED,))), fed=fed)


def _parts(options: ReadOptions, path: Path) -> frozenset[str]:
    said = frozenset(part.strip() for part in options.text("parts", f"{INPUT},{OUTPUT}").split(","))
    if not said <= set(PARTS):
        raise bad(path, f"parts={options.text('parts', '')!r}: should be some of {', '.join(PARTS)}")
    return said


def _iterations(tree: Tree) -> list[int]:
    return sorted({file.iteration for file in tree.files})


def _crashes(tree: Tree, parse: Parse) -> Iterator[str]:
    """Sentences on files that the device wrote when a kernel failed; they are few, so they are opened."""
    for file in tree.files:
        if file.name.crash:
            tensors = parse(file.path).tensors
            empty = sum(1 for tensor in tensors if not tensor.size)
            yield (
                f"{file.path.name} was written when a kernel failed; {empty} of its {len(tensors)} tensors "
                "hold no data"
            )
