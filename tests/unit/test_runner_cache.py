"""The board's cache against the harness's: the same rows, positions and mask, also after steps back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity.harness.cache import attendable
from parity.harness.segmented import HIDDEN
from parity.targets.caches import WindowCache
from parity.targets.sophgo.runner.device import cache as board

NAMES = ["layer0.ks", "layer0.vs"]
HEADS, WIDTH = 2, 3


def row(token: int, name: str) -> np.ndarray:
    """`[1, h, 1, d]` that can be told apart."""
    return np.random.default_rng([token, len(name)]).standard_normal((1, HEADS, 1, WIDTH)).astype(np.float32)


def test_what_is_hidden_adds_the_same_on_both_sides():
    assert board.HIDDEN == HIDDEN


@given(
    rows=st.integers(1, 6),
    window=st.integers(1, 8),
    actions=st.lists(st.integers(-3, 12), max_size=30),
    prefilled=st.integers(0, 9),
)
def test_any_steps_and_steps_back_leave_what_a_fresh_feed_leaves(rows, window, actions, prefilled):
    cache = board.Cache(NAMES, rows, window)
    tokens: list[int] = list(range(100, 100 + prefilled))
    if tokens:
        filled = [
            [b"".join(row(t, name)[0, head].tobytes() for t in tokens) for head in range(HEADS)]
            for name in NAMES
        ]
        cache.fill(list(range(prefilled)), filled)
    for action in actions:
        if action < 0:
            del tokens[max(0, len(tokens) + action) :]
            cache.rewind(len(tokens))
            continue
        cache.advance(len(tokens))
        tokens.append(action)
        for name in NAMES:
            cache.append(name, row(action, name).tobytes(), HEADS)
    assert cache.positions == list(range(len(tokens)))
    if not tokens:
        return
    fresh = WindowCache(1, rows, static=True)
    for position, token in enumerate(tokens):
        for name in NAMES:
            fresh.append(name, row(token, name), np.array([[position]]))
    held = fresh.positions(NAMES[0])
    assert cache.held() == held[0].tolist()
    for name in NAMES:
        assert cache.view(name) == np.ascontiguousarray(fresh.view(name)).tobytes()
        assert cache.newest(name) == row(tokens[-1], name).tobytes()
    allowed = attendable(np.array([[len(tokens) - 1]]), held, window)
    expected = np.where(allowed, 0.0, HIDDEN).astype(np.float32)
    np.testing.assert_array_equal(np.frombuffer(cache.mask(), np.float32), expected.reshape(-1))


def test_a_full_cache_takes_no_more_than_its_rows():
    cache = board.Cache(NAMES, 2, None)
    for position in range(2):
        cache.advance(position)
    with pytest.raises(board.Failure, match="position 2 does not fit into the 2 rows"):
        cache.advance(2)
