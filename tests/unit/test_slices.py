"""Where an error sits, in words."""

from __future__ import annotations

import json

import numpy as np
import pytest

from parity.harness.metrics import Metrics, measure
from parity.harness.slices import outstanding, worst_slice

SHAPE = (2, 4, 512, 64)
E = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
NOISE = np.float32(1e-6) * np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)


def words(place: tuple[object, ...], axes: str = "b h p d", **options: object) -> str:
    a = E + NOISE
    a[place] += 1
    return worst_slice(measure(a, E, axes=axes), **options)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (np.s_[:, 1], "head 1"),
        (np.s_[:, :, :, 17], "channel 17"),
        (np.s_[:, 1, 16:511], "head 1, positions 16..510"),
        (np.s_[1, :, 3:5], "positions 3..4 of sequence 1"),
        (np.s_[0], "sequence 0"),
        (np.s_[1, 2, 3, 4], "head 2, position 3, channel 4 of sequence 1"),
        (np.s_[:, :, [1, 5, 9, 13, 17, 21]], "positions 1, 5, 9, 13 and 2 more"),
        (np.s_[...], "everywhere"),
    ],
)
def test_a_fault_is_named_by_its_slice(place: tuple[object, ...], said: str) -> None:
    assert words(place) == said


def test_whole_pages_of_a_cache_are_named() -> None:
    place = np.s_[:, :, 128:384]
    assert words(place, positions=np.arange(512)) == "pages 1..2 (positions 128..383)"
    assert words(place) == "positions 128..383"
    assert words(place, positions=np.arange(1, 513)) == "positions 129..384"


def test_features_are_named() -> None:
    e = np.random.default_rng(0).standard_normal((2, 5, 16)).astype(np.float32)
    a = e.copy()
    a[:, :, 3] += 1
    assert worst_slice(measure(a, e, axes="b t f")) == "feature 3"


def test_evenly_spread_noise_is_everywhere() -> None:
    assert worst_slice(measure(E + NOISE, E, axes="b h p d")) == "everywhere"


def test_a_uniform_scale_is_not_put_on_the_loudest_channel() -> None:
    e = E.copy()
    e[..., 5] *= 300
    assert worst_slice(measure(e * np.float32(1.08), e, axes="b h p d")) == "everywhere"


def test_no_error_has_no_place() -> None:
    assert worst_slice(measure(E, E, axes="b h p d")) == ""


def test_indices_that_are_off_too_are_not_passed_over_in_silence() -> None:
    """One row at 5, the others at 0.3: all are wrong, and the words must not acquit them."""
    expected = np.ones((3, 8), np.float32)
    actual = expected + np.array([[5.0], [0.3], [0.3]], np.float32)
    assert worst_slice(measure(actual, expected, axes="t d")) == "mostly token 0"


def test_tokens_are_named_by_absolute_position() -> None:
    place = np.s_[0, :, 2]
    positions = np.stack([np.arange(10, 522), np.arange(512)])
    assert words(place, "b h t d") == "token 2 of sequence 0"
    assert words(place, "b h t d", positions=positions) == "token at position 12 of sequence 0"
    assert words(np.s_[:, 1, 6:10], positions=np.arange(10, 522)) == "head 1, positions 16..19"


def test_positions_that_differ_by_sequence_are_not_guessed() -> None:
    positions = np.stack([np.arange(10, 522), np.arange(512)])
    assert words(np.s_[:, :, 2], "b h t d", positions=positions) == "token 2"


def test_hidden_positions_are_left_out() -> None:
    positions = np.arange(512)
    positions[7] = -1
    assert words(np.s_[:, :, 6:9], positions=positions) == "positions 6, 8"


def test_axes_without_names_are_numbered() -> None:
    assert words(np.s_[:, 1], "") == "axis 1 index 1"
    assert words(np.s_[:, 1:3], "") == "axis 1 indices 1..2"


def test_other_letters_keep_their_letter() -> None:
    assert words(np.s_[:, 1], "b k t d") == "k index 1"


def test_a_one_sided_nan_is_named_even_beside_larger_errors() -> None:
    a = E + NOISE
    a[:, 0] += 100
    a[1, 3, 4, 5] = np.nan
    assert worst_slice(measure(a, E, axes="b h p d")) == "head 3, position 4, channel 5 of sequence 1"


def test_merged_short_axes_are_still_told_apart() -> None:
    e = np.random.default_rng(0).standard_normal((64, 4, 8)).astype(np.float32)
    a = e + np.float32(1e-6)
    a[:, 2, 3] += 1
    assert worst_slice(measure(a, e, axes="t h d")) == "head 2, channel 3"


def test_without_profiles_the_worst_place_is_told() -> None:
    a = E + NOISE
    a[1, 2, 3, 4] += 1
    data = json.loads(json.dumps(measure(a, E, axes="b h p d").to_json()))
    for heavy in ("hist", "joint", "profiles", "rows"):
        data.pop(heavy)
    assert worst_slice(Metrics.from_json(data)) == "head 2, position 3, channel 4 of sequence 1"


def test_outstanding_needs_a_gap() -> None:
    assert outstanding(np.array([1.0, 1.2, 0.9, 1.1])).tolist() == []
    assert outstanding(np.array([1.0, 0.1, 0.1, 1.1])).tolist() == [0, 3]
    assert outstanding(np.array([0.0, 0.0])).tolist() == []
    assert outstanding(np.array([0.0, 5e-324])).tolist() == [1]
    assert outstanding(np.array([1.0, np.inf])).tolist() == [1]
    assert outstanding(np.array([1.0])).tolist() == []
