"""The trusted runs of a case that may differ by noise alone: what a noise floor is measured from."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from parity.harness.case import Case, ModuleCase, Scenario
from parity.harness.noise import AGAIN
from parity.harness.target import Options
from parity.harness.values import Values

if TYPE_CHECKING:
    from torch import Tensor, nn

BITS = {"float64": 64, "float32": 32, "float16": 16, "bfloat16": 15}
"""Number formats that torch computes in, by how fine they are."""
EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}

#: Causes of noise, as reports and calibration files call them.
FP64, FORMAT, ORDER, INPUTS = "fp64", "format", "order", "inputs"
THREADS, BATCH = "threads", "batch"
#: How the runs differ that show whether the reference is steady.
STEADY = {
    THREADS: "with another number of threads",
    BATCH: "with another batch order",
    AGAIN: "again with another seed",
}


@dataclass(frozen=True)
class Twin:
    """One such run. `order` says which of its sequences answer those of the base."""

    cause: str
    spec: str
    case: Case | ModuleCase
    options: Options = field(default_factory=Options)
    order: tuple[int, ...] | None = None

    @property
    def label(self) -> str:
        """Name of its run."""
        return f"floor-{self.cause}"

    @property
    def steadiness(self) -> bool:
        """Whether it is the reference itself, executed in other circumstances."""
        return self.cause in STEADY


def twins(case: Case | ModuleCase, dtype: str) -> list[Twin]:
    """All that are told apart from the base by noise in `dtype` alone."""
    return [*_explaining(case, dtype), *steadiness_twins(case, base_spec(dtype))]


def base_spec(dtype: str) -> str:
    """What the others are held against: the reference, in fp64 where only that is judged."""
    return "torch:fp64" if dtype == "float64" else "torch"


def _explaining(case: Case | ModuleCase, dtype: str) -> Iterator[Twin]:
    base = base_spec(dtype)
    if isinstance(case, ModuleCase) or dtype != "float64":
        yield Twin(FP64, "torch:fp64", case)
    if isinstance(case, Case):
        yield Twin(ORDER, f"{base}+grow" if ":" in base else f"{base}:grow", case)
    if dtype not in ("float32", "float64"):
        yield Twin(FORMAT, f"torch:{dtype}", case)
    disturbed = perturbed(case, EPSILON[dtype])
    if disturbed is not None:
        yield Twin(INPUTS, base, disturbed)


def steadiness_twins(case: Case | ModuleCase, base: str) -> Iterator[Twin]:
    """The reference again: with other threads, and sequences in another order or a module's other seed."""
    import torch

    other = 1 if torch.get_num_threads() > 1 else 2
    yield Twin(THREADS, base, case, Options(threads=other))
    if isinstance(case, ModuleCase):
        yield Twin(AGAIN, base, case, Options(seed=1))
    else:
        scenario, order = rearranged(case.scenario)
        yield Twin(BATCH, base, replace(case, scenario=scenario), order=order)


def rearranged(scenario: Scenario) -> tuple[Scenario, tuple[int, ...]]:
    """The sequences backwards, one alone twice; and which of the new ones answer the old."""
    if scenario.batch == 1:
        return scenario.with_batch(2), (1,)
    order = tuple(reversed(range(scenario.batch)))
    return replace(scenario, ids=scenario.ids[::-1], texts=scenario.texts[::-1]), order


class Rearranged(Values):
    """The tokens of a reference for a batch in another order; `order` as of `rearranged`."""

    def __init__(self, values: Values, order: Sequence[int]) -> None:
        super().__init__(values.run)
        self._order = list(order) if len(order) > 1 else [0, 0]

    def tokens(self, step: int) -> np.ndarray | None:
        """Token ids `[B, T]`."""
        tokens = super().tokens(step)
        return None if tokens is None else tokens[self._order]


def perturbed(case: Case | ModuleCase, epsilon: float, *, seed: int = 0) -> Case | ModuleCase | None:
    """The case with every value that goes in moved by up to `epsilon` of itself; None without such values.

    Embedding tables are what goes into a model that is fed tokens.
    """
    draw = np.random.default_rng(seed)
    if isinstance(case, Case):
        groups = _tables(case.model.build())
        moved = {group: _moved(case.state[group[0]], epsilon, draw) for group in groups}
        state = {**case.state, **{key: table for group, table in moved.items() for key in group}}
        return replace(case, state=state) if groups else None
    groups = _tables(case.module)
    inputs = {name: _moved_array(value, epsilon, draw) for name, value in case.inputs.items()}
    if not groups and all(inputs[name] is value for name, value in case.inputs.items()):
        return None
    return replace(case, inputs=inputs, module=_with_moved(case.module, groups, epsilon, draw))


def _tables(module: nn.Module) -> list[tuple[str, ...]]:
    """Embedding tables, each by all its keys in the state: a head may be tied to it."""
    from torch import nn

    tables = {id(part.weight): part for part in module.modules() if isinstance(part, nn.Embedding)}
    every = list(module.named_parameters(remove_duplicate=False))
    return [tuple(key for key, value in every if id(value) == table) for table in tables]


def _with_moved(
    module: nn.Module, tables: Sequence[tuple[str, ...]], epsilon: float, draw: np.random.Generator
) -> nn.Module:
    """A copy that shares all parameters but the embedding tables."""
    import torch

    if not tables:
        return module
    own = {id(module.get_parameter(group[0])) for group in tables}
    copied = copy.deepcopy(module, {id(p): p for p in module.parameters() if id(p) not in own})
    with torch.no_grad():
        for group in tables:
            table = copied.get_parameter(group[0])
            table.copy_(_moved(table, epsilon, draw))
    return copied


def _moved(tensor: Tensor, epsilon: float, draw: np.random.Generator) -> Tensor:
    import torch

    if not tensor.is_floating_point():
        return tensor
    by = torch.from_numpy(draw.uniform(-epsilon, epsilon, tuple(tensor.shape))).to(tensor.device)
    return (tensor.detach().double() * (1.0 + by)).to(tensor.dtype)


def _moved_array(value: Any, epsilon: float, draw: np.random.Generator) -> Any:
    """An array of a floating format moved; anything else as it is."""
    if not isinstance(value, np.ndarray) or not value.ndim or value.dtype.kind in "iubcOSU":
        return value
    return (value.astype(np.float64) * (1.0 + draw.uniform(-epsilon, epsilon, value.shape))).astype(
        value.dtype
    )
