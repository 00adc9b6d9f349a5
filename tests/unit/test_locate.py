"""From judged rows to the first divergence, the smallest set of culprits, and coverage."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity.harness.comparison import Comparison, Coverage, Culprit, Row, Side
from parity.harness.locate import coverage_of, culprits_of, first_of


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


factory = _load("run_factory")
SIDE = Side("x", "x", "x", "")


def row(tap: str, status: str = "pass", local: float | None = None, **changes: Any) -> Row:
    """A judged record; `local` is its error alone over what is allowed."""
    ratio = {"fail": 5.0, "pass": 0.1, "equal": 0.0}.get(status)
    fields = {"order": 0, "step": 0, "call": 0, "ratio": ratio, "segment": "s", "shape": (2, 3), **changes}
    return Row(tap=tap, status=status, local_ratio=local, **fields)


def held(*rows: Row) -> Comparison:
    return Comparison("c", SIDE, SIDE, records=rows)


def culprits(*rows: Row) -> list[tuple[str, int, str]]:
    return [(c.tap, c.step, c.segment) for c in culprits_of(held(*rows))]


# The first divergence


def test_without_a_failure_there_is_no_first_divergence() -> None:
    assert first_of(held(row("a"), row("b", "skipped"), row("c", "extra"))) is None


@pytest.mark.parametrize("status", ["fail", "missing", "shape", "nonfinite"])
def test_every_failing_status_may_be_the_first(status: str) -> None:
    first = first_of(held(row("z"), row("m", status, slice="head 1"), row("a", "fail")))
    assert first is not None
    assert (first.tap, first.slice, first.before) == ("m", "head 1", "z at step 0")


def test_the_first_is_the_first_in_order_and_not_the_largest() -> None:
    first = first_of(held(row("a", "fail", ratio=1.1), row("b", "fail", ratio=900.0)))
    assert first is not None
    assert first.tap == "a"


def test_a_claim_says_what_could_hide_an_earlier_fault() -> None:
    rows = [row("a"), row("b", "skipped"), row("c", "extra"), row("d", "fail"), row("e", "skipped")]
    first = first_of(held(*rows))
    assert first is not None
    assert first.claim.startswith("first among 2 of 5 records")
    assert "2 that were not compared before it" in first.claim


def test_without_anything_right_before_it_nothing_is_named() -> None:
    first = first_of(held(row("a", "skipped"), row("b", "fail", reason="why")))
    assert first is not None
    assert (first.before, first.slice) == ("", "why")


# Culprits


def test_a_segment_has_one_culprit_the_earliest() -> None:
    rows = [
        row("a.q", "fail", 0.2, segment="a"),
        row("b.q", "fail", 7.0, segment="b"),
        row("b.mlp", "fail", 9.0, segment="b"),
        row("c.q", "fail", 0.3, segment="c"),
        row("b.q", "fail", 7.0, segment="b", step=1),
    ]
    assert culprits(*rows) == [("b.q", 0, "b")]


def test_two_faulty_segments_are_two_culprits_in_execution_order() -> None:
    rows = [
        row("b.q", "fail", 7.0, segment="b"),
        row("a.q", "fail", 0.2, segment="a"),
        row("a.mlp", "fail", 90.0, segment="a"),
    ]
    assert culprits(*rows) == [("b.q", 0, "b"), ("a.mlp", 0, "a")]


def test_casualties_are_no_culprits() -> None:
    rows = [
        row("a", "fail", 9.0, segment="a"),
        *(row(f"t{i}", "fail", 0.5, segment=f"s{i}") for i in range(20)),
    ]
    assert culprits(*rows) == [("a", 0, "a")]


def test_without_isolation_the_first_is_named_as_open() -> None:
    found = culprits_of(held(row("a"), row("b", "fail", segment="s1"), row("c", "fail", segment="s2")))
    assert [c.tap for c in found] == ["b"]
    assert "open (not isolated)" in found[0].evidence


def test_what_is_missing_is_told_as_it_is() -> None:
    found = culprits_of(held(row("a"), row("b", "missing", reason="promised but absent")))
    assert found[0].evidence == "promised but absent"


def test_what_could_not_be_isolated_after_a_failure_is_no_culprit() -> None:
    assert culprits(row("a", "fail", 3.0, segment="a"), row("b", "fail", segment="b")) == [("a", 0, "a")]


def test_where_every_segment_is_right_alone_it_lies_between_them() -> None:
    found = culprits_of(held(row("a", "pass", 0.1), row("b", "fail", 0.2), row("c", "fail", 0.3)))
    assert [(c.tap, c.segment) for c in found] == [("b", "between segments")]
    assert "handed from one to the next" in found[0].evidence


def test_the_innermost_module_is_the_culprit() -> None:
    rows = [
        row("module:h.0.attn", "fail", 4.0, segment=None),
        row("module:h.0", "fail", 4.0, segment=None),
        row("module:h.01", "fail", 0.1, segment=None),
        row("module:h", "fail", 4.0, segment=None),
    ]
    assert culprits(*rows) == [("module:h.0.attn", 0, "")]


def test_a_name_that_only_begins_alike_is_no_module_inside() -> None:
    rows = [row("module:h.1", "fail", 4.0, segment=None), row("module:h.10", "fail", 4.0, segment=None)]
    assert culprits(*rows) == [("module:h.1", 0, ""), ("module:h.10", 0, "")]


def test_a_module_that_is_wrong_before_any_module_inside_it_stays_a_culprit() -> None:
    rows = [
        row("module:h.0.attn", "pass", 0.1, segment=None),
        row("module:h.0", "fail", 4.0, segment=None),
        row("module:h.0.attn", "fail", 4.0, segment=None, step=1),
        row("module:h.0", "fail", 4.0, segment=None, step=1),
    ]
    assert culprits(*rows)[0] == ("module:h.0", 0, "")


def test_parity_has_no_culprits() -> None:
    assert culprits(row("a"), row("b", "equal", 0.0), row("c", "skipped")) == []


# Coverage


def test_coverage_counts_values_by_what_became_of_them() -> None:
    rows = [
        row("a"),
        row("b", "skipped", reason="fused", shape=(4,)),
        row("c", "skipped", reason="fused", shape=(5,)),
        row("d", "missing", reason="absent", shape=(7,)),
        row("e", "extra", shape=(1000,)),
        row("f", "fail", shape=(2,), hidden=3),
        row("g", "nonfinite", shape=()),
    ]
    found = coverage_of(rows)
    assert found == Coverage(25, 9, 3, {"fused": 9, "absent": 7}, "b at step 0 (fused)")
    assert found.share == pytest.approx(9 / 25)


def test_nothing_covers_nothing() -> None:
    assert coverage_of([]).share == 0.0
    assert coverage_of([row("a")]).blind_spot is None


def test_coverage_counts_values_of_the_reference() -> None:
    theirs, own = factory.new_run(), factory.new_run("cand")
    theirs.record("a", factory.noise(100))
    own.record("a", factory.noise(3))
    assert factory.compared(theirs, own).coverage.expected == 100


def test_padding_is_hidden_and_not_checked() -> None:
    runs = []
    for name in ("torch", "cand"):
        run = factory.new_run(name)
        run.record(
            "x",
            factory.noise(2, 5, 4),
            axes="b t d",
            positions=np.array([[0, 1, 2, 3, 4], [0, 1, -1, -1, -1]]),
        )
        runs.append(run)
    found = factory.compared(*runs).coverage
    assert (found.checked, found.hidden) == (7 * 4, 3 * 4)


# Whole comparisons with isolation and caches

TABLE = factory.wiring(("head", ["embed", "k"]), ("tail", ["attn", "logits"]), caches=[("ks", "k", "tail")])


def model_run(
    name: str,
    *,
    steps: int = 6,
    window: int = 4,
    faults: dict[str, Any] | None = None,
    cache: Any = None,
    **provenance: Any,
) -> Any:
    """embed, k, ks (a window over k), attn and logits; `faults` map a tap to (first step, added)."""
    run = factory.new_run(name, **{"wiring": TABLE, "policy": f"window({window})", **provenance})
    rows: list[np.ndarray] = []
    for step in range(steps):
        here = np.array([[step]])
        run.record("ids", here + 40, step=step, axes="b t", positions=here)
        for place, tap in enumerate(("embed", "k", "ks", "attn", "logits")):
            if tap == "ks":
                held, at = np.concatenate(rows[-window:], axis=2), np.arange(step + 1)[-window:]
                held, at = cache(step, held, at) if cache else (held, at)
                if held is not None:
                    run.record("ks", held, step=step, axes="b h p d", positions=at)
                continue
            values = factory.noise(1, 2, 1, 4, seed=10 * step + place)
            since, delta = (faults or {}).get(tap, (99, 0.0))
            values = values + np.float32(delta if step >= since else 0.0)
            run.record(tap, values, step=step, axes="b h t d", positions=here)
            if tap == "k":
                rows.append(values)
    return run


def isolated(**options: Any) -> Any:
    fed = [{"taps": tap, "reason": "fed", "steps": None} for tap in ("ids", "ks")]
    return model_run("cand@isolated", cache=lambda *_: (None, None), unobserved=fed, **options)


def located(own: Any, alone: Any = None) -> Comparison:
    return factory.compared(model_run("torch"), own, isolated=alone)


def blamed(found: Comparison) -> list[tuple[str, int, str]]:
    return [(c.tap, c.step, c.segment) for c in found.culprits]


def test_healthy_runs_have_local_errors_of_zero_everywhere() -> None:
    found = located(model_run("cand"), isolated())
    assert found.verdict == "parity"
    assert {row.local for row in found.rows() if row.tap not in ("ids",)} == {0.0}


def test_a_fault_of_one_segment_is_born_there_and_inherited_elsewhere() -> None:
    wrong = {"k": (2, 1.0), "attn": (2, 0.5), "logits": (2, 0.5)}
    found = located(model_run("cand", faults=wrong), isolated(faults={"k": (2, 1.0)}))
    assert blamed(found) == [("k", 2, "head")]
    assert (found.first.tap, found.first.step) == ("k", 2)
    local = {row.tap: row.local for row in found.rows() if row.step == 2}
    assert local["k"] > 0
    assert local["attn"] == local["logits"] == 0.0


def test_a_wrong_row_that_was_appended_rightly_is_not_the_caches_fault() -> None:
    found = located(model_run("cand", faults={"k": (2, 1.0)}), isolated(faults={"k": (2, 1.0)}))
    ks = [row for row in found.rows() if row.tap == "ks" and row.step == 3]
    assert ks[0].status == "fail"
    assert ks[0].local == 0.0


def swapped(step: int, held: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (held[:, :, [1, 0, *range(2, held.shape[2])]] if step >= 3 else held), at


def stale(step: int, held: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    held = held.copy()
    held[:, 1, -1] = held[:, 1, -1] if step < 3 else held[:, 1, -2]
    return held, at


def short(step: int, held: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (held[:, :, 1:], at[1:]) if step >= 3 else (held, at)


def holed(step: int, held: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return held, np.where((at == 1) & (step >= 3), -1, at)


@pytest.mark.parametrize("fault", [swapped, stale, short, holed])
def test_a_fault_of_the_cache_is_the_caches(fault: Any) -> None:
    found = located(model_run("cand", cache=fault), isolated())
    assert blamed(found) == [("ks", 3, "cache")]
    assert (found.first.tap, found.first.step) == ("ks", 3)


@pytest.mark.parametrize(("fault", "words"), [(short, "position 0"), (holed, "position 1")])
def test_a_row_that_may_be_attended_to_and_is_not_there_is_named(fault: Any, words: str) -> None:
    found = located(model_run("cand", cache=fault))
    assert words in found.culprits[0].evidence
    assert words in found.first.slice


def test_rows_that_a_policy_has_hidden_may_be_gone() -> None:
    def narrow(step: int, held: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return held[:, :, -4:], at[-4:]

    theirs = model_run("torch", window=6, policy="window(4)")
    assert (
        factory.compared(theirs, model_run("cand", window=6, cache=narrow, policy="window(4)")).exit_code == 0
    )


def test_rows_that_the_reference_has_and_the_cache_lacks_are_seen_without_a_policy() -> None:
    theirs = model_run("torch", policy="none")
    found = factory.compared(theirs, model_run("cand", policy="none", cache=short))
    assert found.exit_code == 1 or found.coverage.share < 1.0


def test_a_cache_that_was_recorded_without_positions_is_no_traceback() -> None:
    runs = []
    for name in ("torch", "cand"):
        run = factory.new_run(name, wiring=TABLE)
        run.record("k", factory.noise(1, 2, 3, 4), axes="b h t d", positions=np.arange(3))
        run.record("ks", factory.noise(1, 2, 3, 4), axes="b h p d")
        runs.append(run)
    assert factory.compared(*runs).exit_code == 0


def test_segments_that_are_right_alone_put_the_blame_between_them() -> None:
    found = located(model_run("cand", faults={"attn": (2, 1.0)}), isolated())
    assert blamed(found) == [("attn", 2, "between segments")]


def test_rows_that_others_filled_in_are_held_against_the_references() -> None:
    """A prefilled cache: the candidate never computed the first rows itself."""
    theirs, own = (
        model_run("torch"),
        model_run("cand", unobserved=[{"taps": "*", "reason": "host", "steps": [0, 1]}]),
    )
    own._records = [r for r in own._records if r.step >= 2 or r.tap == "ids"]
    found = factory.compared(theirs, own)
    assert found.exit_code == 0, found.first
    assert found.culprits == ()
    assert {row.local for row in found.rows() if row.tap == "ks" and row.step >= 2} == {0.0}
    held = next(r for r in own._records if r.tap == "ks")
    held.array = held.array.copy()
    held.array[:, :, 0] += 1
    found = factory.compared(theirs, own)
    assert blamed(found) == [("ks", 2, "cache")]


def test_a_culprit_is_plain_data() -> None:
    assert Culprit("t", 1, "s", "e") == Culprit("t", 1, "s", "e", None)


def test_a_figure_without_measure_is_no_number_of_forty_digits() -> None:
    (found,) = culprits_of(held(row("a", "fail", local=1.5e44)))
    assert "more than a million times what the format explains" in found.evidence
