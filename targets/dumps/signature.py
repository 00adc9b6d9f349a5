"""What goes into a model and comes out of it: names, shapes and formats, from a sidecar of a headerless dump.

Two forms are read: JSON with `inputs` and `outputs` (each a list of objects with `name`, `shape`, `dtype`,
and `scale`, `zero_point`, `tap` where they are known; the manifest of a compiled artefact is such a file, and
its `artefact_format` goes before `dtype`), and the text that `model_tool --info x.bmodel` prints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .core import ReadOptions, bad, checked_shape, first_bytes, nbytes, read_object, read_text
from .formats import Format, format_of
from .manifests import Fields, facts_of


@dataclass(frozen=True)
class Port:
    """One input or output."""

    name: str
    shape: tuple[int, ...]
    format: Format
    tap: str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in a dump without headers."""
        return nbytes(self.shape, self.format.dtype)


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of one net, in the model's order."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)


def read_signature(path: Path, options: ReadOptions) -> Signature:
    """A sidecar of either form; UserError for what is neither."""
    if first_bytes(path, 4096).lstrip()[:1] == b"{":
        return _from_json(path)
    return _from_text(path, options)


def _from_json(path: Path) -> Signature:
    content = Fields(path, "the sidecar", read_object(path))
    inputs, outputs = (tuple(map(_port, content.objects(side))) for side in ("inputs", "outputs"))
    facts = facts_of(content.content, "chip", "mode", "precision", "toolchain", "versions")
    return Signature(inputs, outputs, facts)


def _port(item: Fields) -> Port:
    name = item.text("name", "") or item.text("mlir", "") or item.text("onnx")
    word = item.text("artefact_format", "") or item.text("dtype", "") or item.text("format", "float32")
    said = item.content
    form = format_of(item.path, repr(name), word, said.get("scale", 1.0), said.get("zero_point", 0))
    return Port(name, item.shape("shape"), form, item.text("tap", "") or None)


_NET = re.compile(r"net \d+: \[(?P<name>.*?)\]")
_STAGE = re.compile(r"stage (?P<number>\d+)")
_PORT = re.compile(
    r"(?P<side>input|output): (?P<name>.+), \[(?P<shape>[\d, ]*)\], (?P<dtype>\w+), "
    r"scale: (?P<scale>[-+.\deE]{1,40}), zero_point: (?P<zero>-?\d{1,12})"
)
_HEAD = re.compile(r"(?P<name>chip|bmodel version): (?P<value>.+)")


def _from_text(path: Path, options: ReadOptions) -> Signature:
    stages: dict[tuple[str, int], dict[str, list[Port]]] = {}
    facts: dict[str, Any] = {}
    net, current = "", None
    for line in map(str.strip, read_text(path).splitlines()):
        if match := _HEAD.fullmatch(line):
            facts[match["name"]] = match["value"]
        elif match := _NET.match(line):
            net = match["name"]
        elif match := _STAGE.match(line):
            current = stages.setdefault((net, int(match["number"][:9])), {"input": [], "output": []})
        elif current is not None and (match := _PORT.fullmatch(line)):
            current[match["side"]].append(_text_port(path, match))
    (net, _), ports = _chosen(path, stages, options)
    return Signature(tuple(ports["input"]), tuple(ports["output"]), {**facts, "net": net})


def _text_port(path: Path, match: re.Match[str]) -> Port:
    sizes = [int(size) for size in match["shape"].split(",") if size.strip() and len(size) < 16]
    shape = checked_shape(sizes, path, repr(match["name"]))
    scale, zero = match["scale"], int(match["zero"])
    try:
        form = format_of(path, repr(match["name"]), match["dtype"], float(scale), zero)
    except ValueError as error:
        raise bad(path, f"{match['name']!r} has the scale {scale!r}, which is no number") from error
    return Port(match["name"], shape, form)


def _chosen(
    path: Path, stages: Mapping[tuple[str, int], Any], options: ReadOptions
) -> tuple[tuple[str, int], Mapping[str, Sequence[Port]]]:
    """The net and stage that were asked for, or the only ones."""
    net, stage = options.text("net", ""), options.number("stage", -1)
    fits = [key for key in stages if (not net or key[0] == net) and (stage < 0 or key[1] == stage)]
    if len(fits) == 1:
        return fits[0], stages[fits[0]]
    if not stages:
        raise bad(
            path, "is neither JSON with inputs and outputs nor the text of `model_tool --info x.bmodel`"
        )
    listed = ", ".join(f"net {name!r} stage {number}" for name, number in list(stages)[:8])
    raise bad(path, f"describes {listed}; say which with net=NAME and stage=N")
