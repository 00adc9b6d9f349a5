"""The .npz that the CVI board's `model_runner` writes.

Keys are tensor names of the compiled model. FP32 is float32, BF16 its raw bits in uint16, INT8 and UINT8 are
raw without their scale; types and scales stand in a sidecar, one of

    P_tensor_info.txt    beside the model after compiling (no model inputs in it)
    info.txt             `model_tool --info P.cvimodel > info.txt` (inputs too)
    manifest.json        of the compiled artefact (`tensors`: mlir, format, scale, zero_point, tap, shape)

Both texts give scales with six decimals. Shapes have always four dimensions: the first three, then the
product of the rest, 1 where there are fewer; the manifest's shape, or else the reference's, undoes that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from parity.harness.dtypes import as_logical, as_storage, storage_dtype

from .core import (
    Contents,
    Dumped,
    ReadOptions,
    bad,
    checked_settings,
    first_bytes,
    inside,
    read_object,
    read_text,
)
from .formats import Format, Where, dumped, format_of
from .manifests import Fields, facts_of
from .zips import Npz, looks_like_npz, write_npz

#: What an entry's meta says of its shape; undone where the reference's shape is known.
FOUR_DIMENSIONS = "cvi 4-D"
_INFO = "_tensor_info.txt"


class CviReader:
    """`cvi-npz`: one .npz of the board's runner, with its sidecar beside it."""

    kind = "cvi-npz"
    summary = "the CVI board's model_runner .npz, types and scales from P_tensor_info.txt"
    settings: Mapping[str, str] = {}

    def detects(self, path: Path) -> bool:
        """An .npz that lies beside a tensor_info text."""
        return looks_like_npz(path) and bool(sidecars(path))

    def read(self, path: Path, options: ReadOptions) -> Contents:
        """Every array, in the order of the file."""
        checked_settings(self, options)
        sidecar = options.manifest or _sidecar(path)
        table = read_table(sidecar)
        npz = Npz(path)
        entries = [_entry(npz, key, table, sidecar) for key in npz.names]
        rounded = sidecar.suffix == ".txt" and any("dequantized" in entry.meta for entry in entries)
        notes = (f"scales were read from {sidecar.name}, which gives six decimals",) if rounded else ()
        return Contents(self.kind, table.facts, entries, notes=notes, count=len(entries))


def sidecars(path: Path) -> list[Path]:
    """Tensor_info texts that may describe an .npz: the one named like it, else all beside it."""
    own = path.with_name(path.stem + _INFO)
    return [own] if own.is_file() else sorted(path.parent.glob("*" + _INFO))


def _sidecar(path: Path) -> Path:
    found = sidecars(path)
    if len(found) != 1:
        said = f"{len(found)} files {_INFO} lie beside it" if found else f"no {_INFO} lies beside it"
        raise bad(path, f"{said}, and without one nobody knows which integers are bf16 bits, and which have "
                  "a scale; copy the model's beside it, or name it with --manifest")  # fmt: skip
    return inside(path.parent, found[0].name)


@dataclass(frozen=True)
class Table:
    """What a sidecar knows: format, tap and unpadded shape by tensor name."""

    formats: Mapping[str, Format]
    facts: Mapping[str, Any]
    taps: Mapping[str, str] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def read_table(path: Path) -> Table:
    """A sidecar of one of the three forms; UserError for what is none."""
    if first_bytes(path, 4096).lstrip()[:1] == b"{":
        return _from_manifest(path)
    text = read_text(path)
    table = _from_model_tool(path, text) if "tensor_map" in text else _from_tensor_info(path, text)
    if not table.formats:
        raise bad(path, f"is neither a {_INFO} nor what `model_tool --info` prints of a .cvimodel")
    return table


_ROW = re.compile(r"\d+ (?P<name>.+) (?:true|false) (?:true|false) (?:\S+ ){4}(?P<type>\S+) (?P<scale>\S+)")


def _from_tensor_info(path: Path, text: str) -> Table:
    formats: dict[str, Format] = {}
    for line in text.splitlines():
        match = _ROW.fullmatch(line.strip())
        if match is not None and match["type"] != "x":
            _add(path, formats, match["name"], match["type"], match["scale"])
    return Table(formats, {})


_TENSOR = re.compile(
    r"\d{3,} +-?\d+ +(?P<type>bf16|fp32|int8|uint8|int16|uint16|int32|uint32) *\d+ +\d+ +\d+ +\d+ +"
    r"(?P<scale>\S+) +(?P<memory>io_mem|shared|private|\S+) +(?P<name>.+)"
)


def _from_model_tool(path: Path, text: str) -> Table:
    formats: dict[str, Format] = {}
    inputs: list[str] = []
    chip = re.search(r"^For (\w+) chip ONLY", text, re.M)
    for line in map(str.strip, text.partition("Program #")[2].splitlines()):
        if line.startswith("inputs") and not inputs:
            inputs = line.partition(":")[2].strip().split(",")
        elif (match := _TENSOR.fullmatch(line)) is not None:
            _add(path, formats, match["name"], match["type"], match["scale"])
    for name in inputs:
        if name in formats:
            formats[name] = replace(formats[name], inverse=True)
    return Table(formats, {"chip": chip[1]} if chip else {})


def _from_manifest(path: Path) -> Table:
    manifest = Fields(path, "the manifest", read_object(path))
    formats, taps, shapes = {}, {}, {}
    for item in manifest.objects("tensors"):
        if item.text("status", "present") != "present":
            continue
        name, said = item.text("mlir", "") or item.text("name"), item.content
        formats[name] = format_of(
            path, repr(name), item.text("format"), said.get("scale") or 1.0, said.get("zero_point") or 0
        )
        if tap := item.text("tap", ""):
            taps[name] = tap
        if said.get("shape") is not None:
            shapes[name] = item.shape("shape")
    facts = facts_of(manifest.content, "chip", "mode", "precision", "toolchain", "versions")
    return Table(formats, facts, taps, shapes)


def _add(path: Path, formats: dict[str, Format], name: str, word: str, scale: str) -> None:
    """One more row; a name may stand in several, but always as the same."""
    try:
        form = format_of(path, repr(name), word, float(scale))
    except ValueError as error:
        raise bad(path, f"{name!r} has the scale {scale[:40]!r}, which is no number") from error
    if formats.setdefault(name, form) != form:
        raise bad(path, f"gives {name!r} two formats; is it of two models?")


def _entry(npz: Npz, key: str, table: Table, sidecar: Path) -> Dumped:
    header, form = npz.header(key), table.formats.get(key)
    shape, meta = _shape(npz, key, table, sidecar)
    if header.logical == "float32":
        said = {} if form is None or form.dtype == "float32" else {"stored as": form.dtype}
        where = Where(tap=table.taps.get(key), meta={**meta, **said})
        return dumped(key, shape, Format("float32"), partial(_stored, npz, key, "float32", shape), where)
    if form is None:
        raise bad(
            npz.path,
            f"{key!r} holds {header.logical}, and {sidecar.name} does not say what they are; give the text "
            "of `model_tool --info P.cvimodel` with --manifest, which knows inputs too",
        )
    if storage_dtype(form.dtype) != storage_dtype(header.logical):
        raise bad(
            npz.path,
            f"{key!r} holds {header.logical}, but {sidecar.name} says {form.dtype}: it is of another model",
        )
    where = Where(tap=table.taps.get(key), meta=meta)
    return dumped(key, shape, form, partial(_stored, npz, key, form.dtype, shape), where)


def _shape(npz: Npz, key: str, table: Table, sidecar: Path) -> tuple[tuple[int, ...], dict[str, Any]]:
    """The shape that the sidecar knows, or the padded one; and what the record says of it."""
    padded, known = npz.header(key).shape, table.shapes.get(key)
    if known is None or known == padded:
        return padded, {"layout": FOUR_DIMENSIONS} if len(padded) == 4 and known is None else {}
    if math.prod(known) != math.prod(padded):
        raise bad(
            npz.path,
            f"{key!r} has shape {list(padded)}, but {sidecar.name} says {list(known)}: of another model",
        )
    return known, {"padding undone": list(padded)}


def _stored(npz: Npz, key: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    return as_logical(as_storage(npz.array(key))[0], dtype).reshape(shape)


def four_dimensions(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that the runtime gives a tensor: n, c, h as they are, w the product of the rest."""
    head = (*shape, 1, 1, 1, 1)[:3]
    return (*head, int(np.prod(shape[3:], dtype=np.int64)))


_TITLE = "layer_id, tensor_name, inGroup, ignore, gaddr, g_shape, lg_idx_slice, laddr, qtype, qscale. "


def write(path: Path, arrays: Mapping[str, np.ndarray], scales: Mapping[str, float]) -> None:
    """Write an .npz and its sidecar as compiler and board do; arrays are stored ones (bf16, int8, fp32)."""
    words = {"bfloat16": "bf16", "float32": "fp32"}
    stored: dict[str, np.ndarray] = {}
    rows = [f"Cmdbuf1: {_TITLE}"]
    for number, (name, array) in enumerate(arrays.items()):
        bits, dtype = as_storage(array)
        shape = four_dimensions(array.shape)
        stored[name] = bits.reshape(shape)
        sizes = ",".join(map(str, shape))
        scale = scales.get(name, 1.0)
        rows.append(f"{number} {name} false false 0 {sizes} x x {words.get(dtype, dtype)} {scale:.6f}")
    write_npz(path, stored)
    path.with_name(path.stem + _INFO).write_text("\n".join([*rows, ""]))
