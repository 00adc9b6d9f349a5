"""Writing the reference's value over a live tensor, so that all later readers of it go on with what is right.

In place, because the value may be held under several names by the code that is running. Never over a
parameter, a buffer or another tensor that belongs to a module; what was written over is put back at the end,
since a tensor may outlive the call (a table that a function keeps).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class Pinner:
    """Writes during one call of `modules`; `restore` when it is over."""

    def __init__(self, *modules: nn.Module) -> None:
        self._kept = {_storage(tensor) for module in modules for tensor in _belonging(module)}
        self._undo: list[tuple[Tensor, Tensor]] = []

    def belongs(self, tensor: Tensor) -> bool:
        """Whether a tensor is (a view of) one that a module keeps."""
        return _storage(tensor) in self._kept

    def write(self, own: Tensor, right: Tensor) -> bool:
        """Put the values of `right` (same shape) into `own`; False where that cannot be done safely."""
        if own.shape != right.shape or self.belongs(own) or _overlaps(own):
            return False
        if torch.equal(own, right.to(own.dtype)):
            return True
        before = own.clone()
        try:
            own.copy_(right)
        except RuntimeError:  # made in inference mode, or not to be written to at all
            return False
        self._undo.append((own, before))
        return True

    def restore(self) -> None:
        """Put back what was written over, the last first."""
        while self._undo:
            own, before = self._undo.pop()
            own.copy_(before)


class Known:
    """Tensors of which it is known where their values come from, as long as nobody writes to them."""

    def __init__(self) -> None:
        self._held: dict[Any, tuple[int, Tensor]] = {}

    def add(self, *tensors: Tensor) -> None:
        """Hold on to them, so that their memory is not used for another."""
        for tensor in tensors:
            self._held[_storage(tensor)] = version(tensor), tensor

    def fresh(self, tensor: Tensor) -> bool:
        """Whether it was computed since, and is all that lies in its memory."""
        if version(tensor) < 0 or not tensor.is_contiguous():
            return False
        if tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size():
            return False
        held = self._held.get(_storage(tensor))
        return held is None or held[0] != version(tensor)


def version(tensor: Tensor) -> int:
    """Counts in-place writes; -1 for tensors that do not count them."""
    return -1 if tensor.is_inference() else tensor._version


def _belonging(module: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers and plain attributes that are tensors."""
    for part in module.modules():
        yield from part.parameters(recurse=False)
        yield from part.buffers(recurse=False)
        yield from (value for value in vars(part).values() if isinstance(value, Tensor))


def _storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()._cdata


def _overlaps(tensor: Tensor) -> bool:
    """Whether several places of a tensor are one place in memory (an expanded one)."""
    pairs = sorted((step, size) for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)
    reach = 1
    for step, size in pairs:
        if step < reach:
            return True
        reach = step * (size - 1) + reach
    return False
