"""The weights of two modules, held against each other by name before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from parity.harness.errors import UserError

SHOWN = 3


def compare_weights(candidate: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> str:
    """One sentence: how many tensors have the same name, and how many of those differ."""
    common = [name for name in reference if name in candidate]
    if not common:
        return "no tensor has the same name on both sides, so weights were not compared"
    differ = [name for name in common if not same(candidate[name], reference[name])]
    text = (
        f"{len(differ)} of {len(common)} tensors differ from the reference's: {_some(differ)}"
        if differ
        else f"all {len(common)} tensors of the same name are equal"
    )
    lone = [name for name in candidate if name not in reference]
    lacking = [name for name in reference if name not in candidate]
    text += f"; {len(lacking)} only in the reference ({_some(lacking)})" if lacking else ""
    return text + (f"; {len(lone)} only in the candidate ({_some(lone)})" if lone else "")


def same(candidate: Tensor, reference: Tensor) -> bool:
    """Equal in shape and in every value; NaN equals NaN, the number format does not matter."""
    if candidate.shape != reference.shape:
        return False
    mine, theirs = candidate.detach().cpu(), reference.detach().cpu()
    if mine.dtype != theirs.dtype:
        mine, theirs = mine.double(), theirs.double()
    return bool(torch.equal(mine, theirs)) or bool(
        torch.allclose(mine, theirs, rtol=0.0, atol=0.0, equal_nan=True)
    )


def share_weights(module: nn.Module, state: Mapping[str, Tensor], spec: str) -> tuple[str, ...]:
    """Load the reference's state_dict strictly, and say so. UserError where names or shapes differ."""
    own = module.state_dict()
    lacking, lone = [n for n in state if n not in own], [n for n in own if n not in state]
    shapes = [n for n in state if n in own and own[n].shape != state[n].shape]
    if lacking or lone or shapes:
        parts = [
            f"{len(lacking)} only in the reference ({_some(lacking)})" if lacking else "",
            f"{len(lone)} only in {spec} ({_some(lone)})" if lone else "",
            f"{len(shapes)} of another shape ({_some(shapes)})" if shapes else "",
        ]
        raise UserError(
            f"share_weights: the state_dict of the reference does not fit: {'; '.join(filter(None, parts))}; "
            "load the weights in the factory instead"
        )
    cast = [name for name in state if own[name].dtype != state[name].dtype]
    module.load_state_dict(dict(state), strict=True)
    said = "the reference's weights were loaded into it"
    return (f"{said}, {len(cast)} of them cast to its own type" if cast else said,)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")
