"""Local errors of a port: each of its submodules is fed what the reference's submodule was fed.

The reference runs once; whenever one of its submodules is about to be called, the port's submodule of the
same path is called first with the same inputs. Its outputs are what it makes of right inputs.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .inputs import arguments
from .tracer import Nowhere, recording
from .tracer.nested import is_array, padded

if TYPE_CHECKING:
    from .tracer import Sink


@dataclass
class Isolation:
    """The pairing of submodules by path, and what could not be fed: path -> why.

    `names` maps a path of the reference to that of the port where they differ.
    """

    reference: nn.Module
    candidate: nn.Module
    names: Mapping[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    _calls: Counter[str] = field(default_factory=Counter)

    def run(self, inputs: Mapping[str, Any], sink: Sink, step: int) -> None:
        """Record each submodule's own outputs under the reference's names; inputs are the reference's."""
        theirs = dict(self.candidate.named_modules(remove_duplicate=False))
        handles = []
        for path, part in self.reference.named_modules():
            other = theirs.get(self.names.get(path, path))
            if path and other is not None:
                handles.append(self._watch(path, part, other, sink, step))
        try:
            args, kwargs = arguments(self.reference, inputs)
            with torch.no_grad(), recording(Nowhere()), padded(self.reference, self.candidate):
                self.reference(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    def _watch(self, path: str, part: nn.Module, other: nn.Module, sink: Sink, step: int) -> Any:
        kind = next((p.dtype for p in self.candidate.parameters() if p.is_floating_point()), None)
        device = next((p.device for p in self.candidate.parameters()), None)

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = self._calls[path]
            self._calls[path] += 1
            try:
                given, named = _adapted((args, kwargs), kind, device)
                value = other(*given, **named)
            except Exception as error:  # other signature or shape, cannot be copied: told, and not isolated
                self.refused.setdefault(path, f"{type(error).__name__}: {error}".splitlines()[0][:200])
                return
            for suffix, tensor in tensors_of(value):
                sink.record(f"module:{path}{suffix}", tensor, step=step, call=call)

        return part.register_forward_pre_hook(before, with_kwargs=True)


def _adapted(value: Any, kind: torch.dtype | None, device: torch.device | None) -> Any:
    """A deep copy, its tensors in the port's floating type and on its device.

    What a call writes to (a cache that grows) must not be what the reference goes on with.
    """
    made: dict[int, Any] = {}
    for tensor in _held(value):
        wanted = kind if kind is not None and tensor.is_floating_point() else tensor.dtype
        made[id(tensor)] = tensor.to(device=device, dtype=wanted, copy=True)
    return copy.deepcopy(value, made)


def _held(value: Any) -> Iterator[Tensor]:
    """Each tensor that a value holds once: in containers and in attributes of objects, modules left out."""
    seen: dict[int, Any] = {}
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, (type, FunctionType, ModuleType, nn.Module)):
            continue
        seen[id(item)] = item
        if isinstance(item, Tensor):
            yield item
            continue
        if isinstance(item, Mapping):
            waiting += item.values()
        elif isinstance(item, (list, tuple, set)):
            waiting += item
        waiting += vars(item).values() if hasattr(item, "__dict__") else ()


def tensors_of(value: Any, suffix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors of nested containers as module hooks name them: `.0` for places, `.key` for keys;
    nested ones are passed over."""
    if isinstance(value, Tensor):
        if is_array(value):
            yield suffix, value
    elif isinstance(value, (Mapping, tuple, list)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from tensors_of(item, f"{suffix}.{key}")
