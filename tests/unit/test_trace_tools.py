"""The functions behind `parity trace`: list, show, diff, rename, export, repair."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from parity.harness.errors import UserError
from parity.harness.trace import Trace, TraceWriter, repair, tools


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "t.h5"
    with TraceWriter(path) as writer:
        with writer.run("torch", target="torch", provenance={"seed": 1}) as run:
            for step in range(2):
                run.record("q", np.arange(6.0).reshape(2, 3), step=step, axes="t d", positions=[4, 5])
                run.record("k", np.array([1, np.nan, 3], ml_dtypes.bfloat16), step=step, meta={"a": 1})
        with writer.run("onnx") as run:
            run.record("q", np.zeros((2, 4), np.float32), step=0)
            run.record("extra", np.zeros(1))
    return path


def test_runs_and_taps_are_listed_with_counts(path: Path) -> None:
    torch, onnx = tools.list_runs(path)
    assert (torch.name, torch.target, torch.taps, torch.records, torch.steps) == ("torch", "torch", 2, 4, 2)
    assert torch.bytes == 2 * (48 + 6)
    assert onnx.complete
    q, k = tools.list_taps(path, "torch")
    assert (q.tap, q.steps, q.shapes, q.dtypes, q.axes) == ("q", (0, 1), ((2, 3),), ("float64",), ("t d",))
    assert k.dtypes == ("bfloat16",)


def test_a_tap_is_described_with_statistics_over_finite_values(path: Path) -> None:
    (shown,) = tools.describe_tap(path, "torch", "k", step=1)
    assert (shown.min, shown.max, shown.mean, shown.std, shown.nonfinite) == (1, 3, 2, 1, 1)
    assert shown.meta == {"a": 1}
    first, _ = tools.describe_tap(path, "torch", "q")
    assert first.positions is not None
    assert list(first.positions) == [4, 5]
    with pytest.raises(UserError, match="it has steps 0, 1"):
        tools.describe_tap(path, "torch", "q", step=9)


def test_statistics_of_a_long_record_equal_numpys(tmp_path: Path) -> None:
    data = np.random.default_rng(0).standard_normal(700_001).astype(np.float32) + 1000
    with TraceWriter(tmp_path / "t.h5") as writer, writer.run("torch") as run:
        run.record("x", data)
        run.record("nothing", np.zeros(0))
        run.record("nan", np.full(3, np.nan))
    (shown,) = tools.describe_tap(tmp_path / "t.h5", "torch", "x")
    wide = data.astype(np.float64)
    np.testing.assert_allclose([shown.mean, shown.std], [wide.mean(), wide.std()], rtol=1e-12)
    assert (shown.min, shown.max) == (wide.min(), wide.max())
    assert tools.describe_tap(tmp_path / "t.h5", "torch", "nothing")[0].mean is None
    assert tools.describe_tap(tmp_path / "t.h5", "torch", "nan")[0].nonfinite == 3


@pytest.mark.parametrize("text", ["", "0", "0,:", ":,1:3", "-1, ::2", "1,2", ":,::-1"])
def test_a_slice_given_as_text_means_what_numpy_means(path: Path, text: str) -> None:
    array = np.arange(6.0).reshape(2, 3)
    expected = eval(f"array[{text}]") if text else array
    np.testing.assert_array_equal(tools.slice_values(path, "torch", "q", text, step=0), expected)


@pytest.mark.parametrize("text", ["x", "0,0,0", "5", "__import__('os')", "1:2:3:4", "::0", "0,"])
def test_a_slice_that_makes_no_sense_is_refused(path: Path, text: str) -> None:
    with pytest.raises(UserError, match="slice="):
        tools.slice_values(path, "torch", "q", text, step=0)


def test_values_of_one_step_only_are_shown(path: Path) -> None:
    with pytest.raises(UserError, match="name one step"):
        tools.slice_values(path, "torch", "q", "0")


def test_two_runs_differ_in_taps_steps_shapes_and_dtypes(path: Path) -> None:
    found = [(d.tap, d.step, d.what, d.first, d.second) for d in tools.diff_runs(path, "torch", path, "onnx")]
    assert found == [
        ("k", None, "tap", "present", "absent"),
        ("extra", None, "tap", "absent", "present"),
        ("q", 0, "shape", "[2, 3]", "[2, 4]"),
        ("q", 0, "dtype", "float64", "float32"),
        ("q", 1, "record", "present", "absent"),
    ]
    assert tools.diff_runs(path, "torch", path, "torch") == []


def test_renaming_copies_everything_and_leaves_the_source_alone(path: Path, tmp_path: Path) -> None:
    before = path.read_bytes()
    assert tools.rename(path, tmp_path / "new.h5", {"q": "layer0.q"}) == 3
    assert path.read_bytes() == before
    old, new = Trace(path)["torch"], Trace(tmp_path / "new.h5")["torch"]
    assert new.taps == ["layer0.q", "k"]
    assert new.provenance["seed"] == 1
    assert new["k", 1].tobytes() == old["k", 1].tobytes()
    record = new.records("layer0.q")[1]
    assert (record.step, record.axes, list(record.positions if record.positions is not None else [])) == (
        1,
        "t d",
        [4, 5],
    )
    assert [run.label for run in Trace(tmp_path / "new.h5").runs] == ["torch", "onnx"]


@pytest.mark.parametrize(
    ("names", "words"),
    [({"w": "x"}, "no run has such a tap"), ({"q": "k"}, "two different taps")],
    ids=["unknown", "collision"],
)
def test_a_renaming_that_loses_something_is_refused(
    path: Path, tmp_path: Path, names: dict[str, str], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        tools.rename(path, tmp_path / "new.h5", names)
    assert not (tmp_path / "new.h5").exists()
    with pytest.raises(UserError, match="exists already"):
        tools.rename(path, path, {})


def test_taps_may_trade_names(path: Path, tmp_path: Path) -> None:
    tools.rename(path, tmp_path / "new.h5", {"q": "k", "k": "q"})
    assert Trace(tmp_path / "new.h5")["torch"].taps == ["k", "q"]


def test_exported_npz_keeps_bits_and_names_formats_that_numpy_lacks(path: Path, tmp_path: Path) -> None:
    names = tools.export_npz(path, "torch", tmp_path / "out")
    assert names == ["q/step0", "k/step0:bfloat16", "q/step1", "k/step1:bfloat16"]
    with np.load(tmp_path / "out.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["q/step1"], np.arange(6.0).reshape(2, 3))
        assert archive["k/step0:bfloat16"].dtype == np.uint16
        assert archive["k/step0:bfloat16"].tobytes() == Trace(path)["torch"]["k", 0].tobytes()
    assert tools.export_npz(path, "torch", tmp_path / "q.npz", taps="q*") == ["q/step0", "q/step1"]
    with pytest.raises(UserError, match="matches no tap"):
        tools.export_npz(path, "torch", tmp_path / "none.npz", taps="z*")


def test_repair_of_a_healthy_file_reports_and_changes_nothing(path: Path) -> None:
    before = path.read_bytes()
    report = repair(path)
    assert (report.was_open, report.records, report.failures, report.incomplete) == (False, 6, (), ())
    assert path.read_bytes() == before


def test_repair_refuses_while_a_writer_is_at_work(path: Path) -> None:
    with TraceWriter(path), pytest.raises(UserError, match="another writer"):
        repair(path)
