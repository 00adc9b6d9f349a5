"""Batches of sequences of different lengths without padding: torch's jagged layout, and what it cannot do.

Embeddings, norms, linear layers and sums take jagged tensors as they are. Attention does not: on a CPU torch
has no kernel for a causal one, and none anywhere repeats jagged heads. It is given the packed rows,
`[1, heads, N, D]` with all sequences one behind the other, and attends within each sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from parity.harness.errors import UserError
from parity.harness.tracer import trace_tensor

from ..growing import attend


@dataclass(frozen=True)
class Padded:
    """A tap's value that is padded on the right only when somebody records it."""

    make: Callable[[], Tensor]

    def detach(self) -> Tensor:
        """The padded rows, outside the gradient."""
        return self.make().detach()

    def clone(self) -> Tensor:
        """The padded rows, as an output of their own."""
        return self.make().clone()


@dataclass(frozen=True)
class Ragged:
    """Where the sequences of a jagged batch begin and end; `offsets` is `[B + 1]`."""

    offsets: Tensor

    @classmethod
    def of(cls, ids: Tensor) -> Ragged:
        """Read from token ids; UserError for a layout with holes."""
        if ids.layout != torch.jagged or ids.lengths() is not None:  # type: ignore[attr-defined]
            raise UserError("ids: nested token ids must be jagged and without holes; use layout=torch.jagged")
        return cls(ids.offsets())  # type: ignore[attr-defined]

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        return cast(list[int], self.offsets.diff().tolist())

    @cached_property
    def positions(self) -> Tensor:
        """Absolute positions of the packed rows, `[1, N]`."""
        return torch.cat([torch.arange(n, device=self.offsets.device) for n in self.lengths])[None]

    @cached_property
    def padded_positions(self) -> Tensor:
        """The same as a padded batch `[B, T]`, -1 at padding."""
        rows = self.positions[0].split_with_sizes(self.lengths)
        return pad_sequence(list(rows), batch_first=True, padding_value=-1.0)

    def jagged(self, x_nd: Tensor) -> Tensor:
        """Packed rows as a jagged tensor `[B, j, ...]`."""
        return torch.nested.nested_tensor_from_jagged(x_nd, offsets=self.offsets)

    def padded(self, x: Tensor, batch: int, token: int) -> Tensor:
        """Packed rows along axis `token` (axis `batch` is 1) as a batch padded with zeros on the right."""
        rows = x.movedim((batch, token), (0, 1))[0].split_with_sizes(self.lengths)
        return pad_sequence(list(rows), batch_first=True).movedim((0, 1), (batch, token))

    def attend(self, q_1hnd: Tensor, k_1gnd: Tensor, v_1gnd: Tensor) -> Tensor:
        """Causal attention within each sequence, `[1, H, N, D]`."""
        parts = zip(*(x.split_with_sizes(self.lengths, dim=2) for x in (q_1hnd, k_1gnd, v_1gnd)), strict=True)
        return torch.cat([attend(q, k, v, None) for q, k, v in parts], dim=2)


def packed(x: Tensor) -> Tensor:
    """The rows of a jagged tensor `[B, j, D]` one behind the other, `[1, N, D]`; others as they are."""
    return x.values()[None] if x.is_nested else x


def tap(name: str, x: Tensor, axes: str, ragged: Ragged | None, positions: Tensor | None = None) -> None:
    """`trace_tensor`; a jagged or packed value is recorded as the right-padded batch would be."""
    if ragged is None:
        trace_tensor(name, x, axes=axes, positions=positions)
        return
    letters, rows = axes.split(), ragged
    token = letters.index("t" if "t" in letters else "p")
    shown = Padded(lambda: rows.padded(packed(x), letters.index("b"), token))
    trace_tensor(name, shown, axes=axes, positions=positions)
