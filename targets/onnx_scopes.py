"""Which value of an ONNX graph is a module's output, by the scopes that torch's exporter wrote on its nodes.

Each node carries the module paths that it was traced in (`pkg.torch.onnx.name_scopes`); names of values are
the exporter's own and shift from one export to the next, so they are never looked at. A value that is
produced inside a call of a module, needs the graph's inputs and is used outside, left that call. Which
output of the call it is, its shape and type must say without a doubt; a doubt leaves the module unobserved.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class Wanted:
    """One call of a module in the reference: its paths (several if it is shared), its outputs in order."""

    paths: tuple[str, ...]
    call: int
    outputs: tuple[Output, ...]


@dataclass(frozen=True)
class Output:
    """A tap with the shape and logical dtype that the reference recorded."""

    tap: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Leaving:
    """The values that leave one call of a module, in the order in which they are computed."""

    values: tuple[str, ...] = ()
    reason: str = ""


class Scopes:
    """The nodes of a graph by module path."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._nodes = list(model.graph.node)
        self._scopes = [_scopes(node) for node in self._nodes]
        self._outputs = {value.name for value in model.graph.output}
        self._live = _depending(self._nodes, {value.name for value in model.graph.input})
        self._users: dict[str, list[int]] = {}
        for at, node in enumerate(self._nodes):
            for name in _reads(node):
                self._users.setdefault(name, []).append(at)
        self._adopt()

    def _adopt(self) -> None:
        """A node that an optimiser put in without a scope lies where both what feeds and what uses it lie."""
        makers = {name: at for at, node in enumerate(self._nodes) for name in node.output}
        told = list(self._scopes)
        for at in (at for at, scopes in enumerate(told) if not scopes):
            before = [told[makers[name]] for name in _reads(self._nodes[at]) if name in makers]
            after = [told[user] for name in self._nodes[at].output for user in self._users.get(name, ())]
            if any(before) and any(after):
                self._scopes[at] = set.intersection(*filter(None, (*before, *after)))

    @property
    def known(self) -> bool:
        """Whether the file says anything of modules."""
        return any(self._scopes)

    def leaving(self, paths: Sequence[str], call: int, calls: int) -> Leaving:
        """Values that leave the call numbered `call` of `calls`, or why that cannot be told."""
        inside = [at for at, scopes in enumerate(self._scopes) if scopes & set(paths)]
        if not inside:
            return Leaving(reason="no node carries its scope: folded, fused or without an op of its own")
        groups = self._groups(inside, set(paths)) if calls > 1 else [inside]
        if len(groups) != calls:
            return Leaving(reason=f"called {calls} times, but its nodes lie in {len(groups)} groups")
        group = set(groups[call])
        values = [name for at in groups[call] for name in self._nodes[at].output if self._leaves(name, group)]
        if not values:
            return Leaving(reason="no value of its scope is used outside: folded, fused or never used")
        return Leaving(tuple(values))

    def _leaves(self, name: str, group: set[int]) -> bool:
        if name not in self._live:
            return False
        return name in self._outputs or any(at not in group for at in self._users.get(name, ()))

    def _groups(self, inside: Sequence[int], paths: set[str]) -> list[list[int]]:
        """Nodes of one path, cut where nodes of other scopes stand between: each run of them is one call."""
        groups: list[list[int]] = []
        for at in inside:
            between = range(groups[-1][-1] + 1, at) if groups else ()
            if groups and not any(self._scopes[other] for other in between):
                groups[-1].append(at)
            else:
                groups.append([at])
        return groups


def pair(outputs: Sequence[Output], found: Mapping[str, tuple[tuple[int, ...], str]]) -> dict[str, str]:
    """Tap -> value, for outputs that one value alone fits by shape and dtype, and that value them alone."""
    fits = {
        out.tap: [name for name, seen in found.items() if seen == (out.shape, out.dtype)] for out in outputs
    }
    claims = [name for names in fits.values() for name in names]
    return {tap: names[0] for tap, names in fits.items() if len(names) == 1 and claims.count(names[0]) == 1}


def _scopes(node: onnx.NodeProto) -> set[str]:
    """Module paths of a node; the last scope is the op itself, the first the whole model."""
    for item in node.metadata_props:
        if item.key == SCOPES:
            try:
                names = ast.literal_eval(item.value)
            except (ValueError, SyntaxError):
                return set()
            return {str(name) for name in names[:-1]} if isinstance(names, list) else set()
    return set()


def _depending(nodes: Sequence[onnx.NodeProto], inputs: set[str]) -> set[str]:
    """Values that depend on the graph's inputs; constants that the optimiser shares between scopes do not."""
    live = set(inputs)
    for node in nodes:
        if any(name in live for name in _reads(node)):
            live.update(node.output)
    return live


def _reads(node: onnx.NodeProto) -> list[str]:
    """Inputs of a node, those that its subgraphs take from outside included."""
    inner = [item.g for item in node.attribute if item.type == onnx.AttributeProto.GRAPH]
    return [*node.input, *(name for graph in inner for part in graph.node for name in _reads(part))]
