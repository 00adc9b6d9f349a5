"""What every submodule of a model was given and returned in one call of it, and how two such calls answer
each other: by the names of forward's parameters, then by position where both were given by position."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from .inputs import arguments
from .module_isolate import tensors_of
from .pinning import version
from .tracer import recording
from .tracer.nested import padded

#: Bytes of activations that are held in memory at most.
MOST = 2 << 30


class TooMuchError(Exception):
    """More activations than are held in memory."""


@dataclass(frozen=True, slots=True)
class Given:
    """One tensor that a module was called with: `suffix` as the tracer names it, `key` by parameter."""

    suffix: str
    key: str
    tensor: Tensor


@dataclass
class Call:
    """One call: tensors given, and returned by suffix."""

    given: tuple[Given, ...]
    returned: dict[str, Tensor] = field(default_factory=dict)

    def answering(self, own: Given) -> Given | None:
        """What this call was given in the place of `own`."""
        by_key = next((item for item in self.given if item.key == own.key), None)
        if by_key is not None or not own.suffix[1:2].isdecimal():
            return by_key
        return next((item for item in self.given if item.suffix == own.suffix), None)


def given_to(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Given]:
    """The tensors of a call, in containers too."""
    names = _parameters(type(module).forward)
    for place, value in enumerate(args):
        name = names[place] if place < len(names) else f"*{place}"
        for inner, tensor in tensors_of(value):
            yield Given(f".{place}{inner}", name + inner, tensor)
    for name, value in kwargs.items():
        for inner, tensor in tensors_of(value):
            yield Given(f".{name}{inner}", name + inner, tensor)


@cache
def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Names of what forward takes by position."""
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        found = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):
        return ()
    return tuple(item.name for item in found if item.kind in by_place)[1:]


@dataclass
class Captured:
    """One call of a whole model: calls of submodules by (path, number), values of taps by (tap, number)."""

    calls: dict[tuple[str, int], Call] = field(default_factory=dict)
    taps: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    _copies: dict[int, tuple[Any, int, Tensor]] = field(default_factory=dict)
    _bytes: int = 0

    def record(self, tap: str, array: Any, *, call: int = 0, **_: Any) -> None:
        """As a sink of the model's own taps."""
        if isinstance(array, Tensor):
            self.taps[tap, call] = array.clone()

    def copy(self, tensor: Tensor) -> Tensor:
        """A copy, one for all who hold the same tensor as long as nobody writes to it."""
        now = version(tensor)
        held = self._copies.get(id(tensor))
        if held is not None and held[0]() is tensor and held[1] == now >= 0:
            return held[2]
        self._bytes += tensor.nbytes
        if self._bytes > MOST:
            raise TooMuchError(f"its activations take more than {MOST >> 30} GiB")
        made = tensor.detach().clone()
        self._copies[id(tensor)] = ref(tensor), now, made
        return made


def capture(model: nn.Module, inputs: Mapping[str, Any]) -> Captured:
    """Call the model once; TooMuchError where its activations do not fit."""
    found, counts = Captured(), Counter[str]()
    handles = []
    for path, part in model.named_modules():
        if path:
            handles += _watch(path, part, found, counts)
    try:
        args, kwargs = arguments(model, inputs)
        with torch.no_grad(), recording(found), padded(model):
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _watch(path: str, part: nn.Module, found: Captured, counts: Counter[str]) -> list[Any]:
    running: list[Call] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = (Given(g.suffix, g.key, found.copy(g.tensor)) for g in given_to(module, args, kwargs))
        running.append(Call(tuple(given)))
        found.calls[path, counts[path]] = running[-1]
        counts[path] += 1

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        call = running.pop()
        call.returned = {suffix: found.copy(tensor) for suffix, tensor in tensors_of(output)}

    return [part.register_forward_pre_hook(before, with_kwargs=True), part.register_forward_hook(after)]


def rebuilt(value: Any, new: Mapping[int, Tensor]) -> Any:
    """The same containers with some tensors, told by identity, exchanged."""
    if isinstance(value, Tensor):
        return new.get(id(value), value)
    if hasattr(value, "_fields"):
        return type(value)(*(rebuilt(item, new) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(rebuilt(item, new) for item in value)
    if isinstance(value, Mapping):
        made: Any = copy.copy(value)
        for key, item in value.items():
            made[key] = rebuilt(item, new)
        return made
    return value
