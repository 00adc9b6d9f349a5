"""The lines that compile ONNX graphs for an Ascend chip on a machine that has CANN; nothing is run here."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parity.harness.errors import UserError, did_you_mean

from .chips import chip_of
from .graph import Graph, read_graph
from .lint import PRECISION_MODES, Finding, lint_graph
from .plugin import steps
from .profile import RECORDED

#: `--framework` of ONNX.
ONNX = 5


@dataclass(frozen=True)
class AtcPlan:
    """A shell script, line by line, and what should be known before it is run."""

    lines: tuple[str, ...]
    findings: tuple[Finding, ...]


def atc_lines(
    models: Mapping[str, bytes | Path],
    chip: str,
    *,
    sizes: Mapping[str, int] | None = None,
    precision: str = "must_keep_origin_dtype",
    folder: str = ".",
) -> AtcPlan:
    """What to run where CANN is installed, for graphs given as name -> ONNX file or bytes.

    chip: a family (`ascend310b`) or a `--soc_version`. sizes: values of the graphs' symbolic dimensions;
    every shape is fixed, since the chip's compiler wants it so. folder: where the `.om` files shall lie, and
    the `.onnx` of graphs that are given as bytes.
    UserError for an unknown chip or precision mode and for a dimension that nothing fixes.
    """
    if precision not in PRECISION_MODES:
        raise UserError(
            f"precision={precision!r}: atc has no such mode. {did_you_mean(precision, PRECISION_MODES)}"
        )
    family, soc = chip_of(chip)
    graphs = [_located(read_graph(name, source), source, folder) for name, source in models.items()]
    findings = [finding for graph in graphs for finding in lint_graph(graph, precision)]
    others = ", ".join(other for other in family.socs if other != soc)
    lines = [f"# {soc}: {family.note}; `npu-smi info` names the board's own (others: {others})"]
    if any(node.op_type == "MatMulInteger" for graph in graphs for node in graph.nodes):
        lines += steps(soc)
    for graph in graphs:
        lines += _compile(graph, soc, precision, sizes or {}, folder)
    return AtcPlan((*lines, *_record(soc, precision)), tuple(findings))


def _located(graph: Graph, source: bytes | Path, folder: str) -> Graph:
    return replace(graph, file=f"{folder}/{graph.name}.onnx") if isinstance(source, bytes) else graph


def _compile(graph: Graph, soc: str, precision: str, sizes: Mapping[str, int], folder: str) -> list[str]:
    out = f"{folder}/{graph.name}"
    words = {
        "--framework": str(ONNX),
        "--model": graph.file,
        "--output": out,
        "--input_format": "ND",
        "--input_shape": ";".join(_shape(graph, value, sizes) for value in graph.inputs),
        "--soc_version": soc,
        "--precision_mode": precision,
    }
    compile_it = " ".join(["atc", *(f"{key}={shlex.quote(value)}" for key, value in words.items() if value)])
    # the json ties the operators of a dump to those of the graph: `parity import --atc-json`
    print_it = f"atc --mode=1 --om={shlex.quote(out + '.om')} --json={shlex.quote(out + '.json')}"
    return [compile_it, print_it]


def _shape(graph: Graph, value: Any, sizes: Mapping[str, int]) -> str:
    """`name:1,1,64`, every dimension a number; a scalar has nothing after its colon."""
    if set(value.name) & set(";, \"'"):
        raise UserError(f"onnx={graph.file!r}: --input_shape cannot say the input {value.name!r}; rename it")
    fixed = []
    for at, size in enumerate(value.type.tensor_type.shape.dim):
        number = size.dim_value or sizes.get(size.dim_param, 0)
        if number < 1:
            word = size.dim_param or "(unnamed)"
            raise UserError(
                f"sizes={dict(sizes)}: dimension {at} of the input {value.name!r} of {graph.file} is open "
                f"({word}); an Ascend graph has fixed shapes, say its size"
            )
        fixed.append(str(number))
    return f"{value.name}:{','.join(fixed)}"


def _record(soc: str, precision: str) -> list[str]:
    """Lines for the board: what decides the arithmetic, kept beside a dump, which does not say it."""
    said = {"format": "parity-ascend", "chip": soc, "precision_mode": precision}
    return [
        "# on the board, where the run's environment is set; for `parity import DUMP --manifest ascend.json`",
        "python3 - > ascend.json <<'RECORD'",
        "import json, os",
        f"said = {json.dumps(said)}",
        f"names = {json.dumps(sorted(RECORDED))}",
        'said["environment"] = {name: os.environ[name] for name in names if name in os.environ}',
        "print(json.dumps(said, indent=1))",
        "RECORD",
    ]
