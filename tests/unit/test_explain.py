"""A planted bug of a known shape is named; an unknown one, and noise, are not."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


def _load(name: str) -> ModuleType:
    """A helper module beside this file: tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


factory = _load("run_factory")
SHAPE, AXES = (2, 4, 6, 8), "b h t d"


def run(name: str, change: Callable[[np.ndarray], np.ndarray] | None = None):
    made = factory.new_run(name)
    for step in range(3):
        for number, tap in enumerate(("q", "k", "v")):
            values = factory.noise(*SHAPE, seed=10 * step + number)
            wrong = change is not None and (tap, step) == ("k", 1)
            made.record(tap, change(values) if wrong else values, step=step, axes=AXES)
    return made


def explained(change: Callable[[np.ndarray], np.ndarray]) -> list[tuple[str, str]]:
    found = factory.compared(run("torch"), run("cand", change))
    assert found.verdict == "divergence"
    return [(cause.tap, cause.name) for cause in found.explain()]


def halves_as_pairs(values: np.ndarray) -> np.ndarray:
    left, right = values[..., :4], values[..., 4:]
    return np.stack([left, right], -1).reshape(values.shape)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda x: -x, "the sign is flipped"),
        (lambda x: x * np.float32(1.08), "scaled by 1.08"),
        (lambda x: x + np.float32(3), "3 is added everywhere"),
        (lambda x: np.full_like(x, 0.5), "a constant, 0.5"),
        (lambda x: np.roll(x, 4, -1), "the halves of the channels are swapped"),
        (halves_as_pairs, "pairs of channels stand where halves should"),
        (lambda x: np.roll(x, 1, 2), "shifted by +1 along token"),
        (lambda x: x[:, :, ::-1], "reversed along token"),
        (lambda x: x[:, [1, 0, 3, 2]], "h slices stand in the order [1, 0, 3, 2]"),
        (lambda x: x.transpose(0, 2, 1, 3).reshape(x.shape), "laid out as sequence token head channel"),
        (lambda x: factory.noise(*SHAPE, seed=1), "what belongs to a step before"),
        (lambda x: factory.noise(*SHAPE, seed=12), "what belongs to v"),
        (np.trunc, "an output cut off to whole numbers"),
    ],
)
def test_a_known_bug_is_named(change, name):
    ((tap, told),) = explained(change)
    assert tap == "k"
    assert told.startswith(name)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x + 0.3 * factory.noise(*SHAPE, seed=99),
        lambda x: np.where(x > 0, x, 0),
        lambda x: factory.noise(*SHAPE, seed=99),
    ],
    ids=["noise", "clipped", "unrelated"],
)
def test_what_no_hypothesis_reproduces_has_no_name(change):
    assert explained(change) == []


def test_a_run_at_parity_needs_no_explanation():
    assert factory.compared(run("torch"), run("cand")).explain() == ()
