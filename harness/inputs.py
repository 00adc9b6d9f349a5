"""The arrays that a module of the user's is called with: from a file or a mapping, to arguments by name.

Inputs are flat: `xs.0`, `xs.1` make the list `xs`, `state.h` an entry of the dict `state`.
"""

from __future__ import annotations

import inspect
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .dtypes import from_any, logical_name
from .errors import UserError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

_NUMBERS = (bool, int, float)


def read_inputs(source: str | Path | Mapping[str, Any], module: nn.Module | None = None) -> dict[str, Any]:
    """Flat name -> numpy array (logical dtype), Python numbers and texts as they are.

    `source` is an .npz file, or a mapping of names to arrays, tensors, numbers, lists and dicts of them.
    With a module, the names are held against its forward. UserError for what cannot be read, is empty or
    does not fit.
    """
    if isinstance(source, Mapping):
        found = dict(_flat(source))
    else:
        found = _read_npz(Path(source))
    if not found:
        raise UserError("inputs: hold no array; give one per argument of forward")
    if module is not None:
        check_names(module, found)
    return found


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _flat(item, f"{name}.{index}")
    elif value is None or isinstance(value, (*_NUMBERS, str)):
        yield name, value
    else:
        yield name, _array(name, value)


def _array(name: str, value: Any) -> np.ndarray:
    try:
        return from_any(value)[0]
    except UserError as error:
        raise UserError(f"inputs: {name!r}: {error}") from error


def _read_npz(path: Path) -> dict[str, Any]:
    """Arrays of an .npz; pickled objects are refused."""
    if path.suffix != ".npz":
        raise UserError(
            f"inputs={str(path)!r}: should be an .npz file (numpy.savez) with one array per argument"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UserError(f"inputs={str(path)!r}: there is no such file") from None
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise UserError(f"inputs={str(path)!r}: cannot be read as arrays without pickle ({error})") from error
    for name, array in arrays.items():
        try:
            logical_name(array)
        except UserError as error:
            raise UserError(f"inputs={str(path)!r}: {name!r}: {error}") from error
    return arrays


@dataclass(frozen=True)
class Signature:
    """What forward takes: `star` is the name of its *args, `open` says that it has **kwargs."""

    parameters: Mapping[str, inspect.Parameter]
    required: tuple[str, ...]
    star: str | None
    open: bool

    @classmethod
    def of(cls, module: nn.Module) -> Signature:
        """The signature of a module's forward."""
        every = inspect.signature(module.forward).parameters
        star = next((p.name for p in every.values() if p.kind is p.VAR_POSITIONAL), None)
        named = {n: p for n, p in every.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        required = tuple(name for name, p in named.items() if p.default is p.empty)
        return cls(named, required, star, any(p.kind is p.VAR_KEYWORD for p in every.values()))


def check_names(module: nn.Module, inputs: Mapping[str, Any]) -> None:
    """UserError for an input that forward does not take, or an argument that it needs and has not got."""
    signature = Signature.of(module)
    known = [*signature.parameters, *([signature.star] if signature.star else [])]
    given = dict.fromkeys(name.partition(".")[0] for name in inputs)
    shown = ", ".join(known) or "nothing"
    for name in given:
        if name not in known and not signature.open:
            raise UserError(
                f"inputs: {name!r} is no argument of {type(module).__name__}.forward, which takes {shown}. "
                f"{did_you_mean(name, known)}"
            )
    lacking = [name for name in signature.required if name not in given]
    if lacking:
        raise UserError(
            f"inputs: {type(module).__name__}.forward also needs {', '.join(map(repr, lacking))}; "
            f"given are {', '.join(map(repr, given))}"
        )


def arguments(module: nn.Module, inputs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Flat inputs (arrays or tensors) as the args and kwargs of forward.

    What stands before a *args, and what is positional only, goes by position, the rest by name.
    """
    signature = Signature.of(module)
    named = _nest(inputs)
    starred = named.pop(signature.star, None) if signature.star else None
    args, kwargs, by_position = [], {}, True
    for name, parameter in signature.parameters.items():
        if name not in named:
            by_position = False
            continue
        value = named.pop(name)
        positional = parameter.kind is parameter.POSITIONAL_ONLY or (
            starred is not None and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        )
        if positional and by_position:
            args.append(value)
        else:
            kwargs[name] = value
    return [*args, *_items(starred)], {**kwargs, **named}


def _items(starred: Any) -> Sequence[Any]:
    if starred is None:
        return ()
    return starred if isinstance(starred, list) else [starred]


def with_numbers(module: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """0-d arrays as Python numbers where forward annotates or defaults the argument as bool, int or float."""
    parameters = Signature.of(module).parameters
    return {
        name: value.item()
        if _wants_number(parameters.get(name)) and getattr(value, "shape", None) == ()
        else value
        for name, value in inputs.items()
    }


def _wants_number(parameter: inspect.Parameter | None) -> bool:
    if parameter is None:
        return False
    declared = str(getattr(parameter.annotation, "__name__", parameter.annotation))
    return type(parameter.default) in _NUMBERS or declared in {kind.__name__ for kind in _NUMBERS}


def _nest(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as dicts, and dicts of 0, 1, 2 ... as lists."""
    tree: dict[str, Any] = {}
    for name, value in inputs.items():
        *parents, leaf = name.split(".")
        at = tree
        for part in parents:
            at = at.setdefault(part, {})
            if not isinstance(at, dict):
                raise UserError(f"inputs: {name!r} goes into {part!r}, which is an array itself")
        if leaf in at:
            raise UserError(f"inputs: {name!r} is given twice")
        at[leaf] = value
    return {name: _listed(value, name) for name, value in tree.items()}


def _listed(value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        return value
    items = {key: _listed(item, f"{name}.{key}") for key, item in value.items()}
    if not all(key.isdecimal() for key in items):
        return items
    wanted = [str(index) for index in range(len(items))]
    if sorted(items, key=int) != wanted:
        raise UserError(
            f"inputs: {name!r} lists {', '.join(sorted(items, key=int))}, but should be 0, 1, 2 ..."
        )
    return [items[key] for key in wanted]
