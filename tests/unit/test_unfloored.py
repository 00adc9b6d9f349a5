"""Without a noise floor the fixed bounds decide: that is said once, and what they cannot judge is named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from parity.harness.compare import compare_runs
from parity.harness.comparison import Finding, Side
from parity.harness.judge import Floor
from parity.harness.rows import Rules
from parity.harness.tolerance import load_tolerance
from parity.harness.trace import Trace, TraceWriter

VALUES = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)


def findings(
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], path: Path, tol: str = "auto", floor: bool = False
) -> list[Finding]:
    with TraceWriter(path) as writer:
        for side, name in enumerate(("ref", "cand")):
            with writer.run(name, provenance={}) as run:
                for tap, pair in pairs.items():
                    run.record(tap, pair[side], step=0, axes="t d")
    runs, floors = Trace(path), {tap: Floor(1.0, 1.0) for tap in pairs} if floor else {}
    found = compare_runs(
        runs["ref"],
        runs["cand"],
        rules=Rules(load_tolerance(tol), floors),
        sides=(Side("ref", "ref", "", ""), Side("cand", "cand", "", "")),
    )
    assert found.verdict == "parity"
    return [finding for finding in found.findings if "is unproven" not in finding.text]


def test_tiny_values_that_pass_doubled_are_warned_of_by_name(tmp_path: Path) -> None:
    tiny = (1e-12 * VALUES).astype(np.float32)
    note, warning = findings({"a": (tiny, 2 * tiny), "b": (VALUES, VALUES)}, tmp_path / "t.h5")
    assert (note.level, warning.level) == ("note", "warning")
    assert note.text == "no noise floor is known for these runs: judged by the fp32 bounds"
    assert warning.text.startswith("too small for an absolute tolerance: 1 tap (a) differ")


@pytest.mark.parametrize("values", [1e-12 * VALUES, 0 * VALUES])
def test_tiny_values_that_are_equal_need_no_warning(values: np.ndarray, tmp_path: Path) -> None:
    assert [found.level for found in findings({"a": (values, values)}, tmp_path / "t.h5")] == ["note"]


def test_values_of_ordinary_size_and_whole_numbers_need_no_warning(tmp_path: Path) -> None:
    pairs = {"a": (VALUES, VALUES * np.float32(1 + 1e-6))}
    assert [found.level for found in findings(pairs, tmp_path / "t.h5")] == ["note"]
    whole = np.arange(12).reshape(3, 4)
    assert findings({"a": (whole, whole)}, tmp_path / "whole.h5") == []


def test_doubles_are_said_to_be_judged_by_their_own_bounds(tmp_path: Path) -> None:
    wide = VALUES.astype(np.float64)
    (note,) = findings({"a": (wide, wide)}, tmp_path / "t.h5")
    assert note.text.endswith("judged by the fp64 bounds")


@pytest.mark.parametrize(("tol", "floor"), [("auto", True), ("fp32", False)])
def test_a_floor_or_a_profile_that_was_asked_for_says_nothing(tol: str, floor: bool, tmp_path: Path) -> None:
    assert findings({"a": (VALUES, VALUES * np.float32(1 + 1e-7))}, tmp_path / "t.h5", tol, floor) == []
