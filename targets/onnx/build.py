"""Exports kept by content digest: a second run exports nothing, an edit of weights or code exports anew."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from parity.harness.arrays import to_array
from parity.harness.case import Segment, Wiring
from parity.harness.errors import UserError, did_you_mean

from .export import Job, export
from .observe import examples, observe

#: Packages whose version decides what is exported.
MAKERS = ("torch", "onnx", "onnxscript")
FILES = ("clean.onnx", "tapped.onnx")


@dataclass(frozen=True)
class Recipe:
    """How segments are exported; sizes are B, T (new tokens), W (cache rows), `dynamic` those left open."""

    sizes: Mapping[str, int]
    vocab_size: int
    exporter: str = "dynamo"
    opset: int | None = None
    dynamic: tuple[str, ...] = ()


@dataclass(frozen=True)
class Build:
    """Both graphs of a segment on disk, and the axes of the tapped build's further outputs."""

    segment: str
    clean: Path
    tapped: Path
    axes: Mapping[str, str]
    opset: int
    notes: tuple[str, ...]


def build(module: nn.Module, segment: Segment, recipe: Recipe, cache: Path) -> Build:
    """Export a segment in both builds, or take them from the folder `cache` if these very ones lie there."""
    inputs = examples(segment.inputs, recipe.sizes, vocab_size=recipe.vocab_size)
    observed = observe(module, segment, inputs)
    folder = cache / f"{segment.name}-{_digest(module, segment, recipe, observed.digest)[:24]}"
    found = _stored(folder, segment.name)
    if found is not None:
        return found
    job = Job(segment, module, inputs, recipe.sizes, observed, recipe.exporter, recipe.opset, recipe.dynamic)
    made = export(job)
    axes = {tap.name: tap.axes for tap in observed.taps}
    facts = {"axes": axes, "opset": made.opset, "notes": list(made.notes)}
    _store(folder, (made.clean, made.tapped), facts)
    return Build(segment.name, folder / FILES[0], folder / FILES[1], axes, made.opset, made.notes)


def choose_segments(glob: str | None, wiring: Wiring) -> set[str]:
    """Names that a glob matches, all without one; UserError if it matches none."""
    names = [segment.name for segment in wiring.segments]
    chosen = {name for name in names if glob is None or fnmatchcase(name, glob)}
    if not chosen:
        raise UserError(f"segments={glob!r}: matches no segment. {did_you_mean(str(glob), names)}")
    return chosen


def _stored(folder: Path, segment: str) -> Build | None:
    """The entry, or None where there is none or its files are not what was written."""
    try:
        data = json.loads((folder / "build.json").read_text())
        whole = all(data["sha256"][name] == _sha256((folder / name).read_bytes()) for name in FILES)
        facts = dict(data["axes"]), int(data["opset"]), tuple(data["notes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Build(segment, folder / FILES[0], folder / FILES[1], *facts) if whole else None


def _store(folder: Path, graphs: tuple[bytes, bytes], facts: Mapping[str, Any]) -> None:
    """Write beside, then rename: a reader sees the whole entry or none."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        for name, graph in zip(FILES, graphs, strict=True):
            (fresh / name).write_bytes(graph)
        digests = {name: _sha256(graph) for name, graph in zip(FILES, graphs, strict=True)}
        (fresh / "build.json").write_text(json.dumps({"sha256": digests, **facts}, indent=1))
        _replace(fresh, folder)
    except OSError as error:
        raise UserError(
            f"workdir={folder.parent}: cannot be written ({error.strerror}); choose another"
        ) from error


def _replace(fresh: Path, folder: Path) -> None:
    """Put a finished folder in its place; a damaged one steps aside, another process's equal one stays."""
    if folder.exists() and _stored(folder, "") is None:
        aside = fresh.with_name(f"{fresh.name}-damaged")
        os.replace(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)
    try:
        os.replace(fresh, folder)
    except OSError:
        shutil.rmtree(fresh, ignore_errors=True)
        if _stored(folder, "") is None:
            raise


def _digest(module: nn.Module, segment: Segment, recipe: Recipe, behaviour: str) -> str:
    """Everything that decides what the exporter writes. `behaviour`, the digest of what the example run
    showed, also catches code that was changed in memory."""
    plain = {
        "segment": asdict(segment),
        "sizes": dict(recipe.sizes),
        "dynamic": recipe.dynamic,
        "exporter": recipe.exporter,
        "opset": recipe.opset,
        "versions": {name: version(name) for name in MAKERS},
        "behaviour": behaviour,
    }
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name, tensor in sorted(module.state_dict().items()):
        array = to_array(tensor)
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    for source in _sources(module):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _sources(module: nn.Module) -> Iterable[Path]:
    """The files of the folders that define the module's classes (torch's left out), and of this one."""
    owners = {type(part).__module__ for part in module.modules()}
    files = {
        getattr(sys.modules.get(owner), "__file__", None)
        for owner in owners
        if owner.split(".")[0] != "torch"
    }
    folders = {Path(file).parent for file in files if file} | {Path(__file__).parent}
    return sorted(path for folder in folders for path in folder.glob("*.py"))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
