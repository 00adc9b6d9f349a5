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


def test_a_candidate_of_zeros_is_said_to_be_zeros():
    small = factory.noise(2, 6, 8, seed=3) / 100
    assert culprit_of(small, np.zeros_like(small)) == "zeros"
    assert culprit_of(300 * small, np.full_like(small, 2.5)) == "a constant, 2.5"


def test_a_bound_is_named_before_values_that_wrapped_round():
    hidden = np.where(np.tri(8, dtype=bool)[None], factory.noise(1, 8, 8, seed=3), np.float32(-3e38))
    assert culprit_of(hidden, np.maximum(hidden, np.float32(-1e4))) == "values saturated at 1e+04"


def test_sequences_that_moved_are_named_only_where_all_are_wrong():
    values = factory.noise(3, 6, 8, seed=3)
    assert culprit_of(values, np.roll(values, 1, 0), "x t d") == "shifted by +1 along x"
    copied = values.copy()
    copied[1] = values[0]
    copied[2, 0] += 1.0
    assert "sequence" not in str(culprit_of(values, copied))


def test_a_mask_that_is_wrong_in_some_sequences_is_no_roll_of_them():
    mask = np.zeros((3, 6, 8), bool)
    mask[0, :, :5] = mask[1, :, :5] = True
    wrong = mask.copy()
    wrong[2] = mask[1]
    assert "shifted" not in str(culprit_of(mask, wrong, ""))


def test_the_format_that_a_candidate_declares_is_no_mistake():
    weight = CASE.w["body.blocks.0.attention.out_proj.weight"].bfloat16().float()
    bias = CASE.w["body.blocks.0.attention.out_proj.bias"]
    low = CASE.p("layer0.attn").flatten(2) @ weight.T + bias
    assert "bfloat16" in lab.explained(CASE, "layer0.o", low).cause.name
    case = lab.made()
    case.provenance["dtype"] = "bfloat16"
    found = lab.explained(case, "layer0.o", low)
    assert found.cause is None
    assert not any("bfloat16" in item.words for item in found.tried)


def test_two_mistakes_that_give_the_same_values_are_both_named():
    def twice(op: Op) -> Iterator[Variant]:
        yield Variant("this", -op.expected)
        yield Variant("that", -op.expected)
        yield Variant("no", op.expected)

    o = CASE.p("layer0.o")
    hypothesis = Hypothesis("twice", "rows", twice)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(search.search.__kwdefaults__, "catalogue", (hypothesis,))
        found = lab.explained(CASE, "layer0.o", {0: -o, 1: -CASE.cut("layer0.o", 10, 11)})
    assert found.cause.name == "this, or that"
    assert "cannot be told apart" in found.cause.evidence
