"""What the ops of somebody's module are: roles by the classes of its leaves, inputs by one hooked call.

The counterpart of a role table for models that have none. Nothing runs before a departure is to be explained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .arrays import to_array
from .case import Role
from .explaining.maths import ACTIVATIONS
from .explaining.op import Op
from .module_attention import attention_of
from .module_calls import Captured, TooMuchError, capture
from .module_glue import glue_of
from .seeding import seeded

TAP, IN = "module:", ":in"


@dataclass
class ModuleOps:
    """A reference's module with the inputs that it is called with; it is called on a copy of its own."""

    module: nn.Module
    inputs: Mapping[str, Any]
    seed: int = 0
    _glued: dict[tuple[str, int], np.ndarray[Any, Any]] = field(default_factory=dict)

    @cached_property
    def captured(self) -> Captured:
        """What every submodule was given and returned; nothing where that does not fit into memory."""
        from .module_session import prepared, tensors

        own, _ = prepared(self.module, dtype=None, device="cpu", own=True)
        try:
            with seeded(self.seed):
                return capture(own, tensors(own, self.inputs, dtype=None, device="cpu"))
        except TooMuchError:
            return Captured()

    @cached_property
    def roles(self) -> dict[str, Role]:
        """Tap -> role, for every leaf whose class or behaviour is known."""
        found = ((path, self._role(path, part)) for path, part in self.module.named_modules() if path)
        return {TAP + path: role for path, role in found if role is not None}

    @cached_property
    def state(self) -> dict[str, Any]:
        """Weights by key, linear ones as `[out, in]`."""
        weights: dict[str, Any] = {key: value.detach() for key, value in self.module.state_dict().items()}
        for path, part in self.module.named_modules():
            if _transposed(part):
                weights[f"{path}.weight"] = weights[f"{path}.weight"].T
        return weights

    def glue(self, tap: str, call: int) -> Role | None:
        """What the code before a module computes of which its input `module:PATH:in.N` is made."""
        linear = {name: role for name, role in self.roles.items() if role.role == "linear"}
        found = glue_of(self.captured, tap, call, linear)
        if found is None:
            return None
        self._glued |= {(name, call): value for name, value in found.others.items()}
        return found.role

    def attention(self, tap: str, call: int) -> Op | None:
        """The attention that makes what a module is handed, with all its rows; None: there is none."""
        held = self.captured.calls.get((tap.removeprefix(TAP).rpartition(IN)[0], call))
        if held is None or not held.given or held.given[0].tensor.ndim != 3:
            return None
        linear = {name: role for name, role in self.roles.items() if role.role == "linear"}
        value = to_array(held.given[0].tensor).astype(np.float64)
        return attention_of(self.captured, tap, call, linear, value)

    def value(self, tap: str, call: int) -> np.ndarray[Any, Any] | None:
        """What a leaf was given first (`module:PATH:in`) or returned; None where that is not known."""
        if (tap, call) in self._glued:
            return self._glued[tap, call]
        path = tap.removeprefix(TAP)
        held = self.captured.calls.get((path.removesuffix(IN), call))
        if held is None:
            return None
        tensor = held.given[0].tensor if path.endswith(IN) and held.given else held.returned.get("")
        return None if tensor is None else to_array(tensor)

    def _role(self, path: str, part: nn.Module) -> Role | None:
        made = _by_class(part)
        if made is None and not list(part.parameters()) and not list(part.children()):
            made = self._by_behaviour(path)
        if made is None:
            return None
        role, numbers, names = made
        keys = tuple(f"{path}.{name}" for name in names if isinstance(getattr(part, name, None), Tensor))
        return Role(TAP + path, role, (TAP + path + IN,), numbers, keys)

    def _by_behaviour(self, path: str) -> _Made | None:
        """An activation is told by what it makes of its input."""
        given, returned = self.value(TAP + path + IN, 0), self.value(TAP + path, 0)
        if given is None or returned is None or given.shape != returned.shape or given.dtype.kind != "f":
            return None
        x, y = given.astype(np.float64), returned.astype(np.float64)
        for name, function in ACTIVATIONS.items():
            if x.size > 1 and np.abs(function(x) - y).max() <= 1e-6 * max(1.0, float(np.abs(y).max())):
                return name, {}, ()
        return None


_Made = tuple[str, dict[str, float], tuple[str, ...]]


def _by_class(part: nn.Module) -> _Made | None:
    """Role, numbers and names of the weights of a leaf."""
    if isinstance(part, nn.Linear) or _transposed(part):
        return "linear", {}, ("weight", "bias")
    if isinstance(part, nn.Embedding):
        return "embedding", {}, ("weight",)
    weight = getattr(part, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 1 or list(part.children()):
        return None
    eps = _eps(part, weight)
    numbers = {} if eps is None else {"eps": eps}
    if isinstance(part, nn.LayerNorm):
        return "layernorm", numbers, ("weight", "bias")
    if numbers and getattr(part, "bias", None) is None and not hasattr(part, "running_mean"):
        return "rmsnorm", numbers, ("weight",)
    return None


def _eps(part: nn.Module, weight: Tensor) -> float | None:
    """The eps of a norm, under whichever name; torch's own default where it is None."""
    name = next((name for name in ("eps", "variance_epsilon", "epsilon") if hasattr(part, name)), None)
    if name is None:
        return None
    eps = getattr(part, name)
    return float(torch.finfo(weight.dtype).eps if eps is None else eps)


def _transposed(part: nn.Module) -> bool:
    """A linear layer that keeps its weight as `[in, out]`, told by its class's own count of outputs."""
    weight, count = getattr(part, "weight", None), getattr(part, "nf", None)
    return (
        isinstance(weight, Tensor)
        and weight.ndim == 2
        and isinstance(count, int)
        and weight.shape[1] == count
    )
