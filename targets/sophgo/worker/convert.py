"""ONNX -> Top MLIR in the current folder: the graph, its weights, and which value became which tensor."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def convert(arguments: Sequence[str]) -> None:
    """Arguments: net name, ONNX file. Leaves `NAME_origin.mlir`, its weights and `values.json`.

    `values.json` maps ONNX values to Top tensors, as the converter itself binds them: it folds, fuses and
    skips on its way, so that the name alone would not tell.
    """
    name, graph = arguments
    from transform.OnnxConverter import OnnxConverter  # type: ignore[import-not-found]

    bound: dict[str, str] = {}

    class Telling(OnnxConverter):  # type: ignore[misc]
        def addOperand(self, name: str, op: Any) -> None:  # noqa: N802
            super().addOperand(name, op)
            if (tensor := _tensor(op)) is not None:
                bound[name] = tensor

    converter = Telling(name, graph, [], [], "", {}, True, dump_final_opt=False)
    rules = converter.onnxop_factory
    rules.update({op: _told(rule) for op, rule in rules.items()})
    converter.generate_mlir(f"{name}_origin.mlir")
    Path("values.json").write_text(json.dumps(bound))


def _told(rule: Callable[[Any], None]) -> Callable[[Any], None]:
    """The rule for one operator; when it fails, it says at which node."""

    def told(node: Any) -> None:
        try:
            rule(node)
        except BaseException:
            print("PARITY-NODE", json.dumps({"op": node.op_type, "output": node.name}), flush=True)
            raise

    return told


def _tensor(result: Any) -> str | None:
    """The name of one result: an operator's location lists a name for each."""
    owner = getattr(result, "owner", result)
    names = re.findall(r'"((?:[^"\\]|\\.)*)"', str(owner.location))
    at = getattr(result, "result_number", 0)
    return names[at] if at < len(names) else None
