"""What a comparison may conclude from: filters, inputs that both sides are fed, whole numbers, calls."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from parity.harness.judge import Floor
from parity.harness.rows import Rules
from parity.harness.tolerance import Tolerance


def _load(name: str) -> ModuleType:
    """A helper module beside this file: tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


factory = _load("run_factory")
compared, new_run, simple = factory.compared, factory.new_run, factory.simple

#: a is fed, b and c are computed.
SEGMENT = {"name": "s", "outputs": [{"value": "c"}], "taps": ["b"]}
WIRING = {"segments": [SEGMENT], "caches": [], "output": "c"}


def test_a_filter_says_what_it_leaves_out() -> None:
    found = compared(simple(wiring=WIRING), simple("cand", wiring=WIRING), taps=["b"])
    (said,) = [finding.text for finding in found.findings if finding.level == "warning"]
    assert said == "the filter taps=['b'] leaves out 2 of 3 taps, what the model returns among them"
    assert found.verdict == "parity"


def test_what_both_sides_are_fed_proves_nothing() -> None:
    found = compared(simple(wiring=WIRING), simple("cand", wiring=WIRING), taps=["a"])
    assert (found.verdict, found.exit_code) == ("inconclusive", 3)
    assert "only what both runs are fed" in found.inconclusive


@pytest.mark.parametrize("dtype", ["int64", "int8", "bool"])
def test_whole_numbers_are_exact_under_a_measured_floor(dtype: str) -> None:
    """Half an ULP of an integer would be a half, eight times that four: wrong classes would pass."""
    theirs, own = new_run(), new_run("cand")
    values = np.array([1, 0, 1, 1]).astype(dtype)
    theirs.record("argmax", values)
    own.record("argmax", np.array([0, 0, 1, 1]).astype(dtype))
    rules = Rules(Tolerance("auto"), {"argmax": Floor(0.1, 0.1)})
    found = compared(theirs, own, rules=rules)
    assert found.verdict == "divergence"


def test_the_first_divergence_says_which_call() -> None:
    theirs, own = new_run(), new_run("cand")
    for call in range(2):
        theirs.record("a", np.ones(4, np.float32), call=call)
        own.record("a", np.full(4, 1 + call, np.float32), call=call)
    found = compared(theirs, own)
    assert found.first is not None
    assert (found.first.tap, found.first.call) == ("a", 1)
    assert found.rows()[1].inherited == found.rows()[1].error
