"""What a module returned, as named tensors: `output`, `output.logits`, `output.1.k`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

OUTPUT = "output"


def is_output(tap: str) -> bool:
    """Whether a tap is (part of) what a module returned."""
    return tap == OUTPUT or tap.startswith(f"{OUTPUT}.")


@dataclass
class Outputs:
    """Tensors by tap name in order of return, and what was returned besides: name -> type."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)


def named_outputs(value: Any) -> Outputs:
    """Open tuples, lists, dicts, dataclasses; numbers, texts and None are passed over, the rest listed."""
    import torch

    found = Outputs()
    for name, item in _leaves(OUTPUT, value):
        if isinstance(item, torch.Tensor):
            found.tensors[name] = item
        elif item is not None and not isinstance(item, (bool, int, float, str)):
            found.others[name] = type(item).__name__
    return found


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        items: list[tuple[Any, Any]] = list(value.items())
    elif hasattr(value, "_fields"):
        items = list(zip(value._fields, value, strict=True))
    elif isinstance(value, (list, tuple)):
        items = list(enumerate(value))
    elif is_dataclass(value) and not isinstance(value, type):
        items = [(item.name, getattr(value, item.name)) for item in fields(value)]
    else:
        yield name, value
        return
    for key, item in items:
        yield from _leaves(f"{name}.{key}", item)
