"""What each side would emit: flips, their margins, ties, texts."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity.harness.tokens import tokens_of


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


factory = _load("run_factory")


def logits_run(name: str, steps: list[Any], *, positions: Any = None, **provenance: Any) -> Any:
    """One record of logits per step, `[B, V]` lists or `[B, T, V]`."""
    run = factory.new_run(name, **provenance)
    for step, values in enumerate(steps):
        array = np.array(values, np.float32)
        array = array[:, None] if array.ndim == 2 else array
        at = np.full(array.shape[:2], step) if positions is None else np.array(positions)
        run.record("logits", array, step=step, axes="b t v", positions=at)
    return run


def tokens(theirs: list[Any], own: list[Any], **options: Any) -> Any:
    return tokens_of(logits_run("torch", theirs, **options), logits_run("cand", own, **options), free=False)


def test_the_same_choice_is_no_flip_however_the_logits_differ() -> None:
    found = tokens([[[0, 3, 1]], [[2, 0, 0]]], [[[0, 9, 8]], [[2, 1, 1]]])
    assert (found.compared, found.agreed, found.flips) == (2, 2, ())
    assert found.expected_text == found.actual_text == ("1 0",)


def test_every_flip_is_listed_and_not_the_first_alone() -> None:
    one, two = [[5, 0, 1]], [[0, 5, 1]]
    found = tokens([one] * 6, [one, two, one, two, two, one])
    assert [flip.step for flip in found.flips] == [1, 3, 4]
    assert (found.compared, found.agreed) == (6, 3)
    assert found.expected_text == ("0 0 0 0 0 0",)
    assert found.actual_text == ("0 1 0 1 1 0",)


def test_margins_are_taken_in_each_sides_own_logits() -> None:
    (flip,) = tokens([[[5.0, 3.0, 0.0]]], [[[1.0, 1.25, 0.0]]]).flips
    assert (flip.expected, flip.actual) == (0, 1)
    assert (flip.expected_margin, flip.actual_margin) == (2.0, 0.25)


def test_a_tie_goes_to_the_first_on_both_sides() -> None:
    assert tokens([[[4, 4, 0]]], [[[4, 4, 0]]]).agreed == 1
    (flip,) = tokens([[[4, 4, 0]]], [[[4, 4.5, 0]]]).flips
    assert flip.expected_margin == 0.0


def test_sequences_are_counted_one_by_one() -> None:
    found = tokens([[[1, 0], [1, 0], [0, 1]]], [[[1, 0], [0, 1], [0, 1]]])
    assert (found.compared, found.agreed) == (3, 2)
    assert [flip.sequence for flip in found.flips] == [1]
    assert found.expected_text == ("0", "0", "1")


@pytest.mark.parametrize("positions", [[[0, 1, -1]], [[-1, 0, 1]]])
def test_the_newest_real_token_speaks_and_not_padding(positions: Any) -> None:
    real, pad = [[1, 0, 0], [0, 1, 0]], [[0, 0, 9]]
    values = [[*real, *pad]] if positions[0][-1] < 0 else [[*pad, *real]]
    assert tokens([values], [values], positions=positions).expected_text == ("1",)


def test_calls_of_a_step_are_searched_for_each_sequences_newest_token() -> None:
    """Fed token by token with padding on the right: the last call is padding for the shorter sequence."""
    whole = np.array([[[9, 0, 0], [0, 9, 0], [0, 0, 9]], [[0, 9, 0], [9, 0, 0], [9, 0, 0]]], np.float32)
    positions = np.array([[0, 1, 2], [0, -1, -1]])
    theirs, own = factory.new_run(), factory.new_run("cand")
    theirs.record("logits", whole, axes="b t v", positions=positions)
    for call in range(3):
        at = slice(call, call + 1)
        own.record("logits", whole[:, at], axes="b t v", positions=positions[:, at], call=call)
    found = tokens_of(theirs, own, free=False)
    assert found.flips == ()
    assert found.actual_text == ("2", "1")


def test_steps_of_one_side_alone_are_not_counted() -> None:
    found = tokens([[[1, 0]]] * 5, [[[1, 0]]] * 2)
    assert (found.compared, found.agreed) == (2, 2)


def test_another_vocabulary_is_not_compared() -> None:
    assert tokens([[[1, 0]]], [[[1, 0, 0]]]).compared == 0


def test_texts_are_characters_where_the_run_says_so() -> None:
    values = [np.eye(128)[[code]] for code in b"hi!"]
    assert tokens(values, values, characters=True).expected_text == ("hi!",)
    assert tokens(values, values).expected_text == ("104 105 33",)


def test_low_precision_logits_are_read_as_they_are() -> None:
    theirs, own = factory.new_run(), factory.new_run("cand")
    for run in (theirs, own):
        run.record("logits", np.array([[[1.0, 2.0]]], np.float16), axes="b t v", positions=np.array([0]))
    assert tokens_of(theirs, own, free=True).agreed == 1
    assert tokens_of(theirs, own, free=True).free


def test_logits_without_positions_or_vocabulary_axis_are_left_out() -> None:
    theirs, own = factory.new_run(), factory.new_run("cand")
    for run in (theirs, own):
        run.record("logits", np.zeros((1, 1, 4)), axes="b t v")
        run.record("logits", np.zeros((1, 1, 4)), axes="b t d", positions=np.array([0]), step=1)
    assert tokens_of(theirs, own, free=False).compared == 0


def test_runs_without_logits_have_no_tokens() -> None:
    found = tokens_of(factory.simple(), factory.simple("cand"), free=False)
    assert (found.compared, found.expected_text) == (0, ())


def test_not_a_number_is_no_choice() -> None:
    broken = [[[0.0, np.nan, 1.0]]]
    assert tokens(broken, broken).agreed == 0
