"""Logits: distributions, picked tokens and how clear the choice was."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from parity.harness.errors import UserError
from parity.harness.metrics import LogitMetrics, measure_logits


def logits(*shape: int, seed: int = 0) -> np.ndarray:
    return 3 * np.random.default_rng(seed).standard_normal(shape)


def softmax(x: np.ndarray) -> np.ndarray:
    p = np.exp(x - x.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def test_equal_logits_agree_in_everything() -> None:
    e = logits(2, 5, 100)
    m = measure_logits(e, e, targets=np.zeros((2, 5), int))
    assert (m.count, m.kl_mean, m.kl_max, m.top1_agreement, m.topk_overlap) == (10, 0.0, 0.0, 1.0, 1.0)
    assert (m.flips, m.disagreements, m.perplexity_difference) == ((), 0, 0.0)


def test_kl_is_that_of_the_candidate_from_the_reference() -> None:
    e, a = logits(7, 50), logits(7, 50, seed=1)
    p, q = softmax(e), softmax(a)
    kl = (p * np.log(p / q)).sum(axis=1)
    m = measure_logits(a, e)
    assert m.kl_mean == pytest.approx(kl.mean())
    assert (m.kl_max, m.kl_max_place) == (pytest.approx(kl.max()), kl.argmax())


def test_a_constant_added_to_all_logits_changes_nothing() -> None:
    e = logits(4, 50)
    assert measure_logits(e + 7, e).kl_max == pytest.approx(0, abs=1e-12)


def test_a_stolen_top_token_is_found_however_small_the_error() -> None:
    e = logits(64, 500)
    order = np.argsort(e[17])
    e[17, order[-1]] = e[17, order[-2]] + 1e-6
    a = e.copy()
    a[17, order[-2]] += 2e-6
    m = measure_logits(a, e)
    assert (m.disagreements, m.top1_agreement) == (1, 63 / 64)
    flip = m.flips[0]
    assert (flip.place, flip.expected, flip.actual) == (17, order[-1], order[-2])
    assert flip.expected_margin == pytest.approx(1e-6, rel=1e-3)
    assert flip.actual_margin == pytest.approx(1e-6, rel=1e-3)


def test_overlap_of_the_best_k_ignores_their_order() -> None:
    e = np.array([[9.0, 8, 7, 1, 0]])
    assert measure_logits(np.array([[7.0, 8, 9, 1, 0]]), e, k=3).topk_overlap == 1.0
    assert measure_logits(np.array([[9.0, 8, 0, 7, 1]]), e, k=3).topk_overlap == pytest.approx(2 / 3)


def test_perplexity_counts_only_places_with_a_target() -> None:
    e, targets = logits(3, 10), np.array([4, -1, 2])
    p = softmax(e)
    m = measure_logits(e, e, targets=targets)
    assert m.perplexity_expected == pytest.approx(np.exp(-np.log(p[[0, 2], [4, 2]]).mean()))
    assert measure_logits(e, e, targets=np.full(3, -1)).perplexity_difference is None


def test_forbidden_tokens_have_no_probability_and_forbidding_more_is_infinitely_far() -> None:
    e = logits(2, 10)
    e[:, 3] = -np.inf
    assert measure_logits(e, e).kl_max == 0.0
    a = e.copy()
    a[1, 5] = -np.inf
    m = measure_logits(a, e)
    assert math.isinf(m.kl_max)
    again = LogitMetrics.from_json(json.loads(json.dumps(m.to_json())))
    assert again == m


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_has_no_distribution_is_refused(value: float) -> None:
    e = logits(2, 10)
    a = e.copy()
    a[0, 0] = value
    with pytest.raises(UserError, match="no distribution"):
        measure_logits(a, e)


def test_shapes_and_targets_must_fit() -> None:
    with pytest.raises(UserError, match="vocabulary axis"):
        measure_logits(logits(2, 10), logits(3, 10))
    with pytest.raises(UserError, match="one per distribution"):
        measure_logits(logits(2, 10), logits(2, 10), targets=[1])


def test_blocks_do_not_change_the_result() -> None:
    e, a = logits(600, 1000), logits(600, 1000, seed=1)
    m = measure_logits(a, e)
    p, q = softmax(e), softmax(a)
    assert m.kl_mean == pytest.approx((p * np.log(p / q)).sum(axis=1).mean())
    assert m.kl_max_place == (p * np.log(p / q)).sum(axis=1).argmax()
    assert m.disagreements == (e.argmax(1) != a.argmax(1)).sum()
    assert len(m.flips) == 64
