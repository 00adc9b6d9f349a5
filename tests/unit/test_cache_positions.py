"""Where cache rows stand, in absolute positions, against the plainest possible oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.harness.cache import attendable, empty, grown, hidden_rows, missing_rows, repeated_rows, rolled

POSITIONS = st.integers(-1, 9)


@st.composite
def histories(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int | None]:
    """Positions of queries `[B, T]` and keys `[B, S]`, and a window."""
    batch = draw(st.integers(1, 3), label="batch")
    num_queries, num_keys = draw(st.integers(1, 5), label="T"), draw(st.integers(0, 7), label="S")
    query = draw(
        st.lists(POSITIONS, min_size=batch * num_queries, max_size=batch * num_queries), label="query"
    )
    key = draw(st.lists(POSITIONS, min_size=batch * num_keys, max_size=batch * num_keys), label="key")
    window = draw(st.none() | st.integers(1, 6), label="window")
    return (
        np.array(query).reshape(batch, num_queries),
        np.array(key).reshape(batch, num_keys).astype(int),
        window,
    )


@settings(max_examples=300, deadline=None)
@given(histories())
def test_a_query_attends_exactly_to_what_the_policy_says(
    drawn: tuple[np.ndarray, np.ndarray, int | None],
) -> None:
    query, key, window = drawn
    got = attendable(query, key, window)
    assert got.shape == (len(query), query.shape[1], key.shape[1])
    for b, t, s in np.ndindex(*got.shape):
        mine, other = int(query[b, t]), int(key[b, s])
        if mine < 0 or other < 0:
            want = mine < 0 and other < 0
        else:
            want = other <= mine and (window is None or other > mine - window)
        assert got[b, t, s] == want, (mine, other, window)


@settings(max_examples=200, deadline=None)
@given(histories())
def test_missing_rows_are_those_that_the_newest_query_may_attend_to(
    drawn: tuple[np.ndarray, np.ndarray, int | None],
) -> None:
    query, key, window = drawn
    for b, lost in enumerate(missing_rows(query, key, window)):
        newest = max(int(p) for p in query[b])
        may = [
            p for p in range(newest + 1) if attendable(np.array([[newest]]), np.array([[p]]), window)[0, 0, 0]
        ]
        assert lost == [p for p in may if p not in key[b]]


@settings(max_examples=100, deadline=None)
@given(
    slots=st.integers(1, 6),
    chunks=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    batch=st.integers(1, 2),
)
def test_a_rolling_window_is_the_tail_of_a_growing_cache(slots: int, chunks: list[int], batch: int) -> None:
    window, whole, at = empty(batch, slots), empty(batch, slots), 0
    for width in chunks:
        new = np.tile(np.arange(at, at + width), (batch, 1))
        window, whole, at = rolled(window, new), grown(whole, new), at + width
        assert window.shape == (batch, slots)
        assert np.array_equal(window, whole[:, -slots:])
        assert whole.shape[1] == slots + at


def test_an_empty_cache_holds_no_position() -> None:
    assert empty(2).shape == (2, 0)
    assert (empty(2, 3) == -1).all()
    assert empty(1).dtype == np.int64


def test_a_window_without_slots_stays_without() -> None:
    assert rolled(empty(1), np.array([[4]])).shape == (1, 0)


@settings(max_examples=100, deadline=None)
@given(histories())
def test_repeated_rows_are_the_positions_that_stand_in_a_cache_more_than_once(
    drawn: tuple[np.ndarray, np.ndarray, int | None],
) -> None:
    key = drawn[1]
    for found, row in zip(repeated_rows(key), key.tolist(), strict=True):
        assert found == sorted({p for p in row if p >= 0 and row.count(p) > 1})


def test_a_sequence_of_padding_alone_misses_nothing() -> None:
    assert missing_rows(np.array([[-1, -1]]), np.array([[-1]]), None) == [[]]


@pytest.mark.parametrize(("held", "lost"), [(range(4, 9), []), (range(5, 9), [4]), ((4, 5, 7, 8), [6])])
def test_a_hole_in_a_window_is_named(held: range, lost: list[int]) -> None:
    assert missing_rows(np.array([[8]]), np.array([list(held)]), 5) == [lost]


def test_sequences_are_looked_at_one_by_one() -> None:
    query, key = np.array([[3], [1]]), np.array([[0, 1, 2, 3], [0, -1, -1, -1]])
    assert missing_rows(query, key, None) == [[], [1]]


@pytest.mark.parametrize(
    ("query", "held", "window", "beyond"),
    [
        ([7, 8], [3, 4, 5, 6, 7, 8], 5, [3]),
        ([8], [4, 5, 6, 7, 8], 5, []),
        ([2], [9, 10, 0, 1, 2], 5, [9, 10]),
        ([2], [-1, -1, 0, 1, 2], None, []),
        ([2], [3, 0, 1, 2], None, [3]),
    ],
)
def test_hidden_rows_are_those_that_nothing_but_a_mask_keeps_from_the_newest_query(
    query: list[int], held: list[int], window: int | None, beyond: list[int]
) -> None:
    assert hidden_rows(np.array([query]), np.array([held]), window) == [beyond]
