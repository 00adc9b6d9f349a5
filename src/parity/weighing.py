"""`parity.weights`: a candidate's weights held against the checkpoint by content, before anything runs."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from parity.harness.errors import UserError
from parity.harness.progress import Progress, Silent
from parity.harness.weights import Report, Weight, match

from .request import DEFAULT_MODEL

#: Candidates that are made of the checkpoint here and now.
MADE = ("segmented", "onnx")


@dataclass(frozen=True)
class Checkpoint:
    """The reference's tensors; where a model is cut, which tensor each segment should hold.

    `optional` tensors are no weights: a candidate may lack them.
    """

    tensors: Mapping[str, np.ndarray[Any, Any]]
    expected: Mapping[str, str] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()

    def only(self, place: str) -> Checkpoint:
        """What one segment should hold."""
        names = {name for label, name in self.expected.items() if label.startswith(f"{place}:")}
        return replace(self, tensors={name: array for name, array in self.tensors.items() if name in names})


def weights(
    cand: str,
    *,
    ref: str | None = None,
    model: str | None = None,
    weights: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """What each weight of a candidate is of the reference's, and what is missing.

    `cand` is a file (state_dict, safetensors, npz, ONNX), a folder of ONNX segments, `module:PKG:FACTORY`, or
    `segmented` or `onnx`, made of the checkpoint now. The reference is `ref`, of the same kinds, else the
    checkpoint of `model`: a row with its `weights`, or a factory PKG:FACTORY. Raises UserError for what holds
    no weights that can be read.
    """
    from parity.targets.weight_files import weights_of

    progress = progress or Silent()
    read = [] if cand in MADE else weights_of(cand, seed=seed)  # first: a checkpoint may have to be trained
    if ref is not None:
        checkpoint = Checkpoint({weight.label: weight.values for weight in weights_of(ref, seed=seed)})
    elif model is not None and ":" in model:
        checkpoint = _of_factory(model, seed)
    else:
        checkpoint = _of_row(model or DEFAULT_MODEL, weights, progress)
    places = {label.partition(":")[0] for label in checkpoint.expected}
    if cand in MADE:
        if ref is not None or not places:
            raise UserError(f"cand={cand!r}: is made of a model of ours; name a file or a folder")
        held = _made(cand, model or DEFAULT_MODEL, weights, progress)
    else:
        held = _placed(read, cand, places)
    one = {weight.place for weight in held} if cand.endswith(".onnx") else set()
    if one and one <= places:
        checkpoint = checkpoint.only(one.pop())
    return match(
        held,
        checkpoint.tensors,
        expected=checkpoint.expected,
        optional=checkpoint.optional,
        progress=progress,
    )


def _placed(read: list[Weight], cand: str, places: set[str]) -> list[Weight]:
    """A graph that is named like a segment holds the weights of that segment."""
    own = Path(cand).stem
    if not cand.endswith(".onnx") or own not in places:
        return read
    return [replace(weight, place=own) for weight in read]


def _of_factory(spec: str, seed: int) -> Checkpoint:
    from parity.harness.imports import build_module
    from parity.targets.weight_files import of_state

    module = build_module(spec, seed=seed)
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    tensors = {weight.name: weight.values for weight in of_state(module.state_dict())}
    return Checkpoint(tensors, optional=frozenset(tensors.keys() - parameters))


def _of_row(name: str, spec: str | None, progress: Progress) -> Checkpoint:
    """A model's checkpoint; which segment holds what is learnt by cutting it, as the model itself does."""
    from parity.models import find_model
    from parity.reference.checkpoints import load_weights
    from parity.targets.weight_files import of_state

    model = find_model(name)
    state, *_ = load_weights(spec, model, progress=progress)
    tensors = {weight.name: weight.values for weight in of_state(state)}
    owners: dict[str, list[str]] = {}
    for own, values in tensors.items():
        owners.setdefault(_digest(values), []).append(own)
    expected = {
        f"{segment}:{weight.name}": _likest(weight.name, owners[_digest(weight.values)])
        for segment, module in model.split(state).items()
        for weight in of_state(module.state_dict())
        if _digest(weight.values) in owners
    }
    held = {own for name in expected.values() for own in owners[_digest(tensors[name])]}
    return Checkpoint(tensors, expected, frozenset(tensors.keys() - held))


def _digest(values: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(f"{values.shape}".encode() + values.tobytes()).hexdigest()


def _likest(own: str, names: list[str]) -> str:
    """Of tensors with the same bits, the one whose last words agree most."""
    words = own.split(".")[::-1]

    def agreeing(name: str) -> int:
        theirs = name.split(".")[::-1]
        return next((i for i, (a, b) in enumerate(zip(words, theirs, strict=False)) if a != b), len(words))

    return max(names, key=agreeing)


def _made(kind: str, name: str, spec: str | None, progress: Progress) -> list[Weight]:
    from parity.models import find_model
    from parity.reference.checkpoints import load_weights
    from parity.targets.weight_files import of_state, weights_of

    from .stages import export

    if kind == "onnx":
        with tempfile.TemporaryDirectory(prefix="parity-weights-") as folder:
            export(Path(folder) / "onnx", model=name, weights=spec, progress=progress)
            return weights_of(str(Path(folder) / "onnx"))
    model = find_model(name)
    state, *_ = load_weights(spec, model, progress=progress)
    parts = model.split(state)
    return [
        replace(weight, place=segment)
        for segment, module in parts.items()
        for weight in of_state(module.state_dict())
    ]
