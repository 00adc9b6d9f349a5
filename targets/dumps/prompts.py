"""Whether a dump is of the prompt it should be of: its ids against a person's and a reference's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from parity.harness.errors import UserError

from .core import read_text
from .recording import IDS, Player, check_ids, fed_by

if TYPE_CHECKING:
    from parity.harness.trace import Run


def ids_of(tokens: str | Sequence[int]) -> np.ndarray:
    """`1,2,3`, numbers, or a JSON file of one list or one list per sequence -> int64 `[B, T]`."""
    shown = str(tokens)[:60]
    try:
        if isinstance(tokens, str):
            found = json.loads(read_text(Path(tokens)) if tokens.endswith(".json") else f"[{tokens}]")
        else:
            found = list(tokens)
        array = np.asarray(found)
    except (ValueError, RecursionError, OverflowError) as error:
        raise UserError(f"tokens={shown!r}: cannot be read as ids; write 1,2,3 or a .json") from error
    if array.dtype.kind not in "iu" or array.ndim not in (1, 2) or not array.size:
        raise UserError(f"tokens={shown!r}: are no ids; write 1,2,3 or a .json of lists")
    return np.atleast_2d(array).astype(np.int64)


def check_prompt(player: Player, wanted: np.ndarray | None, reference: Run | None) -> list[str]:
    """UserError for ids other than those `wanted` or the reference's; what was not checked, in words."""
    held = player.contents.tokens
    if wanted is not None:
        if held is None:
            raise UserError("tokens: the dump holds none, so its prompt cannot be checked; leave them out")
        check_ids("the dump", 0, held, wanted)
    fed = fed_by(player)
    known = {step: _recorded(reference, step) for step in fed}
    for step, ids in fed.items():
        expected = known[step]
        if expected is not None:
            check_ids("the dump", step, ids, expected)
    if wanted is None and not any(ids is not None for ids in known.values()):
        return [
            "its token ids were not checked: " + ("nothing to hold them against" if fed else "it has none")
        ]
    return []


def _recorded(run: Run | None, step: int) -> np.ndarray | None:
    """The ids that a run was fed at a step; None where it recorded none."""
    if run is None or IDS not in run.taps:
        return None
    return next((record.read() for record in run.records(IDS) if record.step == step), None)
