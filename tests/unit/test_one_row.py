"""A value that one side holds once and the other once for each sequence of the batch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


factory = _load("run_factory")
ONE = factory.noise(1, 12, 16)
ALL = np.repeat(ONE, 2, axis=0)


def compared(expected: np.ndarray, actual: np.ndarray, tap: str = "module:rotary") -> Any:
    runs = []
    for name, value in (("torch", expected), ("cand", actual)):
        run = factory.new_run(name)
        run.record(tap, value)
        run.record("module:head", np.ones((2, 3), np.float32))
        runs.append(run)
    return factory.compared(*runs)


@pytest.mark.parametrize(("expected", "actual"), [(ONE, ALL), (ALL, ONE)])
def test_one_row_that_is_what_all_should_be_passes_and_is_told(expected: Any, actual: Any) -> None:
    found = compared(expected, actual)
    row = found.rows()[0]
    assert (found.exit_code, row.status) == (0, "equal")
    assert row.rule.endswith("one row stands for all 2")
    assert not found.culprits
    (told,) = [item.text for item in found.findings if "one leading row" in item.text]
    assert str(actual.shape) in told
    assert str(expected.shape) in told


def test_one_row_that_differs_from_some_of_them_is_another_shape() -> None:
    wrong = ALL.copy()
    wrong[1, 3, 5] += 0.5
    found = compared(wrong, ONE)
    assert (found.exit_code, found.rows()[0].status) == (1, "shape")
    assert not any("one leading row" in item.text for item in found.findings)


@pytest.mark.parametrize(
    ("actual", "tap"),
    [(ONE[0], "module:rotary"), (ALL[:, :1], "module:rotary"), (ONE, "output"), (ONE, "output.cos")],
)
def test_other_shapes_and_what_the_model_returns_fail_as_ever(actual: Any, tap: str) -> None:
    expected = np.ones_like(ALL)
    found = compared(expected, np.ones_like(actual), tap)
    assert (found.exit_code, found.rows()[0].status) == (1, "shape")
