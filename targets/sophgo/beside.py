"""What lies beside artefacts that `parity compile` wrote: their manifest, held against what is to be run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity.harness.case import Case
from parity.harness.errors import UserError

from .asked import Asked, computed_in
from .compile.chips import MODES

KIND = "parity-compiled"
#: Of several modes in one build the first of these decides how it is judged.
COARSEST = ("w4a16", "w8a8", "w8a16", "bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Beside:
    """The arithmetic of the build, and what a reader must know before the numbers."""

    computed_in: str
    warnings: tuple[str, ...]


def read_beside(
    name: str, asked: Asked, files: Mapping[str, Path], case: Case, toolchain: str
) -> Beside | None:
    """The manifest's word, where there is one; UserError for files or words that contradict it."""
    assert asked.path is not None
    folder = asked.path if asked.path.is_dir() else asked.path.parent
    found = _manifest(folder / "manifest.json")
    if found is None:
        return None
    if found["chip"] != asked.chip.name:
        raise UserError(
            f"{name}={str(asked.path)!r}: was compiled for {found['chip']}; write +{found['chip']}"
        )
    segments: Mapping[str, Any] = found["segments"]
    _check_files(name, segments, files, combined=asked.path.is_file())
    modes = {segment: str(entry["mode"]) for segment, entry in segments.items() if segment in files}
    if asked.mode_said and asked.mode.name not in modes.values():
        raise UserError(
            f"{name}: {asked.mode.name} was said, {asked.path.name} was compiled as "
            f"{', '.join(sorted(set(modes.values())))}; leave the word out"
        )
    formats = [computed_in(MODES[mode]) for mode in modes.values() if mode in MODES]
    return Beside(min(formats, key=COARSEST.index), tuple(_warnings(found, segments, case, toolchain)))


def _manifest(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"manifest={str(path)!r}: cannot be read ({error}); compile again") from error
    if not isinstance(found, dict) or found.get("format") != KIND:
        return None
    if not isinstance(found.get("segments"), dict) or not isinstance(found.get("chip"), str):
        raise UserError(f"manifest={str(path)!r}: lacks its chip or segments; compile again")
    return found


def _check_files(
    name: str, segments: Mapping[str, Any], files: Mapping[str, Path], *, combined: bool
) -> None:
    """UserError for a file that is not the one described: exchanged, damaged or of another build."""
    for segment, path in () if combined else files.items():
        wanted = segments.get(segment, {}).get("sha256")
        if wanted is not None and wanted != sha256(path):
            raise UserError(
                f"{name}: {path.name} is not the file that manifest.json beside it describes (sha256); "
                "it was exchanged or damaged: compile again"
            )


def _warnings(found: Mapping[str, Any], segments: Mapping[str, Any], case: Case, toolchain: str) -> list[str]:
    said = []
    for key, own in (("model", case.model.name), ("weights", case.weights_spec)):
        if key in found and found[key] != own:
            said.append(f"the artefacts were compiled of {key}={found[key]!r}, this case has {own!r}")
    versions = {str(entry.get("toolchain")) for entry in segments.values()} - {toolchain}
    if versions:
        said.append(f"the artefacts were compiled by {', '.join(sorted(versions))}, {toolchain} runs them")
    return said


def sha256(path: Path) -> str:
    """Of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
