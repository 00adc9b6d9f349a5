"""Natural views: what h5py, h5ls and HDFView see in a closed trace."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest

from parity.harness.trace import Trace, TraceWriter, repair, views
from parity.harness.trace.overlay import Overlay


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t.h5"


def test_steps_lie_along_the_first_axis_with_axes_dtype_and_provenance(path: Path) -> None:
    with TraceWriter(path) as writer, writer.run("torch", target="torch", provenance={"seed": 1}) as run:
        for step in range(6):
            run.record("layer3.q", np.arange(6.0).reshape(2, 3) + step, step=step, axes="t d")
            run.record("half", np.full(4, step, ml_dtypes.bfloat16), step=step)
            run.record("scalar", step, step=step)
    with h5py.File(path, "r") as file:
        np.testing.assert_array_equal(file["runs/torch/layer3.q"][5], np.arange(6.0).reshape(2, 3) + 5)
        view = file["runs/torch/layer3.q"]
        assert view.is_virtual
        assert (view.attrs["axes"], view.attrs["dtype"]) == ("step t d", "float64")
        np.testing.assert_array_equal(view.attrs["steps"], np.arange(6))
        half = file["runs/torch/half"]
        assert half.attrs["dtype"] == "bfloat16"
        np.testing.assert_array_equal(half[3].view(ml_dtypes.bfloat16), np.full(4, 3, ml_dtypes.bfloat16))
        np.testing.assert_array_equal(file["runs/torch/scalar"][:], np.arange(6))
        run_attributes = file["runs/torch"].attrs
        assert run_attributes["complete"]
        assert json.loads(run_attributes["provenance"])["seed"] == 1
        assert run_attributes["left_out"] == ""


def test_records_of_several_shapes_become_one_dataset_each(path: Path) -> None:
    with TraceWriter(path) as writer, writer.run("torch") as run:
        run.record("logits", np.zeros((4, 5)), step=0)
        run.record("logits", np.ones((1, 5)), step=1)
        run.record("logits", np.full((1, 5), 2.0), step=1, call=1)
        run.record("logits", np.full((1, 5), 3.0), step=1)
    with h5py.File(path, "r") as file:
        group = file["runs/torch/logits"]
        assert list(group) == ["step0", "step1", "step1.1", "step1 (2)"]
        assert group["step1.1"][0, 0] == 2
        assert group["step1 (2)"][0, 0] == 3


def test_odd_names_and_empty_tensors_have_views_too(path: Path) -> None:
    with TraceWriter(path) as writer, writer.run("a/b") as run:
        run.record("module:x/y", np.arange(3))
        run.record("100%", np.arange(3))
        run.record("..", np.arange(3))
        run.record("empty", np.zeros((0, 4)))
    with h5py.File(path, "r") as file:
        group = file["runs/a%2Fb"]
        assert list(group) == ["module:x%2Fy", "100%25", "%2E%2E", "empty"]
        assert group["empty"].shape == (1, 0, 4)


def test_a_run_name_shows_its_newest_generation_and_appending_keeps_old_views(path: Path) -> None:
    for value in (1, 2, 3):
        with TraceWriter(path) as writer, writer.run("torch") as run:
            run.record("q", np.full(3, value))
    with h5py.File(path, "r") as file:
        assert list(file["runs/torch/q"][0]) == [3, 3, 3]
        assert [int(file[f"runs/torch#{i}/q"][0, 0]) for i in (1, 2, 3)] == [1, 2, 3]


def test_views_beyond_the_limit_are_left_out_and_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "MAX_MAPPINGS", 3)
    with TraceWriter(path) as writer, writer.run("torch") as run:
        for size in (2, 3, 4):
            run.record("a", np.zeros(size), step=size)
        run.record("b", np.zeros(2))
    with h5py.File(path, "r") as file:
        assert file["runs/torch"].attrs["left_out"] == "1 taps, first 'b'"
        assert list(file["runs/torch"]) == ["a"]
    assert Trace(path)["torch"]["b"].shape == (2,)


def test_regular_steps_need_one_mapping_and_many_publish_fast(path: Path) -> None:
    with TraceWriter(path) as writer, writer.run("torch") as run:
        for step in range(100):
            for tap in ("a", "b", "c"):
                run.record(tap, np.zeros(4), step=step)
    with h5py.File(path, "r") as file:
        assert len(file["runs/torch/b"].virtual_sources()) == 1


def test_publishing_cut_off_at_any_write_leaves_every_record(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    store = Overlay._store
    for allowed in range(12):
        path.unlink(missing_ok=True)
        left = [allowed]

        def killed(self: Overlay, fd: int, number: int, left: list[int] = left) -> None:
            if not left[0]:
                raise Killed
            left[0] -= 1
            store(self, fd, number)

        with monkeypatch.context() as patch:
            patch.setattr(Overlay, "_store", killed)
            try:
                with TraceWriter(path) as writer, writer.run("torch") as run:
                    for tap in range(30):
                        run.record(f"tap{tap}", np.full(50, tap))
            except Killed:
                pass
        with h5py.File(path, "r", swmr=True) as file:
            assert file["index"].shape == (30,)
        assert Trace(path)["torch"].verify() == []
        with TraceWriter(path) as writer, writer.run("more") as run:
            run.record("q", np.arange(3))
        report = repair(path)
        assert report.failures == ()
        assert report.records == 31
