"""ATB dumps: the file, both trees, names that stand for other tensors, and the appended dump."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from parity.harness.errors import UserError
from parity.targets.dumps.ascend.atb import AtbReader
from parity.targets.dumps.ascend.atb_file import parse_atb
from parity.targets.dumps.ascend.atb_writer import write_atb, write_atb_tree
from parity.targets.dumps.core import Contents, Dumped, ReadOptions

#: What the vendor's compiled writer leaves for a float16 [2, 3].
GOLDEN = (
    b"$Version=1.0\n$Object.Count=1\n$Object.Length=12\n"
    b"format=2\ndtype=1\ndims=2,3\n$Object.data=0,12\n$End=1\n"
)


def read(path: Path, **settings: str) -> Contents:
    return AtbReader().read(path, ReadOptions(settings=settings))


def entries(path: Path, **settings: str) -> dict[str, Dumped]:
    return {entry.name: entry for entry in read(path, **settings).entries}


def array(value: float = 1.0) -> np.ndarray:
    return np.full((2, 3), value, np.float32)


def test_the_file_is_byte_for_byte_the_vendors(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float16).reshape(2, 3)
    write_atb(tmp_path / "x.bin", values)
    assert (tmp_path / "x.bin").read_bytes() == GOLDEN + values.tobytes()


@pytest.mark.parametrize(
    "values",
    [
        np.array([1.5, -2.0, np.nan], ml_dtypes.bfloat16),
        np.arange(-5, 5, dtype=np.int8),
        np.array([True, False]),
        np.array(7, np.int64),
        np.zeros((0, 3), np.float32),
    ],
    ids=lambda values: f"{values.dtype} {values.shape}",
)
def test_tensors_come_back_bit_for_bit(tmp_path: Path, values: np.ndarray) -> None:
    write_atb_tree(tmp_path, {"0_Op/after/outtensor0": values})
    (entry,) = read(tmp_path).entries
    assert entry.shape == values.shape
    assert entry.load().tobytes() == values.tobytes()


def test_operations_come_in_execution_order_inputs_first_outputs_last(tmp_path: Path) -> None:
    names = [
        "0_Layer/before/intensor0",
        "0_Layer/2_Linear/before/intensor0",
        "0_Layer/2_Linear/after/outtensor0",
        "0_Layer/10_Add/after/outtensor0",
        "0_Layer/10_Add/after/outtensor11",
        "0_Layer/after/outtensor0",
        "1_Layer/after/outtensor0",
    ]
    top = write_atb_tree(tmp_path, {name: array() for name in names})
    write_atb(top / "0_Layer/before/outtensor0.bin", array())
    contents = read(tmp_path)
    assert [entry.name for entry in contents.entries] == names
    assert contents.count == len(names)
    assert any("1 tensors are left out" in note for note in contents.notes)
    assert "0_Layer/before/outtensor0" in entries(tmp_path, parts="before/out")


@pytest.mark.parametrize("deep", range(4))
def test_any_folder_of_the_tree_may_be_given(tmp_path: Path, deep: int) -> None:
    top = write_atb_tree(tmp_path, {"0_Op/after/outtensor0": array()}, execution=3)
    folder = [tmp_path, *reversed([top, *top.parents][:3])][deep]
    (entry,) = read(folder).entries
    assert (entry.name, entry.step) == ("0_Op/after/outtensor0", 3)
    assert AtbReader().detects(folder)


def test_the_tree_of_msit_is_the_same_under_other_names(tmp_path: Path) -> None:
    folder = tmp_path / "msit_dump_20240101_120000" / "tensors" / "0_99" / "2" / "5_Prefill"
    write_atb(folder / "after" / "outTensor0.bin", array())
    (folder / "op_param.json").write_text('{"alpha": 1}')
    (entry,) = read(tmp_path).entries
    assert (entry.name, entry.step) == ("5_Prefill/after/outTensor0", 2)
    assert entry.meta["op_param"] == '{"alpha": 1}'
    assert any("--step-offset 1" in note for note in read(tmp_path).notes)


def test_two_dumps_in_one_file_are_refused(tmp_path: Path) -> None:
    write_atb(tmp_path / "x.bin", array(), append=True)
    assert parse_atb(tmp_path / "x.bin").shape == (2, 3)
    write_atb(tmp_path / "x.bin", array(), append=True)
    with pytest.raises(UserError, match="second dump was appended"):
        parse_atb(tmp_path / "x.bin")


def test_code_one_is_float16_in_an_atb_file(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(GOLDEN + bytes(12))
    assert parse_atb(tmp_path / "x.bin").dtype == "float16"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (b"$Version=1.0", b"$Version=2.0", "version '2.0'"),
        (b"$Version=1.0", b"Version=1.0", r"\$Version="),
        (b"$End=1\n", b"", r"\$End=1"),
        (b"dtype=1", b"dtype=99", "data type 99"),
        (b"dtype=1", b"dtype=13", "type string"),
        (b"dtype=1", b"dtype=x", "which is no number"),
        (b"dtype=1\n", b"", "dtype=None"),
        (b"dims=2,3", b"dims=2,-3", "is no shape"),
        (b"dims=2,3\n", b"", "does not say its dims"),
        (b"dims=2,3", b"dims=2,99999999999999999", "impossible shape"),
        (b"dims=2,3", b"dims=2,4", "need 16"),
        (b"format=2", b"format=2=3", "name=value"),
        (b"format=2", b"format=29", "without its original shape"),
        (b"format=2", b"dtype=1", "each name once"),
        (b"Length=12", b"Length=11", "begins at 0"),
        (b"Count=1", b"Count=2", "one object"),
        (b"data=0,12", b"data=4,12", "begins at 0"),
    ],
)
def test_a_damaged_header_says_what_is_wrong(tmp_path: Path, old: bytes, new: bytes, told: str) -> None:
    assert old in GOLDEN
    (tmp_path / "x.bin").write_bytes(GOLDEN.replace(old, new, 1) + bytes(12))
    with pytest.raises(UserError, match=told):
        parse_atb(tmp_path / "x.bin")


@pytest.mark.parametrize(("count", "told"), [(11, "cut short"), (13, "1 bytes follow its data")])
def test_the_data_must_be_exactly_as_long_as_it_is_said(tmp_path: Path, count: int, told: str) -> None:
    (tmp_path / "x.bin").write_bytes(GOLDEN + bytes(count))
    with pytest.raises(UserError, match=told):
        parse_atb(tmp_path / "x.bin")


@pytest.mark.parametrize(
    ("place", "other"),
    [
        ("0_Layer/1_Add/before/intensor0", "0_2_outtensor0.bin"),
        ("0_Layer/1_Add/before/intensor0", "../../2_Mul/after/outtensor0.bin"),
        ("0_Layer/1_Add/before/intensor0", "0_Layer/2_Mul/after/outtensor0.bin"),
        ("0_Layer/2_Mul/0_MulKernel/after/outtensor0", "outtensor0.bin"),
    ],
)
def test_a_file_may_name_the_tensor_that_holds_its_numbers(tmp_path: Path, place: str, other: str) -> None:
    top = write_atb_tree(tmp_path, {"0_Layer/2_Mul/after/outtensor0": array(5)})
    write_atb(top / f"{place}.bin", array(), other=other)
    entry = entries(tmp_path)[place]
    assert entry.load().tolist() == array(5).tolist()
    assert entry.meta["data_of"] == other


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ("9_9_outtensor0.bin", "has no such tensor"),
        ("../../../../../../../../../../etc/passwd", "outside its folder"),
        ("/etc/passwd", "has no such tensor|outside"),
        ("0_1_intensor0.bin", "another tensor's|no such tensor"),
        ("0_3_outtensor0.bin", "another tensor's"),
        ("intensor0.bin", "has no such tensor"),
        ("\0", "no name|no such tensor"),
    ],
)
def test_a_name_that_leads_nowhere_or_out_is_refused(tmp_path: Path, other: str, told: str) -> None:
    top = write_atb_tree(tmp_path, {"0_Layer/3_Sub/after/outtensor0": np.zeros(4, np.float32)})
    write_atb(top / "0_Layer/1_Add/before/intensor0.bin", array(), other=other)
    with pytest.raises(UserError, match=told):
        entries(tmp_path)


def test_token_ids_are_handed_on_and_a_warm_up_can_be_left_out(tmp_path: Path) -> None:
    for execution, ids in ((0, [[1, 2, 3]]), (1, [[4]])):
        tensors = {
            "0_Model/before/intensor0_input_ids": np.array(ids, np.int64),
            "0_Model/after/outtensor0": array(),
        }
        write_atb_tree(tmp_path, tensors, execution=execution)
    contents = read(tmp_path)
    assert {step: ids.tolist() for step, ids in contents.fed.items()} == {0: [[1, 2, 3]], 1: [[4]]}
    assert {entry.step for entry in contents.entries} == {0, 1}
    named = read(tmp_path, ids="0_Model/before/intensor0_input_ids")
    assert sorted(named.fed) == [0, 1]
    late = read(tmp_path, steps="1-9")
    assert {entry.step for entry in late.entries} == set(late.fed) == {1}


def test_without_token_ids_that_is_said(tmp_path: Path) -> None:
    write_atb_tree(tmp_path, {"0_Model/after/outtensor0": array()})
    write_atb_tree(tmp_path, {"0_Model/after/outtensor0": array()}, execution=4)
    notes = " ".join(read(tmp_path).notes)
    assert "ids=NAME" in notes
    assert "not in one row: [0, 4]" in notes
    with pytest.raises(UserError, match="are no token ids"):
        read(tmp_path, ids="0_Model/after/outtensor0")


def test_statistics_without_tensors_become_records_of_their_own(tmp_path: Path) -> None:
    write_atb_tree(
        tmp_path,
        {"0_L/1_A/after/outtensor0": array(2), "0_L/before/intensor1": array(-1)},
        task="statistics",
    )
    assert AtbReader().detects(tmp_path)
    contents = read(tmp_path)
    found = {entry.name: entry.load().tolist() for entry in contents.entries}
    assert found == {
        "0_L/1_A/after/outtensor0:statistics": [2.0, 2.0, 2.0, pytest.approx(24**0.5)],
        "0_L/before/intensor1:statistics": [-1.0, -1.0, -1.0, pytest.approx(6**0.5)],
    }
    assert any("no tensors" in note for note in contents.notes)


def test_several_devices_must_be_chosen(tmp_path: Path) -> None:
    for device in ("0_7", "1_8"):
        write_atb_tree(tmp_path, {"0_A/after/outtensor0": array()}, device=device)
    with pytest.raises(UserError, match="several devices: 0_7, 1_8"):
        read(tmp_path)
    assert read(tmp_path, device="1_8").facts["device"] == "1_8"
    with pytest.raises(UserError, match="is not in it"):
        read(tmp_path, device="2_9")


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("0/0_A/after/tensor0.bin", "is not named intensorN"),
        ("0/0_A/outtensor0.bin", "neither in before/ nor in after/"),
        ("x/0_A/after/outtensor0.bin", "should lie in"),
        ("0/after/outtensor0.bin", "should lie in"),
    ],
)
def test_files_elsewhere_are_refused(tmp_path: Path, place: str, told: str) -> None:
    write_atb(tmp_path / place, array())
    with pytest.raises(UserError, match=told):
        read(tmp_path)


def test_a_folder_without_tensors_is_no_dump(tmp_path: Path) -> None:
    assert not AtbReader().detects(tmp_path)
    with pytest.raises(UserError, match="holds no ATB tensor"):
        read(tmp_path)
