"""Boards: a package for one is written here, brought there, run there, and what it dumped is fetched."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from parity.harness.errors import UserError
from parity.harness.folders import cache_folder
from parity.harness.progress import Progress, Silent
from parity.harness.target import parse_spec
from parity.harness.trace import Trace

from . import registry
from .cases import build_case
from .recorder import Job, record, reference_values
from .request import Request


def package(
    out: str | Path,
    *,
    cand: str = "cvi",
    free: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Path:
    """Compile a case for a board and write all that it needs into the new folder `out`.

    `cand` names the chip and the build as in `parity run` (`cvi`, `cvi:int8`, `bm1684x:f16+tapped`);
    `options` are those of a case: model, weights, scenario, prompt, steps, cache, seed. The board is fed the
    tokens of the torch reference, which is run for that, or (`free`) goes its own way. Returns the folder.
    """
    from parity.targets.sophgo.compile.store import fresh
    from parity.targets.sophgo.runner.packing import check, pack
    from parity.targets.sophgo.target import ChipTarget

    progress, spec = progress or Silent(), parse_spec(cand)
    target = registry.target(spec.name) if spec.kind == "target" else None
    if not isinstance(target, ChipTarget):
        raise UserError(f"cand={cand!r}: is no chip with a board; use cvi or bm1684x")
    asked = target.asked(spec.arg)
    check(asked)
    if reason := target.missing():
        raise UserError(f"cand={cand!r}: cannot be compiled here: {reason}")
    request = Request(**options)
    if request.steps is None and target.steps is not None:
        request = Request(**{**options, "steps": target.steps})
    case = build_case(request, progress=progress)
    work = cache_folder() / "work"
    with fresh(work / "reference", "package") as folder:
        trace = folder / "reference.h5"
        record(Job(parse_spec("torch"), case, request.options, trace, folder), progress=progress)
        values = reference_values(Trace(trace)["torch"])
        return pack(
            Path(out),
            case,
            asked,
            values,
            free=free,
            cache=work / "cache",
            progress=progress,
        )


def simulate(package: str | Path, out: str | Path, *, progress: Progress | None = None) -> Path:
    """Step a package on the simulator of its chip and dump into the new folder `out`; returns that.

    Raises UserError for a package or a folder that will not do, CandidateError for a runtime that fails.
    """
    from parity.targets.sophgo.runner import local
    from parity.targets.sophgo.toolchain import installed

    log = _log("simulate", package)
    return local.simulate(Path(package), Path(out), installed(), log=log, progress=progress or Silent())


def serve(package: str | Path) -> None:
    """Answer the keyboard's protocol on stdin and stdout until stdin ends; see `parity board serve`."""
    from parity.targets.sophgo.runner import local
    from parity.targets.sophgo.toolchain import installed

    local.serve(Path(package), installed(), log=_log("serve", package))


def _log(name: str, package: str | Path) -> Path:
    """One folder per package, so that logs do not pile up."""
    digest = hashlib.sha256(os.fsencode(Path(package).absolute())).hexdigest()[:12]
    folder = cache_folder() / "work" / "boards" / digest
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.log"
