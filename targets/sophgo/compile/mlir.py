"""Reads the compiler's graphs as text: which operators there are, their names, shapes and number formats.

The text carries one operator per line and its name as a location: `%4 = "tpu.Add"(%3, %2) {...} : (types) ->
type loc(#loc7)`, and `#loc7 = loc("y_Add")` elsewhere. A group spans lines and ends with `}) {...} : ...`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LOC = re.compile(r'^#loc(\d*) = loc\("((?:[^"\\]|\\.)*)"')
_FUSED = re.compile(r"^#loc(\d*) = loc\(fused(?:<[^>]*>)?\[(.*)\]\)")
_OPENS = re.compile(r'^\s*(?:%(\w+(?:, %\w+)*)(?::\d+)? = )?"(\w+)\.(\w+)"\(([^)]*)\)')
_RETURN = re.compile(r"^\s*(?:func\.)?return ([^:]+) : ")
_LAST_LOC = re.compile(r'loc\((?:#loc(\d*)|"((?:[^"\\]|\\.)*)")\)\s*$')
_RESULTS = re.compile(r" -> (\(.*\)|.*?) loc\(")
_ESCAPE = re.compile(r"\\([0-9A-Fa-f]{2}|[\\\"nt])")
_MODULE = re.compile(r'module\.(\w+) = (?:"([^"]*)"|\[([^\]]*)\]|([\w.-]+))')
_QUANT = re.compile(r"!quant\.uniform<([iu]\d+)(?:<[^>]*>)?:(\w+)(?::\d+)?, (.*)>$")
_FORMATS = {
    "i8": "int8", "u8": "uint8", "si8": "int8", "ui8": "uint8", "i4": "int4", "u4": "uint4",
    "si16": "int16", "ui16": "uint16", "i16": "int16", "si32": "int32", "ui32": "uint32", "i32": "int32",
}  # fmt: skip


@dataclass(frozen=True)
class Format:
    """What numbers are: `bf16`, `f16`, `f32`, `int8` ...; integers that stand for reals have a scale."""

    name: str
    shape: tuple[int, ...] | None
    scale: float | None = None
    zero_point: int = 0


@dataclass(frozen=True)
class Op:
    """One operator: `kind` as in `tpu.Add`, a name and a format per result, names of what it reads.

    `attributes` is the rest of its line.
    """

    kind: str
    names: tuple[str, ...]
    formats: tuple[Format, ...]
    operands: tuple[str, ...]
    attributes: str

    @property
    def name(self) -> str:
        """Of its first result."""
        return self.names[0]


@dataclass(frozen=True)
class Graph:
    """The operators in the order of the text, what `main` returns, and what the module says of itself."""

    ops: tuple[Op, ...]
    returns: tuple[str, ...]
    facts: dict[str, str]

    def list_of(self, key: str) -> tuple[str, ...]:
        """A list among the facts: `inputs`, `outputs`; empty if there is none."""
        return tuple(unescape(name) for name in re.findall(r'"((?:[^"\\]|\\.)*)"', self.facts.get(key, "")))


def read_graph(path: Path) -> Graph:
    """Read a graph's file."""
    return parse_graph(path.read_text(encoding="utf-8", errors="replace"))


def parse_graph(text: str) -> Graph:
    """Read a graph's text."""
    lines = text.splitlines()
    names = _locations(lines)
    values: dict[str, tuple[str, ...]] = {}
    returns: list[tuple[str, ...]] = []
    ops = tuple(_ops(lines, names, values, returns))
    return Graph(ops, returns[0] if returns else (), _facts(lines))


def unescape(text: str) -> str:
    """A string as the text writes it -> the string."""
    plain = {"n": "\n", "t": "\t"}
    return _ESCAPE.sub(
        lambda m: chr(int(m[1], 16)) if len(m[1]) == 2 else plain.get(m[1], m[1]),
        text,
    )


def _locations(lines: list[str]) -> dict[str, tuple[str, ...]]:
    """Number of a location -> the names that it holds, one per result."""
    single: dict[str, tuple[str, ...]] = {m[1]: (unescape(m[2]),) for m in map(_LOC.match, lines) if m}
    fused = {m[1]: m[2] for m in map(_FUSED.match, lines) if m}
    for number, parts in fused.items():
        held = re.findall(r'#loc(\d+)|"((?:[^"\\]|\\.)*)"', parts)
        single[number] = tuple(single[ref][0] if ref in single else unescape(name) for ref, name in held)
    return single


def _facts(lines: list[str]) -> dict[str, str]:
    heads = (line for line in lines if line.lstrip().startswith("module @"))
    return {m[1]: m[2] or m[3] or m[4] or "" for line in heads for m in _MODULE.finditer(line)}


def _ops(
    lines: list[str],
    names: dict[str, tuple[str, ...]],
    values: dict[str, tuple[str, ...]],
    returns: list[tuple[str, ...]],
) -> Iterator[Op]:
    """Operators in order. `values` follows which value bears which names, `returns` gathers per function."""
    open_groups: list[re.Match[str]] = []
    for line in lines:
        if "func.func @" in line:
            values.clear()
            values.update(_arguments(line))
        elif returned := _RETURN.match(line):
            returns.append(tuple(_value(word.strip(), values) for word in returned[1].split(",")))
        opens = _OPENS.match(line)
        if opens and line.rstrip().endswith("({"):
            open_groups.append(opens)
            continue
        if not opens and open_groups and line.lstrip().startswith("})"):
            opens = open_groups.pop()
        if opens and (op := _op(opens, line, names, values)):
            yield op


def _arguments(line: str) -> dict[str, tuple[str, ...]]:
    return {m[1]: (unescape(m[2]),) for m in re.finditer(r'%(\w+): [^%]*?loc\("((?:[^"\\]|\\.)*)"\)', line)}


def _op(
    opens: re.Match[str], line: str, names: dict[str, tuple[str, ...]], values: dict[str, tuple[str, ...]]
) -> Op | None:
    """The operator of a line; None for what yields nothing."""
    result, dialect, kind, operands = opens.groups()
    told = _names(line, names)
    formats = _formats(line)
    if result is None or not formats:
        return None
    if told:
        values |= _bound(result, told)
    reads = tuple(_value(word.strip(), values) for word in operands.split(",") if word.strip())
    attributes = line[opens.end() :] if opens.string == line else line
    return Op(f"{dialect}.{kind}", told, formats, tuple(filter(None, reads)), attributes) if told else None


def _bound(result: str, told: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """`%4:2` holds all names under one value; `%values, %indices` one each, the last maybe none."""
    results = result.split(", %")
    if len(results) == 1:
        return {result: told}
    return {one: (name,) for one, name in zip(results, told, strict=False)}


def _names(line: str, names: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    last = _LAST_LOC.search(line)
    if last is None:
        return ()
    return (unescape(last[2]),) if last[2] is not None else names.get(last[1], ())


def _value(word: str, values: dict[str, tuple[str, ...]]) -> str:
    """`%12#3` -> the name of that result; empty for what has none."""
    name, _, at = word.removeprefix("%").partition("#")
    held = values.get(name, ())
    number = int(at) if at else 0
    return held[number] if number < len(held) else ""


def _formats(line: str) -> tuple[Format, ...]:
    """The formats of the results; a result that is no tensor has none."""
    results = _RESULTS.findall(line)
    return tuple(map(_format, _tensors(results[-1]))) if results else ()


def _tensors(text: str) -> Iterator[str]:
    """What stands between the angle brackets of each `tensor<...>`, which may hold brackets itself."""
    at = text.find("tensor<")
    while at >= 0:
        depth, start = 1, at + len("tensor<")
        end = start
        while depth and end < len(text):
            depth += {"<": 1, ">": -1}.get(text[end], 0)
            end += 1
        yield text[start : end - 1]
        at = text.find("tensor<", end)


def _format(body: str) -> Format:
    """`1x8x!quant.uniform<i8:f32, 0.1:3>, 4096 : i64` -> int8 with scale 0.1, zero point 3."""
    sizes = re.match(r"(?:\d+x)*", body)
    assert sizes is not None
    shape = None if body.startswith("*") else tuple(int(size) for size in sizes[0].split("x") if size)
    element = body[sizes.end() :] if shape is not None else body.removeprefix("*x")
    if quant := _QUANT.match(_element(element)):
        scale, _, zero = quant[3].partition(":")
        per_axis = scale.startswith("{")
        return Format(
            _FORMATS[quant[1]],
            shape,
            None if per_axis else float(scale),
            int(zero or 0) if not per_axis else 0,
        )
    word = re.sub(r"^!quant\.calibrated<(\w+).*$", r"\1", _element(element))
    return Format(_FORMATS.get(word, word), shape)


def _element(text: str) -> str:
    """The element type alone: an address may follow it, after a comma outside of brackets."""
    depth = 0
    for at, char in enumerate(text):
        depth += {"<": 1, ">": -1}.get(char, 0)
        if char == "," and depth == 0:
            return text[:at]
    return text
