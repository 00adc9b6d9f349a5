"""Local errors of a port in two calls: the reference's, and one of the port in which nothing is inherited.

Each of the port's submodules has what it is handed and what it makes of right inputs recorded, and returns
what the reference's submodule returned. So a wrong output convicts a module, and a wrong *input* the code
between the modules: a residual that is scaled, a rotation, a mask.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .inputs import arguments
from .isolation import EXPECTED, HANDED, TAPS, Isolation
from .module_calls import Call, Captured, Given, capture, given_to, rebuilt
from .module_isolate import tensors_of
from .outputs import named_outputs
from .pinning import Known, Pinner
from .seeding import seeded
from .tracer import recording
from .tracer.nested import padded

if TYPE_CHECKING:
    from .tracer import Sink

#: Additive masks hide by any number below this; which one is no difference.
HIDES = -1e3


@dataclass
class PinnedModules:
    """The pairing of submodules by path. `names` maps a path of the reference to the port's."""

    reference: nn.Module
    candidate: nn.Module
    names: Mapping[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    unpinned: dict[str, str] = field(default_factory=dict)
    shared: dict[str, list[str]] = field(default_factory=dict)

    @property
    def isolation(self) -> Isolation:
        """What was separated."""
        refused = {f"module:{path}": why for path, why in self.refused.items()}
        return Isolation(TAPS, self.unpinned, refused, self.shared)

    def run(
        self, inputs: Mapping[str, Any], own: Mapping[str, Any], sink: Sink, step: int, seed: int = 0
    ) -> None:
        """Call both, each with its own inputs; records stand under the reference's names.

        TooMuchError where the reference's activations do not fit into memory.
        """
        with seeded(seed):
            right = capture(self.reference, inputs)
        with seeded(seed):
            _Running(self, right, sink, step).run(own)


@dataclass
class _Running:
    """The port's call. `loose` are paths of modules whose own value went on, in containers still open."""

    pairing: PinnedModules
    right: Captured
    sink: Sink
    step: int
    counts: Counter[str] = field(default_factory=Counter)
    loose: set[str] = field(default_factory=set)
    convicted: list[Tensor] = field(default_factory=list)
    between: dict[str, list[str]] = field(default_factory=dict)
    replaced: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def run(self, own: Mapping[str, Any]) -> None:
        """Call the port with its hooks."""
        port = self.pairing.candidate
        self.pinner, self.known = Pinner(port), Known()
        self.known.add(*(value for value in own.values() if isinstance(value, Tensor)))
        handles = self._hooks(port)
        try:
            args, kwargs = arguments(port, own)
            with torch.no_grad(), recording(self), padded(port):
                value = port(*args, **kwargs)
            for tap, tensor in named_outputs(value).tensors.items():
                self.sink.record(tap, tensor, step=self.step)
                self.pairing.unpinned[tap] = "may hold values from between modules, which stay as they are"
        finally:
            for handle in handles:
                handle.remove()
            self.pinner.restore()
        self._not_called()

    def _hooks(self, port: nn.Module) -> list[Any]:
        theirs = dict(port.named_modules())
        handles = []
        for path, _ in self.pairing.reference.named_modules():
            part = theirs.get(self.pairing.names.get(path, path)) if path else None
            if part is not None:
                handles += self._watch(path, part)
        return handles

    def _watch(self, path: str, part: nn.Module) -> list[Any]:
        running: list[tuple[int, Call | None, str]] = []

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            number = self.counts[path]
            self.counts[path] += 1
            right = self.right.calls.get((path, number))
            if right is None:
                running.append((number, None, ""))
                self.pairing.refused[path] = "is called more often than in the reference"
                return None
            given = [(item, right.answering(item)) for item in given_to(module, args, kwargs)]
            odd = (own.key for own, want in given if want and fitting(own.tensor, want.tensor) is None)
            running.append((number, right, next(odd, "")))
            new = {id(item.tensor): self._handed(path, number, item, want) for item, want in given}
            if all(new[id(item.tensor)] is item.tensor for item, _ in given):
                return None
            return rebuilt(args, new), rebuilt(kwargs, new)

        def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            number, right, odd = running.pop()
            if right is None:
                self.loose.add(path)
                return None
            return self._returned(path, number, output, right, odd)

        return [part.register_forward_pre_hook(before, with_kwargs=True), part.register_forward_hook(after)]

    def _handed(self, path: str, number: int, own: Given, want: Given | None) -> Tensor:
        """The tensor that the module goes on with: the reference's, where there is one of the kind."""
        fit = None if want is None else fitting(own.tensor, want.tensor)
        if want is None or fit is None:
            return own.tensor
        right = fit.to(own.tensor.device, own.tensor.dtype)
        if torch.equal(own.tensor, right) or _alike_hidden(own.tensor, right):
            self.known.add(own.tensor)
            return own.tensor
        if not self.loose and not any(_same(own.tensor, other) for other in self.convicted):
            tap = f"module:{path}{HANDED}{want.suffix}"
            self.between.setdefault(path.rpartition(".")[0], []).append(f"module:{path}{HANDED}")
            self.sink.record(tap, own.tensor, step=self.step, call=number)
            self.sink.record(tap + EXPECTED, right, step=self.step, call=number)
        self.convicted.append(own.tensor)
        if self.known.fresh(own.tensor) and self.pinner.write(own.tensor, right):
            self.known.add(own.tensor)
            return own.tensor
        return self._instead(own.tensor, right)

    def _returned(self, path: str, number: int, output: Any, right: Call, odd: str) -> Any:
        """Record what the module made, and return what it should have made.

        odd: what it was handed that could not be exchanged for the reference's.
        """
        new: dict[int, Tensor] = {}
        matched, inside = False, {other for other in self.loose if other.startswith(f"{path}.")}
        first = ""
        for suffix, own in tensors_of(output):
            tap = f"module:{path}{suffix}"
            self.sink.record(tap, own, step=self.step, call=number)
            if first:  # what a module returns besides shows the same fault, as no module stands behind it
                self.pairing.shared[tap] = [first, *self.between.get(path, ())]
            first = first or tap
            want = right.returned.get(suffix)
            fit = None if want is None else fitting(own, want.to(own.device, own.dtype))
            if fit is None:
                self.pairing.unpinned[tap] = "the reference returns no such value"
                continue
            matched = True
            if inside:
                self.pairing.unpinned[tap] = f"{min(inside)} inside went on with its own value"
            elif odd:
                self.pairing.unpinned[tap] = f"{odd} has another shape or kind than in the reference"
            new[id(own)] = self._instead(own, fit)
        self.loose -= inside if matched else set()
        self.loose |= set() if matched or not right.returned else {path}
        return rebuilt(output, new) if any(id(made) != own for own, made in new.items()) else output

    def _instead(self, own: Tensor, right: Tensor) -> Tensor:
        """A tensor like `own` with other values; `own` stays what it is for whoever holds it."""
        if torch.equal(own, right):
            self.known.add(own)
            return own
        made = torch.empty_like(own).copy_(right)
        self.known.add(made)
        self.replaced.append((made, own))
        return made

    def record(self, tap: str, array: Any, *, call: int = 0, **about: Any) -> None:
        """As the sink of the port's own taps: a module's value once more, or one between modules."""
        own = next((own for made, own in reversed(self.replaced) if _same(made, array)), array)
        self.sink.record(tap, own, call=call, **{**about, "step": self.step})
        want = self.right.taps.get((tap, call))
        fit = None if own is not array or want is None else fitting(array, want)
        if fit is None:
            return
        right = fit.to(array.device, array.dtype)
        if self.known.fresh(array) and self.pinner.write(array, right):
            self.known.add(array)
        elif not torch.equal(array, right):
            self.pairing.unpinned[tap] = "is no tensor of its own that could be written over"

    def _not_called(self) -> None:
        for path, number in self.right.calls:
            if number >= self.counts[path]:
                self.pairing.refused.setdefault(path, "the candidate does not call a module of that name")


def fitting(own: Any, right: Tensor) -> Tensor | None:
    """`right` in the shape of `own`, where one may have a single leading row that stands for all.

    None for another shape, and where one is floating or boolean and the other is not.
    """
    if not isinstance(own, Tensor) or own.is_floating_point() != right.is_floating_point():
        return None
    if (own.dtype == torch.bool) != (right.dtype == torch.bool):
        return None
    if own.shape == right.shape:
        return right
    if own.ndim != right.ndim or own.shape[1:] != right.shape[1:] or 1 not in (len(own), len(right)):
        return None
    if len(right) == 1:
        return right.expand_as(own)
    return right[:1] if torch.equal(right, right[:1].expand_as(right)) else None


def _alike_hidden(own: Tensor, right: Tensor) -> bool:
    """Whether both are masks that hide the same places from a softmax, by whatever number."""
    if not own.is_floating_point() or not own.numel() or max(own.max(), right.max()) > 0:
        return False
    return torch.equal(own.clamp(min=HIDES), right.clamp(min=HIDES))


def _same(one: Any, other: Any) -> bool:
    """One piece of memory, seen alike."""
    if one is other:
        return True
    return (
        isinstance(one, Tensor)
        and isinstance(other, Tensor)
        and (one.data_ptr(), one.shape, one.stride()) == (other.data_ptr(), other.shape, other.stride())
    )
