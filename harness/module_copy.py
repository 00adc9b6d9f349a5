"""Copies of a module that are modules of their own, and what eval() changes in one."""

from __future__ import annotations

import copy
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn


def fresh(module: nn.Module, *, share: bool = True) -> nn.Module:
    """A copy whose buffers and attributes are its own; parameters are shared where `share`.

    Forward may write to buffers and attributes (caches, counters), never to parameters. A function that
    was put on a part in place of its method, and holds parts of the original, holds those of the copy.
    """
    memo: dict[int, Any] = {id(parameter): parameter for parameter in module.parameters()} if share else {}
    made = copy.deepcopy(module, memo)
    copies = dict(made.named_modules())
    parts = {id(part): copies[path] for path, part in module.named_modules() if path in copies}
    for part in made.modules():
        for name, value in part.__dict__.items():
            if isinstance(value, FunctionType):
                part.__dict__[name] = _rebound(value, parts, {})
    return made


def _rebound(value: Any, parts: dict[int, nn.Module], known: dict[int, Any]) -> Any:
    """The same value, or one that holds the copy's parts where it held the original's."""
    if id(value) in parts:
        return parts[id(value)]
    if id(value) in known:
        return known[id(value)]
    known[id(value)] = value
    if isinstance(value, MethodType):
        owner, function = (_rebound(item, parts, known) for item in (value.__self__, value.__func__))
        same = owner is value.__self__ and function is value.__func__
        return value if same else MethodType(function, owner)
    if isinstance(value, FunctionType):
        return _function(value, parts, known)
    if type(value) in (tuple, list):
        items = [_rebound(item, parts, known) for item in value]
        return value if all(map(_is, items, value)) else type(value)(items)
    return value


def _function(function: FunctionType, parts: dict[int, nn.Module], known: dict[int, Any]) -> FunctionType:
    """A function that keeps parts in its closure or its defaults."""
    cells = tuple(_cell(cell, parts, known) for cell in function.__closure__ or ())
    defaults = _rebound(function.__defaults__, parts, known)
    by_name = function.__kwdefaults__ or {}
    named = {name: _rebound(value, parts, known) for name, value in by_name.items()}
    same = all(map(_is, cells, function.__closure__ or ())) and defaults is function.__defaults__
    if same and all(map(_is, named.values(), by_name.values())):
        return function
    made = FunctionType(function.__code__, function.__globals__, function.__name__, defaults, cells)
    made.__kwdefaults__ = named or None
    made.__dict__.update(function.__dict__)
    made.__qualname__, made.__doc__ = function.__qualname__, function.__doc__
    made.__annotations__ = function.__annotations__
    return made


def _cell(cell: CellType, parts: dict[int, nn.Module], known: dict[int, Any]) -> CellType:
    try:
        held = cell.cell_contents
    except ValueError:  # a name that is not bound yet
        return cell
    other = _rebound(held, parts, known)
    return cell if other is held else CellType(other)


def _is(one: Any, other: Any) -> bool:
    return one is other


def switched_off(module: nn.Module) -> str:
    """What eval() changes, in words: dropout and statistics of batches, by path. Empty: nothing."""
    paths = [path or "the module itself" for path, part in module.named_modules() if _differs(part)]
    if not paths:
        return ""
    shown = ", ".join(paths[:5]) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")
    return f"the module was in training mode, where {shown} computes otherwise; parity called eval()"


def _differs(part: nn.Module) -> bool:
    """Whether a module of torch's computes otherwise in eval mode than in the mode that it is in."""
    if not part.training:
        return False
    if isinstance(part, nn.modules.dropout._DropoutNd):
        return part.p > 0
    if isinstance(part, nn.modules.batchnorm._NormBase):
        return bool(part.track_running_stats)
    if isinstance(part, nn.RNNBase):
        return part.dropout > 0 and part.num_layers > 1
    return isinstance(part, nn.RReLU) or (isinstance(part, nn.MultiheadAttention) and part.dropout > 0)
