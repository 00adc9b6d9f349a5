"""What a comparison concludes: verdicts, exit codes, and what it refuses to conclude."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity.harness.cache import spans
from parity.harness.compare import floors_from
from parity.harness.comparison import Comparison, Finding, Result, Side
from parity.harness.errors import UserError
from parity.harness.judge import Floor
from parity.harness.mapping import TapMap, Transform
from parity.harness.rows import Rules
from parity.harness.tolerance import Bound, Override, Tolerance


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


factory = _load("run_factory")
simple, compared, statuses, new_run, noise = (
    factory.simple,
    factory.compared,
    factory.statuses,
    factory.new_run,
    factory.noise,
)


def plus(amount: float) -> Any:
    return lambda values: values + np.float32(amount)


def one_nan(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values.flat[5] = np.nan
    return values


# Verdicts and exit codes


def test_equal_runs_are_at_parity() -> None:
    found = compared(simple(), simple("cand"))
    assert (found.verdict, found.exit_code) == ("parity", 0)
    assert found.counts == {"equal": 9}
    assert found.first is None
    assert found.culprits == ()
    assert found.coverage.share == 1.0


def test_errors_within_the_bound_pass_and_are_not_called_equal() -> None:
    found = compared(simple(), simple("cand", changes={("b", 1): plus(1e-5)}))
    assert (found.verdict, found.exit_code) == ("parity", 0)
    assert found.counts == {"equal": 8, "pass": 1}
    assert 0 < found.worst.ratio <= 1


def test_one_wrong_step_among_many_is_found() -> None:
    found = compared(simple(steps=300), simple("cand", steps=300, changes={("b", 217): plus(0.01)}))
    assert (found.verdict, found.exit_code) == ("divergence", 1)
    assert found.counts == {"equal": 899, "fail": 1}
    assert (found.first.tap, found.first.step) == ("b", 217)
    assert found.worst.step == 217


def test_one_wrong_value_among_many_is_found() -> None:
    theirs, own = new_run(), new_run("cand")
    values = noise(64, 1000)
    theirs.record("a", values)
    values[40, 123] += 0.01
    own.record("a", values)
    found = compared(theirs, own)
    assert found.verdict == "divergence"
    assert found.rows()[0].metrics.unravel() == (40, 123)


@pytest.mark.parametrize(
    ("theirs", "own"),
    [
        (new_run(), new_run("cand")),
        (simple(taps=("a",)), simple("cand", taps=("b",))),
        (simple(), new_run("cand", unobserved=[{"taps": "*", "reason": "fused", "steps": None}])),
    ],
    ids=["both empty", "no name in common", "nothing observed"],
)
def test_a_comparison_that_compared_nothing_is_never_a_pass(theirs: Any, own: Any) -> None:
    found = compared(theirs, own)
    assert found.verdict != "parity"
    assert found.exit_code in (1, 3)
    assert found.inconclusive.startswith("nothing was compared")


def test_taps_that_match_nothing_leave_the_result_open_and_warn() -> None:
    found = compared(simple(), simple("cand"), taps=["nope*"])
    assert (found.verdict, found.exit_code) == ("inconclusive", 3)
    assert Finding("warning", "taps='nope*' matched no tap. Known: a, b, c.") in found.findings
    assert found.inconclusive == "nothing was compared: no tap matches 'nope*'"


def test_empty_tensors_alone_prove_nothing() -> None:
    theirs, own = new_run(), new_run("cand")
    for run in (theirs, own):
        run.record("a", np.zeros((0, 4), np.float32))
    found = compared(theirs, own)
    assert (found.verdict, found.exit_code) == ("inconclusive", 3)
    assert found.rows()[0].status == "skipped"
    assert "empty" in found.rows()[0].reason


def test_an_inconclusive_result_always_says_why() -> None:
    theirs, own = new_run(), new_run("cand")
    for run in (theirs, own):
        run.record("a", np.zeros((0, 4), np.float32))
    assert compared(theirs, own).inconclusive


def test_the_exit_code_of_several_candidates_is_the_gravest() -> None:
    side = Side("x", "x", "x", "")
    parity, divergence = compared(simple(), simple("c")), compared(simple(), simple("c", skip=[("b", 1)]))
    inconclusive = Comparison("i", side, side, inconclusive="nothing")
    failed = replace(parity, failure="did not compile")
    assert [c.exit_code for c in (parity, divergence, inconclusive, failed)] == [0, 1, 3, 4]
    for comparisons, code in (
        ((parity, inconclusive), 3),
        ((parity, inconclusive, divergence), 1),
        ((failed, divergence, inconclusive, parity), 4),
        ((parity, parity), 0),
        ((), 3),
    ):
        assert Result(comparisons).exit_code == code


def test_a_candidate_that_did_not_run_has_failed_whatever_else_it_left() -> None:
    found = replace(compared(simple(), simple("c")), failure="crashed", unsound="NaN")
    assert (found.verdict, found.exit_code) == ("failed", 4)


# What is absent


def test_a_promised_tap_that_is_absent_is_missing_and_fails() -> None:
    found = compared(simple(), simple("cand", taps=("a", "c")))
    assert found.counts == {"equal": 6, "missing": 3}
    assert found.exit_code == 1
    assert (found.first.tap, found.first.step) == ("b", 0)


def test_what_a_target_cannot_observe_is_skipped_and_costs_coverage() -> None:
    unobserved = [{"taps": "b*", "reason": "fused into c", "steps": None}]
    found = compared(simple(), simple("cand", taps=("a", "c"), unobserved=unobserved))
    assert found.exit_code == 0
    assert found.counts == {"equal": 6, "skipped": 3}
    assert found.coverage.skipped == {"fused into c": 36}
    assert found.coverage.share == pytest.approx(2 / 3)
    assert found.coverage.blind_spot == "b at step 0 (fused into c)"


def test_unobserved_steps_do_not_excuse_other_steps() -> None:
    unobserved = [{"taps": "b", "reason": "done on the host", "steps": [0]}]
    found = compared(simple(), simple("cand", taps=("a", "c"), unobserved=unobserved))
    assert [status for (tap, _, _), status in statuses(found).items() if tap == "b"] == [
        "skipped",
        "missing",
        "missing",
    ]
    assert found.exit_code == 1


def test_what_was_recorded_is_judged_though_it_was_not_promised() -> None:
    unobserved = [{"taps": "b", "reason": "fused", "steps": None}]
    found = compared(simple(), simple("cand", changes={("b", 1): plus(1)}, unobserved=unobserved))
    assert statuses(found)["b", 1, 0] == "fail"


def test_a_model_output_is_always_promised() -> None:
    unobserved = [{"taps": "*", "reason": "fused", "steps": None}]
    table = factory.wiring(("s", ["a", "logits"]))
    theirs = simple(taps=("a", "logits"), wiring=table)
    found = compared(theirs, simple("cand", taps=("a",), unobserved=unobserved, wiring=table))
    assert statuses(found)["logits", 0, 0] == "missing"
    assert found.exit_code == 1


def test_taps_of_the_candidate_alone_are_listed_and_do_not_fail() -> None:
    found = compared(simple(taps=("a",)), simple("cand", taps=("a", "b")))
    assert found.counts == {"equal": 3, "extra": 3}
    assert found.exit_code == 0
    assert found.coverage.expected == 36


@pytest.mark.parametrize(("theirs", "own"), [(6, 4), (5, 1)])
def test_steps_that_the_candidate_lacks_are_missing(theirs: int, own: int) -> None:
    found = compared(simple(steps=theirs), simple("cand", steps=own))
    assert found.counts == {"equal": 3 * own, "missing": 3 * (theirs - own)}
    assert found.exit_code == 1
    assert (found.first.tap, found.first.step) == ("a", own)


def test_steps_that_the_reference_lacks_are_extra() -> None:
    found = compared(simple(steps=3), simple("cand", steps=4))
    assert found.counts == {"equal": 9, "extra": 3}


def by_token(
    name: str = "torch", positions: Any = range(4), step: int | None = None, **provenance: Any
) -> Any:
    """One record per step (or all in one `step`) of a tap with a token axis."""
    run = new_run(name, **provenance)
    rows = {p: noise(1, 1, 8, seed=p) for p in range(20)}
    if step is not None:
        held = np.concatenate([rows[p] for p in positions], axis=1)
        run.record("q", held, step=step, axes="b t d", positions=np.array(list(positions)))
        return run
    for index, position in enumerate(positions):
        run.record("q", rows[position], step=index, axes="b t d", positions=np.array([position]))
    return run


def test_steps_that_the_reference_lacks_are_extra_where_positions_are_known() -> None:
    found = compared(by_token(), by_token("cand", range(6)))
    assert found.counts == {"equal": 4, "extra": 2}


def test_steps_that_the_candidate_lacks_are_missing_where_positions_are_known() -> None:
    found = compared(by_token(), by_token("cand", range(2)))
    assert found.counts == {"equal": 2, "missing": 2}


MISSING_ROWS = "align.gathered: asks only for the candidate's own positions; rows that it lacks go unnoticed"


@pytest.mark.parametrize("held", [range(1, 4), range(3), (0, 1, 3), (2,)], ids=str)
def test_a_token_whose_row_was_not_recorded_is_not_cut_away(held: Any) -> None:
    found = compared(by_token(step=0), by_token("cand", held, step=0))
    assert found.exit_code == 1


def test_a_step_that_records_an_older_token_again_does_not_pass_for_its_own() -> None:
    found = compared(by_token(), by_token("cand", (0, 1, 2, 2)))
    assert found.exit_code == 1
    assert found.first.step == 3


def test_a_real_token_that_the_candidate_calls_padding_is_not_hidden() -> None:
    theirs, own = by_token(step=0), by_token("cand", step=0)
    own.records()[0].positions[1] = -1
    assert compared(theirs, own).exit_code == 1


def test_rows_that_the_reference_lacks_are_not_counted_as_parity_in_silence() -> None:
    found = compared(by_token(step=0), by_token("cand", range(6), step=0))
    assert found.exit_code == 1 or any(
        "reference does not hold" in finding.text for finding in found.findings
    )


# The reference itself


@pytest.mark.parametrize(
    "own", [None, one_nan, plus(1)], ids=["candidate fine", "both NaN", "candidate wrong"]
)
def test_nan_in_the_reference_proves_nothing(own: Any) -> None:
    changes = {("b", 1): own} if own else {}
    found = compared(simple(changes={("b", 1): one_nan}), simple("cand", changes=changes))
    assert (found.verdict, found.exit_code) == ("inconclusive", 3)
    assert found.unsound == "the reference itself holds NaN: b at step 1"


def test_nan_in_the_reference_outranks_failures_elsewhere() -> None:
    found = compared(simple(changes={("c", 2): one_nan}), simple("cand", changes={("a", 0): plus(1)}))
    assert found.exit_code == 3


def test_nan_where_it_is_allowed_is_no_matter() -> None:
    theirs = simple(changes={("b", 1): one_nan})
    own = simple("cand", changes={("b", 1): one_nan})
    rules = Rules(Tolerance("fp32", (), ("b",)), {})
    assert compared(theirs, own, rules=rules).exit_code == 0
    assert compared(theirs, simple("cand"), rules=rules).exit_code == 3


def test_nan_in_the_candidate_alone_is_a_divergence() -> None:
    found = compared(simple(), simple("cand", changes={("b", 1): one_nan}))
    assert found.exit_code == 1
    assert found.rows()[4].ratio == np.inf


@pytest.mark.parametrize("own", ["missing", "shape"])
def test_nan_in_the_reference_is_seen_where_nothing_could_be_measured(own: str) -> None:
    changes = {("b", 1): lambda values: values.T} if own == "shape" else {}
    skip = [("b", 1)] if own == "missing" else []
    found = compared(simple(changes={("b", 1): one_nan}), simple("cand", changes=changes, skip=skip))
    assert found.exit_code == 3


@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_an_interrupted_run_proves_no_parity_but_its_failures_count(side: str) -> None:
    theirs = simple(complete=side != "reference")
    for changes, code in (({}, 3), ({("b", 1): plus(1)}, 1)):
        found = compared(theirs, simple("cand", complete=side != "candidate", changes=changes))
        assert found.exit_code == code
        assert any("incomplete" in finding.text for finding in found.findings)
    assert "incomplete" in compared(theirs, simple("cand", complete=side != "candidate")).inconclusive


# Runs of different cases


@pytest.mark.parametrize(
    ("key", "word"),
    [("weights", "weights"), ("scenario_digest", "scenario"), ("policy", "cache policy"), ("model", "model")],
)
def test_runs_of_different_cases_are_refused_unless_forced_and_then_it_is_said(key: str, word: str) -> None:
    other = {key: "window(4)" if key == "policy" else "other"}
    with pytest.raises(UserError, match=f"different cases .*{word}"):
        compared(simple(), simple("cand", **other))
    found = compared(simple(), simple("cand", **other), force=True)
    assert any(f.level == "warning" and f.text.startswith(f"different {word}: ") for f in found.findings)


def test_different_layouts_dtypes_and_targets_compare_freely() -> None:
    own = simple("cand", layout="window", dtype="float16", replay="forced")
    assert compared(simple(layout="grow", dtype="float32"), own).findings == ()


def test_a_run_that_does_not_say_its_case_is_compared_and_that_is_noted() -> None:
    own = simple("cand")
    own.provenance.clear()
    found = compared(simple(), own)
    assert found.exit_code == 0
    assert [f.level for f in found.findings] == ["note"]
    assert "unproven" in found.findings[0].text


# Order, names, shapes


def test_rows_are_in_execution_order_and_not_alphabetical() -> None:
    theirs = simple(taps=("z", "m", "a"))
    own = simple("cand", taps=("a", "m", "z"), changes={(tap, 1): plus(1) for tap in "zma"})
    found = compared(theirs, own)
    assert [(row.step, row.tap) for row in found.rows()] == [(s, t) for s in range(3) for t in "zma"]
    assert [row.order for row in found.rows()] == list(range(9))
    assert (found.first.tap, found.first.step) == ("z", 1)
    assert found.taps() == ["z", "m", "a"]


def called(delta: float, name: str) -> Any:
    """`a` is called, then `b`, then `a` again; a fault in `b` reaches the second call."""
    run = new_run(name)
    run.record("a", noise(4, seed=1), call=0)
    run.record("b", noise(4, seed=2) + np.float32(delta))
    run.record("a", noise(4, seed=3) + np.float32(delta), call=1)
    return run


def test_a_tap_that_is_recorded_twice_in_a_step_has_two_rows() -> None:
    found = compared(called(0, "torch"), called(1, "cand"))
    assert statuses(found) == {("a", 0, 0): "equal", ("a", 0, 1): "fail", ("b", 0, 0): "fail"}


def test_calls_of_a_tap_stand_where_they_were_executed() -> None:
    found = compared(called(0, "torch"), called(1, "cand"))
    assert [(row.tap, row.call) for row in found.rows()] == [("a", 0), ("b", 0), ("a", 1)]
    assert found.first.tap == "b"


def test_a_tap_that_begins_in_a_later_step_stands_where_it_was_executed() -> None:
    runs = []
    for name, delta in (("torch", 0), ("cand", 1)):
        run = new_run(name)
        run.record("logits", noise(4))
        run.record("layer0.q", noise(4, seed=1) + np.float32(delta), step=1)
        run.record("logits", noise(4, seed=2) + np.float32(delta), step=1)
        runs.append(run)
    assert compared(*runs).first.tap == "layer0.q"


def test_a_record_that_another_one_overwrites_is_not_lost() -> None:
    theirs, own = new_run(), new_run("cand")
    theirs.record("a", noise(4))
    own.record("a", noise(4) + 1)
    own.record("a", noise(4))
    found = compared(theirs, own)
    assert found.exit_code != 0 or found.findings


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.reshape(4, 3),
        lambda v: v.T,
        lambda v: v.reshape(1, 3, 4),
        lambda v: v[:, :1],
        lambda v: v.ravel(),
    ],
)
def test_shapes_that_differ_are_a_failure_and_never_reshaped(change: Any) -> None:
    found = compared(simple(), simple("cand", changes={("b", 1): change}))
    row = found.rows()[4]
    assert row.status == "shape"
    assert row.metrics is None
    assert "but should be (3, 4)" in row.reason
    assert found.exit_code == 1


@pytest.mark.parametrize(
    "names",
    [TapMap("m", {"x": "b"}), TapMap("m", {"x": "b"}, transforms=(Transform("x", "transpose", [1, 0]),))],
)
def test_shapes_that_differ_behind_a_map_are_a_failure_of_that_tap(names: TapMap) -> None:
    own = simple("cand", taps=("a", "x", "c"), changes={("x", 0): lambda v: v[:2]})
    found = compared(simple(), own, mapping=names)
    assert statuses(found)["b", 0, 0] == "shape"


def test_what_no_entry_matched_is_said() -> None:
    override = Override("layer9.*", 1.0, None, "noisy")
    rules = Rules(Tolerance("fp32", (override,), ("gone*",)), {})
    names = TapMap("m", {"nothing": "b"})
    found = compared(simple(), simple("cand"), rules=rules, mapping=names, taps=["*", "zz"])
    texts = [finding.text for finding in found.findings if finding.level == "warning"]
    assert texts == [
        "tolerance override taps='layer9.*' matched no tap",
        "tolerance override taps='gone*' matched no tap",
        "taps='zz' matched no tap. Known: a, b, c.",
        "map entry 'rename \"nothing\"' matched no tap",
    ]


def test_substitutions_and_warnings_of_the_candidate_are_told() -> None:
    own = simple("cand", substitutions=["Gelu -> FastGelu"], warnings=["clock is slow"])
    assert {(f.level, f.text) for f in compared(simple(), own).findings} == {
        ("note", "Gelu -> FastGelu"),
        ("warning", "clock is slow"),
    }


# Tolerance and floor


def test_an_override_goes_before_the_floor_and_the_floor_before_the_profile() -> None:
    changes = {(tap, 0): plus(1e-3) for tap in "abc"}
    rules = Rules(
        Tolerance("fp32", (Override("c", 0.0, 0.0, ""),)), {"b": Floor(1e-3, 1e-3), "c": Floor(1.0, 1.0)}
    )
    found = statuses(compared(simple(), simple("cand", changes=changes), rules=rules))
    assert [found[tap, 0, 0] for tap in "abc"] == ["fail", "pass", "fail"]


def test_each_number_format_has_its_own_bound() -> None:
    half = {("b", 0): lambda values: values.astype(np.float16)}
    found = compared(simple(), simple("cand", changes=half))
    assert found.rows()[1].status == "pass"
    assert (found.rows()[1].dtype, found.rows()[1].expected_dtype) == ("float16", "float32")
    rounded = {("b", 0): lambda values: values.astype(np.float16).astype(np.float32)}
    assert compared(simple(), simple("cand", changes=rounded)).rows()[1].status == "fail"


def test_a_floor_is_measured_from_runs_that_are_trusted() -> None:
    noisy = simple("fp64", changes={("b", step): plus(1e-4) for step in range(3)})
    floors = floors_from(simple(), [simple("again"), noisy])
    assert floors["a"] == Floor(0.0, 0.0)
    assert 0 < floors["b"].rms <= floors["b"].peak < 1e-2
    assert compared(simple(), noisy, floors=floors).exit_code == 0
    worse = simple("cand", changes={("b", 1): plus(2e-3)})
    assert compared(simple(), worse, floors=floors).exit_code == 1


# What is kept


def test_the_worst_and_the_first_failures_keep_their_detail_others_are_slim() -> None:
    changes = {("b", step): plus(0.01 * (step + 1)) for step in range(30)}
    found = compared(simple(steps=40), simple("cand", steps=40, changes=changes))
    rows = [row for row in found.rows() if row.tap == "b"]
    kept = [row.step for row in rows if len(row.metrics.raw_rows)]
    assert set(range(16)) <= set(kept)
    assert found.worst.step in kept
    assert len(kept) <= 17
    assert all(row.metrics.max_abs > 0 for row in rows[:30])


def test_where_many_taps_fail_detail_is_kept_as_long_as_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taps = [f"t{number}" for number in range(8)]
    changes = {(tap, step): plus(0.01 * (step + 1)) for tap in taps for step in range(20)}
    reference = simple(taps=taps, steps=20)
    one = compared(reference, simple("cand", taps=taps, steps=20, changes=changes))
    size = max(row.metrics.nbytes for row in one.rows())
    monkeypatch.setattr("parity.harness.detail.ROOM", 20 * size)
    found = compared(reference, simple("cand", taps=taps, steps=20, changes=changes))
    kept = {(row.tap, row.step): row.metrics.nbytes for row in found.rows() if row.metrics.nbytes}
    assert {("t0", step) for step in range(16)} <= set(kept)
    for tap in taps:
        worst = max((row for row in found.rows() if row.tap == tap), key=lambda row: row.ratio)
        assert (tap, worst.step) in kept
    assert sum(kept.values()) <= (20 + len(taps)) * size < sum(row.metrics.nbytes for row in one.rows())
    assert [row.slice for row in found.rows()] == [row.slice for row in one.rows()]


def test_a_healthy_tap_keeps_the_detail_of_its_worst_record_alone() -> None:
    found = compared(
        simple(steps=9), simple("cand", steps=9, changes={("a", 5): plus(1e-6), ("a", 2): plus(1e-5)})
    )
    kept = [row.step for row in found.rows() if row.tap == "a" and len(row.metrics.raw_rows)]
    assert kept == [2]


def rich() -> Comparison:
    """A comparison with every field filled."""
    table = factory.wiring(("s", ["a", "b"]), ("t", ["c"]))
    own = simple(
        "cand", steps=4, changes={("b", 1): plus(1), ("c", 2): one_nan}, wiring=table, warnings=["w"]
    )
    isolated = simple("cand@isolated", changes={("b", 1): plus(1)}, wiring=table)
    theirs = simple(steps=4, wiring=table)
    for run in (theirs, own):
        for step in range(4):
            shift = np.float32(9.0 if run is own and step == 2 else 0.0)
            logits = noise(1, 1, 7, seed=step) + shift * np.eye(7, dtype=np.float32)[3]
            run.record("logits", logits, step=step, axes="b t v", positions=np.array([step]))
    return compared(theirs, own, isolated=isolated)


def test_a_comparison_survives_json() -> None:
    found = rich()
    assert found.culprits
    assert found.tokens.flips
    data = json.loads(json.dumps(found.to_json()))
    again = Comparison.from_json(data)
    assert json.loads(json.dumps(again.to_json())) == data
    for name in (
        "verdict",
        "exit_code",
        "first",
        "culprits",
        "coverage",
        "tokens",
        "findings",
        "counts",
        "worst",
    ):
        mine, other = getattr(found, name), getattr(again, name)
        if name == "worst":
            mine, other = (mine.tap, mine.step, mine.ratio), (other.tap, other.step, other.ratio)
        assert mine == other, name
    for one, two in zip(found.rows(), again.rows(), strict=True):
        for name in ("tap", "step", "call", "status", "reason", "ratio", "local", "slice", "shape", "rule"):
            assert getattr(one, name) == getattr(two, name), name


def test_a_result_survives_json() -> None:
    result = Result((rich(), compared(simple(), simple("c"))), {"model": "m"}, {"json": "x"})
    data = json.loads(json.dumps(result.to_json()))
    again = Result.from_json(data)
    assert json.loads(json.dumps(again.to_json())) == data
    assert (len(again), again.exit_code, again.files) == (2, 1, {"json": "x"})
    assert [c.label for c in again] == ["cand", "cand"]
    with pytest.raises(UserError, match="schema"):
        Result.from_json({**data, "schema": 99})
    with pytest.raises(KeyError, match="no candidate 'x'"):
        result["x"]


def test_metrics_of_failing_records_are_kept_in_json_though_few_are_detailed() -> None:
    changes = {(tap, step): plus(1 + step) for tap in "ab" for step in range(5)}
    data = compared(simple(steps=5), simple("cand", steps=5, changes=changes)).to_json(detailed=3)
    failing = [row for row in data["records"] if row["status"] == "fail"]
    assert all(row["metrics"] is not None for row in failing)
    assert sum("hist" in row["metrics"] for row in failing) <= 3
    assert sum("hist" in row["metrics"] for row in failing if row["step"] == 4) == 2, "the worst of each tap"


# Free replay


def free_runs(**own: Any) -> tuple[Any, Any]:
    """Both choose alike until the token of step 3."""
    runs = []
    for name, changed in (("torch", {}), ("cand", own)):
        run = new_run(name)
        for step in range(changed.get("steps", 6)):
            token = 7 + step + (changed.get("parted", 99) <= step)
            run.record("ids", np.array([[token]]), step=step, axes="b t", positions=np.array([[step]]))
            values = noise(4, seed=step) + np.float32(changed.get("delta", {}).get(step, 0))
            run.record("a", values, step=step)
        runs.append(run)
    return runs[0], runs[1]


def test_a_free_replay_is_judged_up_to_where_tokens_part() -> None:
    found = compared(*free_runs(parted=3, delta={3: 1, 4: 1, 5: 1}), replay="free")
    assert found.exit_code == 0
    assert {row.step for row in found.rows() if row.status == "skipped"} == {3, 4, 5}
    assert any("parts at step 3" in finding.text for finding in found.findings)
    assert found.coverage.share == pytest.approx(0.5)


def test_a_fault_before_the_parting_is_a_divergence() -> None:
    found = compared(*free_runs(parted=3, delta={2: 1}), replay="free")
    assert found.exit_code == 1
    assert found.first.step == 2


def test_a_free_replay_that_parts_at_once_proves_nothing() -> None:
    found = compared(*free_runs(parted=0), replay="free")
    assert found.exit_code == 3


def test_other_tokens_in_a_forced_replay_are_a_divergence() -> None:
    found = compared(*free_runs(parted=3))
    assert (found.first.tap, found.first.step) == ("ids", 3)


def test_a_free_replay_that_stops_early_is_not_at_parity() -> None:
    found = compared(*free_runs(parted=1, steps=2), replay="free")
    assert found.exit_code == 1


def test_nan_in_the_reference_counts_after_the_parting_too() -> None:
    theirs, own = free_runs(parted=3)
    theirs.records("a")[5].array[0] = np.nan
    assert compared(theirs, own, replay="free").exit_code == 3


# Odds and ends


def test_a_bound_is_never_shared_between_taps_of_different_rules() -> None:
    rules = Rules(Tolerance("fp32", (Override("a", 10.0, 0.0, "known"),)), {})
    assert rules.of("a", "float32", "float32").bound == Bound(10.0, 0.0)
    assert rules.of("b", "float32", "float32").bound != Bound(10.0, 0.0)


@pytest.mark.parametrize(
    ("numbers", "text"), [([3], "3"), ([3, 4, 5], "3..5"), ([0, 2, 3, 9], "0, 2..3, 9"), ([1, 3], "1, 3")]
)
def test_positions_are_told_as_runs(numbers: list[int], text: str) -> None:
    assert spans(numbers) == text


def test_logits_without_a_token_are_empty_and_no_traceback() -> None:
    runs = []
    for name in ("torch", "cand"):
        run = simple(name)
        run.record("logits", np.zeros((1, 0, 5), np.float32), axes="b t v", positions=np.zeros(0, np.int64))
        runs.append(run)
    assert compared(*runs).exit_code == 0
