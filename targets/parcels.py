"""Packs a part of a model so that it runs alone, without this package: as a torch program or a graph."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from parity.harness.errors import UserError
from parity.harness.imports import describe

Files = Mapping[str, bytes]
"""What a parcel holds: `model.onnx` or `model.pt2`, and what else belongs to it."""


class Parcelling(Protocol):
    """An executor that can hand out one of its segments."""

    def parcel(self, segment: str, inputs: Mapping[str, Any]) -> Files:
        """The files of a segment; `inputs` are arrays by port name."""


class Flat(nn.Module):
    """A module called with its tensors alone, in order; returns its tensors alone, in order."""

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        self.module = module
        leaves, self._shape = pytree.tree_flatten((args, dict(kwargs)))
        self._kept = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._places = [at for at, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        leaves = list(self._kept)
        for at, tensor in zip(self._places, tensors, strict=True):
            leaves[at] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self._shape)
        made = pytree.tree_leaves(self.module(*args, **kwargs))
        return tuple(value for value in made if isinstance(value, Tensor))


def tensors_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that `Flat` takes, in order."""
    return [leaf for leaf in pytree.tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor)]


def program(module: nn.Module, tensors: Sequence[Tensor]) -> bytes:
    """The module as a program that `torch.export.load` reads; UserError where torch cannot export it."""
    held = io.BytesIO()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(torch.export.export(module.eval(), tuple(tensors), strict=False), held)
    except Exception as error:  # torch.export raises whatever the traced code and its own passes raise
        raise UserError(f"module={type(module).__name__}: cannot be packed: {describe(error)}") from error
    return held.getvalue()
