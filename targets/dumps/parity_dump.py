"""Our own dump: what the board's runner writes.

    manifest.json     format "parity-dump", version 1: chip, runtime, complete, models, scenario, arithmetic,
                      steps: index, tokens, positions, file, and its records in execution order
    step_000000.npz   stored zip of .npy, key -> stored numbers (bfloat16 as its bits in uint16)

A record says its tap, segment, tensor, role, call, axes, positions, format, scale, zero point and logical
shape; the array may be padded to four dimensions but has as many elements.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from parity.harness.dtypes import as_logical, as_storage, storage_dtype

from .core import Contents, Dumped, ReadOptions, bad, checked_settings, first_bytes, inside, read_object
from .formats import Format, dumped, format_of
from .manifests import Fields, facts_of
from .zips import Archives, write_npz

MANIFEST = "manifest.json"
FORMAT = "parity-dump"
VERSION = 1


class ParityReader:
    """`parity`: a folder that our runner wrote."""

    kind = "parity"
    summary = "our own dump folder: manifest.json and step_NNNNNN.npz"
    settings: Mapping[str, str] = {}

    def detects(self, path: Path) -> bool:
        """A folder with our manifest, or with step files whose manifest is gone."""
        if not path.is_dir():
            return False
        if (path / MANIFEST).is_file():
            return f'"{FORMAT}"'.encode() in first_bytes(path / MANIFEST, 4096)
        return (path / "step_000000.npz").is_file()

    def read(self, path: Path, options: ReadOptions) -> Contents:
        """All records of all steps."""
        checked_settings(self, options)
        if not (path / MANIFEST).is_file():
            raise bad(path, f"has no {MANIFEST}: the runner did not come to its end, or it was not fetched")
        manifest = _manifest(inside(path, MANIFEST))
        steps = [_Step.of(path, fields) for fields in manifest.objects("steps")]
        _check_files(path, steps)
        fed = {step.index: step.tokens for step in steps if step.tokens is not None}
        complete: bool = manifest.take("complete", bool, False)
        return Contents(
            self.kind,
            {
                **facts_of(manifest.content, "chip", "models", "arithmetic", "scenario", "provenance"),
                "versions": manifest.take("runtime", dict, {}),
                "complete": complete,
            },
            _entries(steps),
            tokens=_prompt(manifest, fed),
            notes=() if complete else ("the runner was stopped before its end; later steps are missing",),
            fed=fed,
            count=sum(len(step.records) for step in steps),
        )


def _prompt(manifest: Fields, fed: Mapping[int, np.ndarray]) -> np.ndarray | None:
    """Ids of the prompt: what step 0 was fed, else the scenario's; None for prompts of many lengths."""
    if 0 in fed:
        return fed[0]
    scenario = manifest.take("scenario", dict, {})
    found = scenario.get("tokens", scenario.get("ids"))
    if not isinstance(found, list) or len({len(row) for row in found if isinstance(row, list)}) != 1:
        return None
    return Fields(manifest.path, "the scenario", {"tokens": found}).tokens("tokens")


def _manifest(path: Path) -> Fields:
    manifest = Fields(path, "the manifest", read_object(path))
    if manifest.text("format") != FORMAT:
        raise bad(path, f"has format {manifest.text('format')!r}, but should have {FORMAT!r}")
    if manifest.count("version") != VERSION:
        raise bad(
            path, f"has version {manifest.count('version')}, but this parity reads {VERSION}; update it"
        )
    return manifest


@dataclass(frozen=True)
class _Step:
    """One step of the manifest."""

    index: int
    tokens: np.ndarray | None
    positions: np.ndarray | None
    file: Path
    records: list[Fields]

    @classmethod
    def of(cls, folder: Path, fields: Fields) -> _Step:
        records = fields.objects("records")
        for place, record in enumerate(records):
            record.what = f"step {fields.count('index')}, record {place}"
        return cls(
            fields.count("index"),
            fields.tokens("tokens"),
            fields.tokens("positions"),
            inside(folder, fields.text("file")),
            records,
        )


def _check_files(folder: Path, steps: Sequence[_Step]) -> None:
    """Every step once, every file once, and no file that the manifest does not know."""
    for seen in ([f"step {step.index}" for step in steps], [step.file.name for step in steps]):
        twice = [name for name, times in Counter(seen).items() if times > 1]
        if twice:
            raise bad(folder, f"{twice[0]} stands twice in its manifest; dump into an empty folder")
    lost = [step.file.name for step in steps if not step.file.is_file()]
    if lost:
        raise bad(folder, f"lacks {lost[0]}, which its manifest names; was it fetched whole?")
    known = {step.file.name for step in steps}
    others = sorted(item.name for item in folder.glob("step_*.npz") if item.name not in known)
    if others:
        raise bad(
            folder,
            f"holds {others[0]}, which its manifest does not know: two dumps lie in one folder; dump into an "
            "empty one",
        )


def _entries(steps: Sequence[_Step]) -> Iterator[Dumped]:
    archives = Archives()
    for step in steps:
        unread = set(archives.get(step.file).names)
        for record in step.records:
            yield _entry(step, record, archives)
            unread.discard(record.text("key"))
        if unread:
            raise bad(
                step.file,
                f"holds {min(unread)!r}, which the manifest does not know: two dumps lie in one file",
            )


def _entry(step: _Step, record: Fields, archives: Archives) -> Dumped:
    key, shape, npz = record.text("key"), record.shape("shape"), archives.get(step.file)
    form = format_of(
        record.path,
        record.what,
        record.text("format"),
        record.content.get("scale", 1.0),
        record.content.get("zero_point", 0),
    )
    if record.text("role", "output") == "input":
        form = Format(form.dtype, form.scale, form.zero_point, inverse=True)
    header = npz.header(key)
    if math.prod(header.shape) != math.prod(shape) or header.dtype != storage_dtype(form.dtype):
        raise bad(
            step.file,
            f"{key!r} is {header.dtype} {list(header.shape)}, but the manifest says {form.dtype} "
            f"{list(shape)}; the file belongs to another dump",
        )
    where = record.where(shape, step=step.index)
    segment, tensor = record.text("segment", ""), record.text("tensor", key)
    name = f"{segment}/{tensor}" if segment else tensor
    said = facts_of(record.content, "segment", "tensor", "role")
    padded = {"padding undone": list(header.shape)} if header.shape != shape else {}
    load = partial(_load, archives, step.file, key, form.dtype, shape)
    found = dumped(name, shape, form, load, where)
    return Dumped(**{**vars(found), "meta": {**said, **padded, **found.meta}})


def _load(archives: Archives, file: Path, key: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    return as_logical(archives.get(file).array(key), dtype).reshape(shape)


def write(folder: Path, steps: Sequence[Mapping[str, Any]], **manifest: Any) -> None:
    """Write a dump: each step has `index`, `tokens`, `positions` and `records`, each record an `array`.

    What a record leaves out is filled in: key, format, shape, and scale 1 with zero point 0.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for step in steps:
        file = f"step_{step['index']:06d}.npz"
        arrays: dict[str, np.ndarray] = {}
        records = [_written(place, record, arrays) for place, record in enumerate(step["records"])]
        write_npz(folder / file, arrays)
        listed.append({"tokens": None, "positions": None, **step, "file": file, "records": records})
    head = {"format": FORMAT, "version": VERSION, "chip": "cv181x", "runtime": {}, "complete": True}
    content = {**head, "models": {}, "scenario": None, "arithmetic": {}, **manifest, "steps": listed}
    (folder / MANIFEST).write_text(json.dumps(content))


def _written(place: int, record: Mapping[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    array = record["array"]
    bits, dtype = as_storage(array)
    key = f"{place:04d}"
    arrays[key] = bits
    said = {name: value for name, value in record.items() if name != "array"}
    filled = {"key": key, "format": dtype, "scale": 1.0, "zero_point": 0, "shape": list(array.shape)}
    return {"segment": "", "tensor": said.get("tap", key), "role": "output", "call": 0, **filled, **said}
