"""Dumps of Sophgo chips: what their sidecars say, and what is refused where they say nothing."""

from __future__ import annotations

import importlib.util
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from parity.harness.errors import UserError
from parity.targets.dumps import bmrt, cvi, soc
from parity.targets.dumps.core import ReadOptions
from parity.targets.dumps.cvi import four_dimensions, read_table
from parity.targets.dumps.detect import detect, open_dump
from parity.targets.dumps.formats import Format
from parity.targets.dumps.signature import Port, read_signature


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


samples = _load("dumps_samples")
Q, CODES = samples.Q, samples.CODES

# --- CVI ------------------------------------------------------------------------------------------------

TENSOR_INFO = """Cmdbuf1: layer_id, tensor_name, inGroup, ignore, gaddr, g_shape, lg_idx_slice ...
0 vs/module/layer_bottom/MatMul_1_output_0_MatMul_bf16 false false 16128 1,2,63,32 x x bf16 1.000000
13 load_/module/layer_bottom/Mul_output_0_Mul_slope_table_bf16 true true x x x x x x
23 a name with spaces false false 0 1,4,1,63 x x int8 0.063712
83 k_Concat_f32 false false 2199023256832 1,2,1,32 x x fp32 1.000000
"""
MODEL_TOOL = """Mlir Version: v1.30.2-20260831
Cvimodel Version: 1.4.0
For cv181x chip ONLY

Program #0
    batch_num   : 0
    inputs      : input_ids,codes
    outputs     : k_Concat_f32

    tensor_map  :
        ID   OFFSET      TYPE  N    C    H    W    QSCALE     MEM     NAME
        000  0           uint161    1    1    1    1.000000   io_mem  input_ids
        001  0           int8  2    1    1    32   4.000000   io_mem  codes
        003  96          bf16  1    1    1    16   1.000000   private /module/Slice_5_output_0_Slice
        037  0           int8  1    2    1    32   0.250000   io_mem  k_Concat
"""


def test_the_text_beside_a_cvimodel_says_formats_and_scales(tmp_path):
    (tmp_path / "p_tensor_info.txt").write_text(TENSOR_INFO)
    table = read_table(tmp_path / "p_tensor_info.txt")
    assert table.formats == {
        "vs/module/layer_bottom/MatMul_1_output_0_MatMul_bf16": Format("bfloat16"),
        "a name with spaces": Format("int8", 0.063712),
        "k_Concat_f32": Format("float32"),
    }


def test_the_text_of_model_tool_knows_inputs_too(tmp_path):
    """Types of six letters touch the number behind them."""
    (tmp_path / "info.txt").write_text(MODEL_TOOL)
    table = read_table(tmp_path / "info.txt")
    assert table.facts == {"chip": "cv181x"}
    assert table.formats["input_ids"].dtype == "uint16"
    assert table.formats["codes"] == Format("int8", 4.0, inverse=True)
    assert table.formats["k_Concat"] == Format("int8", 0.25)


def test_the_manifest_of_a_compiled_artefact_knows_taps(tmp_path):
    tensors = [
        {"mlir": "codes", "onnx": "c", "tap": "layer0.k", "format": "int8", "scale": 0.25, "zero_point": 0},
        {"mlir": "gone", "onnx": "g", "tap": None, "format": "int8", "status": "fused"},
        {"mlir": "q", "onnx": "q", "tap": None, "format": "bf16", "scale": None, "zero_point": None},
    ]
    (tmp_path / "manifest.json").write_text(
        json.dumps({"chip": "cv181x", "mode": "int8", "tensors": tensors})
    )
    table = read_table(tmp_path / "manifest.json")
    assert table.formats == {"codes": Format("int8", 0.25), "q": Format("bfloat16")}
    assert table.taps == {"codes": "layer0.k"}
    assert table.facts == {"chip": "cv181x", "mode": "int8"}


def test_shapes_become_four_dimensions():
    assert four_dimensions((1, 32, 64)) == (1, 32, 64, 1)
    assert four_dimensions((1, 2, 3, 4, 5)) == (1, 2, 3, 20)
    assert four_dimensions(()) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("nothing", "is neither"),
        (TENSOR_INFO.replace("1,4,1,63 x x int8 0.063712", "1 x x int8 big"), "no number"),
        (TENSOR_INFO.replace("x x int8", "x x int77"), "int77"),
        (TENSOR_INFO + "9 k_Concat_f32 false false 0 1 x x bf16 1.0\n", "two formats"),
    ],
)
def test_a_sidecar_that_is_none_is_refused(text, match, tmp_path):
    (tmp_path / "p_tensor_info.txt").write_text(text)
    with pytest.raises(UserError, match=match):
        read_table(tmp_path / "p_tensor_info.txt")


def test_integers_without_a_sidecar_are_not_guessed(tmp_path):
    path = samples.make_cvi(tmp_path)
    (tmp_path / "out_tensor_info.txt").unlink()
    assert detect(path) == "npz"
    with pytest.raises(UserError, match=r"nobody knows which integers are bf16 bits"):
        samples.read("cvi-npz", path)
    for name in ("a", "b"):
        (tmp_path / f"{name}_tensor_info.txt").write_text(TENSOR_INFO)
    with pytest.raises(UserError, match=r"2 files _tensor_info\.txt lie beside it"):
        samples.read("cvi-npz", path)


def test_integers_of_a_plain_npz_are_said_to_be_raw(tmp_path):
    path = samples.make_cvi(tmp_path)
    (note,) = samples.read("npz", path).notes
    assert "2 arrays of int8, uint16 beside float32 ones" in note
    assert "--manifest" in note
    assert samples.read("npz", samples.make_npz(tmp_path)).notes == ()
    np.savez(tmp_path / "integers.npz", codes=CODES)
    assert samples.read("npz", tmp_path / "integers.npz").notes == ()


def test_a_sidecar_named_by_hand_is_used_or_refused(tmp_path):
    path, sidecar = samples.make_cvi(tmp_path), tmp_path / "apart.txt"
    (tmp_path / "out_tensor_info.txt").rename(sidecar)
    assert (detect(path), detect(path, sidecar)) == ("npz", "cvi-npz")
    contents = open_dump(path, None, ReadOptions(sidecar))
    assert {entry.name: entry.dtype for entry in contents.entries}["/a/b_bf16"] == "bfloat16"
    with pytest.raises(UserError, match=r"kind 'npz' takes none; those of kind cvi-npz, bmrt, raw, .* do"):
        open_dump(path, "npz", ReadOptions(sidecar))


def test_integers_that_the_sidecar_does_not_know_are_not_guessed(tmp_path):
    path = samples.make_cvi(tmp_path)
    sidecar = tmp_path / "out_tensor_info.txt"
    sidecar.write_text("".join(line for line in sidecar.read_text().splitlines(True) if "codes" not in line))
    with pytest.raises(UserError, match="does not say what they are"):
        samples.values(samples.read("cvi-npz", path))
    sidecar.write_text(sidecar.read_text() + "9 codes false false 0 1 x x bf16 1.0\n")
    with pytest.raises(UserError, match="of another model"):
        samples.values(samples.read("cvi-npz", path))


def test_floats_of_the_stock_runner_are_taken_as_real(tmp_path):
    cvi.write(tmp_path / "out.npz", {"x": Q}, {})
    (tmp_path / "out_tensor_info.txt").write_text("0 x false false 0 1 x x bf16 1.000000\n")
    (entry,) = samples.read("cvi-npz", tmp_path / "out.npz").entries
    assert entry.dtype == "float32"
    assert entry.meta["stored as"] == "bfloat16"


def cnpy(arrays: dict[str, np.ndarray]) -> bytes:
    """An .npz as the C++ library of the boards' runners writes it: stored, no zip64, its own headers."""
    body, directory = b"", b""
    for name, array in arrays.items():
        shape = ", ".join(map(str, array.shape)) + ("," if array.ndim == 1 else "")
        kind = "<" + array.dtype.str[1:]
        text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': ({shape}), }}"
        text += " " * (16 - (10 + len(text)) % 16 - 1) + "\n"
        data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + array.tobytes()
        file = f"{name}.npy".encode()
        facts = struct.pack(
            "<HHHHHIIIHH", 20, 0, 0, 0, 0, zlib.crc32(data), len(data), len(data), len(file), 0
        )
        offset = len(body)
        body += b"PK\x03\x04" + facts + file + data
        directory += b"PK\x01\x02" + struct.pack("<H", 20) + facts
        directory += struct.pack("<HHHII", 0, 0, 0, 0, offset) + file
    counts = struct.pack("<HHHHIIH", 0, 0, len(arrays), len(arrays), len(directory), len(body), 0)
    return body + directory + b"PK\x05\x06" + counts


def test_an_npz_of_the_boards_own_library_is_read(tmp_path):
    bits = np.array([[[[0x3F80]], [[0xC000]]]], np.uint16)
    arrays = {"/a/b_bf16": bits, "codes": CODES, "q": Q, "scalar": np.ones((1, 1, 1, 1), np.float32)}
    (tmp_path / "out.npz").write_bytes(cnpy(arrays))
    (tmp_path / "p_tensor_info.txt").write_text(
        "Cmdbuf1: layer_id, tensor_name, inGroup, ignore, gaddr, g_shape, lg_idx_slice, laddr ...\n"
        "0 /a/b_bf16 false false 0 1,2,1,1 x x bf16 1.000000\n"
        "1 codes false false 0 1,3,1,1 x x int8 0.500000\n"
    )
    assert detect(tmp_path / "out.npz") == "cvi-npz"
    found = samples.values(samples.read("cvi-npz", tmp_path / "out.npz"))
    assert found["/a/b_bf16", 0, 0].reshape(-1).tolist() == [1.0, -2.0]
    assert found["codes", 0, 0].tolist() == [-1.5, 0.0, 2.5]
    assert np.array_equal(found["q", 0, 0], Q)


def test_shapes_of_the_artefacts_manifest_undo_the_padding(tmp_path):
    cvi.write(tmp_path / "out.npz", {"x": Q[0]}, {})
    tensors = [{"mlir": "x", "format": "f32", "shape": [2, 3, 4]}]
    (tmp_path / "manifest.json").write_text(json.dumps({"tensors": tensors}))
    options = ReadOptions(tmp_path / "manifest.json")
    (entry,) = cvi.CviReader().read(tmp_path / "out.npz", options).entries
    assert (entry.shape, entry.meta["padding undone"]) == ((2, 3, 4), [2, 3, 4, 1])
    assert np.array_equal(entry.load(), Q[0])
    tensors[0]["shape"] = [2, 3, 5]
    (tmp_path / "manifest.json").write_text(json.dumps({"tensors": tensors}))
    with pytest.raises(UserError, match="of another model"):
        cvi.CviReader().read(tmp_path / "out.npz", options)


# --- BM -------------------------------------------------------------------------------------------------


def test_what_the_bm_runtime_saved_is_cut_by_the_sidecar(tmp_path):
    found = samples.values(samples.read("bmrt", samples.make_bmrt(tmp_path)))
    assert found["codes", 0, 0].tolist() == [-0.75, 0.0, 1.25]
    assert np.array_equal(found["q", 0, 0], Q)
    assert found["bits", 0, 0].dtype == ml_dtypes.bfloat16


def test_a_second_launch_in_one_file_is_two_dumps(tmp_path):
    samples.make_bmrt(tmp_path)
    file = tmp_path / "output_ref_data.dat.bmrt"
    once = file.read_bytes()
    said = {
        "2 times what one launch writes": once * 2,
        "goes on": once + b"\0",
        "cut short": once[:-1],
    }
    for match, content in said.items():
        file.write_bytes(content)
        with pytest.raises(UserError, match=match):
            samples.read("bmrt", tmp_path)


def test_files_without_a_header_need_a_sidecar(tmp_path):
    samples.make_bmrt(tmp_path)
    (tmp_path / "info.txt").unlink()
    with pytest.raises(UserError, match="no manifest: the files have no header"):
        samples.read("bmrt", tmp_path)
    for name in ("a", "b"):
        bmrt.write_info(tmp_path / f"{name}_info.txt", "n", [], [])
    with pytest.raises(UserError, match="several files could describe it"):
        samples.read("bmrt", tmp_path)


def test_a_lone_file_says_by_its_name_or_by_hand_which_side_it_is(tmp_path):
    samples.make_bmrt(tmp_path)
    other = tmp_path / "launch7.dat.bmrt"
    (tmp_path / "output_ref_data.dat.bmrt").rename(other)
    assert detect(other) == "bmrt"
    with pytest.raises(UserError, match="give side=input or side=output"):
        samples.read("bmrt", other)
    assert len(samples.values(samples.read("bmrt", other, side="output"))) == 2


def test_a_sidecar_of_several_nets_needs_one_named(tmp_path):
    text = tmp_path / "info.txt"
    bmrt.write_info(text, "one", [], [Port("x", (2,), Format("float32"))])
    body = text.read_text()
    text.write_text(body + body.replace("net 0: [one]", "net 1: [two]").replace("x, [2]", "y, [3]"))
    with pytest.raises(UserError, match="net 'one' stage 0, net 'two' stage 0; say which"):
        read_signature(text, ReadOptions())
    (port,) = read_signature(text, ReadOptions(settings={"net": "two"})).outputs
    assert (port.name, port.shape) == ("y", (3,))


def test_a_sidecar_in_json_may_name_taps(tmp_path):
    outputs = [{"name": "q", "shape": [1, 2, 3, 4], "dtype": "float32", "tap": "layer0.q"}]
    bmrt.write(tmp_path / "output_ref_data.dat", [Q])
    (tmp_path / "manifest.json").write_text(json.dumps({"inputs": [], "outputs": outputs, "chip": "bm1684x"}))
    (entry,) = samples.read("bmrt", tmp_path).entries
    assert (entry.name, entry.tap) == ("q", "layer0.q")


def test_packed_integers_are_not_guessed(tmp_path):
    bmrt.write(tmp_path / "output_ref_data.dat", [CODES])
    bmrt.write_info(tmp_path / "info.txt", "n", [], [Port("x", (6,), Format("int4"))])
    with pytest.raises(UserError, match="whose packing is not known"):
        samples.read("bmrt", tmp_path)


def test_calls_of_a_checkers_tensor_are_told_apart(tmp_path):
    path = samples.make_soc(tmp_path)
    contents = samples.read("soc-npz", path)
    assert "late" in contents.notes[0]
    entries = list(contents.entries)
    assert [(entry.name, entry.call, entry.meta["index"]) for entry in entries] == [("q", 0, 0), ("q", 1, 1)]


def test_a_checkers_file_mixed_with_another_is_refused(tmp_path):
    soc.write(tmp_path / "soc_infer_x.npz", {"q": Q, "q_asm_1_2_3_actual": Q})
    with pytest.raises(UserError, match="two tools wrote into one file"):
        samples.read("soc-npz", tmp_path / "soc_infer_x.npz")
    soc.write(tmp_path / "soc_infer_x.npz", {"q_asm_1_2_3_actual": Q})
    with pytest.raises(UserError, match="try side=actual"):
        samples.read("soc-npz", tmp_path / "soc_infer_x.npz", side="desired")
