"""Calibration tables and qtables: written, read, and refused where they belong to something else."""

from __future__ import annotations

import math

import numpy as np
import pytest

from parity.harness.errors import UserError
from parity.targets.sophgo.compile.tables import (
    Calibration,
    Threshold,
    check_calibration,
    check_qtable,
    ranges,
    read_calibration,
    read_qtable,
    write_calibration,
    write_qtable,
)

TABLE = Calibration(
    {"x": Threshold(2.5, -2.5, 1.0), "/a/Add_output_0_Add": Threshold(0.125, 0.0, 0.125)},
    {"onnx": "ab" * 32, "net": "seg_0", "calibrator": "max", "samples": "8"},
)


def test_ranges_are_the_largest_magnitudes_over_all_samples():
    samples = [{"x": np.array([1.0, -2.0])}, {"x": np.array([0.5, 1.5])}]
    assert ranges(samples) == {"x": Threshold(2.0, -2.0, 1.5)}


def test_a_tensor_that_is_zero_throughout_gets_a_range_that_can_be_divided_by():
    assert ranges([{"x": np.zeros(4)}])["x"].threshold > 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_tensor_that_is_not_finite_is_refused_by_name(value):
    with pytest.raises(UserError, match=r"layer0\.q is not finite"):
        ranges([{"layer0.q": np.array([1.0, value])}])


def test_no_samples_are_refused():
    with pytest.raises(UserError, match="there are no samples"):
        ranges([])


def test_a_table_is_read_back_as_it_was_written(tmp_path):
    write_calibration(tmp_path / "t.txt", TABLE)
    assert read_calibration(tmp_path / "t.txt") == TABLE


def test_a_stock_table_has_no_facts_and_is_read(tmp_path):
    (tmp_path / "t.txt").write_text(
        "# genetated time: now\n# op_name    threshold    min    max\nx 1.0 -1.0 0.5\n"
    )
    assert read_calibration(tmp_path / "t.txt") == Calibration({"x": Threshold(1.0, -1.0, 0.5)}, {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x 1.0 -1.0\n", "line 1 is 'x 1.0 -1.0', should be `name threshold min max`"),
        ("# fine\nx one two three\n", "line 2 is"),
        ("# nothing\n", "holds no thresholds"),
    ],
)
def test_what_is_no_table_is_refused_with_its_line(tmp_path, text, said):
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(UserError, match=said):
        read_calibration(tmp_path / "t.txt")


@pytest.mark.parametrize("row", ["nan -1 1", "inf -1 1", "-1.0 -1 1", "1.0 nan 1", "1.0 -1 inf"])
def test_numbers_that_are_no_range_are_refused_with_their_line(tmp_path, row):
    (tmp_path / "t.txt").write_text(f"w 1 -1 1\nx {row}\n")
    with pytest.raises(UserError, match=f"line 2 is 'x {row}', whose numbers should be finite"):
        read_calibration(tmp_path / "t.txt")


def test_a_table_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_calibration(tmp_path / "none.txt")
    (tmp_path / "t.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is no text file"):
        read_calibration(tmp_path / "t.txt")


def test_a_table_of_another_model_is_refused_by_its_name(tmp_path):
    with pytest.raises(UserError, match=r"was made for seg_0 \(abababababab\), this graph is cdcdcdcdcdcd"):
        check_calibration(tmp_path / "t.txt", TABLE, "cd" * 32, ["x"])


def test_a_table_that_lacks_tensors_is_refused_with_the_list(tmp_path):
    with pytest.raises(UserError, match=r"no threshold for 1 of 2 tensors, .* silently stay float: y;"):
        check_calibration(tmp_path / "t.txt", TABLE, "ab" * 32, ["x", "y"])


def test_a_table_of_this_graph_with_every_tensor_passes(tmp_path):
    check_calibration(tmp_path / "t.txt", TABLE, "ab" * 32, list(TABLE.thresholds))


def test_a_qtable_is_read_back_as_it_was_written(tmp_path):
    write_qtable(tmp_path / "q.txt", {"a_Add": "BF16", "b_Mul": "F32"})
    assert read_qtable(tmp_path / "q.txt") == {"a_Add": "BF16", "b_Mul": "F32"}


def test_a_qtable_with_an_unknown_format_is_refused_with_its_line(tmp_path):
    (tmp_path / "q.txt").write_text("a_Add BF61\n")
    with pytest.raises(UserError, match="line 1 is 'a_Add BF61', should be `name FORMAT`"):
        read_qtable(tmp_path / "q.txt")


def test_a_qtable_that_names_no_operator_of_the_graph_is_refused(tmp_path):
    with pytest.raises(UserError, match="the graph has no operator a_Add"):
        check_qtable(tmp_path / "q.txt", {"a_Add": "BF16"}, ["b_Mul"])
