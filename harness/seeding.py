"""Random numbers of a call that may draw some: the same each time, and the user's own left alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def seeded(seed: int) -> Iterator[Tensor]:
    """torch's generators start from `seed` inside and are put back; yields the CPU state at the start."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield torch.get_rng_state()
