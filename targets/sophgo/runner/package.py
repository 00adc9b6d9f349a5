"""Writes board packages: everything that the device program needs to step a scenario, in one folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from parity.harness.case import Case, Step, Wiring, plan
from parity.harness.errors import UserError

from ...torch_segments import RopeTable
from .device.files import FORMAT, VERSION
from .program import write_program

if TYPE_CHECKING:
    from parity.harness.values import Values

    from ...prefilled_files import Prefilled

#: Rotary rows of a package: the scenario's positions, and room to type.
ROPE_ROWS = 8192


@dataclass(frozen=True)
class Shown:
    """What a model shows under a name of the artefact or at an output's place: tap, axes, logical shape."""

    tap: str
    axes: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class BoardModel:
    """A segment's artefact; `outputs` in its order, `inner` by the artefact's tensor names.

    `net` is the name within a combined .bmodel, if that is not the segment's. There is no `file` where a live
    object of the board plays the segments.
    """

    file: Path | None
    outputs: Sequence[Shown]
    inner: Mapping[str, Shown] = field(default_factory=dict)
    net: str | None = None


@dataclass(frozen=True)
class Build:
    """The compiled segments: for which chip, by which table, with how many cache `rows`.

    `facts` say how it was compiled, for the dump's manifest. With `all_tensors` inner tensors are dumped too.
    """

    chip: str
    wiring: Wiring
    rows: int
    models: Mapping[str, BoardModel]
    all_tensors: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)


def write_package(
    folder: Path,
    case: Case,
    build: Build,
    *,
    prefilled: Prefilled | None = None,
    forced: Values | None = None,
    free: bool = False,
    rope_rows: int = ROPE_ROWS,
) -> Path:
    """Write a package into a folder that is new or empty; returns the folder.

    With `prefilled` the prompt's steps and the rotary rows are taken from it; else `rope_rows` of these are
    shipped, for positions from 0 on. The board is fed the tokens of the run `forced`; without one, or if
    `free`, its own, but for the first token after a prefilled prompt, which nothing on the board predicts.
    UserError for what a board cannot step.
    """
    _check(case, build, prefilled)
    steps = _steps(case, prefilled is not None, forced, free)
    _empty(folder)
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "chip": build.chip,
        "vocab_size": case.model.vocab_size,
        "models": {name: _model(folder, name, item, case) for name, item in build.models.items()},
        "sizes": {"B": 1, "T": 1, "W": build.rows},
        "window": case.scenario.policy.window,
        "rope": _rope(folder, case, prefilled, rope_rows),
        "prefilled": None if prefilled is None else _prefilled(folder, prefilled),
        "all_tensors": build.all_tensors,
        "scenario": case.scenario.to_json(),
        "arithmetic": dict(build.facts),
        "provenance": {"model": case.model.name, "weights": case.weights},
        "steps": steps,
    }
    (folder / "wiring.json").write_text(json.dumps(build.wiring.to_json()))
    (folder / "package.json").write_text(json.dumps(facts, indent=1))
    write_program(folder)
    return folder


def _check(case: Case, build: Build, prefilled: Prefilled | None) -> None:
    if case.scenario.batch != 1:
        raise UserError(f"batch={case.scenario.batch}: a board steps one sequence; write a package for each")
    segments = {segment.name for segment in build.wiring.segments}
    if lacking := sorted(segments - set(build.models)):
        raise UserError(f"segments: {', '.join(lacking)} of {case.model.name} are not compiled")
    window, masked = case.scenario.policy.window, _masked(build.wiring)
    if not masked and window != build.rows:
        raise UserError(
            f"cache={case.scenario.policy}: without a mask all {build.rows} rows are attended to; "
            f"use window({build.rows}), or compile the masked build"
        )
    held = 0 if prefilled is None else prefilled.positions.shape[1]
    if not masked and held < build.rows - 1:
        raise UserError(
            f"prefilled: {held} rows are filled, but a build without a mask attends to {build.rows}; prefill "
            f"a prompt of at least {build.rows - 1} tokens, or compile the masked build"
        )


def _masked(wiring: Wiring) -> bool:
    return any(port.value == "mask" for segment in wiring.segments for port in segment.inputs)


def _steps(case: Case, hosted: bool, forced: Values | None, free: bool) -> list[dict[str, Any]]:
    """Every step, with tokens where it is not to go on from its own prediction."""
    if case.scenario.chunks:
        raise UserError("chunks: a board feeds its prompt token by token or not at all; leave chunks out")
    steps, after = [], False
    for step in plan(case.scenario):
        given = step.tokens
        if forced is not None and (not free or (hosted and after)):
            given = _recorded(step, forced)
        if given is None and hosted and after:
            raise UserError(
                "prefilled: nothing on the board predicts the first token after the prompt; give a reference"
            )
        after = step.kind == "prefill"
        steps.append({"index": step.index, "kind": step.kind, "tokens": given, "positions": step.positions})
    return steps


def _recorded(step: Step, forced: Values) -> Any:
    tokens = forced.tokens(step.index)
    if tokens is None:
        raise UserError(f"step={step.index}: the run {forced.run.name!r} recorded no token ids")
    return tokens.tolist()


def _empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"out={str(folder)!r}: is not an empty folder; name a new one")
    (folder / "models").mkdir(parents=True, exist_ok=True)


def _model(folder: Path, name: str, model: BoardModel, case: Case) -> dict[str, Any]:
    order = {tap: rank for rank, tap in enumerate(case.model.taps)}

    def facts(shown: Shown) -> dict[str, Any]:
        rank = order.get(shown.tap, len(order))
        return {"tap": shown.tap, "axes": shown.axes, "shape": list(shown.shape), "rank": rank}

    return {
        **_file(folder, name, model.file),
        "net": model.net,
        "outputs": [facts(shown) for shown in model.outputs],
        "inner": {tensor: facts(shown) for tensor, shown in model.inner.items()},
    }


def _file(folder: Path, name: str, file: Path | None) -> dict[str, str | None]:
    if file is None:
        return {"file": None, "sha256": None}
    copied = Path("models") / f"{name}{file.suffix}"
    shutil.copyfile(file, folder / copied)
    return {"file": str(copied), "sha256": hashlib.sha256((folder / copied).read_bytes()).hexdigest()}


def _save(folder: Path, name: str, array: np.ndarray) -> str:
    np.save(folder / f"{name}.npy", np.ascontiguousarray(array, dtype="<f4"))
    return f"{name}.npy"


def _rope(folder: Path, case: Case, prefilled: Prefilled | None, count: int) -> dict[str, Any]:
    if prefilled is not None:
        return {"file": _save(folder, "rope", prefilled.rope), "start": prefilled.rope_start}
    count = min(count, getattr(case.model.config, "max_length", count))
    rows = RopeTable(case, torch.float32)(np.arange(count)[None])
    return {"file": _save(folder, "rope", rows), "start": 0}


def _prefilled(folder: Path, filled: Prefilled) -> dict[str, Any]:
    files = {name: _save(folder, name, getattr(filled, name)) for name in ("past_k", "past_v")}
    return {**files, "positions": filled.positions[0].tolist()}
