"""A submodule of somebody's port as a capsule: fed what the reference's submodule was fed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parity.harness.arrays import to_array
from parity.harness.case import ModuleCase
from parity.harness.comparison import Culprit
from parity.harness.errors import UserError
from parity.harness.inputs import arguments
from parity.harness.module_session import Original
from parity.harness.progress import Silent
from parity.harness.target import parse_spec
from parity.harness.trace import Run

from .capsules import Parcel, allowed, job_of
from .cases import build_module_case
from .finished import Finished
from .recorder import prepared
from .request import Request

MODULE = "module:"


def module_parcel(one: Finished, culprit: Culprit, request: Request) -> Parcel:
    """The submodule that is guilty, or the whole graph where the port is one."""
    case = build_module_case(request)
    session: Any = prepared(job_of(one, case, request), Silent())
    try:
        spec = parse_spec(one.comparison.candidate.target)
        if spec.name == "module" or hasattr(session, "module"):
            return _submodule(one, culprit, case, session)
        return _graph(one, culprit, case, session)
    finally:
        session.close()


def _submodule(one: Finished, culprit: Culprit, case: ModuleCase, session: Any) -> Parcel:
    from parity.targets.parcels import Flat, program, tensors_of

    original = session.original or Original.of(case)
    # Wrong code between two modules is told at the one that takes its result; what holds both is packed.
    tap = f"{MODULE}{culprit.segment}" if culprit.segment else culprit.tap
    path = tap.removeprefix(MODULE) if tap.startswith(MODULE) else ""
    own = session.module.get_submodule(original.names.get(path, path))
    args, kwargs, right = _call(original, path)
    tensors = tensors_of(args, kwargs)
    flat, files, lacking = Flat(own, args, kwargs), {}, ""
    try:
        files = {"model.pt2": program(flat, tensors)}
    except UserError as error:
        lacking = str(error)
    with torch.no_grad():
        made = flat.eval()(*tensors)
    names = [f"output.{at}" for at in range(len(made))] if len(made) > 1 else [tap]
    limit = allowed(one.comparison, culprit.step).get(tap)
    facts = {
        "inputs": {f"input.{at}": str(t.dtype).removeprefix("torch.") for at, t in enumerate(tensors)},
        "outputs": names,
        "allowed": dict.fromkeys(names, limit),
        "not_packed": lacking,
    }
    inputs = {f"input.{at}": _array(tensor) for at, tensor in enumerate(tensors)}
    expected, actual = (dict(zip(names, map(_array, side), strict=True)) for side in (right, made))
    state = original.module.get_submodule(path).state_dict()
    weights = {f"{path}.{key}".strip("."): _array(value) for key, value in state.items()}
    return Parcel(inputs, expected, actual, weights, files, facts)


def _call(original: Original, path: str) -> tuple[tuple[Any, ...], Mapping[str, Any], tuple[Tensor, ...]]:
    """What the reference's submodule is handed in its first call, and what it makes of it."""
    from torch.utils import _pytree as pytree

    seen: list[tuple[tuple[Any, ...], Mapping[str, Any], tuple[Tensor, ...]]] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not seen:
            leaves = tuple(leaf.clone() for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor))
            seen.append((args, kwargs, leaves))

    handle = original.module.get_submodule(path).register_forward_hook(hook, with_kwargs=True)
    try:
        args, kwargs = arguments(original.module, original.inputs)
        with torch.no_grad():
            original.module(*args, **kwargs)
    finally:
        handle.remove()
    if not seen:
        raise UserError(f"tap='{MODULE}{path}': the reference does not call it; name another with --tap")
    return seen[0]


def _graph(one: Finished, culprit: Culprit, case: ModuleCase, session: Any) -> Parcel:
    """The whole graph of a module that was exported, with what both sides recorded at every tap."""
    executor = getattr(session, "executor", session)
    if not hasattr(executor, "parcel"):
        raise UserError(
            f"cand={one.comparison.label!r}: this target does not hand out what it runs; name another"
        )
    files = executor.parcel("net", dict(session.feed))
    inputs = {name: np.asarray(value) for name, value in session.feed.items()}
    expected, actual = (_recorded(run, culprit.step) for run in (one.reference, one.candidate))
    facts = {
        "inputs": {name: str(array.dtype) for name, array in inputs.items()},
        "outputs": list(actual),
        "allowed": allowed(one.comparison, culprit.step),
        "not_packed": "",
    }
    weights = {key: _array(value) for key, value in case.module.state_dict().items()}
    return Parcel(inputs, expected, actual, weights, files, facts)


def _recorded(run: Run, step: int) -> dict[str, np.ndarray]:
    """The first call of every tap."""
    found: dict[str, np.ndarray] = {}
    for record in run.records():
        if record.step == step:
            found.setdefault(record.tap, record.read())
    return found


def _array(tensor: Tensor) -> np.ndarray:
    return np.asarray(to_array(tensor.detach()))
