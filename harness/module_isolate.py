"""Local errors of a port: each of its submodules is fed what the reference's submodule was fed.

The reference runs once; whenever one of its submodules is about to be called, the port's submodule of the
same path is called first with the same inputs. Its outputs are what it makes of right inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .inputs import arguments
from .tracer import recording

if TYPE_CHECKING:
    from .tracer import Sink


class Nowhere:
    """A sink that keeps nothing."""

    def record(self, tap: str, array: Any, **about: Any) -> None:
        """Let it go."""


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
            with torch.no_grad(), recording(Nowhere()):
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
            given, named = (_adapted(value, kind, device) for value in (args, kwargs))
            try:
                value = other(*given, **named)
            except Exception as error:  # another signature, another shape: told, and not isolated
                self.refused.setdefault(path, f"{type(error).__name__}: {error}".splitlines()[0][:200])
                return
            for suffix, tensor in tensors_of(value):
                sink.record(f"module:{path}{suffix}", tensor, step=step, call=call)

        return part.register_forward_pre_hook(before, with_kwargs=True)


def _adapted(value: Any, kind: torch.dtype | None, device: torch.device | None) -> Any:
    """Copies, in the port's floating type and on its device."""
    if isinstance(value, Tensor):
        wanted = kind if kind is not None and value.is_floating_point() else value.dtype
        return value.to(device=device, dtype=wanted, copy=True)
    if isinstance(value, dict):
        return {key: _adapted(item, kind, device) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_adapted(item, kind, device) for item in value)
    return value


def tensors_of(value: Any, suffix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors of nested containers as module hooks name them: `.0` for places, `.key` for keys."""
    if isinstance(value, Tensor):
        yield suffix, value
    elif isinstance(value, (Mapping, tuple, list)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from tensors_of(item, f"{suffix}.{key}")
