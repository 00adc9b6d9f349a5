"""`parity.calibrate`: the noise floors of a case as a file that people review and commit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from parity.harness.case import ModuleCase
from parity.harness.dtypes import dtype_of_word
from parity.harness.errors import UserError
from parity.harness.folders import cache_folder
from parity.harness.progress import Progress, Silent
from parity.harness.tolerance_file import write_floors

from .cases import build_case, build_module_case, case_provenance
from .floors import Measured, measure_noise
from .request import Request
from .twins import BITS


def calibrate(out: str | Path, *, progress: Progress | None = None, **options: Any) -> Measured:
    """Measure the noise floors of a case and write them to the TOML file `out`, which `tol=` takes.

    `options` are those of a case, and `dtype`: the number format that candidates will be computed in, by
    default the reference's own. A file that is there is kept: UserError. UserError too where no noise can be
    measured: a format that torch cannot emulate, a graph that torch cannot execute.
    """
    request, path = Request(**options), Path(out)
    if path.exists():
        raise UserError(
            f"out={str(path)!r}: is there already, and somebody may have reviewed it; name another"
        )
    progress = progress or Silent()
    own = request.own_module
    case = build_module_case(request) if own else build_case(request, progress=progress)
    dtype = _dtype(case, request.dtype)
    if dtype not in BITS:
        raise UserError(
            f"dtype={dtype!r}: its noise is not measured here, but on the candidate's own emulation; "
            f"use --tol auto, or one of {', '.join(BITS)}"
        )
    measured = measure_noise(case, (dtype,), cache_folder(), progress=progress)
    if not measured.levels:
        raise UserError(
            f"model={request.model!r}: no noise could be measured; it runs in one number format only"
        )
    _write(path, write_floors(path, _header(case, dtype), measured.levels))
    return measured


def _dtype(case: Any, asked: str | None) -> str:
    if asked:
        return dtype_of_word(asked)
    if not isinstance(case, ModuleCase):
        return "float32"
    from parity.harness.module_session import dtype_of

    return dtype_of(case.module) if case.executable else "unknown"


def _header(case: Any, dtype: str) -> dict[str, Any]:
    import torch

    known = case_provenance(case)
    keys = ("model", "weights", "scenario_digest", "policy")
    about: dict[str, Any] = {key: str(known[key]) for key in keys if key in known}
    if "scenario" in known:
        about["scenario"] = str(known["scenario"]["name"])
    return {**about, "formats": [dtype], "torch": torch.__version__}


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise UserError(
            f"out={str(path)!r}: cannot be written ({error.strerror}); name another file"
        ) from error
