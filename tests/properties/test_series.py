"""Whatever is measured in series comes out as it does pair by pair, to the last digit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import ml_dtypes
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.harness.align import Aligner
from parity.harness.compare import compare_runs, floors_from
from parity.harness.comparison import Comparison, Side
from parity.harness.errors import UserError
from parity.harness.judge import Floor, judge_bound, settled
from parity.harness.mapping import TapMap
from parity.harness.metrics import Kind, Survey, measure
from parity.harness.metrics.many import survey
from parity.harness.metrics.setup import SUMS, setup
from parity.harness.rows import Rules
from parity.harness.series import Series
from parity.harness.tolerance import Bound, load_tolerance
from parity.harness.trace import Trace, TraceWriter
from parity.harness.tracer.memory import MemoryRun

CASE = {"weights": "w0", "scenario_digest": "s0", "policy": "none", "model": "m0"}
SHAPES = {"b t d": [(1, 1, 8), (2, 3, 40)], "t d": [(4, 33)], "": [(7,), ()], "b d": [(2, 1500)]}
DTYPES = ["float32", "float32", "float64", "int64", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]
SPOILS = ["none", "noise", "large", "nan", "inf", "fill", "narrow", "shape", "absent", "moved", "axes"]


@st.composite
def taps(draw: st.DrawFn) -> list[dict[str, Any]]:
    """What is recorded at each of a few taps, and what the candidate does to it."""
    found = []
    for _ in range(draw(st.integers(1, 4), label="taps")):
        axes = draw(st.sampled_from(sorted(SHAPES)), label="axes")
        found.append(
            {
                "axes": axes,
                "shape": draw(st.sampled_from(SHAPES[axes]), label="shape"),
                "dtype": np.dtype(draw(st.sampled_from(DTYPES), label="dtype")),
                "positions": draw(st.booleans(), label="positions") and "t" in axes,
                "spoils": draw(st.lists(st.sampled_from(SPOILS), min_size=6, max_size=6), label="spoils"),
                "calls": draw(st.sampled_from([1, 1, 2]), label="calls"),
                "prefill": draw(st.sampled_from([0, 0, 1, 2]), label="prefill"),
                "seed": draw(st.integers(0, 1 << 16), label="seed"),
            }
        )
    return found


def records(taps: list[dict[str, Any]], *, spoiled: bool) -> Iterator[tuple[str, np.ndarray, dict[str, Any]]]:
    """Six steps; the first of them may have three tokens for one, and each may be recorded in two calls."""
    for step, number, call in product(range(6), range(len(taps)), range(2)):
        tap = taps[number]
        if call < tap.get("calls", 1):
            rng = np.random.default_rng([tap["seed"], step, call])
            shape = (
                tap["shape"] if step >= tap.get("prefill", 0) or not tap["shape"] else (*tap["shape"][:-1], 3)
            )
            values = (4 * rng.standard_normal(shape)).astype(tap["dtype"])
            keys: dict[str, Any] = {"step": step, "call": call, "axes": tap["axes"]}
            if tap["positions"]:
                size = shape[tap["axes"].split().index("t")]
                keys["positions"] = np.arange(size) + size * (2 * step + call)
            spoil = tap["spoils"][step] if spoiled else "none"
            if spoil != "absent":
                yield f"tap{number}", *spoiled_by(spoil, values, keys, rng)


def spoiled_by(
    spoil: str, values: np.ndarray, keys: dict[str, Any], rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, Any]]:
    if spoil in ("noise", "large"):
        scale = 1e-6 if spoil == "noise" else 0.3
        values = (values + scale * rng.standard_normal(values.shape)).astype(values.dtype)
    elif spoil in ("nan", "inf", "fill") and values.dtype.kind == "f":
        values = np.array(values)
        values.reshape(-1)[0] = {"nan": np.nan, "inf": -np.inf, "fill": -1e4}[spoil]
    elif spoil == "narrow" and values.dtype == np.float32:
        values = values.astype(ml_dtypes.bfloat16)
    elif spoil == "shape" and values.ndim and "positions" not in keys:
        values = values[..., :-1]
    elif spoil == "moved" and "positions" in keys:
        keys["positions"] = keys["positions"] + 1
    elif spoil == "axes" and keys["axes"] == "b d":
        keys["axes"] = "d b"
    return values, keys


def written(path: Path, taps: list[dict[str, Any]]) -> tuple[Any, Any, Any]:
    """Reference, candidate and isolated run in one file."""
    with TraceWriter(path) as writer:
        for name, spoiled in (("torch", False), ("cand", True), ("cand@isolated", True)):
            with writer.run(name, provenance=CASE) as sink:
                for tap, values, keys in records(taps, spoiled=spoiled):
                    sink.record(tap, values, **keys)
    trace = Trace(path)
    return trace["torch"], trace["cand"], trace["cand@isolated"]


def remembered(taps: list[dict[str, Any]]) -> tuple[Any, Any, Any]:
    """The same in memory."""
    runs = [MemoryRun(name, provenance=dict(CASE), complete=True) for name in ("torch", "cand", "isolated")]
    for run, spoiled in zip(runs, (False, True, True), strict=True):
        for tap, values, keys in records(taps, spoiled=spoiled):
            run.record(tap, values, **keys)
    return runs[0], runs[1], runs[2]


def compared(runs: tuple[Any, Any, Any], rules: Rules) -> Comparison:
    sides = Side("torch", "torch", "torch", ""), Side("cand", "cand", "cand", "")
    return compare_runs(runs[0], runs[1], rules=rules, sides=sides, isolated=runs[2])


def floors_of(runs: tuple[Any, Any, Any]) -> str:
    """The floors, or why there are none: trusted runs have the reference's shapes."""
    try:
        return str(floors_from(runs[0], runs[1:2]))
    except UserError as error:
        return str(error)


def told(found: Comparison) -> str:
    metrics = [row.metrics.to_json() if row.metrics is not None else None for row in found.rows()]
    return json.dumps([found.to_json(), metrics])


@settings(max_examples=20, deadline=None)
@given(taps(), st.sampled_from(["fp32", "exact", "bf16", "auto"]))
def test_series_and_pairs_find_the_same(drawn: list[dict[str, Any]], tol: str) -> None:
    floors = {"tap0": Floor(1e-6, 1e-5), "tap1": Floor(1e-3, 1e-2)} if tol == "auto" else {}
    rules = Rules(load_tolerance(tol), floors)
    with TemporaryDirectory() as folder:
        for runs in (written(Path(folder) / "t.h5", drawn), remembered(drawn)):
            in_series, floors_in_series = told(compared(runs, rules)), floors_of(runs)
            with patch("parity.harness.align.parts_of", lambda *_: []):
                assert told(compared(runs, rules)) == in_series
                assert floors_of(runs) == floors_in_series


@settings(max_examples=40, deadline=None)
@given(taps())
def test_a_series_holds_the_pairs_that_alignment_makes(drawn: list[dict[str, Any]]) -> None:
    with TemporaryDirectory() as folder:
        for runs in (written(Path(folder) / "t.h5", drawn), remembered(drawn)):
            aligner = Aligner(runs[0], runs[1])
            for tap in aligner.order:
                pairs = [
                    pair
                    for item in aligner.aligned(tap)
                    for pair in (map(item.pair, range(len(item))) if isinstance(item, Series) else [item])
                ]
                assert list(map(str, pairs)) == list(map(str, aligner.pairs(tap)))


def test_a_renamed_tap_is_a_series_whose_rule_says_so(tmp_path: Path) -> None:
    plain = {"axes": "b t d", "shape": (2, 3, 40), "dtype": np.dtype("float32"), "seed": 0}
    taps = [{**plain, "positions": False, "spoils": ["none"] * 6}]
    runs = written(tmp_path / "t.h5", taps)
    own = MemoryRun("torch", provenance=dict(CASE), complete=True)
    for _, values, keys in records(taps, spoiled=False):
        own.record("mine0", values, **keys)
    aligner = Aligner(own, runs[1], mapping=TapMap("m.toml", {"tap*": "mine*"}))
    (series,) = aligner.aligned("mine0")
    assert isinstance(series, Series)
    assert "renamed from tap0" in series.rule
    assert [str(series.pair(i)) for i in range(6)] == list(map(str, aligner.pairs("mine0")))


def test_an_ordinary_tap_is_a_series(tmp_path: Path) -> None:
    """Else the tests above would compare pairs with pairs."""
    plain = {"axes": "b t d", "shape": (2, 3, 40), "dtype": np.dtype("float32"), "seed": 0}
    taps = [{**plain, "positions": where, "spoils": ["noise"] * 6} for where in (True, False)]
    for runs in (written(tmp_path / "t.h5", taps), remembered(taps)):
        aligner = Aligner(runs[0], runs[1])
        assert [type(item) for tap in aligner.order for item in aligner.aligned(tap)] == [Series, Series]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1e-6, 0.5, np.nan, np.inf, -1e4]), min_size=1, max_size=5))
def test_what_is_settled_at_a_glance_is_what_the_judge_says(errors: list[float]) -> None:
    bound = Bound(1e-4, 1e-4)
    expected = np.ones((len(errors), 4), np.float32)
    actual = expected.copy()
    actual[:, 2] += np.array(errors, np.float32)
    kind = Kind(setup((4,), "", "float32", "float32", SUMS), (bound.atol, bound.rtol), len(errors))
    (found,) = survey(actual.reshape(-1), expected.reshape(-1), np.arange(0, expected.size, 4), [kind])
    assert isinstance(found, Survey)
    for by_bound in (True, False):
        for place, judgement in enumerate(settled(found, by_bound=by_bound)):
            alone = measure(actual[place], expected[place], atol=bound.atol, rtol=bound.rtol)
            judged = judge_bound(alone, bound)
            fine = judged.status == "equal" or (by_bound and judged.passed)
            assert judgement == (judged if fine else None)
