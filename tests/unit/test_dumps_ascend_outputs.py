"""Outputs of an .om and of a served model: raw bytes with a manifest, logits with their tokens."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from parity.harness.errors import UserError
from parity.targets.dumps.ascend.aisbench import AisbenchReader, write_aisbench, write_manifest
from parity.targets.dumps.ascend.logits import LogitsReader, write_logits
from parity.targets.dumps.core import Contents, Dumped, ReadOptions

LOGITS = np.linspace(-1, 1, 8).astype(np.float16).reshape(1, 1, 8)
CACHE = np.arange(6, dtype=np.int8).reshape(2, 3)


def outputs(path: Path, manifest: Path | None = None, **settings: str) -> list[Dumped]:
    return list(AisbenchReader().read(path, ReadOptions(manifest, settings)).entries)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    samples = {f"token_{step}": [LOGITS * step, CACHE] for step in (2, 10)}
    write_aisbench(tmp_path / "out", samples)
    return tmp_path / "out"


def test_raw_outputs_need_a_manifest(raw: Path) -> None:
    assert AisbenchReader().detects(raw)
    with pytest.raises(UserError, match="--outfmt NPY"):
        outputs(raw)


def test_raw_outputs_are_read_sample_by_sample_with_our_manifest(raw: Path) -> None:
    write_manifest(raw.parent / "m.json", [("logits", LOGITS), ("cache", CACHE)])
    found = outputs(raw, raw.parent / "m.json")
    assert [(e.name, e.step, e.dtype) for e in found] == [
        ("logits", 0, "float16"),
        ("cache", 0, "int8"),
        ("logits", 1, "float16"),
        ("cache", 1, "int8"),
    ]
    np.testing.assert_array_equal(found[2].load(), LOGITS * 10)
    assert [e.name for e in outputs(raw, raw.parent / "m.json", leave_out="cache")] == ["logits", "logits"]


def test_the_json_of_the_om_and_the_onnx_file_are_manifests_too(raw: Path) -> None:
    described = [
        {"dtype": "DT_FLOAT16", "shape": {"dim": [1, 1, 8]}},
        {"dtype": "DT_INT8", "shape": {"dim": ["2", 3]}},
    ]
    op = {"name": "out", "type": "NetOutput", "input": ["MatMul_1:0", "Cast:0"], "input_desc": described}
    (raw.parent / "om.json").write_text(json.dumps({"graph": [{"op": [op]}]}))
    assert [e.name for e in outputs(raw, raw.parent / "om.json")][:2] == ["MatMul_1:0", "Cast:0"]
    values = [("logits", TensorProto.FLOAT16, [1, 1, 8]), ("cache", TensorProto.INT8, [2, 3])]
    infos = [helper.make_tensor_value_info(*value) for value in values]
    nodes = [helper.make_node("Identity", [f"{name}_in"], [name]) for name, _, _ in values]
    given = [helper.make_tensor_value_info(f"{name}_in", kind, shape) for name, kind, shape in values]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", given, infos)), raw.parent / "net.onnx")
    found = outputs(raw, raw.parent / "net.onnx")
    assert [(e.name, e.dtype) for e in found][:2] == [("logits", "float16"), ("cache", "int8")]


def test_npy_outputs_need_nothing_and_their_order_is_said_where_no_summary_gives_it(tmp_path: Path) -> None:
    write_aisbench(tmp_path, {f"x{n}": [np.float32([n])] for n in (10, 9)}, form="npy", summary=False)
    contents = AisbenchReader().read(tmp_path, ReadOptions())
    assert [float(e.load()[0]) for e in contents.entries] == [9, 10]
    assert any("order of their names" in note for note in contents.notes)


def test_the_summary_gives_the_order(tmp_path: Path) -> None:
    write_aisbench(tmp_path / "out", {f"x{n}": [np.float32([n])] for n in (10, 9)}, form="npy")
    assert [float(e.load()[0]) for e in outputs(tmp_path / "out")] == [10, 9]


def test_sizes_names_and_missing_outputs_are_checked(raw: Path) -> None:
    manifest = raw.parent / "m.json"
    write_manifest(manifest, [("logits", LOGITS.astype(np.float32)), ("cache", CACHE)])
    with pytest.raises(UserError, match="needs 32"):
        outputs(raw, manifest)
    manifest.write_text("{}")
    with pytest.raises(UserError, match="no list `outputs`"):
        outputs(raw, manifest)
    write_manifest(manifest, [("logits", LOGITS), ("cache", CACHE)])
    (raw / "exception_cb_index_0_input_0_format_ND_dtype_0_shape_1.bin").write_bytes(b"")
    contents = AisbenchReader().read(raw, ReadOptions(manifest))
    assert any("1 inputs failed" in note for note in contents.notes)
    (raw / "token_2_0.bin").unlink()
    with pytest.raises(UserError, match="missing or double"):
        outputs(raw, manifest)
    (raw / "token_2_1.bin").unlink()
    with pytest.raises(UserError, match="disagree on the samples, first on 'token_2'"):
        outputs(raw, manifest)


def test_text_outputs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x_0.txt").write_text("1 2")
    with pytest.raises(UserError, match="lost its number format"):
        outputs(tmp_path)
    with pytest.raises(UserError, match="is no folder"):
        outputs(tmp_path / "x_0.txt")


def served(path: Path, **settings: str) -> Contents:
    return LogitsReader().read(path, ReadOptions(settings=settings))


def test_logits_come_with_the_prompt_and_what_each_step_was_fed(tmp_path: Path) -> None:
    logits = [np.full((1, 5), step, ml_dtypes.bfloat16) for step in range(3)]
    write_logits(tmp_path, logits, [np.array([7, 8, 9])], [[4, 3, 2]])
    assert LogitsReader().detects(tmp_path)
    contents = served(tmp_path)
    assert [(e.tap, e.step, e.axes, e.dtype) for e in contents.entries] == [
        ("logits", step, "b v", "bfloat16") for step in range(3)
    ]
    assert [float(e.load()[0, 0]) for e in contents.entries] == [0, 1, 2]
    assert contents.tokens is not None
    assert contents.tokens.tolist() == [[7, 8, 9]]
    assert {step: ids.tolist() for step, ids in contents.fed.items()} == {0: [[7, 8, 9]], 1: [[4]], 2: [[3]]}
    assert [e.step for e in served(tmp_path, steps="1-2").entries] == [1, 2]


def test_prompts_of_different_lengths_are_said_to_be_unchecked(tmp_path: Path) -> None:
    write_logits(tmp_path, [np.zeros((2, 5), np.float16)], [np.array([1, 2]), np.array([3])], [[1], [2]])
    contents = served(tmp_path)
    assert contents.tokens is None
    assert any("different lengths" in note for note in contents.notes)
    write_logits(tmp_path, [np.zeros((2, 5), np.float16)], [np.array([[1, 2]]), np.array([3, 4])], [[1], [2]])
    tokens = served(tmp_path).tokens
    assert tokens is not None
    assert tokens.tolist() == [[1, 2], [3, 4]]


def test_files_of_msit_are_read_one_request_at_a_time(tmp_path: Path) -> None:
    write_logits(tmp_path, [np.zeros((1, 5), np.float32)], [], [])
    (tmp_path / "logits_0.pth").rename(tmp_path / "logits_bool_q_3_0.pth")
    assert [e.step for e in served(tmp_path).entries] == [0]
    assert any("not checked" in note for note in served(tmp_path).notes)
    write_logits(tmp_path, [np.zeros((1, 5), np.float32)], [], [])
    with pytest.raises(UserError, match="several requests"):
        served(tmp_path)
    assert [e.step for e in served(tmp_path, request="bool_q_3").entries] == [0]


def test_damaged_files_of_a_served_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no logits_N"):
        served(tmp_path)
    assert not LogitsReader().detects(tmp_path)
    assert not LogitsReader().detects(tmp_path / "absent")
    write_logits(tmp_path, [np.zeros((1, 5), np.float32)], [np.array([1, 2])], [[1]])
    (tmp_path / "output_ids_0.txt").write_text("one two")
    with pytest.raises(UserError, match="token ids parted by blanks"):
        served(tmp_path)
    (tmp_path / "output_ids_0.txt").unlink()
    write_logits(tmp_path, [np.zeros((1, 5), np.float32)], [np.array([1.5])], [])
    with pytest.raises(UserError, match="are no token ids"):
        served(tmp_path)
    (tmp_path / "input_ids_0.pth").unlink()
    (tmp_path / "logits_0.pth").write_bytes(b"\x80\x02.")
    with pytest.raises(UserError, match="zip form"):
        list(served(tmp_path).entries)
