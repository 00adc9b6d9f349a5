"""What a run held for a tap, a step and an absolute position, wherever the rows lay."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from parity.harness.errors import InconclusiveError
from parity.harness.values import TapRows, Values, batch_positions, rows_back, rows_first, token_axis


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


factory = _load("run_factory")
AXES = "b h t d"


def row(position: int, batch: int = 1, step: int = 0) -> np.ndarray:
    """`[B, 2, 1, 3]`: a value that tells sequence, head, position and channel apart."""
    grid = np.indices((batch, 2, 1, 3)).astype(np.float32)
    return grid[0] * 1000 + grid[1] * 100 + position * 10 + grid[3] + step * 1e5


def block(positions: list[int], batch: int = 1) -> np.ndarray:
    return np.concatenate([row(p, batch) for p in positions], axis=2)


def recorded(layout: str, steps: int = 6, batch: int = 1) -> TapRows:
    """One position per step, in three layouts."""
    run = factory.new_run()
    for step in range(steps):
        held = {
            "new": [step],
            "grow": list(range(step + 1)),
            "window": list(range(max(0, step - 2), step + 1)),
        }[layout]
        run.record("k", block(held, batch), step=step, axes=AXES, positions=np.array(held))
    return TapRows(run.records("k"))


@pytest.mark.parametrize("layout", ["new", "grow", "window"])
def test_every_layout_answers_alike(layout: str) -> None:
    rows, found = recorded(layout).at(5, np.array([[5, 0, 3]]))
    assert found.all()
    assert np.array_equal(rows_back(rows, AXES), block([5, 0, 3]))


@pytest.mark.parametrize("layout", ["new", "grow", "window"])
def test_a_position_is_unknown_until_its_step(layout: str) -> None:
    rows, found = recorded(layout).at(2, np.array([[1, 2, 3, 99]]))
    assert found.tolist() == [[True, True, False, False]]
    assert not rows[0, 2:].any(), "what is unknown is zero, not garbage"


def test_padding_is_never_found() -> None:
    rows, found = recorded("grow").at(5, np.array([[-1, 2, -1]]))
    assert found.tolist() == [[False, True, False]]
    assert not rows[0, [0, 2]].any()


def test_steps_may_be_asked_in_any_order() -> None:
    rows = recorded("new")
    for step in (5, 1, 3, 0, 5, 4):
        found = rows.at(step, np.arange(6)[None])[1]
        assert found.tolist() == [[p <= step for p in range(6)]]


def test_the_newest_record_of_a_position_answers() -> None:
    run = factory.new_run()
    run.record("k", row(0), step=0, axes=AXES, positions=np.array([0]))
    run.record("k", row(0, step=1), step=1, axes=AXES, positions=np.array([0]))
    rows = TapRows(run.records("k"))
    assert np.array_equal(rows_back(rows.at(1, np.array([[0]]))[0], AXES), row(0, step=1))
    assert np.array_equal(rows_back(rows.at(0, np.array([[0]]))[0], AXES), row(0))


def test_a_reset_forgets_every_row() -> None:
    run = factory.new_run()
    for step, position in ((0, 0), (1, 1), (2, 0), (3, 1)):
        run.record("k", row(position, step=step), step=step, axes=AXES, positions=np.array([position]))
    rows = TapRows(run.records("k"), resets=(2,))
    assert rows.at(1, np.array([[0, 1]]))[1].tolist() == [[True, True]]
    assert rows.at(2, np.array([[0, 1]]))[1].tolist() == [[True, False]]
    assert np.array_equal(rows_back(rows.at(3, np.array([[1]]))[0], AXES), row(1, step=3))
    assert np.array_equal(rows_back(rows.at(1, np.array([[1]]))[0], AXES), row(1, step=1))


def test_a_step_after_a_reset_without_records_has_nothing() -> None:
    run = factory.new_run()
    run.record("k", row(0), step=0, axes=AXES, positions=np.array([0]))
    with pytest.raises(InconclusiveError, match="nothing is recorded"):
        TapRows(run.records("k"), resets=(2,)).at(2, np.array([[0]]))


def test_looking_past_a_reset_does_not_lose_what_was_before() -> None:
    run = factory.new_run()
    run.record("k", row(0), step=0, axes=AXES, positions=np.array([0]))
    rows = TapRows(run.records("k"), resets=(2,))
    with pytest.raises(InconclusiveError):
        rows.at(2, np.array([[0]]))
    assert rows.at(1, np.array([[0]]))[1].all()


def test_sequences_of_a_batch_have_positions_of_their_own() -> None:
    run = factory.new_run()
    run.record("k", block([7, 8, 9], batch=2), axes=AXES, positions=np.array([[0, 1, 2], [-1, 0, 1]]))
    rows = TapRows(run.records("k"))
    got, found = rows.at(0, np.array([[2, 1], [2, 1]]))
    assert found.tolist() == [[True, True], [False, True]]
    assert got[0, 0, 0, 0] == 90
    assert got[1, 1, 0, 0] == 1090


def test_another_batch_is_refused_and_not_broadcast() -> None:
    with pytest.raises(InconclusiveError, match="batch=1: the reference recorded 2 sequences"):
        recorded("new", batch=2).at(0, np.array([[0]]))


def test_rows_without_a_sequence_axis_are_one_sequence() -> None:
    run = factory.new_run()
    run.record("x", np.arange(12.0).reshape(3, 4), axes="t d", positions=np.array([4, 5, 6]))
    values = Values(run)
    assert values.at("x", 0, np.array([[6, 4]])).tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]


@pytest.mark.parametrize(
    "dtype", [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.int8, np.bool_]
)
def test_rows_keep_their_number_format(dtype: Any) -> None:
    run = factory.new_run()
    values = np.arange(-3, 3).reshape(1, 3, 2).astype(dtype)
    run.record("x", values, axes="b t d", positions=np.arange(3))
    got = TapRows(run.records("x")).at(0, np.array([[2, 0]]))[0]
    assert got.dtype == values.dtype
    assert np.array_equal(got, values[:, [2, 0]])


def test_a_tap_that_changes_its_number_format_is_not_cast_in_silence() -> None:
    run = factory.new_run()
    run.record("x", np.full((1, 1, 2), 1 + 1e-12), axes="b t d", positions=np.array([0]), step=0)
    run.record("x", np.ones((1, 1, 2), np.float32), axes="b t d", positions=np.array([1]), step=1)
    rows = TapRows(run.records("x"))
    try:
        got = rows.at(1, np.array([[0]]))[0]
    except InconclusiveError:
        return
    assert got.dtype == np.float64
    assert got[0, 0, 0] == 1 + 1e-12


def test_a_tap_that_changes_the_shape_of_its_rows_is_said_in_words() -> None:
    run = factory.new_run()
    run.record("x", np.ones((1, 1, 2)), axes="b t d", positions=np.array([0]), step=0)
    run.record("x", np.ones((1, 1, 3)), axes="b t d", positions=np.array([1]), step=1)
    with pytest.raises(InconclusiveError):
        TapRows(run.records("x")).at(1, np.array([[1]]))


@pytest.mark.parametrize(
    "axes", ["b t d", "b h t d", "t d", "h t d", "d t", "c b t d", "b h p d", "t", "b h d t"]
)
def test_rows_first_and_back_are_inverse(axes: str) -> None:
    array = np.arange(np.prod(shape := range(2, 2 + len(axes.split()))), dtype=np.float64).reshape(
        tuple(shape)
    )
    rows = rows_first(array, axes)
    assert rows.shape[1] == array.shape[token_axis(axes)]
    assert np.array_equal(rows_back(rows, axes), array)


def test_a_tap_without_token_axis_has_no_rows() -> None:
    assert token_axis("b h d") is None
    for turn in (rows_first, rows_back):
        with pytest.raises(ValueError, match="no token axis"):
            turn(np.zeros((1, 2, 3)), "b h d")


def test_shared_positions_count_for_every_sequence() -> None:
    run = factory.new_run()
    run.record("x", np.zeros((3, 2, 4)), axes="b t d", positions=np.array([5, 6]))
    assert batch_positions(run.records("x")[0]).tolist() == [[5, 6]] * 3


def held() -> Values:
    run = factory.new_run(scenario={"resets": []})
    for step in range(3):
        run.record("k", row(step), step=step, axes=AXES, positions=np.array([step]))
        run.record("ids", np.array([[step + 40]]), step=step, axes="b t", positions=np.array([[step]]))
    return Values(run, derived={"ks": "k"})


def test_a_cache_is_read_from_the_rows_it_is_made_of() -> None:
    assert np.array_equal(held().at("ks", 2, np.array([[0, 1, 2]])), block([0, 1, 2]))


def test_hidden_slots_stay_as_the_candidate_has_them() -> None:
    template = np.full((1, 2, 4, 3), 7.5, np.float16)
    got = held().like("ks", 2, np.array([[-1, 0, 1, 2]]), template)
    assert got.dtype == np.float16
    assert (got[:, :, 0] == 7.5).all()
    assert np.array_equal(got[:, :, 1:], block([0, 1, 2]).astype(np.float16))
    assert (template == 7.5).all(), "the template itself is left alone"


def test_a_position_that_the_reference_lacks_is_reported_and_not_filled() -> None:
    with pytest.raises(InconclusiveError, match="tap='k': the reference holds no row for position 2"):
        held().like("k", 1, np.array([[1, 2]]), np.zeros((1, 2, 2, 3), np.float32))


def test_a_tap_that_was_not_recorded_is_named() -> None:
    with pytest.raises(InconclusiveError, match="tap='nope'"):
        held().at("nope", 0, np.array([[0]]))


def test_tokens_of_a_step() -> None:
    assert held().tokens(1).tolist() == [[41]]
    assert held().tokens(9) is None
