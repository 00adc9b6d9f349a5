"""From operators of a compiled graph back to nodes of the original one: the json that `atc --mode=1` prints.

Every output of the compiled graph gets its origin or a reason why it has none; nothing is tied by similar
names. Source: msaccucmp's `fusion_rule_parser.py`, held against it by the tests marked `vendor`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from parity.harness.errors import UserError

from ..core import bad, read_object
from .names import flattened

ORIGINALS = "_datadump_original_op_names"
ORIGIN, ORIGIN_INDEX, ORIGIN_FORMAT = (
    "_datadump_origin_name",
    "_datadump_origin_output_index",
    "_datadump_origin_format",
)
MULTI, GROUP = "_datadump_is_multiop", "_L1_fusion_sub_graph_no"
ONE, FUSED, PART, MANY, L1, INSERTED, EARLIER = (
    "one to one",
    "fused: compared at the last of the originals",
    "part of an original that became several: its last part is compared",
    "last part of an original that became several",
    "L1 fusion group",
    "made by the compiler",
    "an earlier form of a value: its last form is compared",
)
#: Operators of a graph; large models have some ten thousand.
MOST_OPS = 1 << 20


@dataclass(frozen=True)
class AtcOutput:
    """One output of a device operator; `origin` is `node:index` of the original graph, or empty."""

    name: str
    origin: str
    relation: str


@dataclass(frozen=True)
class AtcMapping:
    """Entry of a device dump (`op:output:0`) -> where it comes from."""

    source: str
    outputs: Mapping[str, AtcOutput]

    def origin(self, entry: str) -> str | None:
        """`node:index` for an entry's name; None if it has no origin or is not in the json.

        A dump of several models has `model/` before the operator's name, which is passed over where the
        json knows the name only without it. Names that come from files, where '/' and '.' have become '_',
        are known by their flattened form if it is that of one output.
        """
        for name in (entry, entry.partition("/")[2]):
            found = self.outputs.get(name) or self.outputs.get(self._flat.get(name, ""))
            if found is not None:
                return found.origin or None
        return None

    @cached_property
    def _flat(self) -> dict[str, str]:
        """Names as files have them -> names of outputs, where only one output is meant."""
        count = Counter(map(flattened, self.outputs))
        return {flattened(name): name for name in self.outputs if count[flattened(name)] == 1}

    def relations(self) -> dict[str, int]:
        """How many outputs there are of each relation, for the report."""
        return dict(Counter(output.relation for output in self.outputs.values()))

    def values(self, graph: bytes | Path) -> dict[str, str]:
        """Entry -> name of the ONNX value, for every origin that is an output of a node of this graph."""
        known = _values(graph)
        return {name: known[o.origin] for name, o in self.outputs.items() if o.origin in known}


def _values(graph: bytes | Path) -> dict[str, str]:
    """`node:index` -> value name. UserError for what is no ONNX graph."""
    from ...ascend.graph import read_graph

    read = read_graph("graph" if isinstance(graph, bytes) else graph.stem, graph)
    return {
        f"{node.name}:{index}": value
        for node in read.nodes
        for index, value in enumerate(node.output)
        if node.name and value
    }


@dataclass(frozen=True)
class _Op:
    """A device operator as the json states it."""

    name: str
    order: int
    originals: tuple[str, ...]
    group: str
    multi: bool
    outputs: tuple[tuple[str, int], ...]

    @property
    def family(self) -> tuple[str, ...]:
        """Operators of one family stand for the same originals together."""
        return (GROUP, self.group) if self.group else self.originals


def read_atc(path: Path) -> AtcMapping:
    """The mapping of a json; UserError for what `atc --mode=1` did not print."""
    graphs = read_object(path).get("graph")
    if not isinstance(graphs, list) or not graphs:
        raise bad(path, "has no list `graph`; should be what `atc --mode=1 --om=x.om --json=y.json` writes")
    ops = sorted((op for graph in graphs for op in _ops(graph, path)), key=lambda op: op.order)
    if not ops:
        raise bad(path, "describes no operator")
    last: dict[tuple[str, ...], _Op] = {op.family: op for op in ops}
    sizes = Counter(op.family for op in ops)
    outputs: dict[str, AtcOutput] = {}
    holder: dict[str, str] = {}
    for op in ops:
        for one in _outputs(op, last[op.family] is op, sizes[op.family]):
            outputs[one.name] = one
            if one.origin and (earlier := holder.get(one.origin)):
                outputs[earlier] = AtcOutput(earlier, "", EARLIER)
            holder[one.origin] = one.name
    return AtcMapping(path.name, outputs)


def _outputs(op: _Op, is_last: bool, size: int) -> Iterator[AtcOutput]:
    """Each output with its origin: the one that is stated, else what the originals leave no doubt about."""
    named = [name for name in op.originals if name]
    for at, (origin, index) in enumerate(op.outputs):
        name = f"{op.name}:output:{at}"
        if origin:
            yield AtcOutput(name, f"{origin}:{index}", _relation(op, named, is_last, size))
        elif not named:
            yield AtcOutput(name, "", INSERTED)
        elif not is_last:
            yield AtcOutput(name, "", L1 if op.group else PART)
        else:
            yield AtcOutput(name, f"{named[-1]}:{index}", _relation(op, named, is_last, size))


def _relation(op: _Op, named: list[str], is_last: bool, size: int) -> str:
    if op.group:
        return L1
    if op.multi or size > 1:
        return MANY if is_last else PART
    return FUSED if len(named) > 1 else ONE


def _ops(graph: Any, path: Path) -> Iterator[_Op]:
    listed = graph.get("op") if isinstance(graph, dict) else None
    if not isinstance(listed, list):
        raise bad(path, "has a graph without a list `op`")
    if len(listed) > MOST_OPS:
        raise bad(path, f"lists {len(listed)} operators, more than {MOST_OPS}")
    for op in listed:
        if not isinstance(op, dict) or not isinstance(op.get("name"), str):
            raise bad(path, "lists an operator without a name")
        yield _op(op, path)


def _op(op: Mapping[str, Any], path: Path) -> _Op:
    name, said = op["name"], _attributes(op, path)
    originals = said.get(ORIGINALS)
    if originals is None:
        names: tuple[str, ...] = (name,)
    else:
        listed = originals.get("list", {}) if isinstance(originals, dict) else {}
        names = tuple(map(str, listed.get("s", ()))) if isinstance(listed, dict) else ()
    return _Op(
        name,
        _whole(op.get("id", 0), path, name),
        names,
        str(_value(said, GROUP, "s", "")),
        _value(said, MULTI, "b", False) is True,
        tuple(_described(op, originals is None, path)),
    )


def _described(op: Mapping[str, Any], kept_name: bool, path: Path) -> Iterator[tuple[str, int]]:
    """(stated origin or nothing, index) of each output."""
    listed = op.get("output_desc", [])
    if not isinstance(listed, list):
        raise bad(path, f"{op['name']}: output_desc is no list")
    for at, described in enumerate(listed):
        said = _attributes(described, path) if isinstance(described, dict) else {}
        index = _whole(_value(said, ORIGIN_INDEX, "i", at), path, op["name"])
        origin = str(_value(said, ORIGIN, "s", ""))
        yield (origin or (op["name"] if kept_name else "")), index


def _attributes(holder: Mapping[str, Any], path: Path) -> dict[str, Any]:
    listed = holder.get("attr", [])
    if not isinstance(listed, list):
        raise bad(path, "has an `attr` that is no list")
    found: dict[str, Any] = {}
    for item in listed:
        if not isinstance(item, dict) or not isinstance(item.get("key"), str):
            raise bad(path, "has an attribute without a key")
        found[item["key"]] = item.get("value")
    return found


def _value(said: Mapping[str, Any], key: str, kind: str, default: Any) -> Any:
    value = said.get(key)
    return value.get(kind, default) if isinstance(value, dict) else default


def _whole(value: Any, path: Path, what: str) -> int:
    """A whole number; protobuf's json writes 64-bit ones as texts."""
    try:
        if isinstance(value, bool):
            raise ValueError
        return int(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise bad(path, f"{what[:60]}: {str(value)[:40]!r} is no whole number") from error


def described_outputs(content: Mapping[str, Any], path: Path) -> list[tuple[str, str, list[int]]]:
    """(name, type word, shape) of each input of NetOutput: what an .om gives back, in order."""
    for graph in _objects(content, "graph"):
        for op in _objects(graph, "op"):
            if op.get("type") == "NetOutput":
                return list(_net_output(op, path))
    raise UserError(f"manifest={str(path)!r}: describes no NetOutput; is it the json of the .om?")


def _objects(holder: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """The objects of a list; nothing where there is no list of them."""
    listed = holder.get(key)
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def _net_output(op: Mapping[str, Any], path: Path) -> Iterator[tuple[str, str, list[int]]]:
    names = op.get("input")
    for at, described in enumerate(_objects(op, "input_desc")):
        shape = described.get("shape")
        sizes = shape.get("dim") if isinstance(shape, dict) else None
        named = isinstance(names, list) and at < len(names) and isinstance(names[at], str)
        name = names[at] if named and names else f"output_{at}"
        if not isinstance(sizes, list):
            raise bad(path, f"does not say the shape of {name}")
        yield name, str(described.get("dtype", "")), [_whole(size, path, name) for size in sizes]
