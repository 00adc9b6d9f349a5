"""The file in which an artefact says what it is: written last, read before anything is used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .job import sha256
from .store import MANIFEST, sealed, unsealed

KIND, VERSION = "parity-artefact", 1


def write(folder: Path, manifest: Mapping[str, Any]) -> None:
    """The last file of a folder."""
    (folder / MANIFEST).write_text(sealed(manifest, indent=1))


def read(folder: Path) -> dict[str, Any] | None:
    """The manifest of a whole artefact; None where it or its file is not what was written."""
    try:
        manifest = unsealed((folder / MANIFEST).read_text())
        if manifest["format"] != KIND or manifest["version"] != VERSION:
            return None
        data = (folder / manifest["file"]).read_bytes()
        whole = sha256(data) == manifest["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return manifest if whole else None
