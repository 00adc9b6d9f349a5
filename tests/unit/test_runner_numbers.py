"""Number formats on the board and on the host: the same bits, by the declared rules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from parity.harness.dtypes import logical_dtype
from parity.harness.errors import CandidateError
from parity.targets.sophgo.runner import arrays
from parity.targets.sophgo.runner.client import Tensor
from parity.targets.sophgo.runner.device import numbers
from parity.targets.sophgo.runner.device.tensors import STORED, Failure, Slot

BITS = hnp.arrays(np.uint32, st.integers(1, 20), elements=st.integers(0, 2**32 - 1))
SCALES = st.floats(2.0**-20, 2.0**10, width=32)


def pair(format: str, count: int, scale: float = 1.0, zero_point: int = 0) -> tuple[Slot, Tensor]:
    """The board's and the host's view of one tensor."""
    return Slot("x", [count], format, scale, zero_point), Tensor("x", (count,), format, scale, zero_point)


def floats(bits: np.ndarray) -> np.ndarray:
    return bits.view(np.float32)


@given(bits=BITS, rounding=st.sampled_from(numbers.ROUNDINGS))
def test_bfloat16_is_rounded_alike_on_both_sides_also_at_nan_and_infinity(bits, rounding):
    slot, tensor = pair("bfloat16", len(bits))
    board = numbers.stored(slot, bits.tobytes(), rounding)
    host = bytes(arrays.lowered(tensor, floats(bits), rounding))
    assert board == host
    if rounding == "nearest":
        assert np.array_equal(
            np.frombuffer(board, np.uint16), floats(bits).astype(logical_dtype("bfloat16")).view(np.uint16)
        )
    else:
        assert np.array_equal(np.frombuffer(board, np.uint16), (bits >> 16).astype(np.uint16))


@given(bits=BITS)
def test_float16_is_rounded_as_numpy_does(bits):
    numbers_ = floats(bits)
    assume(not np.isnan(numbers_).any())
    slot, tensor = pair("float16", len(bits))
    board = numbers.stored(slot, bits.tobytes())
    assert board == bytes(arrays.lowered(tensor, numbers_))


@given(
    values=hnp.arrays(np.float32, st.integers(1, 20), elements=st.floats(-(2.0**20), 2.0**20, width=32)),
    format=st.sampled_from(["int8", "uint8"]),
    scale=SCALES,
    zero_point=st.integers(-128, 128),
)
def test_eight_bits_are_rounded_half_away_and_clipped_alike(values, format, scale, zero_point):
    slot, tensor = pair(format, len(values), scale, zero_point)
    board = numbers.stored(slot, values.tobytes())
    assert board == bytes(arrays.lowered(tensor, values))


def test_halves_go_away_from_zero_and_limits_hold():
    slot, _ = pair("int8", 8)
    given_ = np.array([0.5, -0.5, 1.5, -2.5, 126.5, 1e9, -1e9, -np.inf], np.float32)
    assert np.frombuffer(numbers.stored(slot, given_.tobytes()), np.int8).tolist() == [
        1, -1, 2, -3, 127, 127, -128, -128
    ]  # fmt: skip


@given(data=st.data(), format=st.sampled_from(sorted(STORED)))
def test_what_a_model_gives_becomes_the_same_float32_on_both_sides(data, format):
    count = data.draw(st.integers(1, 12))
    dtype = logical_dtype(format)
    raw = data.draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    quantized = format in ("int8", "uint8")
    scale = data.draw(SCALES) if quantized else 1.0
    zero_point = data.draw(st.integers(-128, 127)) if quantized else 0
    slot, tensor = pair(format, count, scale, zero_point)
    host = arrays.real(tensor, np.frombuffer(raw, dtype))
    board = np.frombuffer(numbers.real(slot, raw), np.float32)
    assert host.dtype == np.float32
    np.testing.assert_array_equal(board, host)


def test_a_token_must_fit_into_its_tensor():
    slot, tensor = pair("uint16", 1)
    assert numbers.whole(slot, 512) == bytes(arrays.lowered(tensor, np.array([512], np.int64)))
    with pytest.raises(Failure, match="uint16, which cannot hold the token 65536"):
        numbers.whole(slot, 65536)
    with pytest.raises(CandidateError, match=r"65536\.\.65536, which does not fit into uint16"):
        arrays.lowered(tensor, np.array([65536], np.int64))


@pytest.mark.parametrize("format", ["int8", "uint8"])
def test_nan_is_no_eight_bit_number(format):
    slot, tensor = pair(format, 1)
    nan = np.array([np.nan], np.float32)
    with pytest.raises(Failure, match="NaN"):
        numbers.stored(slot, nan.tobytes())
    with pytest.raises(CandidateError, match="NaN"):
        arrays.lowered(tensor, nan)


@pytest.mark.parametrize(
    ("array", "format"),
    [
        (np.zeros(1, np.float64), "float32"),
        (np.zeros(1, np.float32), "uint16"),
        (np.zeros(1, np.int64), "float32"),
        (np.zeros(1, np.float16), "bfloat16"),
    ],
)
def test_nothing_else_is_cast(array, format):
    with pytest.raises(CandidateError, match=f"x is {array.dtype}, the artefact takes {format}"):
        arrays.lowered(pair(format, 1)[1], array)


@pytest.mark.parametrize(
    ("shape", "into", "same"),
    [
        ((1, 32, 64), (1, 32, 64, 1), True),
        ((1, 1, 128), (1, 1, 128, 1), True),
        ((2, 1, 3, 4, 5), (2, 3, 4, 5), True),
        ((2, 3, 4, 5, 6), (6, 4, 5, 6), True),
        ((1,), (1, 1, 1, 1), True),
        ((), (1,), True),
        ((2, 3), (3, 2), False),
        ((6,), (2, 3), False),
        ((4, 2), (2, 4), False),
        ((2, 3), (2, 3, 2), False),
        ((0, 3), (0, 3), True),
    ],
)
def test_shapes_fold_only_where_memory_stays_as_it_is(shape, into, same):
    assert arrays.folds(shape, into) is same


@given(values=hnp.arrays(np.float32, st.integers(1, 30), elements=st.floats(-5, 5, width=32)))
def test_the_first_of_the_largest_is_chosen(values):
    assert numbers.largest(values.tobytes()) == int(values.argmax())


def test_no_token_is_chosen_from_nan():
    with pytest.raises(Failure, match="NaN"):
        numbers.largest(np.array([1, np.nan], np.float32).tobytes())
