"""One .bmodel that holds several nets, for runtimes that load a single file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from parity.harness.errors import CandidateError, UserError

from . import process
from .job import Artefact

if TYPE_CHECKING:
    from ..toolchain import Toolchain


def combine(artefacts: Sequence[Artefact], place: Path, toolchain: Toolchain, workdir: Path) -> Path:
    """Write the nets of `artefacts` into the file `place`, which comes back.

    UserError for artefacts of several chips, of a family that has no such file, or nets of one name: the
    runtime would answer with the first one's numbers.
    """
    chips = sorted({artefact.manifest["chip"] for artefact in artefacts})
    names = [artefact.manifest["name"] for artefact in artefacts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if len(chips) != 1:
        raise UserError(
            f"combine: artefacts of {', '.join(chips)} do not go into one file; combine one chip's"
        )
    if any(artefact.manifest["family"] != "bm" for artefact in artefacts):
        raise UserError(f"combine: {chips[0]} has no files of several nets; leave it out")
    if twice:
        raise UserError(f"combine: several nets are called {', '.join(twice)}; give them different names")
    workdir.mkdir(parents=True, exist_ok=True)
    draft = place.with_name(f".{place.name}.{os.getpid()}")
    files = [artefact.file.resolve() for artefact in artefacts]
    try:
        ended = process.run(
            [toolchain.tool("model_tool"), "--combine", *files, "-o", draft.resolve()],
            env=toolchain.environment(chips[0], workdir),
            cwd=workdir,
            log=workdir / "combine.log",
        )
        if ended.status or not draft.is_file():
            raise CandidateError(
                f"combine: model_tool failed ({process.ending(ended.status)}); what it said is in "
                f"{workdir / 'combine.log'}"
            )
        draft.replace(place)
    finally:
        draft.unlink(missing_ok=True)
    return place
