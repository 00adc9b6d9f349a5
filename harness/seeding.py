"""Random numbers of a call that may draw some: the same each time, and the user's own left alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def seeded(seed: int) -> Iterator[Tensor]:
    """torch's generators start from `seed` inside and are put back; yields the CPU state at the start."""
    # Where CUDA is not in use, asking for its generators costs more than the call of a small module.
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=None if used else []):
        (torch if used else torch.default_generator).manual_seed(seed)
        yield torch.get_rng_state()
