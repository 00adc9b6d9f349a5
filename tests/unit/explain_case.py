"""A small model's reference run in memory, and candidates that differ from it in one tap."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parity.harness.case import Role
from parity.harness.compare import compare_runs
from parity.harness.comparison import Comparison, Side
from parity.harness.explaining import Explanation, explanations
from parity.harness.rows import Rules
from parity.harness.tolerance import load_tolerance
from parity.harness.tracer import recording
from parity.harness.tracer.memory import MemoryRun
from parity.models.klm.config import KLMConfig
from parity.models.klm.model import KLMModel
from parity.models.klm.module import KLM, Caches
from parity.models.klm.roles import roles
from parity.models.klm.wiring import wiring

SIZES = KLMConfig(
    max_length=64,
    effective_length=17,
    vocab_size=320,
    hidden_size=32,
    num_layers=2,
    num_attention_heads=4,
    num_kv_heads=2,
    ffn_hidden_size=48,
)
#: Tokens of the prompt, and all tokens.
PROMPT, LENGTH = 10, 14
Values = dict[str, Tensor]
Bug = Callable[["Made"], Any]


@dataclass
class Made:
    """Values of every tap over all positions, by name, in the layout `axes`; `w` is the state."""

    v: Values
    w: Values
    axes: Mapping[str, str]
    provenance: dict[str, Any]
    batch: int = 1
    shown: Tensor | None = None

    def cut(self, tap: str, start: int, stop: int) -> Tensor:
        """The part of a tap that belongs to some positions."""
        at = next(i for i, letter in enumerate(self.axes[tap].split()) if letter in "tp")
        return self.v[tap].narrow(at, start, stop - start)

    def p(self, tap: str) -> Tensor:
        """The prompt's part of a tap."""
        return self.cut(tap, 0, PROMPT)

    def steps(self) -> list[tuple[int, int]]:
        """Positions of each step: the prompt, then one at a time."""
        return [(0, PROMPT), *((at, at + 1) for at in range(PROMPT, LENGTH))]


def made(*, batch: int = 1, policy: str = "full", seed: int = 0, ids: Sequence[int] | None = None) -> Made:
    """The reference of the small model, computed by its own module over the whole sequence at once."""
    window = None if policy == "full" else int(policy[7:-1])
    model = KLM(SIZES).eval()
    KLMModel("small", SIZES).init_random(model, seed)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, SIZES.vocab_size, (batch, LENGTH), generator=generator)
    tokens[:, :4] = torch.tensor(ids or [300, 129, 5, 200])
    at = torch.arange(LENGTH)
    mask = (at[None] <= at[:, None]) & (at[None] > at[:, None] - (window or LENGTH))
    run = MemoryRun("torch")
    positions = at.expand(batch, LENGTH)
    with torch.no_grad(), recording(run):
        model(tokens, positions_bt=positions, mask_bts=mask.expand(batch, -1, -1), past=None)
    assert Caches
    values = {record.tap: torch.from_numpy(record.array.copy()) for record in run.records()}
    axes = {record.tap: record.axes for record in run.records()}
    values["ids"], axes["ids"] = tokens, "b t"
    return Made(
        {"ids": tokens, **values},
        {key: value.detach().clone() for key, value in model.state_dict().items()},
        axes,
        {
            "weights": "w0",
            "scenario_digest": "s0",
            "policy": policy,
            "model": "small",
            "wiring": wiring(SIZES).to_json(),
            "roles": [asdict(role) for role in roles(SIZES)],
        },
        batch,
    )


def run_of(case: Made, name: str, changed: Mapping[str, Mapping[int, Tensor]] | None = None) -> MemoryRun:
    """The case as steps; `changed` gives other values for a tap at a step (a cache: all rows so far)."""
    run = MemoryRun(name, target=name, provenance=dict(case.provenance), complete=True)
    for step, (start, stop) in enumerate(case.steps()):
        for tap in case.v:
            whole = tap.endswith(("ks", "vs")) and name != "torch"
            at = np.arange(0 if whole else start, stop)
            values = case.cut(tap, int(at[0]), stop)
            other = (changed or {}).get(tap, {}).get(step)
            if other is not None:
                values = other
            where = np.tile(at, (case.batch, 1)) if case.shown is None else case.shown[:, at].numpy()
            run.record(tap, np.array(values.numpy()), step=step, axes=case.axes[tap], positions=where)
    return run


def compared(
    case: Made, tap: str, values: Any, *, step: int = 0, weights: bool = True, tol: str = "fp32"
) -> tuple[Comparison, list[Explanation]]:
    """The comparison of a candidate whose tap is `values` (one step's, or by step), and the explanations."""
    by_step = values if isinstance(values, dict) else {step: values}
    as_tensors = {at: torch.as_tensor(np.asarray(one)).to(case.v[tap].dtype) for at, one in by_step.items()}
    reference, candidate = run_of(case, "torch"), run_of(case, "cand", {tap: as_tensors})
    sides = (Side("torch", "torch", "torch", ""), Side("cand", "cand", "cand", ""))
    state = case.w if weights else None
    rules = Rules(load_tolerance(tol), {})
    found = compare_runs(reference, candidate, rules=rules, sides=sides, weights=state)
    return found, list(explanations(found, reference, candidate, None, state))


def explained(case: Made, tap: str, values: Any, **options: Any) -> Explanation:
    """The one explanation of such a candidate."""
    found, made_of = compared(case, tap, values, **options)
    assert found.culprits[0].tap == tap
    return made_of[0]


@dataclass
class Lone:
    """One op with inputs and weights of its own, for roles that the small model has not."""

    role: str
    inputs: dict[str, Tensor]
    weights: dict[str, Tensor] = field(default_factory=dict)
    parameters: dict[str, float] = field(default_factory=dict)

    def case(self, output: Tensor) -> Made:
        """As a case with the tap `out`."""
        values = {**self.inputs, "out": output}
        row = Role("out", self.role, tuple(self.inputs), self.parameters, tuple(self.weights))
        rest = {3: "b t d", 4: "b h t d"}
        axes = {tap: rest[value.ndim] for tap, value in values.items()}
        provenance = {"weights": "w0", "scenario_digest": "s0", "policy": "none", "roles": [asdict(row)]}
        return Made(values, self.weights, axes, provenance, 1)


def kinds(case: Made, tap: str, values: Any, **options: Any) -> tuple[str, ...]:
    """Names of the hypotheses that explain it."""
    return explained(case, tap, values, **options).kinds
