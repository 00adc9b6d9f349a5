"""Weights that are parts of one tensor of the reference, or are put together of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .relate import FAULT, NOTE, OK, Relation
from .weight import Floats, Weight

#: More runs of rows than this are no joining or splitting that a person meant.
MOST = 256


@dataclass(frozen=True)
class Piece:
    """Rows `first` .. `stop - 1` of a tensor of the reference, in a row in the weight."""

    name: str
    first: int
    stop: int
    axis: int


def pieces_of(weight: Weight, tensors: Mapping[str, Floats]) -> list[Piece]:
    """The runs of rows (or columns) that the weight is made of; empty where some row is unknown.

    Rows are looked up by their product with a random vector, and then compared in full.
    """
    if weight.values.ndim not in (1, 2) or weight.values.size < 4:
        return []
    for axis in range(weight.values.ndim):
        values = weight.values if axis == 0 else weight.values.T
        allowed = weight.allowed(weight.values)
        found = _runs(values, allowed if axis == 0 else allowed.T, _rows(tensors, values, axis), axis)
        if found:
            return found
    return []


def _rows(tensors: Mapping[str, Floats], values: Floats, axis: int) -> dict[str, Floats]:
    """The reference's tensors as rows of the same width."""
    same = {name: array for name, array in tensors.items() if array.ndim == values.ndim and array.size}
    turned = {name: array if axis == 0 else array.T for name, array in same.items()}
    return {name: array for name, array in turned.items() if array.shape[1:] == values.shape[1:]}


def _runs(values: Floats, allowed: Floats, rows: Mapping[str, Floats], axis: int) -> list[Piece]:
    if not rows:
        return []
    width = values.shape[1] if values.ndim == 2 else 1
    direction = np.random.default_rng(1).standard_normal(width)
    owners = [(name, at) for name, array in rows.items() for at in range(len(array))]
    stacked = np.concatenate([array.reshape(-1, width) for array in rows.values()])
    numbers = stacked.astype(np.float64) @ direction
    order = np.argsort(numbers, kind="stable")
    own = values.reshape(-1, width)
    places = np.searchsorted(numbers[order], own.astype(np.float64) @ direction)
    runs: list[Piece] = []
    for at, place in enumerate(places):
        near = [int(order[i]) for i in range(max(0, place - 3), min(len(order), place + 3))]
        fits = [i for i in near if (np.abs(stacked[i] - own[at]) <= allowed.reshape(-1, width)[at]).all()]
        if not fits:
            return []
        _extend(runs, [owners[i] for i in fits], axis)
        if len(runs) > MOST:
            return []
    return runs if len(runs) < len(own) else []


def _extend(runs: list[Piece], fits: Sequence[tuple[str, int]], axis: int) -> None:
    """Go on with the last run if one of the rows does, else begin another."""
    if runs:
        last = runs[-1]
        if (last.name, last.stop) in fits:
            runs[-1] = Piece(last.name, last.first, last.stop + 1, axis)
            return
    name, at = fits[0]
    runs.append(Piece(name, at, at + 1, axis))


def told(pieces: Sequence[Piece], tensors: Mapping[str, Floats]) -> Relation:
    """Which parts, in words; tensors joined against the reference's own order are a fault."""
    what = ("rows", "columns")[pieces[0].axis]
    names = list(dict.fromkeys(piece.name for piece in pieces))
    if len(pieces) == 1:
        piece = pieces[0]
        return Relation("part", f"{what} {piece.first}..{piece.stop - 1}", OK)
    shown = ", ".join(f"{p.name}[{p.first}..{p.stop - 1}]" for p in pieces[:6])
    shown += f" and {len(pieces) - 6} more" if len(pieces) > 6 else ""
    whole = all(p.first == 0 and p.stop == tensors[p.name].shape[p.axis] for p in pieces)
    if not whole:
        return Relation("mixed", f"{what} of {shown}", NOTE)
    order = [list(tensors).index(name) for name in names]
    if order != sorted(order):
        return Relation("joined in another order", f"{what} of {shown}", FAULT)
    return Relation("joined", f"{what} of {shown}", OK)
