"""Number formats: bits stay, names are known, arrays come from anywhere."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from parity.harness import dtypes
from parity.harness.errors import UserError


@pytest.mark.parametrize("name", dtypes.NAMES)
def test_every_logical_name_survives_storage_and_back(name: str) -> None:
    array = np.array([0, 1, 2], np.int8).astype(dtypes.logical_dtype(name))
    stored, found = dtypes.as_storage(array)
    assert found == name
    assert stored.dtype == dtypes.storage_dtype(name)
    back = dtypes.as_logical(stored, name)
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()


def test_storage_is_a_view_and_keeps_nan_payloads() -> None:
    bits = np.array([0x7FC1, 0xFFFF, 0x0001], np.uint16)
    array = bits.view(ml_dtypes.bfloat16)
    stored, name = dtypes.as_storage(array)
    assert name == "bfloat16"
    assert np.shares_memory(stored, bits)
    np.testing.assert_array_equal(stored, bits)


def test_a_swapped_byte_order_keeps_its_values() -> None:
    stored, name = dtypes.as_storage(np.array([1.5, -2.0], ">f4"))
    assert name == "float32"
    np.testing.assert_array_equal(stored, np.array([1.5, -2.0], np.float32))


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16),
        *(torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128, torch.float8_e4m3fn),
        *(
            torch.float8_e5m2,
            torch.float8_e4m3fnuz,
            torch.float8_e5m2fnuz,
            torch.uint16,
            torch.uint32,
            torch.uint64,
        ),
    ],
    ids=str,
)
def test_a_torch_tensor_gives_the_same_bits(dtype: torch.dtype) -> None:
    tensor = torch.tensor([0.0, 1.0, 0.5, 2.0]).to(dtype)
    array, name = dtypes.from_any(tensor)
    assert name == str(dtype).removeprefix("torch.")
    assert array.tobytes() == bytes(tensor.view(torch.uint8).tolist())


def test_torch_gradients_conjugates_and_strides_are_resolved() -> None:
    leaf = torch.arange(6.0, requires_grad=True).reshape(2, 3)
    np.testing.assert_array_equal(dtypes.from_any(leaf.T)[0], leaf.detach().numpy().T)
    conj = torch.tensor([1 + 2j]).conj()
    np.testing.assert_array_equal(dtypes.from_any(conj)[0], np.array([1 - 2j], np.complex64))
    parameter = torch.nn.Parameter(torch.ones(2))
    assert dtypes.from_any(parameter)[1] == "float32"


class _OnlyArray:
    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return np.arange(3, dtype=np.int16)


class _OnlyDlpack:
    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __dlpack__(self, **options: object) -> object:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


def test_anything_that_holds_numbers_becomes_an_array() -> None:
    assert dtypes.from_any(_OnlyArray())[1] == "int16"
    np.testing.assert_array_equal(dtypes.from_any(_OnlyDlpack(np.arange(4.0)))[0], np.arange(4.0))
    assert dtypes.from_any(3)[0].shape == ()
    assert dtypes.from_any(True)[1] == "bool"
    assert dtypes.from_any(np.float16(2))[1] == "float16"
    assert dtypes.from_any([[1.0, 2.0]])[0].shape == (1, 2)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (object(), "holds no numbers"),
        ("text", "holds no numbers"),
        ([[1], [1, 2]], "cannot be read"),
        (np.array(["a"]), "not a number format"),
        (np.array([None]), "not a number format"),
        (np.array(["2024-01-01"], "datetime64[D]"), "not a number format"),
        (torch.eye(2).to_sparse(), "only dense"),
        (torch.ones(2, device="meta"), "no values"),
        (torch.ones(2, device="meta", dtype=torch.bfloat16), "no values"),
    ],
    ids=["object", "text", "ragged", "strings", "objects", "dates", "sparse", "meta", "meta bfloat16"],
)
def test_what_holds_no_numbers_is_refused_with_a_sentence(value: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        dtypes.from_any(value)


def test_unknown_and_wrong_names_are_refused_with_a_suggestion() -> None:
    with pytest.raises(UserError, match="Did you mean 'bfloat16'"):
        dtypes.storage_dtype("bfloat61")
    with pytest.raises(UserError, match="is stored as uint16"):
        dtypes.as_logical(np.zeros(2, np.float32), "bfloat16")


def test_importing_number_formats_loads_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, numpy, parity.harness.dtypes as d;"
        "d.from_any(numpy.ones(2)); assert 'torch' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(p for p in sys.path if p)}
    )
