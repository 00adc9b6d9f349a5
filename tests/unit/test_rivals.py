"""Other tools' rules, as published: each is blind and shrill where its tool was seen to be."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from parity.harness.trace import Trace, TraceWriter


@pytest.fixture(scope="module")
def rivals():
    path = Path(__file__).parents[1] / "mutations/rivals.py"
    spec = importlib.util.spec_from_file_location("rivals_under_test", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def runs(tmp_path, expected, actual, roles=()):
    """Runs of records given as tap -> values or list of values by step."""
    with TraceWriter(tmp_path / "t.h5") as writer:
        for name, side in (("ref", expected), ("cand", actual)):
            with writer.run(name, provenance={"roles": list(roles)}) as run:
                for tap, steps in side.items():
                    for step, values in enumerate(steps if isinstance(steps, list) else [steps]):
                        run.record(tap, values, step=step)
    trace = Trace(tmp_path / "t.h5")
    return trace["ref"], trace["cand"]


X = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)


def test_no_rule_objects_to_an_equal_copy(rivals, tmp_path):
    found = rivals.said(*runs(tmp_path, {"x": X}, {"x": X}))
    assert not any(said.objects for said in found.values())
    assert len(found) == 7


def test_every_rule_objects_to_other_numbers(rivals, tmp_path):
    found = rivals.said(*runs(tmp_path, {"a": X, "x": X}, {"a": X, "x": X[::-1].copy()}))
    assert all(said == rivals.Said(True, "x") for said in found.values())


def test_a_cosine_does_not_see_a_scale(rivals, tmp_path):
    found = rivals.said(*runs(tmp_path, {"x": X}, {"x": X * np.float32(1.08)}))
    assert not found["cosine 0.99"].objects
    assert not found["TPU-MLIR npz_tool"].objects
    assert found["torch.allclose"].objects


def test_npz_tool_scrubs_nan_and_cuts_to_the_shorter(rivals, tmp_path):
    one = X.copy()
    one[3, 3] = np.nan
    assert not rivals.npz_tool(*runs(tmp_path, {"x": X}, {"x": one})).objects
    (tmp_path / "cut").mkdir()
    assert not rivals.npz_tool(*runs(tmp_path / "cut", {"x": X}, {"x": X[:32]})).objects


def test_names_on_one_side_are_skipped_by_all(rivals, tmp_path):
    found = rivals.said(*runs(tmp_path, {"x": X}, {"y": X}))
    assert not any(said.objects for said in found.values())


def test_the_original_tracer_keeps_the_last_step_only(rivals, tmp_path):
    both = runs(tmp_path, {"x": [X, X]}, {"x": [X + 1, X]})
    assert not rivals.tracer(*both).objects
    assert rivals.said(*both)["torch.allclose"].objects


def test_msprobe_blames_the_op_between_a_good_input_and_a_bad_output(rivals, tmp_path):
    roles = [{"taps": "y", "inputs": ["x"]}, {"taps": "z", "inputs": ["y"]}]
    wrong = {"x": X, "y": -X, "z": -X}
    assert rivals.msprobe(*runs(tmp_path, {"x": X, "y": X, "z": X}, wrong, roles)) == rivals.Said(True, "y")


def test_tight_rules_object_to_rounding(rivals, tmp_path):
    rounded = (X.astype(np.float16)).astype(np.float32)
    found = rivals.said(*runs(tmp_path, {"x": X}, {"x": rounded}))
    assert found["torch.allclose"].objects
    assert found["Polygraphy 1e-5"].objects
    assert not found["cosine 0.99"].objects


def test_values_that_are_not_finite_are_judged_without_a_warning(rivals, tmp_path):
    wild = X.copy()
    wild[0, 0], wild[1, 1] = np.inf, np.nan
    found = rivals.said(*runs(tmp_path, {"x": X}, {"x": wild}))
    assert found["cosine 0.99"].objects
    assert found["1-cosine-like 1e-3"].objects
