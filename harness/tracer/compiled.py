"""Taps inside torch.compile: an opaque op that records when the compiled graph runs.

Imported only while dynamo traces a tap, so torch is there. The op "writes" a token, which keeps it in
the graph and keeps taps in order; the tensor itself is read at its place in the program, so that later
in-place edits do not reach the record. Appending to a list instead (whose side effects dynamo replays)
was tried: the list's length becomes a guard, and a block that is called 8 times is compiled 8 times.
"""

from __future__ import annotations

from typing import Any

import torch

from .state import full_name
from .taps import deliver

_TOKEN = torch.zeros(1, dtype=torch.uint8)


@torch.library.custom_op("parity::record", mutates_args=("token",), tags=(torch.Tag.cudagraph_unsafe,))
def _record(
    token: torch.Tensor, x: torch.Tensor, positions: torch.Tensor | None, name: str, axes: str, hook: bool
) -> None:
    deliver(name if hook else full_name(name), x, axes, positions, hook=hook)


@_record.register_fake
def _(
    token: torch.Tensor, x: torch.Tensor, positions: torch.Tensor | None, name: str, axes: str, hook: bool
) -> None:
    return None


def put(name: str, x: Any, axes: str, positions: Any, *, hook: bool) -> None:
    """Put the recording op into the graph that is being traced."""
    where = None if positions is None else torch.as_tensor(positions)
    _record(_TOKEN, torch.as_tensor(x).detach(), where, name, axes, hook)
