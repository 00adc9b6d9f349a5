"""How good a checkpoint is: next-character accuracy on held-out text, and what it writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from parity.harness.case import CachePolicy, Model

from ..policies import visible

PREDICTED = 192
"""Characters counted per passage; the characters before them only fill the window."""


def accuracy(module: nn.Module, ids: Tensor, policy: CachePolicy) -> float:
    """Share of characters of `ids` `[N]` that are predicted, each seeing the policy's whole window."""
    context = policy.window or PREDICTED
    starts = torch.arange(0, len(ids) - context - PREDICTED - 1, PREDICTED)
    correct, device = 0, next(module.parameters()).device
    for chosen in torch.split(starts, 16):
        passage = ids[chosen[:, None] + torch.arange(context + PREDICTED + 1)].to(device)
        with torch.no_grad():
            logits = windowed(module, passage[:, :-1], policy)
        hits = logits.argmax(dim=-1) == passage[:, 1:]
        correct += int(hits[:, -PREDICTED:].sum())
    return correct / (len(starts) * PREDICTED)


def windowed(module: nn.Module, ids_bt: Tensor, policy: CachePolicy) -> Tensor:
    """Logits `[B, T, V]` of whole texts under a cache policy."""
    at = torch.arange(ids_bt.shape[1], device=ids_bt.device)[None]
    logits: Tensor = module(ids_bt, positions_bt=at, mask_bts=visible(at, at, policy))[0]
    return logits


def greedy_text(model: Model, module: nn.Module, prompt: str, length: int, policy: CachePolicy) -> str:
    """`prompt` and the `length` most likely characters after it."""
    device = next(module.parameters()).device
    written = list(model.encode(prompt))
    new, past = torch.tensor([written], device=device), None
    for _ in range(length):
        with torch.no_grad():
            token, past = _next(module, new, past, policy)
        written.append(token)
        new = torch.tensor([[token]], device=device)
    return model.decode(tuple(written))


def _next(module: Callable[..., Any], new: Tensor, past: Any, policy: CachePolicy) -> tuple[int, Any]:
    start = 0 if past is None else past.positions.shape[1]
    at = torch.arange(start, start + new.shape[1], device=new.device)[None]
    held = at if past is None else torch.cat((past.positions, at), dim=1)
    logits, past = module(new, positions_bt=at, mask_bts=visible(at, held, policy), past=past)
    return int(logits[0, -1].argmax()), past
