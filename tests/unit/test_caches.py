"""The caches of targets against lists of rows."""

from __future__ import annotations

import numpy as np
import pytest

from parity.harness.errors import UserError
from parity.targets.caches import GrowCache, WindowCache


def rows(batch: int, positions: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Rows `[B, 2, T, 3]` that can be told apart."""
    return np.random.default_rng(seed).standard_normal((batch, 2, positions.shape[1], 3)).astype(np.float32)


def newest(taken: list[tuple[int, np.ndarray]], size: int) -> list[tuple[int, np.ndarray]]:
    """What a window must hold of the rows that one sequence was given."""
    return [(position, row) for position, row in taken if position >= 0][-size:]


def feed(cache: WindowCache | GrowCache, blocks: list[np.ndarray]) -> list[list[tuple[int, np.ndarray]]]:
    """Append blocks of positions `[B, T]`; returns per sequence the rows in the order they were given."""
    taken: list[list[tuple[int, np.ndarray]]] = [[] for _ in range(len(blocks[0]))]
    for seed, positions in enumerate(blocks):
        new = rows(len(positions), positions, seed=seed)
        cache.append("layer0.ks", new, positions)
        for b, own in enumerate(positions):
            taken[b] += [(int(position), new[b, :, t]) for t, position in enumerate(own)]
    return taken


def test_a_growing_cache_keeps_every_row_in_order() -> None:
    cache = GrowCache(2)
    taken = feed(cache, [np.array([[0, 1, 2], [-1, 0, 1]]), np.array([[3], [2]])])
    assert cache.view("layer0.ks").shape == (2, 2, 4, 3)
    assert cache.positions("layer0.ks").tolist() == [[0, 1, 2, 3], [-1, 0, 1, 2]]
    for b, given in enumerate(taken):
        np.testing.assert_array_equal(cache.view("layer0.ks")[b], np.stack([row for _, row in given], axis=1))


@pytest.mark.parametrize("size", [1, 3, 5, 8])
@pytest.mark.parametrize("static", [True, False])
def test_a_window_holds_the_newest_rows_right_aligned(size: int, static: bool) -> None:
    cache = WindowCache(2, size, static=static)
    blocks = [np.array([[t - 2], [t]]).clip(min=-1) for t in range(9)]
    taken = feed(cache, blocks)
    view, held = cache.view("layer0.ks"), cache.positions("layer0.ks")
    for b, given in enumerate(taken):
        expected = newest(given, size)
        at = slice(held.shape[1] - len(expected), None)
        assert held[b, at].tolist() == [position for position, _ in expected]
        np.testing.assert_array_equal(view[b, :, at], np.stack([row for _, row in expected], axis=1))
        assert (held[b, : at.start] == -1).all()


def test_a_static_window_has_all_rows_from_the_start_and_the_empty_ones_are_zero() -> None:
    cache = WindowCache(1, 4, static=True)
    feed(cache, [np.array([[0]])])
    assert cache.view("layer0.ks").shape == (1, 2, 4, 3)
    assert cache.positions("layer0.ks").tolist() == [[-1, -1, -1, 0]]
    assert (cache.view("layer0.ks")[:, :, :3] == 0).all()


def test_a_window_that_is_not_static_hands_out_filled_rows_only() -> None:
    cache = WindowCache(2, 4)
    feed(cache, [np.array([[0], [-1]]), np.array([[1], [0]])])
    assert cache.positions("layer0.ks").tolist() == [[0, 1], [-1, 0]]


def test_a_window_of_nothing_but_padding_still_hands_out_one_row() -> None:
    cache = WindowCache(1, 4)
    feed(cache, [np.array([[-1]])])
    assert cache.positions("layer0.ks").tolist() == [[-1]]


def test_padding_pushes_nothing_out_of_a_window() -> None:
    cache = WindowCache(1, 2)
    feed(cache, [np.array([[0]]), np.array([[1]]), np.array([[-1]]), np.array([[-1]])])
    assert cache.positions("layer0.ks").tolist() == [[0, 1]]


def test_a_block_longer_than_the_window_leaves_its_newest_rows() -> None:
    cache = WindowCache(1, 3)
    taken = feed(cache, [np.arange(7)[None]])
    assert cache.positions("layer0.ks").tolist() == [[4, 5, 6]]
    np.testing.assert_array_equal(cache.view("layer0.ks")[0, :, -1], taken[0][-1][1])


@pytest.mark.parametrize("make", [lambda: GrowCache(1), lambda: WindowCache(1, 3)], ids=["grow", "window"])
def test_a_view_handed_out_earlier_stays_as_it_was(make) -> None:  # type: ignore[no-untyped-def]
    cache = make()
    feed(cache, [np.array([[0]]), np.array([[1]])])
    view = cache.view("layer0.ks")
    before = view.copy()
    feed(cache, [np.array([[2]]), np.array([[3]])])
    np.testing.assert_array_equal(view, before)


@pytest.mark.parametrize("make", [lambda: GrowCache(1), lambda: WindowCache(1, 3)], ids=["grow", "window"])
def test_a_reset_forgets_rows_and_positions(make) -> None:  # type: ignore[no-untyped-def]
    cache = make()
    feed(cache, [np.array([[0]]), np.array([[1]])])
    cache.reset()
    feed(cache, [np.array([[0]])])
    assert cache.positions("layer0.ks")[0, -1] == 0
    assert (cache.positions("layer0.ks") >= 0).sum() == 1


@pytest.mark.parametrize("make", [lambda: GrowCache(1), lambda: WindowCache(1, 3)], ids=["grow", "window"])
def test_rows_that_would_be_cast_or_do_not_fit_are_refused(make) -> None:  # type: ignore[no-untyped-def]
    cache = make()
    first = np.array([[0]])
    cache.append("layer0.ks", rows(1, first), first)
    with pytest.raises(UserError, match="rows are float64, the cache holds float32"):
        cache.append("layer0.ks", rows(1, first).astype(np.float64), first)
    with pytest.raises(UserError, match=r"should be \[1, 2, 2, 3\]"):
        cache.append("layer0.ks", rows(1, first), np.array([[1, 2]]))
    with pytest.raises(UserError, match="rows"):
        cache.append("layer0.ks", rows(2, np.array([[1], [1]])), np.array([[1], [1]]))


def test_a_window_of_no_rows_is_refused() -> None:
    with pytest.raises(UserError, match="window=0"):
        WindowCache(1, 0)
