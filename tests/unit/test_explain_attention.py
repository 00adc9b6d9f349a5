"""Every mistake in attention is named by what it is, computed here in torch."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from parity.harness.explaining import CATALOGUE


def _load(name: str) -> ModuleType:
    """A helper module beside this file: tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


lab = _load("explain_case")
CASE, WINDOWED, BATCH = lab.made(), lab.made(policy="window(6)"), lab.made(batch=2)
P, ROOT = lab.PROMPT, math.sqrt(8)
CAUSAL = torch.ones(P, P, dtype=torch.bool).tril()


def sides(case=CASE, stop: int = P):
    """q of the prompt, keys and values of as many positions, `[B, heads, T, 8]`."""
    return case.cut("layer0.q", 0, stop), case.cut("layer0.ks", 0, stop), case.cut("layer0.vs", 0, stop)


def attention(
    q, k, v, *, allowed=CAUSAL, divide=ROOT, weigh=None, bias=0.0, shape=None, repeat=True
) -> Tensor:
    """`[B, T, heads, 8]`."""
    if repeat:
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    scores = q @ k.mT / divide
    scores = shape(scores) if shape else scores
    scores = scores.masked_fill(~allowed, -math.inf) + bias
    return ((weigh or (lambda s: s.softmax(-1)))(scores) @ v).transpose(1, 2)


def mine(**options) -> Tensor:
    return attention(*sides(), **options)


def low(x: Tensor, kind: torch.dtype = torch.bfloat16) -> Tensor:
    return x.to(kind).float()


def with_slots(count: int) -> Tensor:
    """Zero rows beside the real ones, all attended to."""
    q, k, v = sides()
    zeros = torch.zeros(1, 2, count - P, 8)
    allowed = torch.cat((torch.ones(P, count - P, dtype=torch.bool), CAUSAL), 1)
    for row in range(P):
        allowed[row, : count - P] = True
    return attention(q, torch.cat((zeros, k), 2), torch.cat((zeros, v), 2), allowed=allowed)


def steps_with_slots(count: int) -> dict[int, Tensor]:
    """Decoding over a buffer of `count` rows, of which some were never filled."""
    made = {}
    for step, (start, stop) in enumerate(CASE.steps()):
        if step:
            q = CASE.cut("layer0.q", start, stop)
            k, v = CASE.cut("layer0.ks", 0, stop), CASE.cut("layer0.vs", 0, stop)
            zeros = torch.zeros(1, 2, count - stop, 8)
            everything = torch.ones(1, count, dtype=torch.bool)
            made[step] = attention(q, torch.cat((zeros, k), 2), torch.cat((zeros, v), 2), allowed=everything)
    return made


def strict() -> Tensor:
    allowed = CAUSAL.tril(-1)
    allowed[0, 0] = True
    return allowed


def without_oldest() -> Tensor:
    allowed = CAUSAL.clone()
    allowed[1:, 0] = False
    return allowed


Q, K, V = sides()
BUGS = {
    "scale missing": [lambda: mine(divide=1.0)],
    "scale twice": [lambda: mine(divide=8.0)],
    "scale of another size": [
        lambda: mine(divide=math.sqrt(32)),
        lambda: mine(divide=math.sqrt(4)),
        lambda: mine(divide=1 / ROOT),
    ],
    "causal mask missing": [lambda: mine(allowed=torch.ones(P, P, dtype=torch.bool))],
    "causal mask one late": [lambda: mine(allowed=torch.ones(P, P, dtype=torch.bool).tril(1))],
    "current token excluded": [lambda: mine(allowed=strict())],
    "oldest row lost": [lambda: mine(allowed=without_oldest())],
    "mask too weak": [
        lambda: mine(allowed=CAUSAL | True, bias=torch.where(CAUSAL, 0.0, -10.0)),
        lambda: mine(allowed=CAUSAL | True, bias=torch.where(CAUSAL, 0.0, -5.0)),
    ],
    "mask as number": [
        lambda: mine(allowed=CAUSAL | True, bias=CAUSAL.float()),
        lambda: mine(allowed=CAUSAL | True, bias=(~CAUSAL).float()),
    ],
    "mask inverted": [
        lambda: torch.cat(
            (
                mine(allowed=(~CAUSAL).index_put((torch.tensor([P - 1]),), torch.tensor(True)))[:, : P - 1],
                CASE.p("layer0.attn")[:, P - 1 :],
            ),
            1,
        ),
    ],
    "mask multiplied": [lambda: mine(allowed=CAUSAL | True, shape=lambda s: s * CAUSAL)],
    "heads tiled": [lambda: attention(Q, K.repeat(1, 2, 1, 1), V.repeat(1, 2, 1, 1), repeat=False)],
    "heads in another order": [
        lambda: attention(Q, K.flip(1), V.flip(1)),
        lambda: attention(Q, K[:, :1].expand(-1, 2, -1, -1), V[:, :1].expand(-1, 2, -1, -1)),
    ],
    "softmax over another axis": [
        lambda: mine(weigh=lambda s: s.softmax(-2)),
        lambda: mine(weigh=lambda s: s.softmax(1).nan_to_num()),
    ],
    "softmax in low precision": [
        lambda: mine(weigh=lambda s: low(low(s).softmax(-1))),
        lambda: mine(weigh=lambda s: low(s.softmax(-1), torch.float16)),
    ],
    "fed in low precision": [
        lambda: attention(low(Q), K, V),
        lambda: attention(Q, K, low(V)),
        lambda: attention(low(Q, torch.float16), low(K, torch.float16), low(V, torch.float16)),
    ],
    "keys and values swapped": [lambda: attention(Q, V, K), lambda: attention(Q, K, K)],
    "keys shifted against values": [lambda: attention(Q, K, V.roll(1, 2), allowed=CAUSAL)],
    "scores capped": [lambda: mine(shape=lambda s: 5 * (s / 5).tanh())],
    "not normalised": [
        lambda: mine(weigh=torch.exp),
        lambda: mine(weigh=lambda s: (s - s.amax(-1, keepdim=True)).exp()),
    ],
    "softmax of base 2": [lambda: mine(weigh=lambda s: (s * math.log(2)).softmax(-1))],
    "softmax missing": [lambda: mine(weigh=lambda s: s.nan_to_num(neginf=0.0))],
    "one weight too many": [lambda: mine(weigh=lambda s: s.exp() / (1 + s.exp().sum(-1, keepdim=True)))],
    "uniform weights": [
        lambda: mine(weigh=lambda s: s.isfinite().float() / s.isfinite().sum(-1, keepdim=True))
    ],
    "query of another row": [
        lambda: attention(Q.roll(1, 2), K, V).index_copy(1, torch.tensor([0]), CASE.p("layer0.attn")[:, :1])
    ],
}
CASES = [
    pytest.param(name, bug, id=f"{name} {at}") for name, bugs in BUGS.items() for at, bug in enumerate(bugs)
]


@pytest.mark.parametrize(("name", "bug"), CASES)
def test_a_mistake_of_attention_is_named(name, bug):
    found = lab.explained(CASE, "layer0.attn", bug())
    assert found.kinds == (name,)
    assert found.cause.residual < 1e-4 < found.cause.next_best


def test_attention_is_explained_without_weights():
    assert lab.kinds(CASE, "layer0.attn", mine(divide=1.0), weights=False) == ("scale missing",)


@pytest.mark.parametrize("wider", [-1, 1, 99])
def test_a_window_of_another_width_is_named(wider):
    """In a step of one token, where the oldest row lost is another name of one row too few."""
    made = {}
    for step, (start, stop) in enumerate(WINDOWED.steps()):
        q = WINDOWED.cut("layer0.q", start, stop)
        k, v = WINDOWED.cut("layer0.ks", 0, stop), WINDOWED.cut("layer0.vs", 0, stop)
        at = torch.arange(stop)
        mine = torch.arange(start, stop)[:, None]
        made[step] = attention(q, k, v, allowed=(at <= mine) & (at > mine - 6 - wider))
    assert "window off" in lab.kinds(WINDOWED, "layer0.attn", made)


def test_unfilled_rows_that_are_attended_to_are_named():
    """A window of 16 while there are 11 to 14 tokens; one zero row less than that each step."""
    case = lab.made(policy="window(16)")
    found = lab.kinds(case, "layer0.attn", steps_with_slots(16), step=1)
    assert found == ("unfilled slots attended",)


def test_a_mask_that_moved_by_a_slot_is_named():
    """Right-aligned rows: the oldest is hidden, and an unfilled one at the left end is seen."""
    case, made = lab.made(policy="window(16)"), {}
    for step, (start, stop) in enumerate(case.steps()):
        q, k, v = (case.cut(f"layer0.{tap}", 0, stop) for tap in ("q", "ks", "vs"))
        zero = torch.zeros(1, 2, 1, 8)
        k, v = torch.cat((zero, k), 2), torch.cat((zero, v), 2)
        allowed = torch.cat((torch.ones(stop, 1), torch.ones(stop, stop).tril()), 1).bool()
        allowed[:, 1] = False
        made[step] = attention(q, k, v, allowed=allowed)[:, start:]
    assert lab.kinds(case, "layer0.attn", made) == ("mask moved by a slot",)


def test_another_sequence_of_the_batch_is_named():
    q, k, v = sides(BATCH)
    assert lab.kinds(BATCH, "layer0.attn", attention(q, k.flip(0), v.flip(0))) == ("other sequence",)


def test_every_hypothesis_about_attention_has_a_test():
    elsewhere = {"window off", "unfilled slots attended", "mask moved by a slot", "other sequence"}
    assert {*BUGS, *elsewhere} == {h.name for h in CATALOGUE if h.family == "attention"}
