"""Every family under the trusted run: layouts, cache policies, padding, chunks and resets, all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from parity.harness.case import CachePolicy, Scenario, plan
from parity.harness.target import Facts
from parity.models.gpt_bigcode import ROWS as GPT_BIGCODE
from parity.models.gpt_bigcode.module import GPTBigCode
from parity.models.gpt_bigcode.weights import init_random as init_gpt_bigcode
from parity.models.llama import ROWS as LLAMA
from parity.models.llama.module import Llama
from parity.models.llama.weights import init_random as init_llama
from parity.models.minikl import ROWS as MINIKL
from parity.models.minikl.module import MiniKL
from parity.models.minikl.weights import init_random as init_minikl
from parity.reference.torch_run import TorchSession

Family = tuple[Any, Any, Callable[[Any, int], None]]
FAMILIES: dict[str, Family] = {
    "gpt-bigcode": (GPTBigCode, GPT_BIGCODE["gpt-bigcode-tiny"], init_gpt_bigcode),
    "llama": (Llama, LLAMA["llama-tiny"], init_llama),
    "minikl": (MiniKL, MINIKL["minikl-tiny"], init_minikl),
}
PROMPTS = (tuple(range(60, 72)), tuple(range(90, 95)), (33,))
NOISE = 1e-4


def made(family: str) -> nn.Module:
    build, config, init = FAMILIES[family]
    module: nn.Module = build(config).eval()
    init(module, 0)
    return module


def run(module: nn.Module, scenario: Scenario, layout: str) -> list[np.ndarray]:
    """Logits `[B, V]` of each step; decode steps are fed tokens that depend on the step alone."""
    session = TorchSession(module, scenario.policy, layout, "cpu", Facts(dtype="float32", layout=layout))
    out = []
    for step in plan(scenario):
        fresh = np.full((scenario.batch, 1), 100 + step.index, np.int64)
        tokens = fresh if step.tokens is None else np.array(step.tokens)
        out.append(session.step(step, tokens, np.array(step.positions), None))
    session.close()
    return [logits for logits in out if logits is not None]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("policy", ["full", "window(6)"])
def test_a_growing_cache_gives_what_recomputing_gives(family: str, padding: str, policy: str) -> None:
    module, rules = made(family), CachePolicy.parse(policy)
    scenario = Scenario("grow", PROMPTS, steps=8, padding=padding, policy=rules, resets=(5,))
    again, grown = (run(module, scenario, layout) for layout in ("recompute", "grow"))
    assert len(again) == len(grown) == 9
    np.testing.assert_allclose(np.stack(grown), np.stack(again), atol=NOISE, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_in_chunks_gives_what_it_gives_at_once(family: str) -> None:
    module = made(family)
    whole = run(module, Scenario("whole", PROMPTS[:1], steps=3), "grow")
    parts = run(module, Scenario("parts", PROMPTS[:1], steps=3, chunks=(5, 1, 4)), "grow")
    torch.testing.assert_close(torch.tensor(parts[3]), torch.tensor(whole[0]), atol=NOISE, rtol=0)
    assert len(parts) == len(whole) + 3


@pytest.mark.parametrize("family", FAMILIES)
def test_who_shares_a_batch_changes_nothing(family: str) -> None:
    module = made(family)
    together = run(module, Scenario("all", PROMPTS, steps=5, padding="left"), "grow")
    for row, prompt in enumerate(PROMPTS):
        alone = run(module, Scenario("one", (prompt,), steps=5), "grow")
        np.testing.assert_allclose(np.stack(together)[:, row], np.stack(alone)[:, 0], atol=NOISE, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_window_hides_what_is_older(family: str) -> None:
    module = made(family)
    full, cut = (
        run(module, Scenario("w", PROMPTS[:1], steps=2, policy=CachePolicy.parse(policy)), "grow")
        for policy in ("full", "window(6)")
    )
    assert np.abs(full[0] - cut[0]).max() > 100 * NOISE
