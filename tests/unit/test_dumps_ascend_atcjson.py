"""The json that names what a compiler made of a graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from parity.harness.errors import UserError
from parity.targets.dumps.ascend import atcjson
from parity.targets.dumps.ascend.atcjson import read_atc


def op(
    name: str,
    number: int,
    originals: list[str] | None,
    outputs: list[dict[str, Any]],
    **attributes: Any,
) -> dict[str, Any]:
    listed = [{"key": key, "value": value} for key, value in attributes.items()]
    if originals is not None:
        inner = {"s": originals} if originals else {}
        listed.append({"key": "_datadump_original_op_names", "value": {"list": inner}})
    described = []
    for output in outputs:
        kinds = {"_datadump_origin_name": "s", "_datadump_origin_output_index": "i"}
        attr = [{"key": key, "value": {kinds[key]: value}} for key, value in output.items()]
        described.append({"dtype": "DT_FLOAT", "attr": attr})
    return {"name": name, "type": "T", "id": number, "attr": listed, "output_desc": described}


def origin(name: str, index: int = 0) -> dict[str, Any]:
    return {"_datadump_origin_name": name, "_datadump_origin_output_index": index}


def write(folder: Path, *ops: Any) -> Path:
    path = folder / "net.json"
    path.write_text(json.dumps({"name": "net", "graph": [{"name": "g", "op": list(ops)}]}))
    return path


def test_every_relation_is_told_apart(tmp_path: Path) -> None:
    group = {"_L1_fusion_sub_graph_no": {"s": "3"}}
    multi = {"_datadump_is_multiop": {"b": True}}
    mapping = read_atc(
        write(
            tmp_path,
            op("first", 0, ["/a"], [origin("/a")]),
            op("one", 1, ["/a"], [origin("/a"), {}]),
            op("fused", 2, ["/b", "/c"], [{}]),
            op("stated", 3, ["/b2", "/c2"], [origin("/b2")]),
            op("part0", 5, ["/d"], [{}], **multi),
            op("part1", 6, ["/d"], [{}], **multi),
            op("l1a", 7, ["/e"], [{}], **group),
            op("l1b", 8, ["/f"], [{}], **group),
            op("cast", 9, [], [{}]),
            op("same", 10, None, [{}, {}]),
        )
    )
    assert {name: output.origin for name, output in mapping.outputs.items()} == {
        "first:output:0": "",
        "one:output:0": "/a:0",
        "one:output:1": "/a:1",
        "fused:output:0": "/c:0",
        "stated:output:0": "/b2:0",
        "part0:output:0": "",
        "part1:output:0": "/d:0",
        "l1a:output:0": "",
        "l1b:output:0": "/f:0",
        "cast:output:0": "",
        "same:output:0": "same:0",
        "same:output:1": "same:1",
    }
    assert mapping.relations() == {
        atcjson.EARLIER: 1,
        atcjson.ONE: 2,
        atcjson.FUSED: 2,
        atcjson.PART: 1,
        atcjson.MANY: 3,
        atcjson.L1: 2,
        atcjson.INSERTED: 1,
    }
    assert mapping.origin("fused:output:0") == "/c:0"
    assert mapping.origin("seg_1/fused:output:0") == "/c:0"
    assert mapping.origin("cast:output:0") is None
    assert mapping.origin("nothing:output:0") is None


def test_names_of_files_are_known_where_they_mean_one_output(tmp_path: Path) -> None:
    ops = [op(name, at, [f"/{at}"], [{}]) for at, name in enumerate(("/lin/MatMul", "a/b", "a.b"))]
    mapping = read_atc(write(tmp_path, *ops))
    assert mapping.origin("_lin_MatMul:output:0") == "/0:0"
    assert mapping.origin("a/b:output:0") == "/1:0"
    assert mapping.origin("a_b:output:0") is None


def test_the_order_of_the_ids_decides_which_part_is_last(tmp_path: Path) -> None:
    late = op("late", 9, ["/d"], [{}])
    early = op("early", 2, ["/d"], [{}])
    mapping = read_atc(write(tmp_path, late, early))
    assert (mapping.origin("early:output:0"), mapping.origin("late:output:0")) == (None, "/d:0")


def test_origins_become_values_of_the_onnx_graph(tmp_path: Path) -> None:
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    nodes = [
        helper.make_node("Relu", ["x"], ["layer0.q"], name="/a"),
        helper.make_node("Split", ["layer0.q"], ["s0", "s1"], name="/b", num_outputs=2, axis=0),
    ]
    out = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("s0", "s1")]
    graph = helper.make_model(helper.make_graph(nodes, "g", [info], out)).SerializeToString()
    mapping = read_atc(
        write(tmp_path, op("m", 1, ["/a"], [{}]), op("n", 2, ["/b"], [{}, {}]), op("k", 3, ["/z"], [{}]))
    )
    assert mapping.values(graph) == {"m:output:0": "layer0.q", "n:output:0": "s0", "n:output:1": "s1"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([], "where an object is expected"),
        ({}, "no list `graph`"),
        ({"graph": []}, "no list `graph`"),
        ({"graph": [1]}, "without a list `op`"),
        ({"graph": [{"op": []}]}, "describes no operator"),
        ({"graph": [{"op": [{}]}]}, "without a name"),
        ({"graph": [{"op": [{"name": "a", "id": "x"}]}]}, "is no whole number"),
        ({"graph": [{"op": [{"name": "a", "id": 1e400}]}]}, "is no whole number"),
        ({"graph": [{"op": [{"name": "a", "attr": 1}]}]}, "`attr` that is no list"),
        ({"graph": [{"op": [{"name": "a", "attr": [{}]}]}]}, "without a key"),
        ({"graph": [{"op": [{"name": "a", "output_desc": 1}]}]}, "output_desc is no list"),
    ],
)
def test_a_json_of_something_else_is_refused(tmp_path: Path, content: Any, told: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=told):
        read_atc(path)
