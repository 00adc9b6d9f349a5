"""Dumps of Ascend Transformer Boost, as msprobe and msit leave them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..core import Contents, Dumped, ReadOptions, bad, checked_settings, first_bytes, read_object
from . import statistics
from .atb_file import MAGIC, load_atb, parse_atb
from .atb_tree import AFTER, BEFORE, STATISTICS, AtbPlace, Holders, holder, holders, walk_atb
from .choice import SETTINGS, UNCHECKED, Choice, arithmetic, counted, fed_by
from .glance import files_below

_PARTS = tuple(f"{when}/{side}" for when in (BEFORE, AFTER) for side in ("in", "out"))
#: An operation's inputs before it ran and its outputs after it: the others are stale or repeat these.
_MEANT = ("before/in", "after/out")
#: What a tensor of token ids is called where the dump has names at all.
_IDS = ("input_ids", "inputids", "tokens", "token_ids")


@dataclass
class AtbDump:
    """A tree that was walked; iterating opens one header at a time."""

    root: Path
    places: list[AtbPlace]
    tables: list[Path]
    choice: Choice
    parts: tuple[str, ...]
    known: Holders

    def __iter__(self) -> Iterator[Dumped]:
        self.choice.used.clear()
        yield from counted(self._entries())
        self.choice.finish(self.root)

    def _entries(self) -> Iterator[Dumped]:
        params: dict[Path, Mapping[str, Any]] = {}
        for place in self.places:
            if f"{place.when}/{place.side}" in self.parts and self.choice.wants(place.name):
                folder = place.path.parent.parent
                if folder not in params:
                    params = {folder: _params(folder)}
                yield self._entry(place, params[folder])
        for table in self.tables:
            yield from self._statistics(table)

    def _entry(self, place: AtbPlace, param: Mapping[str, Any]) -> Dumped:
        file, path = parse_atb(place.path), place.path
        meta: dict[str, Any] = {"device": place.device, **param}
        if file.other:
            path = holder(place, file.other, self.known, self.root)
            held = parse_atb(path)
            if held.other or (held.shape, held.dtype) != (file.shape, file.dtype):
                raise bad(place.path, f"names {file.other!r} for its data, which is another tensor's")
            meta["data_of"] = file.other
            file = held
        load = partial(load_atb, path, file)
        return Dumped(place.name, file.shape, file.dtype, load, step=place.execution, meta=meta)

    def _statistics(self, table: Path) -> Iterator[Dumped]:
        for row in statistics.table(table):
            if row.get("Tensor Path", "N/A") != "N/A":
                continue
            side = statistics.column(row, "Input/Output", table)
            name = f"{_row_name(row, table)}/{'before/intensor' if side == 'input' else 'after/outtensor'}"
            name += statistics.column(row, "Index", table)
            execution = statistics.column(row, "Execution Count", table)
            if not execution.isdecimal() or len(execution) > 9:
                raise bad(table, f"has the execution count {execution[:20]!r}")
            meta = {"shape": row.get("Shape", ""), "dtype": row.get("Dtype", "")}
            found = statistics.entry(name, row, table, meta)
            chosen = self.choice.steps[0] <= int(execution) <= self.choice.steps[1]
            if found is not None and chosen and self.choice.wants(found.name):
                yield replace(found, step=int(execution))


def _row_name(row: Mapping[str, str], table: Path) -> str:
    """The folders of a row's operation: names are joined by '/', ids by '_'."""
    names = statistics.column(row, "Op Name", table).split("/")
    ids = statistics.column(row, "Op Id", table).split("_")
    if len(names) != len(ids):
        raise bad(table, f"names {len(names)} operations and {len(ids)} ids in one row")
    return "/".join(f"{number}_{name}" for number, name in zip(ids, names, strict=True))


def _params(folder: Path) -> Mapping[str, Any]:
    """The operation's parameters, where they were dumped."""
    path = folder / "op_param.json"
    return {"op_param": json.dumps(read_object(path))} if path.is_file() else {}


class AtbReader:
    """`atb`: the trees of msprobe and of msit, tensors or statistics."""

    kind = "atb"
    summary = "Ascend Transformer Boost dump (.bin trees of msprobe and msit)"
    settings: Mapping[str, str] = {
        **SETTINGS,
        "device": "the folder {device}_{pid} to read, where several wrote",
        "parts": f"some of {', '.join(_PARTS)}, parted by commas (default {','.join(_MEANT)})",
    }

    def detects(self, path: Path) -> bool:
        """A file that begins like an ATB tensor, or a folder with one or with ATB's table of statistics."""
        for found in files_below(path):
            if found.suffix == ".bin" and first_bytes(found, len(MAGIC)) == MAGIC:
                return True
            if found.name == STATISTICS and first_bytes(found, 14) == b"Device and PID":
                return True
        return False

    def read(self, path: Path, options: ReadOptions) -> Contents:
        """Open a tree: an execution's folder or any folder above it."""
        checked_settings(self, options)
        places, tables = walk_atb(path)
        choice, device = Choice.of(options), options.text("device", "")
        devices = sorted({place.device for place in places})
        if device and device not in devices:
            raise bad(path, f"device={device!r} is not in it; it has {', '.join(devices)}")
        if not device and len(devices) > 1:
            raise bad(path, f"holds several devices: {', '.join(devices[:8])}; say device=NAME")
        kept = [place for place in places if not device or place.device == device]
        kept = choice.chosen(kept, lambda place: place.execution, path)
        dump = AtbDump(path, kept, [] if kept else tables, choice, _parts(options, path), holders(kept))
        facts, notes = arithmetic(options)
        facts |= {"device": device or "".join(devices), "executions": sorted({p.execution for p in kept})}
        fed = _fed(dump, path)
        said = [*notes, *_notes(dump), *(() if fed else (UNCHECKED,))]
        count = len([1 for p in kept if f"{p.when}/{p.side}" in dump.parts]) if kept else None
        return Contents(self.kind, facts, dump, notes=tuple(said), fed=fed, count=count)


def _parts(options: ReadOptions, path: Path) -> tuple[str, ...]:
    said = tuple(part.strip() for part in options.text("parts", ",".join(_MEANT)).split(","))
    if not set(said) <= set(_PARTS):
        raise bad(path, f"parts={','.join(said)!r}: should be some of {', '.join(_PARTS)}")
    return said


def _notes(dump: AtbDump) -> Iterator[str]:
    left = sum(1 for place in dump.places if f"{place.when}/{place.side}" not in dump.parts)
    if left:
        yield f"{left} tensors are left out: only {' and '.join(dump.parts)} are read (parts=...)"
    if dump.tables:
        yield statistics.NOTE
    if any(place.top.parent.parent.name == "tensors" for place in dump.places):
        yield (
            "msit counts the prefill and the first decode as execution 0: torch's step n is execution n-1 "
            "then (--step-offset 1)"
        )
    executions = sorted({place.execution for place in dump.places})
    if executions and executions != list(range(executions[0], executions[-1] + 1)):
        yield f"executions are not in one row: {executions}; each is a step of its own number"


def _fed(dump: AtbDump, path: Path) -> Any:
    """Token ids by step, from the entry that was named or from one whose own name says so."""
    if dump.choice.ids:
        return fed_by(dump, dump.choice.ids, path)
    named = [place for place in dump.places if place.side == "in" and place.param.lower() in _IDS]
    first = min((len(place.ops) for place in named), default=0)
    outer = [place for place in named if len(place.ops) == first and place.when == BEFORE]
    names = {place.name for place in outer}
    if len(names) != 1:
        return {}
    probe = replace(dump, places=outer, tables=[], choice=replace(dump.choice, leave_out=()))
    return fed_by(probe, names.pop(), path)
