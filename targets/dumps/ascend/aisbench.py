"""Outputs of ais_bench and `msit benchmark`: `{first input's name}_{index}.bin` (or .npy), one set a sample.

A .bin is what `ndarray.tofile` leaves: bytes without type or shape. Both come from a manifest: our own
json, the json of the .om (`atc --mode=1`), or the ONNX file that the .om was made from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from parity.harness.dtypes import as_storage

from ..core import (
    Contents,
    Dumped,
    ReadOptions,
    array_at,
    bad,
    checked_settings,
    checked_shape,
    inside,
    nbytes,
    read_object,
    size_of,
)
from ..npy import npy_array, npy_header
from .atcjson import described_outputs
from .choice import SETTINGS, UNCHECKED, Choice, counted, fed_by
from .dtypes import ONNX, dtype_of_text
from .glance import files_below
from .tree import folders

_FILE = re.compile(r"(?P<base>.+)_(?P<index>\d{1,6})\.(?P<form>bin|npy|txt)")
FAILED = "exception_cb_index_"
FORMAT = "parity-outputs"
_NEEDED = (
    "is raw bytes, and no manifest says their type and shape: give --manifest with the json of the .om "
    "(atc --mode=1), with the ONNX file, or with "
    '{"format": "parity-outputs", "outputs": [{"name": .., "dtype": .., "shape": [..]}]}; or run ais_bench '
    "with --outfmt NPY"
)


@dataclass(frozen=True)
class Said:
    """What a manifest says of one output."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass
class AisDump:
    """A folder of outputs, sample by sample."""

    root: Path
    samples: Mapping[str, list[tuple[int, Path]]]
    said: Sequence[Said]
    choice: Choice

    def __iter__(self) -> Iterator[Dumped]:
        self.choice.used.clear()
        yield from counted(self._entries())
        self.choice.finish(self.root)

    def _entries(self) -> Iterator[Dumped]:
        numbered = enumerate(self.samples.items())
        for number, (sample, files) in self.choice.chosen(numbered, lambda item: item[0], self.root):
            for index, path in files:
                name = self.said[index].name if index < len(self.said) else f"output_{index}"
                if self.choice.wants(name):
                    entry = self._entry(name, index, path)
                    yield replace(entry, step=number, meta={"sample": sample, "file": path.name})

    def _entry(self, name: str, index: int, path: Path) -> Dumped:
        said = self.said[index] if index < len(self.said) else None
        if path.suffix == ".npy":
            header = npy_header(path)
            if said and (header.shape, header.logical) != (said.shape, said.dtype):
                raise bad(path, f"holds {header.logical} {list(header.shape)}, the manifest says {said}")
            return Dumped(name, header.shape, header.logical, partial(npy_array, path))
        if path.suffix == ".txt":
            raise bad(path, "is text, which has lost its number format; run ais_bench with --outfmt NPY")
        if said is None:
            raise bad(path, _NEEDED)
        size, needed = size_of(path), nbytes(said.shape, said.dtype)
        if size != needed:
            raise bad(
                path, f"has {size} bytes; {said.dtype} {list(said.shape)} of the manifest needs {needed}"
            )
        load = partial(array_at, path, 0, said.shape, said.dtype, path.name)
        return Dumped(name, said.shape, said.dtype, load)


class AisbenchReader:
    """`aisbench`: what an .om gave back, sample by sample; each sample is a step."""

    kind = "aisbench"
    summary = "outputs of ais_bench / msit benchmark (.bin with a manifest, or .npy)"
    settings = SETTINGS

    def detects(self, path: Path) -> bool:
        """A folder whose files are named so and that has ais_bench's summary in it or beside it."""
        if not path.is_dir() or _summary(path) is None:
            return False
        return any(_FILE.fullmatch(found.name) for found in files_below(path))

    def read(self, path: Path, options: ReadOptions) -> Contents:
        """Open a folder of outputs."""
        checked_settings(self, options)
        found, failed = _files(path)
        samples, ordered = _in_order(path, found)
        said = [] if options.manifest is None else outputs_of(options.manifest)
        dump = AisDump(path, samples, said, Choice.of(options))
        notes = [] if ordered else ["no summary json: samples are taken in the order of their names"]
        if failed:
            notes.append(f"{failed} inputs failed on the device ({FAILED}...); they have no outputs")
        fed = fed_by(dump, dump.choice.ids, path) if dump.choice.ids else {}
        notes += [] if fed else [UNCHECKED]
        facts = {"samples": list(samples)}
        count = sum(map(len, samples.values())) if not dump.choice.leave_out else None
        return Contents(self.kind, facts, dump, notes=tuple(notes), fed=fed, count=count)


def outputs_of(manifest: Path) -> list[Said]:
    """The outputs that a manifest describes, in order; UserError for one that describes none."""
    if manifest.suffix == ".onnx":
        return list(_of_onnx(manifest))
    content = read_object(manifest)
    if "graph" in content:
        listed: Any = [
            {"name": name, "dtype": word, "shape": shape}
            for name, word, shape in described_outputs(content, manifest)
        ]
    else:
        listed = content.get("outputs")
    if not isinstance(listed, list) or not listed:
        raise bad(manifest, f"has no list `outputs`; a manifest says format {FORMAT!r} and its outputs")
    return [_said(one, at, manifest) for at, one in enumerate(listed)]


def _said(one: Any, at: int, manifest: Path) -> Said:
    if not isinstance(one, dict) or not isinstance(one.get("dtype"), str):
        raise bad(manifest, f"output {at} should be an object with name, dtype and shape")
    name = str(one.get("name") or f"output_{at}")
    shape = checked_shape(one.get("shape"), manifest, name)
    return Said(name, dtype_of_text(one["dtype"], manifest, name), shape)


def _of_onnx(manifest: Path) -> Iterator[Said]:
    from ...ascend.graph import read_graph

    for value in read_graph(manifest.stem, manifest).model.graph.output:
        shape = [size.dim_value for size in value.type.tensor_type.shape.dim]
        if not all(shape):
            raise bad(manifest, f"the output {value.name!r} has open dimensions; give the json of the .om")
        dtype = ONNX.logical(value.type.tensor_type.elem_type, manifest, value.name)
        yield Said(value.name, dtype, checked_shape(shape, manifest, value.name))


def _files(root: Path) -> tuple[dict[str, list[tuple[int, Path]]], int]:
    """Base name -> (index, file) in order of index; and how many inputs failed."""
    if not root.is_dir():
        raise bad(root, "is no folder; ais_bench writes one file per output into a folder")
    found: dict[str, list[tuple[int, Path]]] = {}
    failed = 0
    for folder, names in folders(root):
        for name in names:
            match = _FILE.fullmatch(name)
            if name.startswith(FAILED):
                failed += 1
            elif match is not None:
                path = inside(root, (folder / name).relative_to(root))
                found.setdefault(match["base"], []).append((int(match["index"]), path))
    if not found:
        raise bad(root, "holds no file {name}_{index}.bin or .npy")
    for base, files in found.items():
        files.sort()
        if [index for index, _ in files] != list(range(len(files))):
            raise bad(
                root, f"the sample {base!r} has outputs {[i for i, _ in files]}; some are missing or double"
            )
    return found, failed


def _summary(root: Path) -> Path | None:
    """`{dir}_summary.json` in the folder or beside it, or `sumary.json` of older versions."""
    for path in (root.with_name(f"{root.name}_summary.json"), root / "sumary.json", root / "summary.json"):
        if path.is_file():
            return path
    return next(iter(sorted(root.glob("*_summary.json"))), None)


def _in_order(
    root: Path, found: dict[str, list[tuple[int, Path]]]
) -> tuple[dict[str, list[tuple[int, Path]]], bool]:
    """Samples in the order in which they ran, and whether the summary says it."""
    summary = _summary(root)
    files = read_object(summary).get("filesinfo") if summary else None
    if summary is None or not isinstance(files, dict):
        return dict(sorted(found.items(), key=lambda item: _natural(item[0]))), False
    bases: list[str] = []
    for sample in files.values():
        outputs = sample.get("outfiles") if isinstance(sample, dict) else None
        if not isinstance(outputs, list) or not outputs or not isinstance(outputs[0], str):
            raise bad(summary, "has a sample without a list of outfiles")
        match = _FILE.fullmatch(outputs[0].rpartition("/")[2])
        bases.append(match["base"] if match else outputs[0])
    if sorted(bases) != sorted(found):
        missing = sorted(set(bases) ^ set(found))
        raise bad(
            summary,
            f"and the files disagree on the samples, first on {missing[0] if missing else bases[0]!r}",
        )
    return {base: found[base] for base in bases}, True


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,18})", text)]


def write_aisbench(
    folder: Path, samples: Mapping[str, Sequence[np.ndarray]], *, form: str = "bin", summary: bool = True
) -> None:
    """A folder like ais_bench's, for tests and round trips."""
    folder.mkdir(parents=True, exist_ok=True)
    said: dict[str, Any] = {}
    for number, (base, outputs) in enumerate(samples.items()):
        paths = [folder / f"{base}_{at}.{form}" for at in range(len(outputs))]
        said[str(number)] = {"infiles": [f"{base}.bin"], "outfiles": [str(path) for path in paths]}
        for path, array in zip(paths, outputs, strict=True):
            if form == "npy":
                np.save(path, array)
            else:
                as_storage(np.ascontiguousarray(array))[0].tofile(path)
    if summary:
        text = json.dumps({"filesinfo": said, "throughput": 1.0})
        folder.with_name(f"{folder.name}_summary.json").write_text(text)


def write_manifest(path: Path, outputs: Sequence[tuple[str, np.ndarray]]) -> None:
    """The manifest of a folder's outputs."""
    listed = [{"name": n, "dtype": as_storage(a)[1], "shape": list(a.shape)} for n, a in outputs]
    path.write_text(json.dumps({"format": FORMAT, "outputs": listed}))
