"""A model beside its implementation in transformers: the same weights, tokens and positions, step by step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parity.harness.case import Role, Scenario, plan
from parity.harness.dtypes import from_any
from parity.harness.tracer import recording
from parity.harness.tracer import step as mark_step

STEPS = 64
THREE = (11, 4, 1)
BATCHES = {"one": ("right", (11,)), "left-padded": ("left", THREE), "right-padded": ("right", THREE)}


def some_ids(vocab_size: int, *shape: int, seed: int = 1) -> Tensor:
    """Random token ids."""
    return torch.randint(0, vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def history(vocab_size: int, batch: str, steps: int = STEPS) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens and absolute positions `[B, T]` of a padded prefill and of `steps` decode steps."""
    padding, lengths = BATCHES[batch]
    prompts = tuple(tuple(some_ids(vocab_size, n, seed=n).tolist()) for n in lengths)
    scenario = Scenario("oracle", prompts, steps=steps, padding=padding)
    for step in plan(scenario):
        fresh = some_ids(vocab_size, len(lengths), 1, seed=100 + step.index)
        tokens = fresh if step.tokens is None else torch.tensor(step.tokens)
        yield tokens, torch.tensor(step.positions)


def seen(query_bt: Tensor, key_bs: Tensor) -> Tensor:
    """Who may see whom, `[B, T, S]`: earlier positions and itself; padding sees padding."""
    real = (query_bt >= 0)[:, :, None] & (key_bs >= 0)[:, None, :]
    padding = (query_bt < 0)[:, :, None] & (key_bs < 0)[:, None, :]
    return padding | (real & (query_bt[:, :, None] >= key_bs[:, None, :]))


def compare(ours: nn.Module, theirs: nn.Module, vocab_size: int, batch: str) -> tuple[float, int]:
    """Worst error over logits and every cache entry of every step, and how many numbers were compared."""
    worst, count, past, cache, held = 0.0, 0, None, None, None
    for tokens, positions in history(vocab_size, batch):
        held = positions if held is None else torch.cat((held, positions), dim=1)
        mask = seen(positions, held) if batch != "one" else None
        with torch.no_grad():
            logits, past = ours(tokens, positions_bt=positions, mask_bts=mask, past=past)
            answer = theirs(
                tokens,
                position_ids=positions.clamp(min=0),
                attention_mask=(held >= 0).long(),
                past_key_values=cache,
                use_cache=True,
            )
        cache = answer.past_key_values
        pairs = [(logits[positions >= 0], answer.logits[positions >= 0])]
        for layer, rows in enumerate(cache.layers):
            for mine, other in ((past.ks[layer], rows.keys), (past.vs[layer], rows.values)):
                assert mine.shape == other.shape
                pairs.append((mine.transpose(1, 2)[held >= 0], other.transpose(1, 2)[held >= 0]))
        worst = max(worst, *(float((a - b).abs().max()) for a, b in pairs))
        count += sum(a.numel() for a, _ in pairs)
        assert torch.equal(past.positions, held)
    return worst, count


class Sink:
    """Keeps what is recorded: tap -> (array, axes, positions)."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[np.ndarray, str, Any]] = {}

    def record(
        self,
        tap: str,
        array: Any,
        *,
        step: int = 0,
        call: int = 0,
        axes: str = "",
        positions: np.ndarray | None = None,
        meta: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        assert call == 0, f"{tap} is recorded twice in one step"
        self.seen[tap] = (from_any(array)[0].copy(), axes, positions)


def recorded(module: nn.Module, ids: Tensor, positions: Tensor | None = None) -> Sink:
    """What a pass shows, at one step."""
    sink = Sink()
    at = torch.arange(ids.shape[1]).expand(ids.shape) if positions is None else positions
    with torch.no_grad(), recording(sink), mark_step(0, positions=at):
        module(ids)
    return sink


def check_roles(module: nn.Module, roles: tuple[Role, ...], sink: Sink) -> None:
    """One role per tap in execution order, from earlier taps, with weights that exist; sums add up."""
    assert [role.taps for role in roles] == list(sink.seen)
    known, keys = {"ids", "positions"}, set(module.state_dict())
    for role in roles:
        array, axes, positions = sink.seen[role.taps]
        assert len(axes.split()) == array.ndim, role.taps
        assert positions is not None, role.taps
        assert set(role.inputs) <= known, role.taps
        assert set(role.weights) <= keys, role.taps
        known.add(role.taps)
        if role.role in ("add", "copy"):
            total = sum(sink.seen[tap][0] for tap in role.inputs)
            np.testing.assert_allclose(array, total, rtol=1e-6, atol=1e-6, err_msg=role.taps)


def check_alive(module: nn.Module, vocab_size: int) -> None:
    """Logits near 3, far apart, and other ones for other tokens."""
    with torch.no_grad():
        logits = module(some_ids(vocab_size, 4, 24))[0]
    margin = torch.diff(logits.topk(2).values, dim=-1).abs()
    assert 1.0 < logits.std() < 6.0
    assert margin.median() > 0.1
    assert logits.argmax(dim=-1).unique().numel() > 20


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Same keys, dtypes and bits."""
    return first.keys() == second.keys() and all(
        first[key].dtype == second[key].dtype and torch.equal(first[key], second[key]) for key in first
    )
