"""Values that are no plain array: nested and sparse tensors. They are passed over, in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .store import say

if TYPE_CHECKING:
    from torch import nn

_said: set[str] = set()


def is_array(x: Any) -> bool:
    """Whether a value has one shape and holds all its elements, as anything but some torch tensors has."""
    if getattr(x, "is_nested", False) is True:
        return False
    return not hasattr(x, "to_dense") or "strided" in str(x.layout) or bool(getattr(x, "is_mkldnn", False))


def pass_over(tap: str, x: Any) -> None:
    """Say, once for each tap, that it is not recorded."""
    if tap not in _said:
        _said.add(tap)
        kind = "nested" if x.is_nested else "sparse"
        say(f"tap {tap!r} is a {kind} tensor, which is no array of one shape, and is not recorded")


def packing(*models: nn.Module) -> list[nn.TransformerEncoder]:
    """Encoders that leave padded rows out where they run fused, and return zeros there."""
    from torch import nn

    parts = [part for model in models for part in model.modules() if isinstance(part, nn.TransformerEncoder)]
    return [part for part in parts if getattr(part, "use_nested_tensor", False)]


@contextmanager
def padded(*models: nn.Module) -> Iterator[None]:
    """Keep nn.TransformerEncoder from packing what a padding mask leaves: only torch's fused layers take
    packed (nested) values, and a layer that carries hooks is not run fused."""
    found = packing(*models)
    for part in found:
        part.use_nested_tensor = False
    try:
        yield
    finally:
        for part in found:
            part.use_nested_tensor = True
