"""Tensors to arrays and back, bit for bit. torch is imported only when a tensor is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .dtypes import as_storage, from_any
from .errors import UserError

if TYPE_CHECKING:
    import torch


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """A torch tensor as a numpy array of the same logical type (bfloat16, fp8 by ml_dtypes)."""
    return from_any(tensor.detach())[0]


def to_tensor(array: np.ndarray, device: str | torch.device = "cpu") -> torch.Tensor:
    """A numpy array as a torch tensor of the same logical type; always a copy."""
    import torch

    storage, name = as_storage(np.require(array, requirements="C"))
    plain = torch.from_numpy(storage.copy())
    logical = getattr(torch, name)
    return (plain if plain.dtype == logical else plain.view(logical)).to(device)


def checked_device(device: str | None) -> str:
    """The torch device asked for, or cpu; UserError when torch cannot see it."""
    import torch

    name = device or "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise UserError(f"device={name!r}: not a torch device; use cpu, cuda or cuda:N") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={name!r}: torch sees no CUDA device here; use cpu, or another machine")
    return name
