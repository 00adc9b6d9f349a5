"""Whatever is recorded comes back bit for bit, whatever its format, shape and strides."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import h5py
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parity.harness import dtypes
from parity.harness.trace import Trace, TraceWriter
from parity.harness.trace.checksum import BLOCK, Digest, checksum

SHAPES = st.lists(st.integers(0, 5), max_size=5).map(tuple)


@st.composite
def arrays(draw: st.DrawFn) -> tuple[np.ndarray, str]:
    """Random bits of a random format (NaN payloads included), perhaps strided, flipped or transposed."""
    name = draw(st.sampled_from(dtypes.NAMES), label="dtype")
    shape = draw(SHAPES, label="shape")
    storage, logical = dtypes.storage_dtype(name), dtypes.logical_dtype(name)
    count = math.prod(shape) * 2
    raw = draw(st.binary(min_size=count * storage.itemsize, max_size=count * storage.itemsize), label="bits")
    flat = np.frombuffer(raw, storage)
    if name == "bool":
        flat = flat % 2
    array = flat.view(logical).reshape(*shape, 2)[..., draw(st.integers(0, 1), label="stride")]
    if draw(st.booleans(), label="transposed"):
        array = array.T
    if array.ndim and draw(st.booleans(), label="flipped"):
        array = array[::-1]
    return array, name


def bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(st.lists(arrays(), min_size=1, max_size=8))
def test_every_format_and_shape_comes_back_bit_for_bit(given_arrays: list[tuple[np.ndarray, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.h5"
        with TraceWriter(path) as writer, writer.run("torch") as run:
            for step, (array, _) in enumerate(given_arrays):
                run.record("x", array, step=step)
        with Trace(path) as trace:
            assert trace["torch"].verify() == []
            for (array, name), record in zip(given_arrays, trace["torch"].records("x"), strict=True):
                back = record.read()
                assert (record.dtype, record.shape) == (name, array.shape)
                assert back.dtype == array.dtype
                assert bits(back) == bits(array)
                assert bits(record.read_flat(0, array.size)) == bits(array)
        _check_views(path, given_arrays)


def _check_views(path: Path, given_arrays: list[tuple[np.ndarray, str]]) -> None:
    """Plain h5py sees the same bits."""
    with h5py.File(path, "r") as file:
        view = file["runs/torch/x"]
        for step, (array, name) in enumerate(given_arrays):
            part = view[step] if isinstance(view, h5py.Dataset) else view[f"step{step}"][()]
            assert bits(np.asarray(part)) == bits(array), name


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 3 * BLOCK + 9000), st.lists(st.integers(0, BLOCK + 7), max_size=6), st.integers(0, 8))
def test_the_checksum_does_not_depend_on_how_it_is_fed(size: int, cuts: list[int], shift: int) -> None:
    data = np.random.default_rng(size).integers(0, 255, size + shift, dtype=np.uint8)[shift:]
    digest, at = Digest(), 0
    for cut in [*cuts, size]:
        digest.update(data[at : at + cut])
        at = min(size, at + cut)
    assert digest.value() == checksum(data)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2 * BLOCK), st.data())
def test_a_changed_byte_or_two_swapped_ones_change_the_checksum(size: int, data: st.DataObject) -> None:
    content = np.random.default_rng(size).integers(0, 255, size, dtype=np.uint8)
    before = checksum(content)
    a, b = (data.draw(st.integers(0, size - 1), label=label) for label in ("a", "b"))
    other = content.copy()
    other[[a, b]] = other[[b, a]]
    assert (checksum(other) == before) == bool(content[a] == content[b])
    other = content.copy()
    other[a] ^= data.draw(st.integers(1, 255), label="mask")
    assert checksum(other) != before
