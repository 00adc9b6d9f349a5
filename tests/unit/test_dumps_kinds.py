"""What each kind of dump says of itself, and what it refuses, beyond coming back bit for bit."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from parity.harness.errors import UserError
from parity.targets.dumps import READERS, bmrt, cvi, npy_folder, parity_dump, raw, soc, traced
from parity.targets.dumps.core import ReadOptions
from parity.targets.dumps.cvi import four_dimensions, read_table
from parity.targets.dumps.detect import detect, digest, parse, reader
from parity.targets.dumps.formats import Format, format_of
from parity.targets.dumps.signature import Port, read_signature


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


samples = _load("dumps_samples")
Q, BITS, CODES = samples.Q, samples.BITS, samples.CODES
HERE = Path("any")


@pytest.mark.parametrize("kind", samples.SAMPLES)
def test_every_kind_is_recognised_as_itself(kind, tmp_path):
    assert detect(samples.SAMPLES[kind](tmp_path)) == kind


@pytest.mark.parametrize("kind", READERS)
def test_every_reader_is_called_by_its_kind_and_says_what_it_reads(kind):
    made = reader(kind)
    assert made.kind == kind
    assert made.summary
    assert all(meaning for meaning in made.settings.values())


@pytest.mark.parametrize("kind", READERS)
def test_no_reader_takes_a_setting_that_it_does_not_have(kind, tmp_path):
    path = samples.SAMPLES[kind](tmp_path) if kind in samples.SAMPLES else tmp_path
    with pytest.raises(UserError):
        reader(kind).read(path, ReadOptions(settings={"colour": "blue"}))


@pytest.mark.parametrize("kind", READERS)
def test_no_reader_recognises_what_is_nothing(kind, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "absent"):
        assert not reader(kind).detects(path)


def test_what_looks_like_nothing_is_refused_with_the_kinds_that_there_are(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(UserError, match=r"looks like no kind of dump.*parity.*atb"):
        detect(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="is not there"):
        detect(tmp_path / "absent")
    with pytest.raises(UserError, match="Did you mean 'npz'"):
        reader("npzz")


def test_what_looks_like_two_kinds_is_refused_with_both(tmp_path):
    samples.make_bmrt(tmp_path)
    raw.write(tmp_path, [({"name": "x"}, Q)])
    with pytest.raises(UserError, match="could be of kind bmrt or raw; say which with kind=NAME"):
        detect(tmp_path)


def test_a_general_kind_steps_back(tmp_path):
    raw.write(tmp_path, [({"name": "x"}, Q)])
    np.save(tmp_path / "beside.npy", Q)
    assert detect(tmp_path) == "raw"


def test_a_dump_is_named_with_its_kind_sidecar_and_settings():
    assert parse("a+b/dump") == (Path("a+b/dump"), None, ReadOptions())
    path, kind, options = parse("d+kind=bmrt+manifest=m/i.txt+side=input")
    assert (path, kind) == (Path("d"), "bmrt")
    assert options == ReadOptions(Path("m/i.txt"), {"side": "input"})
    for wrong, match in (
        ("", "names no path"),
        ("d+kind=npz+kind=npy", "given twice"),
        ("d+side=", "is empty"),
    ):
        with pytest.raises(UserError, match=match):
            parse(wrong)


def test_a_digest_is_of_names_and_contents(tmp_path):
    folder = tmp_path / "d"
    npy_folder.write(folder, {"a": Q, "b": Q})
    before = digest(folder)
    assert (before["files"], before["bytes"]) == (2, 2 * (folder / "a.npy").stat().st_size)
    (folder / "a.npy").rename(folder / "c.npy")
    assert digest(folder)["sha256"] != before["sha256"]
    (folder / "link").symlink_to("/etc/passwd")
    assert digest(folder)["files"] == 2


# --- number formats -------------------------------------------------------------------------------------


def test_scales_are_undone_by_the_declared_rule():
    codes = np.array([-128, -1, 0, 127], np.int8)
    assert Format("int8", 0.5, -1).real(codes).tolist() == [-63.5, 0.0, 0.5, 64.0]
    assert Format("int8", 4.0, 0, inverse=True).real(codes).tolist() == [-32.0, -0.25, 0.0, 31.75]
    assert Format("int8").real(codes) is codes
    assert Format("int8", 0.5, -1).meta == {
        "dequantized": {"format": "int8", "scale": 0.5, "zero_point": -1, "rule": "(q - zero_point) * scale"}
    }


def test_the_largest_codes_do_not_wrap():
    wide = np.array([np.iinfo(np.int32).min, np.iinfo(np.int32).max], np.int32)
    assert Format("int32", 0.5, 1 << 20).real(wide).tolist() == [-1074266112.0, 1073217536.0]


@pytest.mark.parametrize(
    ("word", "scale", "zero", "match"),
    [
        ("int99", 1.0, 0, "Did you mean"),
        ("float32", 0.5, 0, "only integers have one"),
        ("int8", 0, 0, "no quantization has"),
        ("int8", -1.0, 0, "no quantization has"),
        ("int8", float("nan"), 0, "has scale nan"),
        ("int8", "x", 0, "has scale x"),
        ("int8", 1.0, 0.5, "zero point 0.5"),
    ],
)
def test_a_format_that_cannot_be_is_refused(word, scale, zero, match):
    with pytest.raises(UserError, match=match):
        format_of(HERE, "x", word, scale, zero)


def test_a_runtime_that_writes_scale_zero_for_floats_is_understood():
    assert format_of(HERE, "x", "bf16", 0, 0) == Format("bfloat16")


# --- our own --------------------------------------------------------------------------------------------


def test_our_own_dump_says_taps_tokens_and_origin(tmp_path):
    contents = samples.read("parity", samples.make_parity(tmp_path))
    assert contents.facts["chip"] == "cv181x"
    assert contents.tokens.tolist() == [[7]]
    assert {step: ids.tolist() for step, ids in contents.fed.items()} == {0: [[7]], 1: [[8]]}
    first, second, third = list(contents.entries)[:3]
    assert (first.name, first.tap, first.axes) == ("seg_head/layer0.q", "layer0.q", "b h t d")
    assert first.positions.tolist() == [[0, 1, 2]]
    assert (second.name, second.tap) == ("seg_head/inner", None)
    assert third.load().tolist() == [-0.5, 0.25, 1.5]


def test_a_padded_array_gets_its_logical_shape(tmp_path):
    record = {"array": Q.reshape(2, 3, 4, 1), "tap": "q", "shape": [2, 12]}
    parity_dump.write(tmp_path / "d", [{"index": 0, "records": [record]}])
    (entry,) = samples.read("parity", tmp_path / "d").entries
    assert entry.load().shape == entry.shape == (2, 12)
    assert entry.meta["padding undone"] == [2, 3, 4, 1]


def test_a_runner_that_was_stopped_is_said_to_be(tmp_path):
    parity_dump.write(tmp_path / "d", [{"index": 0, "records": []}], complete=False)
    contents = samples.read("parity", tmp_path / "d")
    assert contents.facts["complete"] is False
    assert "stopped before its end" in contents.notes[0]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 2}, "this parity reads 1"),
        ({"format": "other"}, "should have 'parity-dump'"),
        ({"steps": 3}, "no list"),
        ({"steps": None}, "lacks 'steps'"),
        (
            {"steps": [{"index": 0, "file": "gone.npz", "records": []}]},
            "lacks gone.npz, which its manifest names",
        ),
    ],
)
def test_a_manifest_of_ours_that_is_none_is_refused(change, match, tmp_path):
    dump = samples.make_parity(tmp_path)
    manifest = {**json.loads((dump / "manifest.json").read_text()), **change}
    (dump / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=match):
        samples.values(samples.read("parity", dump))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": "float32", "shape": [9]}, "belongs to another dump"),
        ({"format": "bfloat16"}, "belongs to another dump"),
        ({"key": "9999"}, "has no array '9999'"),
        ({"axes": "b h"}, "has axes 'b h'"),
        ({"positions": [[1, 2]]}, "2 positions for 3 rows"),
        ({"call": -1}, "which cannot be"),
        ({"call": 1 << 40}, "which cannot be"),
        ({"tap": 3}, "no text"),
    ],
)
def test_a_record_that_does_not_fit_its_array_is_refused(change, match, tmp_path):
    dump = samples.make_parity(tmp_path)
    manifest = json.loads((dump / "manifest.json").read_text())
    manifest["steps"][0]["records"][0].update(change)
    (dump / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=match):
        samples.values(samples.read("parity", dump))


def test_a_step_that_stands_twice_is_refused(tmp_path):
    dump = samples.make_parity(tmp_path)
    manifest = json.loads((dump / "manifest.json").read_text())
    manifest["steps"].append(manifest["steps"][0])
    (dump / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="step 0 stands twice"):
        samples.read("parity", dump)


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


# --- folders, tracer, raw -------------------------------------------------------------------------------


def test_files_of_one_name_are_calls_in_the_order_of_their_times(tmp_path):
    entries = list(samples.read("npy", samples.make_npy(tmp_path)).entries)
    assert [(entry.name[:8], entry.call) for entry in entries] == [("layer0.x", 0), ("q.0", 0), ("q.0", 1)]
    assert entries[1].load()[0, 0, 0, 0] == 0
    assert entries[2].load()[0, 0, 0, 0] == 1


def test_a_list_of_long_names_that_is_none_is_refused(tmp_path):
    folder = samples.make_npy(tmp_path)
    (folder / "mapping.csv").write_text("a,b,c\n")
    with pytest.raises(UserError, match="has a line of 3 fields"):
        samples.read("npy", folder)
    (folder / "mapping.csv").write_text("a,b\na,c\n")
    with pytest.raises(UserError, match="gives 'a' two names"):
        samples.read("npy", folder)
    (folder / "mapping.csv").write_text("gone,b\n")
    assert "1 files that are not there" in samples.read("npy", folder).notes[0]


def test_two_files_that_get_one_name_are_refused(tmp_path):
    npy_folder.write(tmp_path, {"a": Q, "b": Q})
    (tmp_path / "mapping.csv").write_text("b,a\n")
    with pytest.raises(UserError, match="second file that is named 'a'"):
        samples.values(samples.read("npy", tmp_path))


def test_one_run_of_the_original_tracers_file_is_read(tmp_path):
    path = tmp_path / "traced_tensors.pt"
    traced.write(path, {".q": {"ref": Q, "seg": Q + 1}, ".only": {"ref": BITS}})
    with pytest.raises(UserError, match="holds the runs 'ref', 'seg'; say which with run=NAME"):
        samples.read("traced", path)
    contents = samples.read("traced", path, run="seg")
    assert contents.notes == ("1 names have no record of run 'seg', first '.only'",)
    (entry,) = contents.entries
    assert (entry.name, entry.tap) == (".q", "q")
    assert np.array_equal(entry.load(), Q + 1)


def test_a_raw_manifest_describes_npy_and_npz_files_too(tmp_path):
    np.save(tmp_path / "a.npy", BITS.view(np.uint16))
    np.savez(tmp_path / "b.npz", inner=Q.reshape(2, 3, 4, 1))
    tensors = [
        {"name": "bits", "file": "a.npy", "dtype": "bfloat16", "tap": "layer0.k", "step": 4},
        {"name": "q", "file": "b.npz", "member": "inner", "shape": [1, 2, 3, 4]},
    ]
    content = {"format": "parity-raw", "version": 1, "tensors": tensors}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    bits, q = samples.read("raw", tmp_path).entries
    assert (bits.dtype, bits.step, bits.tap) == ("bfloat16", 4, "layer0.k")
    assert bits.load().view(np.uint16).tolist() == BITS.view(np.uint16).tolist()
    assert np.array_equal(q.load(), Q)


def test_bytes_that_no_tensor_owns_must_be_said_to_be_unused(tmp_path):
    raw.write(tmp_path, [({"name": "x"}, Q)])
    file = tmp_path / "tensors.bin"
    file.write_bytes(file.read_bytes() + b"\0" * 32)
    with pytest.raises(UserError, match="two dumps were written into one file"):
        samples.read("raw", tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["unused"] = [{"file": "tensors.bin", "offset": Q.nbytes, "length": 32}]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert len(samples.values(samples.read("raw", tmp_path))) == 1
    manifest["unused"][0]["offset"] -= 4
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="overlap"):
        samples.read("raw", tmp_path)
