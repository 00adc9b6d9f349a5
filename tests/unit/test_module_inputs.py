"""Inputs of a module: read from a file or a mapping, held against its forward, bound by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from parity.harness.errors import UserError
from parity.harness.inputs import arguments, read_inputs, with_numbers


class Takes(nn.Module):
    """x is needed, the others have defaults."""

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0, flag: bool = False
    ) -> Any:
        """Return what came."""
        return x, mask, scale, flag


class Starred(nn.Module):
    """Positional only, then any number."""

    def forward(self, first: Tensor, /, second: Tensor, *more: Tensor) -> Any:
        """Return what came."""
        return first, second, more


class Anything(nn.Module):
    """Takes every name."""

    def forward(self, **named: Tensor) -> Any:
        """Return what came."""
        return named


def test_an_npz_is_read_with_its_types_as_they_are(tmp_path: Path) -> None:
    x, ids = np.ones((2, 3), np.float16), np.arange(3)
    np.savez(tmp_path / "in.npz", x=x, mask=ids)
    found = read_inputs(tmp_path / "in.npz", Takes())
    assert {name: value.dtype.name for name, value in found.items()} == {"x": "float16", "mask": "int64"}


def test_a_mapping_may_nest_and_hold_tensors_and_numbers() -> None:
    found = read_inputs(
        {"x": [torch.ones(2, dtype=torch.bfloat16), np.zeros(1)], "s": {"h": [1.5]}, "n": None}
    )
    assert list(found) == ["x.0", "x.1", "s.h.0", "n"]
    assert found["x.0"].dtype.name == "bfloat16"
    assert found["s.h.0"] == 1.5


def test_dotted_names_come_back_as_lists_and_dicts() -> None:
    args, kwargs = arguments(Anything(), {"x.1": 1, "x.0": 0, "s.h": 2, "s.c": 3, "y": 4})
    assert args == []
    assert kwargs == {"x": [0, 1], "s": {"h": 2, "c": 3}, "y": 4}


def test_a_star_takes_a_list_and_what_stands_before_it_goes_by_position() -> None:
    given = {"second": 2, "first": 1, "more.0": 3, "more.1": 4}
    assert arguments(Starred(), given) == ([1, 2, 3, 4], {})
    assert arguments(Starred(), {"second": 2, "first": 1}) == ([1], {"second": 2})


def test_a_single_number_becomes_one_only_where_forward_wants_one() -> None:
    given = {"x": np.array(2.0), "scale": np.array(3.0), "flag": np.array(True), "mask": np.array(1)}
    found = with_numbers(Takes(), given)
    assert found["scale"] == 3.0
    assert type(found["scale"]) is float
    assert found["flag"] is True
    assert isinstance(found["x"], np.ndarray)
    assert isinstance(found["mask"], np.ndarray)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "hold no array"),
        ({"y": np.ones(1)}, "'y' is no argument of Takes.forward, which takes x, mask, scale, flag"),
        ({"x": np.ones(1), "masc": np.ones(1)}, "Did you mean 'mask'"),
        ({"mask": np.ones(1)}, "also needs 'x'; given are 'mask'"),
        ({"x": object()}, "'x': x=object: holds no numbers"),
        ({"x": np.array(["a"])}, "not a number format"),
    ],
)
def test_wrong_inputs_are_refused_with_a_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        read_inputs(given, Takes())


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"x.0": 1, "x.2": 2}, "lists 0, 2"),
        ({"x": 1, "x.0": 2}, "is an array itself"),
        ({"x.0": 1, "x": 2}, "is given twice"),
    ],
)
def test_names_that_make_no_list_are_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        arguments(Anything(), given)


def test_files_that_are_no_plain_arrays_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_inputs(tmp_path / "none.npz")
    with pytest.raises(UserError, match=r"should be an \.npz"):
        read_inputs(tmp_path / "in.pt")
    (tmp_path / "bad.npz").write_bytes(b"PK not really")
    with pytest.raises(UserError, match="cannot be read"):
        read_inputs(tmp_path / "bad.npz")
    np.savez(tmp_path / "pickled.npz", x=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="without pickle"):
        read_inputs(tmp_path / "pickled.npz")
    np.savez(tmp_path / "text.npz", x=np.array(["a"]))
    with pytest.raises(UserError, match="'x': dtype"):
        read_inputs(tmp_path / "text.npz")
    np.savez(tmp_path / "empty.npz")
    with pytest.raises(UserError, match="hold no array"):
        read_inputs(tmp_path / "empty.npz")
