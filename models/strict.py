"""Checkpoints held against a table of shapes: all that is wrong with one, in one sentence."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from parity.harness.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]


class Loaded(NamedTuple):
    """A checkpoint under the module's own names, and what was done to it on the way, one phrase each."""

    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def check_state(shapes: Shapes, state: Mapping[str, Tensor]) -> None:
    """UserError that lists missing and unexpected keys, other shapes, and what is no finite float."""
    found = {
        "missing": sorted(set(shapes) - set(state)),
        "unexpected": sorted(set(state) - set(shapes)),
        "of another shape": list(_reshaped(shapes, state)),
        "no floating-point numbers": [
            f"{k} ({v.dtype})" for k, v in state.items() if not v.is_floating_point()
        ],
        "not finite": [key for key, value in state.items() if not bool(value.isfinite().all())],
    }
    wrong = [f"{what}: {some(names)}" for what, names in found.items() if names]
    if wrong:
        raise UserError(f"weights: cannot be this model's; {'; '.join(wrong)}; check the file and --model")


def _reshaped(shapes: Shapes, state: Mapping[str, Tensor]) -> Iterator[str]:
    for key in sorted(shapes.keys() & state.keys()):
        actual, expected = tuple(state[key].shape), tuple(shapes[key])
        if actual != expected:
            hint = ", transposed" if actual == expected[::-1] else ""
            yield f"{key} {list(actual)}, should be {list(expected)}{hint}"


def some(names: Iterable[str], limit: int = 8) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def tied(checkpoint: Mapping[str, Tensor], head: str, table: str) -> Loaded:
    """The checkpoint with its tied head under both names; UserError where the two differ."""
    state = dict(checkpoint)
    if table not in state:
        return Loaded(state)
    if head not in state:
        state[head] = state[table]
        return Loaded(state, (f"{head} is {table}, to which it is tied",))
    if not same_bits(state[head], state[table]):
        raise UserError(f"weights: {head} and {table} differ, but the configuration ties them")
    return Loaded(state)


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Same dtype, shape and values."""
    return first.dtype == second.dtype and first.shape == second.shape and torch.equal(first, second)


def drawn(seed: int, key: str, shape: tuple[int, ...], *, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Normal numbers from the seed and the key alone, so that one layer can be made without the rest."""
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return torch.randn(shape, generator=generator).mul_(std).add_(mean)
