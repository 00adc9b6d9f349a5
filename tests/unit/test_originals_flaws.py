"""What the original comparers got wrong: each flaw is refused, by a test here or by one pointed to."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from parity.harness.comparison import Result
from parity.harness.errors import UserError
from parity.harness.trace import Trace, TraceWriter


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


factory = _load("run_factory")
TESTS = Path(__file__).resolve().parents[1]
HERE = "unit/test_originals_flaws.py"

#: Flaw -> the tests that fail if it comes back.
FLAWS: dict[str, tuple[str, ...]] = {
    "NaN passes a > test": (
        f"{HERE}::test_nan_never_passes",
        "unit/test_judge.py::test_one_nan_fails_by_bound_and_by_floor",
        "unit/test_tolerance.py::test_nan_never_holds_and_infinity_only_with_its_own_sign",
        "unit/test_tracer_compare.py::test_nan_on_one_side_is_wrong_and_on_both_is_not_silently_right",
    ),
    "NaN or Inf zeroed before subtracting": (
        f"{HERE}::test_not_finite_values_are_not_zeroed",
        "unit/test_judge.py::test_infinities_compare_by_sign",
    ),
    "absolute value of the cosine": (
        f"{HERE}::test_a_flipped_sign_is_a_divergence_with_a_negative_cosine",
        "unit/test_metrics.py::test_the_cosine_keeps_its_sign",
    ),
    "only a mean": (
        f"{HERE}::test_one_wrong_channel_does_not_hide_in_a_mean",
        "unit/test_judge.py::test_one_wrong_outlier_channel_fails",
    ),
    "reshape until shapes match": (
        "unit/test_compare.py::test_shapes_that_differ_are_a_failure_and_never_reshaped",
        "unit/test_tracer_compare.py::test_a_transposed_tensor_of_equal_size_never_passes",
    ),
    "first-inserted run becomes the reference": (
        "unit/test_tracer_compare.py::test_the_reference_is_chosen_by_name_and_not_by_insertion",
        "unit/test_tracer_compare.py::test_without_a_known_name_the_first_run_is_the_reference_and_that_is_said",
    ),
    "a name on one side skipped": (
        "unit/test_compare.py::test_a_promised_tap_that_is_absent_is_missing_and_fails",
        "unit/test_compare.py::test_taps_of_the_candidate_alone_are_listed_and_do_not_fail",
        "unit/test_tracer_compare.py::test_names_on_one_side_are_said_loudly",
    ),
    "a record overwritten by the next step or batch": (
        f"{HERE}::test_a_fault_of_an_early_step_survives_later_steps",
        "unit/test_tracer_taps.py::test_a_repeated_tap_is_another_call_of_the_step_not_an_overwrite",
        "unit/test_trace_writer.py::test_records_repeat_under_a_name_without_overwriting",
    ),
    "a live view recorded": (
        "unit/test_tracer_taps.py::test_in_place_edits_after_the_call_do_not_reach_the_record",
        "unit/test_tracer_taps.py::test_a_view_of_a_reused_buffer_keeps_what_it_showed",
        "unit/test_trace_writer.py::test_a_record_is_a_copy_made_at_once",
    ),
    "the same run name reused by two scripts": (
        "unit/test_trace_writer.py::test_a_repeated_run_name_makes_a_new_generation_and_says_so",
        "unit/test_tracer_running.py::test_one_run_name_in_two_scripts_is_said_and_not_compared_with_itself",
    ),
    "different inputs compared": (
        "unit/test_compare.py::test_runs_of_different_cases_are_refused_unless_forced_and_then_it_is_said",
        "unit/test_replay.py::test_tokens_of_another_shape_are_refused",
        f"{HERE}::test_other_inputs_of_one_shape_are_refused",
    ),
    "stopping at the first token mismatch": (
        "unit/test_tokens.py::test_every_flip_is_listed_and_not_the_first_alone",
        f"{HERE}::test_tokens_are_compared_to_the_end_after_they_part",
    ),
    "returning before comparing": (
        "unit/test_compare.py::test_a_comparison_that_compared_nothing_is_never_a_pass",
        "unit/test_tracer_compare.py::test_nothing_compared_is_inconclusive_and_said",
    ),
    "exit 0 on failure": (
        f"{HERE}::test_no_failing_status_exits_with_0",
        "unit/test_compare.py::test_the_exit_code_of_several_candidates_is_the_gravest",
    ),
    "no provenance": (
        "unit/test_trace_writer.py::test_provenance_is_kept_and_can_be_updated",
        "unit/test_compare.py::test_a_run_that_does_not_say_its_case_is_compared_and_that_is_noted",
    ),
    "division by a zero norm": (
        f"{HERE}::test_a_zero_reference_is_divided_by_nothing_and_hides_nothing",
        "unit/test_metrics.py::test_nothing_is_divided_by_a_zero_norm",
    ),
    "relative error over a tiny floor": (
        f"{HERE}::test_noise_beside_zeros_is_no_large_relative_error",
        "unit/test_metrics.py::test_the_guard_keeps_relative_errors_of_small_values_small",
    ),
    "one tolerance for every dtype": (
        "unit/test_compare.py::test_each_number_format_has_its_own_bound",
        "unit/test_tolerance.py::test_the_coarser_of_both_formats_decides",
    ),
    "errors computed in the low precision": (
        f"{HERE}::test_an_error_that_the_low_precision_cannot_hold_is_seen",
        "unit/test_metrics.py::test_errors_are_not_computed_in_the_candidates_type",
    ),
    "taps sorted alphabetically when locating": (
        "unit/test_compare.py::test_rows_are_in_execution_order_and_not_alphabetical",
        f"{HERE}::test_layer_10_comes_after_layer_2",
    ),
    "bf16 stored through fp16": (
        f"{HERE}::test_bf16_keeps_its_bits_in_a_trace_file",
        "unit/test_dtypes.py::test_every_logical_name_survives_storage_and_back",
    ),
    "lengths cut to the shorter": (
        "unit/test_compare.py::test_steps_that_the_candidate_lacks_are_missing",
        "unit/test_compare.py::test_a_token_whose_row_was_not_recorded_is_not_cut_away",
        "unit/test_tracer_compare.py::test_sizes_that_differ_are_not_cut_to_the_shorter",
        "properties/test_alignment.py::test_a_shorter_history_is_never_cut_to_fit",
    ),
}


def _names(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("flaw", FLAWS)
def test_every_flaw_is_held_by_tests_that_exist(flaw: str) -> None:
    assert FLAWS[flaw]
    for pointer in FLAWS[flaw]:
        file, _, name = pointer.partition("::")
        assert name.startswith("test_")
        assert name in _names(TESTS / file), pointer


def test_every_test_of_this_file_holds_a_flaw() -> None:
    pointed = {pointer.partition("::")[2] for pointers in FLAWS.values() for pointer in pointers}
    own = {name for name in _names(Path(__file__)) if name.startswith("test_")}
    assert own - pointed == {
        "test_every_flaw_is_held_by_tests_that_exist",
        "test_every_test_of_this_file_holds_a_flaw",
    }


def runs(theirs: Any, own: Any, **record: Any) -> Any:
    """The comparison of one record on each side, under the profile fp32."""
    made = []
    for name, values in (("torch", theirs), ("cand", own)):
        run = factory.new_run(name)
        run.record("x", np.asarray(values), **record)
        made.append(run)
    return factory.compared(*made)


def changed(values: np.ndarray, place: Any, value: float) -> np.ndarray:
    values = values.copy()
    values[place] = value
    return values


@pytest.mark.parametrize("share", ["one value", "every value"])
def test_nan_never_passes(share: str) -> None:
    values = factory.noise(8, 8)
    broken = changed(values, (3, 4) if share == "one value" else ..., np.nan)
    assert runs(values, broken).verdict == "divergence"
    assert runs(broken, values).exit_code == 3
    assert runs(broken, broken).exit_code == 3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_values_are_not_zeroed(value: float) -> None:
    """Zeroed on both sides, or against a zero, these would all be equal."""
    values = np.zeros((4, 4), np.float32)
    found = runs(values, changed(values, (1, 1), value))
    assert found.exit_code == 1
    assert found.rows()[0].ratio == np.inf
    if np.isinf(value):
        assert runs(changed(values, (1, 1), -value), changed(values, (1, 1), value)).exit_code == 1


def test_a_flipped_sign_is_a_divergence_with_a_negative_cosine() -> None:
    values = factory.noise(8, 8)
    found = runs(values, -values)
    assert found.verdict == "divergence"
    assert found.rows()[0].metrics.cosine == pytest.approx(-1.0)


def test_one_wrong_channel_does_not_hide_in_a_mean() -> None:
    values = factory.noise(1, 64, 1024)
    found = runs(values, changed(values, (0, 17, 900), values[0, 17, 900] + 0.01), axes="b t d")
    assert found.verdict == "divergence"
    assert found.rows()[0].metrics.mean_abs < 1e-6, "a mean alone would have passed it"
    assert "token" in found.rows()[0].slice
    assert "channel 900" in found.rows()[0].slice


def test_a_fault_of_an_early_step_survives_later_steps() -> None:
    own = factory.simple("cand", steps=50, changes={("a", 0): lambda values: values + 1})
    found = factory.compared(factory.simple(steps=50), own)
    assert (found.first.tap, found.first.step) == ("a", 0)
    assert len(found.rows()) == 150


def test_other_inputs_of_one_shape_are_refused() -> None:
    with pytest.raises(UserError, match="different cases"):
        factory.compared(factory.simple(), factory.simple("cand", scenario_digest="other text, same length"))


def test_tokens_are_compared_to_the_end_after_they_part() -> None:
    made = []
    for name in ("torch", "cand"):
        run = factory.new_run(name)
        for step in range(8):
            own = name == "cand"
            token = 5 + (own and step >= 3)
            logits = np.eye(9, dtype=np.float32)[[[(step + (own and step in (2, 6))) % 9]]]
            here = np.array([[step]])
            run.record("ids", np.array([[token]]), step=step, axes="b t", positions=here)
            run.record("logits", logits, step=step, axes="b t v", positions=here)
        made.append(run)
    found = factory.compared(*made, replay="free")
    assert found.tokens.compared == 8
    assert [flip.step for flip in found.tokens.flips] == [2, 6]


@pytest.mark.parametrize("status", ["fail", "missing", "shape", "nonfinite"])
def test_no_failing_status_exits_with_0(status: str) -> None:
    changes = {
        "fail": {("b", 1): lambda values: values + 1},
        "shape": {("b", 1): lambda values: values.T},
        "nonfinite": {("b", 1): lambda values: values * np.nan},
    }.get(status, {})
    skip = [("b", 1)] if status == "missing" else []
    theirs = factory.simple(changes=changes if status == "nonfinite" else {})
    found = factory.compared(theirs, factory.simple("cand", changes=changes, skip=skip))
    assert found.counts[status] == 1
    assert found.exit_code != 0
    assert Result((found,)).exit_code == found.exit_code


def test_a_zero_reference_is_divided_by_nothing_and_hides_nothing() -> None:
    zeros = np.zeros((4, 4), np.float32)
    assert runs(zeros, zeros).counts == {"equal": 1}
    found = runs(zeros, changed(zeros, (2, 2), 0.01))
    assert found.exit_code == 1
    assert not np.isnan(found.rows()[0].ratio)
    assert not np.isnan(found.rows()[0].metrics.cosine)


def test_noise_beside_zeros_is_no_large_relative_error() -> None:
    values = changed(factory.noise(8, 8), (slice(None), 0), 0.0)
    found = runs(values, values + np.float32(1e-7))
    assert found.verdict == "parity"
    assert found.rows()[0].metrics.max_rel < 1e-4


def test_an_error_that_the_low_precision_cannot_hold_is_seen() -> None:
    """70000 - 65504 is Inf - 65504 in float16; 2049 rounds to 2048."""
    found = runs(np.float32([2049.0, 1.0]), np.float16([2048.0, 1.0]))
    assert found.rows()[0].metrics.max_abs == 1.0
    assert runs(np.float32([70000.0]), np.float16([65504.0])).rows()[0].metrics.max_abs == 4496.0


def test_layer_10_comes_after_layer_2() -> None:
    taps = [f"layer{i}.q" for i in range(12)]
    wrong = {(tap, 0): lambda values: values + 1 for tap in ("layer2.q", "layer10.q")}
    found = factory.compared(factory.simple(taps=taps), factory.simple("cand", taps=taps, changes=wrong))
    assert found.taps() == taps
    assert found.first.tap == "layer2.q"


def test_bf16_keeps_its_bits_in_a_trace_file(tmp_path: Path) -> None:
    """Values beyond the range of float16, and below its smallest."""
    values = np.array([3e38, -1e5, 1e-30, 1.0078125, -0.0], ml_dtypes.bfloat16)
    with TraceWriter(tmp_path / "t.h5") as writer, writer.run("torch") as run:
        run.record("x", values)
    record = Trace(tmp_path / "t.h5")["torch"].records("x")[0]
    assert record.dtype == "bfloat16"
    assert record.read().tobytes() == values.tobytes()
