"""Thresholds for int8, from real activations: by the largest magnitude, or by the stock calibrator."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from parity.harness.errors import CandidateError, UserError, did_you_mean

from . import crash, process, store
from .interpreter import Interpreter, fits
from .job import Top, sha256
from .mlir import read_graph
from .names import tensors
from .tables import Calibration, ranges, read_calibration, write_calibration
from .top import convert

if TYPE_CHECKING:
    from ..toolchain import Toolchain

#: `max`: ours, from the Top interpreter. The others are methods of the stock calibrator.
CALIBRATORS = ("max", "stock", "stock-mse", "stock-max", "stock-percentile9999")

#: What the stock calibrator calls the operators that it wants kept in float.
STOCK_QTABLE = "shape_pattern_qtable"

Samples = Sequence[Mapping[str, np.ndarray]]


def calibrate(
    name: str,
    graph: bytes,
    samples: Samples,
    toolchain: Toolchain,
    cache: Path,
    *,
    calibrator: str = "max",
    beat: Callable[[], None] = lambda: None,
) -> Path:
    """A table for one graph from samples of its inputs by name; from the cache if it was made before.

    UserError for an unknown calibrator, no samples, or samples that lack an input; CandidateError if the
    stock calibrator fails.
    """
    if calibrator not in CALIBRATORS:
        raise UserError(f"calibrator={calibrator!r}: unknown. {did_you_mean(calibrator, CALIBRATORS)}")
    if not samples:
        raise UserError(
            f"calibration: there are no samples for {name}; give a scenario with at least one step"
        )
    digest = _digest(name, graph, samples, toolchain, calibrator)
    place = cache.absolute() / "calibration" / f"{name}-{calibrator}-{digest}.txt"
    if place.is_file():
        return place
    top = convert(name, graph, toolchain, cache, beat)
    _check_samples(name, top, samples)
    with store.fresh(place.parent, place.stem) as folder:
        if calibrator == "max":
            table = _by_magnitude(top, samples, toolchain, folder)
        else:
            table = _by_stock(top, samples, toolchain, folder, calibrator, beat)
        facts = {"onnx": sha256(graph), "net": name, "calibrator": calibrator, "samples": str(len(samples))}
        write_calibration(folder / place.name, Calibration(table.thresholds, facts))
        if _names_operators(folder / STOCK_QTABLE):
            os.replace(folder / STOCK_QTABLE, place.with_suffix(".qtable"))
        os.replace(folder / place.name, place)
    return place


def _check_samples(name: str, top: Top, samples: Samples) -> None:
    """UserError for samples that are not the graph's inputs."""
    inputs = {op.name: op.formats[0].shape for op in read_graph(top.mlir).ops if op.kind == "top.Input"}
    for at, sample in enumerate(samples):
        if sample.keys() != inputs.keys() or not all(fits(sample[key], inputs[key]) for key in inputs):
            found = {key: array.shape for key, array in sample.items()}
            raise UserError(f"samples: number {at} has {found}, {name} takes {inputs}")


def _by_magnitude(top: Top, samples: Samples, toolchain: Toolchain, folder: Path) -> Calibration:
    known = {name for name, *_ in tensors(read_graph(top.mlir))}
    with Interpreter(toolchain, top.mlir, folder) as interpreter:
        seen = (
            {name: array for name, array in {**sample, **interpreter.call(sample)}.items() if name in known}
            for sample in samples
        )
        return Calibration(ranges(seen), {})


def _by_stock(
    top: Top, samples: Samples, toolchain: Toolchain, folder: Path, calibrator: str, beat: Callable[[], None]
) -> Calibration:
    for path in top.folder.iterdir():
        if path.suffix in (".mlir", ".npz"):
            (folder / path.name).symlink_to(path)
    listed = [f"sample_{at}.npz" for at in range(len(samples))]
    for file, sample in zip(listed, samples, strict=True):
        np.savez(folder / file, **sample)  # type: ignore[arg-type]
    (folder / "samples.txt").write_text("\n".join(listed))
    method = calibrator.partition("-")[2] or "kl"
    ended = process.run(
        process.worker(
            toolchain,
            "calibrate",
            top.mlir.name,
            *("--data_list", "samples.txt", "--input_num", str(len(samples)), "--cali_method", method),
            *("-o", "table.txt"),
        ),
        env=process.worker_environment(toolchain, folder),
        cwd=folder,
        log=folder / "log.txt",
        beat=beat,
    )
    if ended.status or not (folder / "table.txt").is_file():
        kept = store.keep(folder, folder.parent / f"{top.folder.name}.failed")
        told = crash.last_error(ended) or "it said nothing"
        raise CandidateError(
            f"{top.mlir.stem}: the stock calibrator failed ({process.ending(ended.status)}): {told}; "
            f"the whole log: {kept / 'log.txt'}"
        )
    return read_calibration(folder / "table.txt")


def qtable_beside(table: Path) -> Path | None:
    """Operators that the stock calibrator wants kept in float for a table, if it named any."""
    path = table.with_suffix(".qtable")
    return path if path.is_file() else None


def _names_operators(path: Path) -> bool:
    return path.is_file() and any(not line.startswith("#") for line in path.read_text().split("\n") if line)


def _digest(name: str, graph: bytes, samples: Samples, toolchain: Toolchain, calibrator: str) -> str:
    hasher = hashlib.sha256(f"{name} {toolchain.version} {calibrator} ".encode() + sha256(graph).encode())
    for sample in samples:
        for key in sorted(sample):
            array = np.ascontiguousarray(sample[key])
            hasher.update(f"{key} {array.dtype} {array.shape} ".encode())
            hasher.update(array.tobytes())
    return hasher.hexdigest()[:24]
