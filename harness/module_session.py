"""One call of any `nn.Module`: without hooks for its outputs, with hooks for what lies between.

The module's outputs are those of the untouched call. What the hooked call returned is held against it, so
that an effect of looking is said and not recorded as the truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .arrays import to_tensor
from .errors import ParityError
from .imports import describe
from .inputs import arguments, with_numbers
from .isolation import MODULES, Isolation
from .module_copy import fresh as fresh
from .module_copy import switched_off
from .module_isolate import Isolation as Fed
from .module_pinned import PinnedModules
from .observer import observer_effect
from .outputs import Outputs, named_outputs
from .seeding import seeded
from .target import Facts
from .tracer import ModuleTaps, Nowhere, recording, tap_modules, trace_tensor
from .tracer import step as mark_step
from .tracer.memory import MemoryRun
from .tracer.nested import is_array, packing

if TYPE_CHECKING:
    from .case import ModuleCase, Step
    from .mapping import TapMap
    from .tracer import Sink
    from .values import Values


#: What a port is that calls modules which are not its own.
BLIND = (
    "none of the module's submodules ran, so only what it returns was compared: what runs in their place is "
    "reached through a global name or another object; let its class have a forward that calls them"
)
#: Why padded rows of a transformer of torch's change when it is looked at.
PACKED = "; nn.TransformerEncoder leaves padded rows out, as zeros, only where it carries no hooks"


def prepared(
    module: nn.Module, *, dtype: str | None, device: str, own: bool = False
) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy in eval mode, cast and moved, and in words what was changed; the user's object stays as it is.

    `own`: parameters are copied even where nothing is cast, because the caller will write to them.
    """
    said: list[str] = []
    if line := switched_off(module):
        said.append(line)
    parameters = [*module.parameters(), *module.buffers()]
    moved = any(item.device != torch.device(device) for item in parameters)
    try:
        copied = fresh(module, share=dtype is None and not moved and not own)
    except Exception as error:
        raise ParityError(f"module={type(module).__name__}: cannot be copied: {describe(error)}") from error
    if dtype is not None:
        copied = copied.to(getattr(torch, dtype))
        said.append(f"module and floating inputs cast to {dtype}")
    return copied.to(device).eval(), tuple(said)


def tensors(
    module: nn.Module, inputs: Mapping[str, Any], *, dtype: str | None, device: str
) -> dict[str, Any]:
    """Arrays as tensors; floating ones cast where a dtype is asked for, all else keeps its type.

    0-d arrays become Python numbers where forward wants such.
    """
    made: dict[str, Any] = {}
    for name, value in with_numbers(module, inputs).items():
        if isinstance(value, np.ndarray):
            tensor = to_tensor(value, device).reshape(value.shape)
            value = tensor.to(getattr(torch, dtype)) if dtype and tensor.is_floating_point() else tensor
        made[name] = value
    return made


def copied(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The same inputs for one call: forward may write to what it is given."""
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}


def dtype_of(module: nn.Module, default: str = "float32") -> str:
    """The floating type of a module's parameters and buffers, joined by + where there are several."""
    kinds = [
        str(item.dtype) for item in (*module.parameters(), *module.buffers()) if item.is_floating_point()
    ]
    return "+".join(dict.fromkeys(kind.removeprefix("torch.") for kind in kinds)) or default


@dataclass(frozen=True)
class Original:
    """The reference's module and inputs; `names` maps its paths to the candidate's where they differ."""

    module: nn.Module
    inputs: Mapping[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, case: ModuleCase, mapping: TapMap | None = None, candidate: nn.Module | None = None
    ) -> Original:
        """As the factory built it, on the CPU, in eval mode; a map pairs paths that differ."""
        module, _ = prepared(case.module, dtype=None, device="cpu")
        names: dict[str, str] = {}
        if mapping is not None and candidate is not None:
            taps = [f"module:{path}" for path, _ in candidate.named_modules() if path]
            names = {_path(name): _path(tap) for name, tap in mapping.names(taps).items() if name != tap}
        return cls(module, tensors(module, case.inputs, dtype=None, device="cpu"), names)


def _path(tap: str) -> str:
    return tap.removeprefix("module:")


@dataclass
class Names:
    """A sink that keeps names only, those of aliases too."""

    taps: dict[str, None] = field(default_factory=dict)

    def record(self, tap: str, array: Any, *, meta: Mapping[str, Any] | None = None, **about: Any) -> None:
        """Remember the name."""
        self.taps.update(dict.fromkeys([tap, *(meta or {}).get("alias", {})]))


@dataclass(frozen=True)
class Returned:
    """What a call returned, whether it drew random numbers, and whether hooks saw none of it."""

    outputs: Outputs
    random: bool
    blind: bool = False


@dataclass
class ModuleSession:
    """A `Session` of one step; `inputs` are flat names -> tensors and numbers.

    `error` is raised when the module fails: the user's to mend for a reference, a candidate's failure else.
    With an `isolated_sink`, each submodule is also fed the inputs of its counterpart in `original`, the
    reference's module with its own inputs, and recorded there. `handed`: what submodules are handed is
    recorded too.
    """

    module: nn.Module
    inputs: Mapping[str, Any]
    facts: Facts
    error: type[ParityError]
    seed: int = 0
    original: Original | None = None
    isolated_sink: Sink | None = None
    isolation: Isolation = field(default_factory=lambda: Isolation(MODULES))
    handed: bool = False

    def step(
        self, step: Step, tokens: np.ndarray, positions: np.ndarray, isolate: Values | None
    ) -> np.ndarray | None:
        """Call the module; there are no tokens to be read and none to be returned."""
        with mark_step(step.index):
            with recording(Nowhere()):
                plain = self._call(fresh(self.module), hooked=False)
            tapped = self._call(fresh(self.module), hooked=True)
            for name, value in plain.outputs.tensors.items():
                trace_tensor(name, value)
        self._tell(plain, tapped)
        if self.isolated_sink is not None and self.original is not None:
            self._isolate(self.original, self.isolated_sink, step.index)
        return None

    def shown(self) -> list[str]:
        """The taps that a call shows, its outputs left out: found by one call."""
        sink = Names()
        with recording(sink):
            self._call(fresh(self.module), hooked=True)
        return list(sink.taps)

    def close(self) -> None:
        """Nothing outlives a call."""

    def _call(self, module: nn.Module, *, hooked: bool) -> Returned:
        args, kwargs = arguments(module, copied(self.inputs))
        taps: AbstractContextManager[ModuleTaps | None] = (
            tap_modules(module, exclude="", inputs=self.handed)
            if hooked and len(list(module.modules())) > 1
            else nullcontext()
        )
        with torch.no_grad(), seeded(self.seed) as before, taps as seen:
            try:
                value = module(*args, **kwargs)
            except Exception as error:
                raise self.error(self._failure(error)) from error
            random = not torch.equal(before, torch.get_rng_state())
        found = _arrays(named_outputs(value))
        if not found.tensors:
            raise self.error(
                f"module={type(module).__name__}: returned {type(value).__name__} without any tensor"
            )
        return Returned(found, random, seen is not None and not seen.calls)

    def _isolate(self, original: Original, sink: Sink, step: int) -> None:
        """Local errors only refine a verdict: what stands in their way is said and fails nothing.

        Pinned in one call where that goes, else each submodule is fed alone.
        """
        kept = MemoryRun("isolated")
        pinned = PinnedModules(fresh(original.module), fresh(self.module), original.names)
        try:
            pinned.run(copied(original.inputs), copied(self.inputs), kept, step, self.seed)
        except ParityError:
            raise
        except Exception as error:
            self._detail("not_pinned", describe(error))
            self._feed(original, sink, step)
            return
        for record in kept.records():
            sink.record(record.tap, record.read(), step=step, call=record.call, axes=record.axes)
        self.isolation = pinned.isolation
        if pinned.refused:
            self._detail("not_isolated", pinned.refused)

    def _feed(self, original: Original, sink: Sink, step: int) -> None:
        """Each submodule on its own."""
        refused: Mapping[str, str] = {}
        try:
            fed = Fed(fresh(original.module), fresh(self.module), original.names)
            refused = fed.refused
            with seeded(self.seed):
                fed.run(copied(original.inputs), sink, step)
        except ParityError:
            raise
        except Exception as error:
            self._warn(f"submodules could not all be run alone: {describe(error)}")
        self.isolation = Isolation(MODULES, refused={f"module:{path}": why for path, why in refused.items()})
        if refused:
            self._detail("not_isolated", refused)

    def _detail(self, name: str, value: Any) -> None:
        self.facts = replace(self.facts, details={**self.facts.details, name: value})

    def _warn(self, line: str) -> None:
        warnings = [*self.facts.details.get("warnings", ()), line]
        self.facts = replace(self.facts, details={**self.facts.details, "warnings": warnings})

    def _failure(self, error: Exception) -> str:
        shown = ", ".join(f"{name}={_shape(value)}" for name, value in self.inputs.items())
        own = dtype_of(self.module)
        odd = [n for n, v in self.inputs.items() if isinstance(v, Tensor) and v.is_floating_point()]
        odd = [n for n in odd if str(self.inputs[n].dtype).removeprefix("torch.") != own]
        hint = (
            f"; the module computes in {own}, save {', '.join(odd)} in that type or give --dtype"
            if odd
            else ""
        )
        return f"module={type(self.module).__name__}: failed on {shown}: {describe(error)}{hint}"

    def _tell(self, plain: Returned, tapped: Returned) -> None:
        """Add to the facts what only the run showed."""
        effect = observer_effect(plain.outputs.tensors, tapped.outputs.tensors, "with hooks")
        warnings = list(self.facts.details.get("warnings", ()))
        if plain.random:
            warnings.append(
                f"the module draws random numbers even in eval mode; torch was seeded with {self.seed}"
            )
        if tapped.blind:
            warnings.append(BLIND)
        if effect.grave:
            warnings.append(effect.text + (PACKED if packing(self.module) else ""))
        warnings += [
            f"{name} ({kind}) is no tensor and not recorded" for name, kind in plain.outputs.others.items()
        ]
        details = {**self.facts.details, "observer": effect.text, "observer_effect": effect.outputs}
        self.facts = replace(self.facts, details={**details, "warnings": warnings} if warnings else details)


def _arrays(outputs: Outputs) -> Outputs:
    """Outputs whose nested and sparse tensors stand among what is no array."""
    odd = [name for name, tensor in outputs.tensors.items() if not is_array(tensor)]
    outputs.others |= {name: f"nested or sparse {type(outputs.tensors.pop(name)).__name__}" for name in odd}
    return outputs


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return repr(value)
