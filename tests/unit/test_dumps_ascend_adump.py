"""AscendCL dumps: bytes, names, folders, and everything that is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from parity.harness.errors import UserError
from parity.targets.dumps.ascend.adump import AdumpReader, parse_adump
from parity.targets.dumps.ascend.adump_message import parse
from parity.targets.dumps.ascend.adump_writer import Written, fractal_nz, nc1hwc0, write_adump
from parity.targets.dumps.ascend.names import parse_name
from parity.targets.dumps.ascend.wire import WireError
from parity.targets.dumps.core import Contents, Dumped, ReadOptions

NAME = "MatMul.lin_MatMul.3.2.1700000000000001"
PLACE = "20240101120000/0/net/1/0"


def read(path: Path, **settings: str) -> Contents:
    return AdumpReader().read(path, ReadOptions(settings=settings))


def entries(path: Path, **settings: str) -> dict[str, Dumped]:
    return {entry.name: entry for entry in read(path, **settings).entries}


def test_a_header_written_by_hand_is_read_field_by_field(tmp_path: Path) -> None:
    shape = b"\x0a\x02\x02\x03"
    output = b"\x08\x02\x10\x02\x1a" + bytes([len(shape)]) + shape + b"\x22\x06\x0a\x04/a/b\x30\x0c"
    header = b"\x0a\x032.0\x10\x07\x1a" + bytes([len(output)]) + output + b"\x32\x02op"
    values = np.arange(6, dtype="<f2")
    path = tmp_path / NAME
    path.write_bytes(struct.pack("<Q", len(header)) + header + values.tobytes())
    operation = parse_adump(path)
    assert (operation.version, operation.time, operation.name, operation.tail) == ("2.0", 7, "op", 0)
    (entry,) = read(path).entries
    assert (entry.name, entry.shape, entry.dtype) == ("op:output:0", (2, 3), "float16")
    assert entry.meta["origin"] == "/a/b:0"
    np.testing.assert_array_equal(entry.load(), values.reshape(2, 3))


def test_bytes_lie_in_the_order_inputs_outputs_buffers_spaces(tmp_path: Path) -> None:
    write_adump(
        tmp_path / NAME,
        "op",
        inputs=[Written(np.int8([1])), Written(np.int8([2]))],
        outputs=[Written(np.int8([3]))],
        buffers=[b"\x04"],
        spaces=[b"\x05"],
    )
    found = entries(tmp_path, parts="input,output,buffer,space")
    assert {name: int(entry.load()[0]) for name, entry in found.items()} == {
        "op:input:0": 1,
        "op:input:1": 2,
        "op:output:0": 3,
        "op:buffer:0": 4,
        "op:space:0": 5,
    }
    assert list(entries(tmp_path)) == ["op:input:0", "op:input:1", "op:output:0"]


def test_bfloat16_and_int4_keep_their_bits(tmp_path: Path) -> None:
    bits = np.array([0x7FC1, 0x8000, 0x3F80], np.uint16).view(ml_dtypes.bfloat16)
    four = np.arange(-8, 7).astype(ml_dtypes.int4)
    write_adump(tmp_path / NAME, "op", inputs=[Written(four)], outputs=[Written(bits, padding=26)])
    found = entries(tmp_path)
    np.testing.assert_array_equal(found["op:output:0"].load().view(np.uint16), bits.view(np.uint16))
    assert found["op:input:0"].dtype == "int4"
    assert found["op:input:0"].load().astype(int).tolist() == list(range(-8, 7))


@pytest.mark.parametrize("shape", [(35,), (20, 35), (2, 3, 17, 33)])
def test_fractal_nz_is_undone_and_its_padding_never_seen(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float16)
    stored = fractal_nz(array if array.ndim > 1 else array[None])
    write_adump(tmp_path / NAME, "op", outputs=[Written(stored, "FRACTAL_NZ", shape)])
    (entry,) = read(tmp_path).entries
    assert entry.shape == shape
    np.testing.assert_array_equal(entry.load(), array)
    assert "FRACTAL_NZ" in entry.meta["layout"]


def test_nc1hwc0_is_undone(tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((2, 20, 3, 5)).astype(np.float32)
    write_adump(tmp_path / NAME, "op", outputs=[Written(nc1hwc0(array), "NC1HWC0", array.shape)])
    np.testing.assert_array_equal(next(iter(read(tmp_path).entries)).load(), array)


@pytest.mark.parametrize(
    ("layout", "original", "told"),
    [
        ("FRACTAL_Z", (4, 4), "FRACTAL_Z, which cannot be undone"),
        ("FRACTAL_NZ", None, "without its original shape"),
        ("FRACTAL_NZ", (40, 35), "cannot hold the original shape"),
        ("NC1HWC0", (20, 35), "cannot hold the original shape"),
    ],
)
def test_a_layout_that_cannot_be_undone_is_refused(
    tmp_path: Path, layout: str, original: tuple[int, ...] | None, told: str
) -> None:
    stored = fractal_nz(np.zeros((20, 35), np.float16))
    write_adump(tmp_path / NAME, "op", outputs=[Written(stored, layout, original)])
    with pytest.raises(UserError, match=told):
        entries(tmp_path)
    assert entries(tmp_path, leave_out="op:output:*") == {}


def test_a_tail_is_noted_and_a_deficit_refused(tmp_path: Path) -> None:
    path = tmp_path / NAME
    write_adump(path, "op", outputs=[Written(np.ones(3, np.float32))], tail=b"\0" * 20)
    (entry,) = read(path).entries
    assert "20 bytes" in entry.meta["note"]
    whole = path.read_bytes()
    path.write_bytes(whole[:-21])
    with pytest.raises(UserError, match="cut short"):
        entries(path)


def test_a_second_dump_behind_the_first_is_refused(tmp_path: Path) -> None:
    path = tmp_path / NAME
    write_adump(path, "op", outputs=[Written(np.ones(3, np.float32))])
    whole = path.read_bytes()
    for second in (whole, whole[:-5]):
        path.write_bytes(whole + second)
        with pytest.raises(UserError, match="two dumps appended into one file"):
            parse_adump(path)
    for tail in (whole[:20], whole[:4], b"\x02" + b"\0" * 9, b"\xff" * 40):
        path.write_bytes(whole + tail)
        assert parse_adump(path).tail == len(tail)


def test_absurd_lengths_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"\x0a")
    with pytest.raises(UserError, match="announces a header of"):
        entries(path)
    write_adump(path, "op", outputs=[Written(np.zeros(3, np.float32))])
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"\x0a\x01\x03", b"\x0a\x01\x7f"))
    with pytest.raises(UserError, match=r"has 12 bytes, but \[127\] of float32 needs 508"):
        entries(path)


def test_codes_without_numbers_say_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / NAME
    write_adump(path, "op", outputs=[Written(np.zeros(3, np.float32))])
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"\x08\x01\x10\x02", b"\x08\x21\x10\x02"))
    with pytest.raises(UserError, match=r"hifloat8 \(33 of the numbering of AscendCL dumps\)"):
        entries(path)
    path.write_bytes(raw.replace(b"\x08\x01\x10\x02", b"\x08\x63\x10\x02"))
    with pytest.raises(UserError, match="data type 99"):
        entries(path)
    path.write_bytes(raw.replace(b"\x08\x01\x10\x02", b"\x08\x01\x10\x63"))
    with pytest.raises(UserError, match="format 99"):
        entries(path)


def test_an_entry_may_be_left_out_and_a_glob_that_leaves_out_nothing_is_an_error(tmp_path: Path) -> None:
    both = [Written(np.ones(1, np.float32)), Written(np.ones(2, np.float32))]
    write_adump(tmp_path / NAME, "op", outputs=both)
    assert list(entries(tmp_path, leave_out="op:output:0")) == ["op:output:1"]
    with pytest.raises(UserError, match="matches none"):
        entries(tmp_path, leave_out="nothing:*")


def test_field_seven_is_an_attribute_or_the_older_workspace() -> None:
    attribute = parse(b"\x3a\x06\x0a\x01a\x12\x01b")
    assert attribute.attributes == (("a", "b"),)
    assert attribute.tensors == ()
    space = parse(b"\x3a\x04\x10\x05\x18\x09")
    assert space.attributes == ()
    assert [(t.part, t.size, t.more["address"]) for t in space.tensors] == [("space", 9, 5)]


def test_a_shape_may_be_packed_or_not() -> None:
    packed = parse(b"\x1a\x06\x1a\x04\x0a\x02\x02\x03")
    single = parse(b"\x1a\x06\x1a\x04\x08\x02\x08\x03")
    assert packed.tensors[0].shape == single.tensors[0].shape == (2, 3)


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (b"\x0a\x7f", "wants 127 bytes"),
        (b"\x0a", "cut short"),
        (b"\x0b", "wire type 3"),
        (b"\x02\x00", "field number 0"),
        (b"\x10" + b"\xff" * 10, "longer than 64 bits"),
        (b"\x0a\x01\xff", "no UTF-8"),
        (b"\x18\x05", "wire type 0, but should have 2"),
        (b"\x1a\x04\x1a\x02\x0a\x7f", "wants 127"),
        (b"\x1a\x46\x1a\x44\x0a\x42" + b"\x01" * 66, "more than 64 dimensions"),
        (b"\x1a\x03\x2a\x01x", "inside the header"),
    ],
)
def test_a_header_that_is_none_says_why(header: bytes, told: str) -> None:
    with pytest.raises(WireError, match=told):
        parse(header)


def test_a_scalar_a_raw_tensor_an_empty_one_and_an_absent_one(tmp_path: Path) -> None:
    path = tmp_path / NAME
    absent = b"\x22\x00"
    raw = b"\x22\x02\x28\x05"
    scalar = b"\x22\x04\x08\x01\x28\x40"
    empty = b"\x22\x09\x08\x01\x1a\x03\x0a\x01\x00\x28\x00"
    header = absent + raw + scalar + empty
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"abcde" + struct.pack("<f", 2.5) + bytes(60))
    found = entries(path)
    assert list(found) == [f"lin_MatMul:input:{index}" for index in (1, 2, 3)]
    assert found["lin_MatMul:input:1"].load().tobytes() == b"abcde"
    assert found["lin_MatMul:input:2"].load().item() == 2.5
    assert found["lin_MatMul:input:3"].load().shape == (0,)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("Add.a_b.1.2.1700000000000001", ("Add", "a_b", 1, 2, "")),
        ("Add.a_b.1.1700000000000001", ("Add", "a_b", 1, None, "")),
        ("Add.a_b.1.2.1700000000000001.4.1.0.0", ("Add", "a_b", 1, 2, "4.1.0.0")),
        ("Opdebug.Node_OpDebug.1.2.1700000000000001", ("Opdebug", "Node_OpDebug", 1, 2, "")),
        ("exception_info.2.1.1700000000000001", ("exception_info", "", 1, 2, "")),
    ],
)
def test_file_names_follow_the_grammar(name: str, parts: tuple[object, ...]) -> None:
    found = parse_name(name)
    assert found is not None
    assert (found.op_type, found.op_name, found.task, found.stream, found.part) == parts


@pytest.mark.parametrize(
    "name", ["", "README", "Add.a.1", "Add.a.b.1.2.17", "a.npy", "Add..1.2.1700000000000001"]
)
def test_other_names_are_no_dumps(name: str) -> None:
    assert parse_name(name) is None


def test_a_tree_is_read_in_execution_order_iteration_by_iteration(tmp_path: Path) -> None:
    for iteration, time, name in ((1, 50, "b"), (0, 20, "b"), (0, 10, "a"), (0, 30, "a"), (1, 40, "a")):
        path = tmp_path / PLACE[:-1] / str(iteration) / f"Add.{name}.1.2.17000000000000{time}"
        write_adump(path, name, outputs=[Written(np.float32([time]))])
    contents = read(tmp_path)
    found = [(e.step, e.name, e.call, int(e.load()[0])) for e in contents.entries]
    assert found == [
        (0, "a:output:0", 0, 10),
        (0, "b:output:0", 0, 20),
        (0, "a:output:0", 1, 30),
        (1, "a:output:0", 0, 40),
        (1, "b:output:0", 0, 50),
    ]
    assert contents.facts["iterations"] == [0, 1]
    assert [e.step for e in read(tmp_path, steps="1").entries] == [1, 1]
    assert len(list(read(tmp_path, steps="0-1").entries)) == 5
    with pytest.raises(UserError, match="none of them is in it; it has 0, 1"):
        read(tmp_path, steps="2-9")
    with pytest.raises(UserError, match="should be a number or two"):
        read(tmp_path, steps="a-")


def test_reading_twice_gives_the_same(tmp_path: Path) -> None:
    write_adump(tmp_path / NAME, "op", outputs=[Written(np.ones(1, np.float32))])
    contents = read(tmp_path)
    assert [e.name for e in contents.entries] == [e.name for e in contents.entries] == ["op:output:0"]


def test_several_models_keep_apart_and_several_devices_must_be_chosen(tmp_path: Path) -> None:
    for device, model in ((0, "head"), (0, "tail"), (1, "head")):
        path = tmp_path / f"20240101120000/{device}/{model}/1/0" / NAME
        write_adump(path, "op", outputs=[Written(np.ones(1, np.float32))])
    with pytest.raises(UserError, match="several: device 0, 1"):
        read(tmp_path)
    assert list(entries(tmp_path, device="0")) == ["head/op:output:0", "tail/op:output:0"]
    assert list(entries(tmp_path, device="0", model="tail")) == ["op:output:0"]
    with pytest.raises(UserError, match="device='7' is not in it"):
        read(tmp_path, device="7")


def test_a_long_name_is_looked_up_in_the_mapping(tmp_path: Path) -> None:
    write_adump(tmp_path / ("1" * 32), "", outputs=[Written(np.ones(1, np.float32))])
    with pytest.raises(UserError, match=r"mapping\.csv"):
        read(tmp_path)
    (tmp_path / "mapping.csv").write_text(f"{'1' * 32},{NAME}\n")
    assert list(entries(tmp_path)) == ["lin_MatMul:output:0"]
    (tmp_path / "mapping.csv").write_text(f"{'1' * 32},{NAME},x\n")
    with pytest.raises(UserError, match="3 columns"):
        read(tmp_path)


def test_overflow_records_slices_and_strangers_are_noted(tmp_path: Path) -> None:
    write_adump(tmp_path / f"{NAME}.4.1.0.0", "op", outputs=[Written(np.ones(1, np.float32))])
    write_adump(tmp_path / f"{NAME}.4.1.1.0", "op", outputs=[Written(np.ones(1, np.float32))])
    (tmp_path / "Opdebug.Node_OpDebug.1.2.1700000000000001").write_bytes(bytes(1024))
    (tmp_path / "notes.txt").write_text("x")
    contents = read(tmp_path)
    assert [e.name for e in contents.entries] == ["op:output:0:slice4.1.0.0", "op:output:0:slice4.1.1.0"]
    notes = " ".join(contents.notes)
    assert "1 overflow records" in notes
    assert "notes.txt" in notes
    assert "2 files hold one slice" in notes


def test_a_crash_dump_is_read_and_its_empty_tensors_noted(tmp_path: Path) -> None:
    path = tmp_path / "exception_info.2.1.1700000000000001"
    header = (
        b"\x32\x03bad\x1a\x09\x08\x01\x1a\x03\x0a\x01\x04\x30\x00\x1a\x09\x08\x01\x1a\x03\x0a\x01\x01\x30\x04"
    )
    path.write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<f", 3))
    contents = read(tmp_path)
    assert [e.name for e in contents.entries] == ["bad:output:1"]
    assert any("kernel failed; 1 of its 2" in note for note in contents.notes)


def test_statistics_become_records_of_their_own(tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.csv").write_text(
        "Input/Output,Index,Data Size,Data Type,Format,Shape,Max Value,Min Value,Avg Value\n"
        "Output,0,24,DT_FLOAT,ND,2x3,5.5,-1,nan\n"
    )
    assert AdumpReader().detects(tmp_path)
    contents = read(tmp_path)
    (entry,) = contents.entries
    assert entry.name == "lin_MatMul:output:0:statistics"
    assert entry.meta["statistics"] == ["max", "min", "mean"]
    np.testing.assert_array_equal(entry.load(), [5.5, -1.0, np.nan])
    assert any("no tensors" in note for note in contents.notes)


def test_what_the_vendor_converted_to_npy_is_read_too(tmp_path: Path) -> None:
    for part, value in (("output.0", 3.0), ("input.1", 2.0), ("input.0", 1.0)):
        np.save(tmp_path / f"{NAME}.{part}.npy", np.float32([value]))
    assert AdumpReader().detects(tmp_path)
    contents = read(tmp_path)
    found = [(entry.name, float(entry.load()[0])) for entry in contents.entries]
    assert found == [("lin_MatMul:input:0", 1), ("lin_MatMul:input:1", 2), ("lin_MatMul:output:0", 3)]
    assert any("what was bfloat16 on the device is float32" in note for note in contents.notes)


def test_token_ids_are_taken_from_the_entry_that_is_named(tmp_path: Path) -> None:
    for iteration in (0, 1):
        path = tmp_path / str(iteration) / NAME
        write_adump(path, "emb", inputs=[Written(np.int64([[5 + iteration]]))])
    contents = read(tmp_path, ids="emb:input:0")
    assert {step: ids.tolist() for step, ids in contents.fed.items()} == {0: [[5]], 1: [[6]]}
    with pytest.raises(UserError, match="no such entry"):
        read(tmp_path, ids="emb:input:1")


def test_the_manifest_of_the_board_becomes_facts(tmp_path: Path) -> None:
    write_adump(tmp_path / "d" / NAME, "op", outputs=[Written(np.ones(1, np.float32))])
    manifest = tmp_path / "ascend.json"
    manifest.write_text('{"chip": "Ascend310B4", "precision_mode": "force_fp16", "environment": {}}')
    contents = AdumpReader().read(tmp_path / "d", ReadOptions(manifest=manifest))
    assert contents.facts["chip"] == "Ascend310B4"
    assert contents.facts["precision"] == "force_fp16"
    assert contents.facts["arithmetic"]["overflow"] == "saturates"
    assert any("does not say: rounding" in note for note in contents.notes)
    assert any("nothing says chip" in note for note in read(tmp_path / "d").notes)
    manifest.write_text('{"chp": 1}')
    with pytest.raises(UserError, match="chp"):
        AdumpReader().read(tmp_path / "d", ReadOptions(manifest=manifest))


def test_links_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    write_adump(tmp_path / "d" / NAME, "op", outputs=[Written(np.ones(1, np.float32))])
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / NAME).symlink_to(tmp_path / "d" / NAME)
    with pytest.raises(UserError, match="outside its folder"):
        read(tmp_path / "e")
    (tmp_path / "e" / NAME).unlink()
    (tmp_path / "e" / "link").symlink_to(tmp_path / "d")
    with pytest.raises(UserError, match="link to a folder"):
        read(tmp_path / "e")
    with pytest.raises(UserError, match="is no place in a dump"):
        read(tmp_path)


def test_what_is_there_is_detected_without_raising(tmp_path: Path) -> None:
    reader = AdumpReader()
    assert not reader.detects(tmp_path / "absent")
    assert not reader.detects(tmp_path)
    (tmp_path / NAME).write_bytes(b"short")
    assert not reader.detects(tmp_path)
    write_adump(tmp_path / NAME, "op", outputs=[Written(np.ones(1, np.float32))])
    assert reader.detects(tmp_path)
    assert reader.detects(tmp_path / NAME)
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "absent")
    with pytest.raises(UserError, match="is no setting"):
        read(tmp_path, speed="1")
