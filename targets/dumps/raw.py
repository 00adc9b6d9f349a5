"""Files of raw bytes, .npy or .npz, described by one JSON manifest: the form for whatever has no reader.

    {"format": "parity-raw", "version": 1,
     "chip": "...", "versions": {...}, "precision": "...", "model": "...", "weights": "...",
     "tokens": [[1, 2, 3]],                 the prompt's ids, one list per sequence
     "fed": {"0": [[1, 2, 3]], "1": [[7]]}, the ids that each step was fed
     "tensors": [                           in execution order
       {"name": "layer0.q", "file": "q.bin", "offset": 0, "dtype": "bfloat16", "shape": [1, 2, 1, 64],
        "step": 0, "call": 0, "axes": "b h t d", "positions": [[5]], "tap": "layer0.q",
        "scale": 0.05, "zero_point": 3}],
     "unused": [{"file": "q.bin", "offset": 256, "length": 64}]}

Needed of a tensor: `name` and `file`, and for raw bytes `dtype` and `shape`. A file that ends in .npy holds
one array; a file in a .npz is `"file": "x.npz", "member": "name"`; with those, `dtype` names the format
whose bits they are, and `shape` undoes a padding. Raw bytes are little endian, and each byte of a file must
belong to a tensor or stand in `unused`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from parity.harness.dtypes import as_logical, as_storage, storage_dtype

from .core import (
    Contents,
    Dumped,
    ReadOptions,
    array_at,
    bad,
    checked_settings,
    checked_shape,
    first_bytes,
    inside,
    nbytes,
    read_object,
    size_of,
)
from .formats import Format, dumped, format_of
from .manifests import Fields, facts_of
from .npy import Header, npy_array, npy_header
from .zips import Archives

FORMAT = "parity-raw"
VERSION = 1
FACTS = ("chip", "versions", "precision", "model", "weights", "scenario")


class RawReader:
    """`raw`: a manifest and the files that it names; give the folder or the manifest."""

    kind = "raw"
    summary = "raw bytes, .npy or .npz described by a manifest of your own (JSON, format parity-raw)"
    settings: Mapping[str, str] = {}

    def detects(self, path: Path) -> bool:
        """A manifest of ours, or a folder with one."""
        file = path / "manifest.json" if path.is_dir() else path
        return file.suffix == ".json" and f'"{FORMAT}"'.encode() in first_bytes(file, 4096)

    def read(self, path: Path, options: ReadOptions) -> Contents:
        """Every tensor of the manifest, in its order."""
        checked_settings(self, options)
        file = options.manifest or (inside(path, "manifest.json") if path.is_dir() else path)
        manifest = Fields(file, "the manifest", read_object(file))
        check_head(manifest)
        folder = path if path.is_dir() else path.parent
        tensors = [_Tensor(folder, fields) for fields in manifest.objects("tensors")]
        _check_covered(folder, tensors, manifest)
        fed = _fed(manifest)
        return Contents(
            self.kind,
            facts_of(manifest.content, *FACTS),
            _entries(tensors),
            tokens=manifest.tokens("tokens"),
            fed=fed,
            count=len(tensors),
        )


def check_head(manifest: Fields) -> None:
    """UserError for another format or a later version."""
    if manifest.text("format") != FORMAT or manifest.count("version") != VERSION:
        said = f"{manifest.text('format')!r} version {manifest.count('version')}"
        raise bad(manifest.path, f"is {said}, but should be {FORMAT!r} version {VERSION}")


def _fed(manifest: Fields) -> dict[int, np.ndarray]:
    """Ids by step."""
    fields = Fields(manifest.path, "fed", manifest.take("fed", dict, {}))
    found = {}
    for step in fields.content:
        if not (step.isascii() and step.isdigit() and len(step) < 16):
            raise bad(manifest.path, f"fed has {step[:40]!r} where a step is expected")
        tokens = fields.tokens(step)
        if tokens is not None:
            found[int(step)] = tokens
    return found


class _Tensor:
    """One line of the manifest, before anything of its file is read."""

    def __init__(self, folder: Path, fields: Fields) -> None:
        self.fields = fields
        self.name = fields.text("name")
        fields.what = f"tensor {self.name!r}"
        self.file = inside(folder, fields.text("file"))
        self.member = fields.text("member", "") or None
        self.offset = fields.count("offset", 0)
        self.kind = self.file.suffix if self.file.suffix in (".npy", ".npz") else "raw"
        if self.kind == ".npz" and self.member is None:
            raise bad(fields.path, f"{fields.what} lacks 'member', the array's name inside {self.file.name}")
        if self.kind == "raw":
            self.format = self._format(fields.text("dtype"))
            self.shape = fields.shape("shape")

    def _format(self, word: str) -> Format:
        said = self.fields.content
        return format_of(
            self.fields.path, self.fields.what, word, said.get("scale", 1.0), said.get("zero_point", 0)
        )

    @property
    def stop(self) -> int:
        """Where the bytes of a raw tensor end."""
        return self.offset + nbytes(self.shape, self.format.dtype)

    def entry(self, archives: Archives) -> Dumped:
        """The tensor, its header checked where it has one."""
        if self.kind == "raw":
            load = partial(array_at, self.file, self.offset, self.shape, self.format.dtype, self.fields.what)
            return dumped(self.name, self.shape, self.format, load, self.fields.where(self.shape))
        header = npy_header(self.file) if self.member is None else archives.get(self.file).header(self.member)
        form = self._format(self.fields.text("dtype", header.logical))
        shape = self._reshaped(header)
        if storage_dtype(form.dtype) != storage_dtype(header.logical):
            raise bad(
                self.file, f"{self.fields.what} is {header.logical}, which are not bits of {form.dtype}"
            )
        load = partial(self._array, archives, form.dtype, shape)
        where = self.fields.where(shape)
        return dumped(self.name, shape, form, load, where)

    def _reshaped(self, header: Header) -> tuple[int, ...]:
        shape = checked_shape(
            self.fields.take("shape", list, list(header.shape)), self.fields.path, self.fields.what
        )
        if math.prod(shape) != math.prod(header.shape):
            raise bad(self.file, f"{self.fields.what} has shape {list(header.shape)}, not {list(shape)}")
        return shape

    def _array(self, archives: Archives, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        found = npy_array(self.file) if self.member is None else archives.get(self.file).array(self.member)
        return as_logical(as_storage(found)[0], dtype).reshape(shape)


def _check_covered(folder: Path, tensors: Sequence[_Tensor], manifest: Fields) -> None:
    """Every byte of every raw file belongs to one tensor, or is said to be unused."""
    spans: dict[Path, list[tuple[int, int, str]]] = {}
    for tensor in tensors:
        if tensor.kind == "raw":
            spans.setdefault(tensor.file, []).append((tensor.offset, tensor.stop, tensor.fields.what))
    for item in manifest.objects("unused") if "unused" in manifest.content else ():
        start = item.count("offset")
        span = (start, start + item.count("length"), "an unused part")
        spans.setdefault(inside(folder, item.text("file")), []).append(span)
    for file, parts in spans.items():
        check_spans(file, parts, size_of(file))


def check_spans(path: Path, spans: Sequence[tuple[int, int, str]], size: int) -> None:
    """UserError unless (start, stop, what) lie one behind the other from 0 to the file's end."""
    end, before = 0, "the file's start"
    for start, stop, what in sorted(spans):
        if stop > size:
            raise bad(path, f"{what} needs bytes {start}..{stop}, but the file has {size}; it is cut short")
        if start != end:
            fault = "overlap" if start < end else "leave bytes between them that nothing describes"
            raise bad(path, f"{before} and {what} {fault} (byte {end} and byte {start})")
        end, before = stop, what
    if end != size:
        raise bad(
            path, f"goes on for {size - end} bytes behind {before}: two dumps were written into one file"
        )


def _entries(tensors: Sequence[_Tensor]) -> Iterator[Dumped]:
    archives = Archives()
    for tensor in tensors:
        yield tensor.entry(archives)


def write(folder: Path, tensors: Sequence[tuple[dict[str, Any], np.ndarray]], **manifest: Any) -> None:
    """Write raw files and their manifest; each tensor is its fields (a name, a file) and the stored array."""
    folder.mkdir(parents=True, exist_ok=True)
    ends: dict[str, int] = {}
    listed = []
    for fields, array in tensors:
        bits, dtype = as_storage(array)
        file = fields.get("file", "tensors.bin")
        raw = bits.astype(bits.dtype.newbyteorder("<")).tobytes()
        with (folder / file).open("ab" if file in ends else "wb") as stream:
            stream.write(raw)
        said = {"file": file, "offset": ends.get(file, 0), "dtype": dtype, "shape": list(array.shape)}
        listed.append({**said, **fields})
        ends[file] = ends.get(file, 0) + len(raw)
    content = {"format": FORMAT, "version": VERSION, **manifest, "tensors": listed}
    (folder / "manifest.json").write_text(json.dumps(content))
