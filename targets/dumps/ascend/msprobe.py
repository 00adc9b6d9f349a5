"""Trees of msprobe's PrecisionDebugger: `step{N}/{proc{PID}|rank{R}|rank}/dump.json` and what it names.

Entries come in the order of `dump.json`, which is that of completion: children before their module. The
companions are not asked: construct.json lists operators that were never dumped, stack.json is for people.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from parity.harness.arrays import to_array

from ..core import (
    Contents,
    Dumped,
    ReadOptions,
    bad,
    checked_settings,
    checked_shape,
    inside,
    read_object,
    size_of,
)
from ..npy import npy_array
from ..torch_files import checked_tensor, load_torch
from . import statistics
from .choice import SETTINGS, UNCHECKED, Choice, arithmetic, fed_by
from .dtypes import dtype_of_text
from .glance import files_below
from .tree import folders

DUMP, DATA = "dump.json", "dump_tensor_data"
#: Sections of a call's value -> the word in its tensors' names.
SECTIONS = {
    "input_args": "input",
    "input": "input",
    "input_kwargs": "kwargs",
    "parameters": "parameters",
    "output": "output",
}
_GRADIENT = "parameters_grad"
PARTS = ("input", "kwargs", "parameters", "output", _GRADIENT)
_MEANT = ("input", "kwargs", "output", _GRADIENT)
_STEP, _RANK = re.compile(r"step(\d{1,9})"), re.compile(r"(proc|rank)\d*")
_MODULE = re.compile(r"Module\.(?P<path>.+)\.[^.]+\.(?P<way>forward|backward)\.(?P<call>\d{1,9})")
_DEEPEST = 32


@dataclass(frozen=True)
class Place:
    """One dump.json: its step and its process."""

    path: Path
    step: int
    rank: str


@dataclass
class MsprobeDump:
    """The dump.json files of one process, one per step; iterating reads them one by one."""

    root: Path
    places: list[Place]
    choice: Choice
    parts: frozenset[str]

    def __iter__(self) -> Iterator[Dumped]:
        self.choice.used.clear()
        for place in self.places:
            for key, value in _calls(place.path):
                for part, name, found in _tensors(key, value, place.path):
                    of = _Call(key, part, len(value.get("output") or ()))
                    shown = of.shown(name) + ("" if _stored(found) else ":statistics")
                    if part in self.parts and self.choice.wants(shown):
                        entry = _entry(of, name, found, place.path)
                        yield from (replace(one, step=place.step, call=of.count) for one in entry)
        self.choice.finish(self.root)


@dataclass(frozen=True)
class _Call:
    """Which part of which call a tensor belongs to, and how many outputs the call has."""

    key: str
    part: str
    outputs: int

    @property
    def count(self) -> int:
        """Which call of its module this is; an operator's count is part of its name."""
        match = _MODULE.fullmatch(self.key)
        return int(match["call"]) if match else 0

    def shown(self, name: str) -> str:
        """A tensor's name, the same for each call of a module."""
        return name.replace(self.key, self.key.rpartition(".")[0], 1) if _MODULE.fullmatch(self.key) else name

    def tap(self, name: str) -> str | None:
        """What a module's own output or input is called in a trace; None for anything else."""
        match = _MODULE.fullmatch(self.key)
        at = name.removeprefix(f"{self.key}.{self.part}.")
        if match is None or match["way"] == "backward" or self.part not in ("input", "kwargs", "output"):
            return None
        tap = f"module:{match['path']}"
        if self.part != "output":
            return f"{tap}:in.{at}"
        return f"{tap}.{at}" if self.outputs > 1 or not at.isdecimal() else tap


def _described(path: Path) -> dict[str, Any]:
    """What a dump.json says, with an object `data`."""
    said = read_object(path)
    if not isinstance(said.get("data"), dict):
        raise bad(path, "has no object `data`; this is no dump of msprobe's")
    return said


def _calls(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    data = _described(path)["data"]
    for key, value in data.items():
        if not isinstance(value, dict):
            raise bad(path, f"{key[:80]!r} holds a {type(value).__name__}, where an object is expected")
        yield key, value


def _tensors(key: str, value: dict[str, Any], path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(part, name, description) of each tensor of a call, in the order of the call."""
    if f".{_GRADIENT}" in key:
        for name, given in value.items():
            one = given[0] if isinstance(given, list) and len(given) == 1 else given
            yield from ((_GRADIENT, n, f) for n, f in _opened(one, f"{key}.{name}", path, 0))
        return
    for section, word in SECTIONS.items():
        for name, found in _opened(value.get(section), f"{key}.{word}", path, 0):
            yield word, name, found


def _opened(given: Any, name: str, path: Path, depth: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Descriptions of tensors in nested lists and objects; scalars, strings and None are no tensors."""
    if depth > _DEEPEST:
        raise bad(path, f"{name[:80]} is nested deeper than {_DEEPEST}")
    if isinstance(given, dict) and str(given.get("type", "")).endswith("Tensor") and "shape" in given:
        yield _stored(given).rpartition(".")[0] or name, given
    elif isinstance(given, (dict, list)) and not (isinstance(given, dict) and "type" in given):
        for at, inner in given.items() if isinstance(given, dict) else enumerate(given):
            yield from _opened(inner, f"{name}.{at}", path, depth + 1)


def _stored(found: Mapping[str, Any]) -> str:
    """The file that holds a tensor; empty where only its statistics were dumped."""
    name = found.get("data_name")
    return name if isinstance(name, str) and name.endswith((".pt", ".npy")) else ""


def _entry(of: _Call, name: str, found: Mapping[str, Any], path: Path) -> Iterator[Dumped]:
    shape = checked_shape(found["shape"], path, name)
    dtype = dtype_of_text(str(found.get("dtype")), path, name)
    meta = {"of": of.key, "part": of.part} | ({"crc32": str(found["md5"])} if found.get("md5") else {})
    stored, shown = _stored(found), of.shown(name)
    if not stored:
        one = statistics.entry(shown, _numbers(found), path, {**meta, "shape": list(shape), "dtype": dtype})
        yield from () if one is None else (one,)
        return

    def load() -> np.ndarray:
        return _load(inside(path.parent / DATA, stored), name, shape, dtype)

    yield Dumped(shown, shape, dtype, load, tap=of.tap(name), meta={**meta, "file": stored})


def _numbers(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: found.get(key) for key in ("Max", "Min", "Mean", "Norm")}


def _load(path: Path, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    size_of(path)
    if path.suffix == ".npy":
        array = npy_array(path)
        said = str(array.dtype)
    else:
        tensor = checked_tensor(path, name, load_torch(path))
        said = str(tensor.dtype).removeprefix("torch.")
        array = np.array(to_array(tensor), copy=True)
    if (array.shape, said) != (shape, dtype):
        raise bad(
            path,
            f"holds {said} {list(array.shape)}, dump.json says {dtype} {list(shape)}: another dump's file",
        )
    return array


class MsprobeReader:
    """`msprobe`: dumps of torch (or MindSpore) runs, tensors or statistics."""

    kind = "msprobe"
    summary = "msprobe dump.json trees (PrecisionDebugger), tensors or statistics"
    settings: Mapping[str, str] = {
        **SETTINGS,
        "rank": "the folder proc{PID} or rank{R} to read, where several processes wrote",
        "parts": f"some of {', '.join(PARTS)}, parted by commas (default {','.join(_MEANT)})",
    }

    def detects(self, path: Path) -> bool:
        """A dump.json with a task and data, or a folder with one."""
        return any(found.name == DUMP and _is_dump(found) for found in files_below(path))

    def read(self, path: Path, options: ReadOptions) -> Contents:
        """Open dump.json, its folder, a step or the whole dump path."""
        checked_settings(self, options)
        places = _one_process(_places(path), options.text("rank", ""), path)
        choice = Choice.of(options)
        places = choice.chosen(places, lambda place: place.step, path)
        dump = MsprobeDump(path, places, choice, _parts(options, path))
        first = _described(places[0].path)
        facts, notes = arithmetic(options)
        facts |= {key: first.get(key) for key in ("task", "level", "framework")}
        facts |= {"steps": [place.step for place in places], "rank": places[0].rank}
        said = list(notes)
        if missing := sorted(set(PARTS) - dump.parts):
            said.append(f"left out: every {' and '.join(missing)} (parts=...)")
        if first.get("task") == "statistics":
            said.append(statistics.NOTE)
        if not first["data"]:
            raise bad(path, f"its task was {first.get('task')!r}, which records no values")
        fed = fed_by(dump, choice.ids, path) if choice.ids else {}
        return Contents(self.kind, facts, dump, notes=(*said, *(() if fed else (UNCHECKED,))), fed=fed)


def _is_dump(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError:
        return False
    return b'"task"' in head and b'"level"' in head


def _parts(options: ReadOptions, path: Path) -> frozenset[str]:
    said = frozenset(part.strip() for part in options.text("parts", ",".join(_MEANT)).split(","))
    if not said <= set(PARTS):
        raise bad(path, f"parts={options.text('parts', '')!r}: should be some of {', '.join(PARTS)}")
    return said


def _places(root: Path) -> list[Place]:
    """Every dump.json below a folder, with its step and process from the folders above it."""
    if root.name == DUMP:
        return [_place(root)]
    found = [_place(folder / DUMP) for folder, names in folders(root) if DUMP in names]
    if not found:
        raise bad(root, "holds no dump.json")
    return sorted(found, key=lambda place: (place.step, place.rank))


def _place(path: Path) -> Place:
    folder = path.parent.absolute()
    rank = folder.name if _RANK.fullmatch(folder.name) else ""
    above = folder.parent.name if rank else folder.name
    match = _STEP.fullmatch(above)
    return Place(path, int(match[1]) if match else 0, rank)


def _one_process(places: list[Place], rank: str, root: Path) -> list[Place]:
    """One dump.json per step; UserError where several processes wrote and none was named."""
    ranks = sorted({place.rank for place in places})
    if rank and rank not in ranks:
        raise bad(root, f"rank={rank!r} is not in it; it has {', '.join(ranks)}")
    kept = [place for place in places if not rank or place.rank == rank]
    if len({place.step for place in kept}) < len(kept):
        raise bad(root, f"holds several processes: {', '.join(ranks[:8])}; say rank=NAME")
    return kept
