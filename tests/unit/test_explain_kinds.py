"""Truth values, short whole numbers and complex ones are explained as the numbers that they are."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from parity.harness.explaining import causes, search
from parity.harness.explaining.op import Hypothesis, Op, Variant


def _load(name: str) -> ModuleType:
    """A helper module beside this file: tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


factory, lab = _load("run_factory"), _load("explain_case")
CASE = lab.made()


def culprit_of(expected: np.ndarray, seen: np.ndarray, axes: str = "b t d"):
    """The one cause, or None, of a tap without any role."""
    runs = []
    for name, values in (("torch", expected), ("cand", seen)):
        made = factory.new_run(name)
        made.record("x", values, axes=axes)
        runs.append(made)
    found = factory.compared(*runs)
    assert found.verdict == "divergence"
    assert [culprit.tap for culprit in found.culprits] == ["x"]
    causes = found.explain()
    return causes[0].name if causes else None


def test_truth_values_are_explained_as_0_and_1():
    mask = factory.noise(2, 6, 8, seed=3) > 0.4
    assert culprit_of(mask, mask[:, ::-1]) == "reversed along token"


def test_squares_of_short_whole_numbers_do_not_wrap_round():
    codes = np.array([[100, -100, 90, 7]], np.int8)
    assert search.distance(codes, -codes, None) == pytest.approx(2.0)


def test_complex_values_stay_complex():
    turned = np.array([1 + 2j, 3 - 1j], np.complex64)
    assert search.distance(turned, turned.conj(), None) == pytest.approx(np.sqrt(20 / 15))


def _breaks(op: Op) -> Iterator[Variant]:
    raise AssertionError("no such thing")
    yield


def test_a_hypothesis_that_fails_is_noted_and_costs_nothing(monkeypatch):
    broken = Hypothesis("broken", "rows", _breaks)
    monkeypatch.setattr(search.search, "__kwdefaults__", {"catalogue": (broken, *search.CATALOGUE)})
    found = lab.explained(CASE, "layer0.o", -CASE.p("layer0.o"))
    assert found.cause.name == "the sign is flipped"
    assert "whether it is 'broken' cannot be computed (AssertionError: no such thing)" in found.notes
    monkeypatch.setenv("PARITY_DEBUG", "1")
    with pytest.raises(AssertionError, match="no such thing"):
        lab.explained(CASE, "layer0.o", -CASE.p("layer0.o"))


def test_whatever_fails_about_a_culprit_is_noted(monkeypatch):
    def lost(self: object) -> None:
        raise RuntimeError("lost")

    monkeypatch.setattr(causes._Case, "explained", lost)
    found = lab.explained(CASE, "layer0.o", -CASE.p("layer0.o"))
    assert found.notes == ("what is said of its op cannot be computed (RuntimeError: lost)",)
    assert replace(found, notes=()).cause is None
