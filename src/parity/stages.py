"""The stages of a run, one call each: record one side, write the reports of a result, fill a cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.harness.errors import UserError
from parity.harness.progress import Progress, Silent
from parity.harness.target import parse_spec

from . import registry
from .cases import build_case, build_module_case
from .recorder import Job, check_spec, reference_values, stored
from .recorder import record as record_job
from .request import DEFAULT_MODEL, Request

if TYPE_CHECKING:
    from parity.harness.case import Case, ModuleCase
    from parity.harness.comparison import Result
    from parity.harness.trace import Run


def record(
    spec: str = "torch",
    *,
    out: str | Path = "trace.h5",
    ref: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> str:
    """Execute one target and append its run to the trace file `out`; returns the run's name.

    `ref` (`trace.h5[:RUN]`) is a stored run: the target gets its case (what `options` leave open), is forced
    to its tokens, and its segments are isolated on its values. Without it the target runs on its own tokens.
    `options` are those of `parity.run`, by the same names. Raises UserError for what cannot be run,
    CandidateError for a target that fails while it runs.
    """
    unknown = options.keys() - Request.__dataclass_fields__.keys()
    if unknown:
        raise TypeError(f"record() has no option {sorted(unknown)[0]!r}")
    progress, request = progress or Silent(), Request(**options)
    side = parse_spec(spec)
    if side.kind == "stored":
        raise UserError(f"spec={spec!r}: is a stored run already; name a target, for example torch or onnx")
    check_spec(side, request.options, own_module=request.own_module)
    reference = None if ref is None else _reference(ref)
    job = Job(
        side,
        _case(request, progress, reference),
        request.options,
        trace_file(out),
        _work(),
        request.replay,
        None if reference is None else reference_values(reference),
        request.limit,
        request.sketching,
    )
    return record_job(job, progress=progress)


def prefill(out: str | Path, *, progress: Progress | None = None, **options: Any) -> list[Path]:
    """Fill the reference's KV cache with a prompt and write it as files into the folder `out`.

    Writes `past_k`, `past_v` and `rope` as .npy and .pt, and `prefill.json`; `prefilled:FOLDER` starts from
    them. `options` are those of a case: model, weights, scenario, prompt, batch, cache.
    """
    import tempfile

    from parity.targets.prefilled import collect
    from parity.targets.prefilled_files import write

    progress = progress or Silent()
    case = build_case(Request(**{**options, "steps": 0}), progress=progress)
    with tempfile.TemporaryDirectory(prefix="parity-prefill-") as folder:
        trace = Path(folder) / "prefill.h5"
        record_job(Job(parse_spec("torch"), case, Request().options, trace, Path(folder)), progress=progress)
        filled = collect(case, reference_values(_reference(f"{trace}:torch")))
    try:
        return write(Path(out), filled)
    except OSError as error:
        raise UserError(
            f"out={str(out)!r}: cannot be written ({error.strerror}); name another folder"
        ) from error


def export(
    out: str | Path,
    *,
    model: str = DEFAULT_MODEL,
    weights: str | None = None,
    progress: Progress | None = None,
    **build: Any,
) -> list[Path]:
    """Write a model's segments as ONNX files under the originals' names into the folder `out`.

    `build` says which build: segments, batch, window, masked, exporter, opset. Raises UserError for weights
    that are not the model's.
    """
    from parity.models import find_model
    from parity.reference.checkpoints import load_weights
    from parity.targets.onnx.layout import export_originals

    found, progress = find_model(model), progress or Silent()
    state, *_ = load_weights(weights, found, progress=progress)
    return export_originals(found, state, out, progress=progress, **build)


def write_reports(result: Result, files: Mapping[str, str | Path]) -> Result:
    """Render a result into files, kind -> path; the result that comes back knows where they lie.

    Kinds are `html`, `json` and those that other packages add through the entry points `parity.reports`.
    """
    writers = {kind: registry.report(kind) for kind in files}
    result = replace(result, files={**result.files, **{kind: str(path) for kind, path in files.items()}})
    for kind, write in writers.items():
        write(result, Path(files[kind]))
    return result


def trace_file(out: str | Path) -> Path:
    """A trace file that can be written to, its folder made; UserError when it cannot."""
    path = Path(out)
    if path.is_dir() or path.suffix not in (".h5", ".hdf5"):
        raise UserError(
            f"out={str(out)!r}: is no trace file; name one that ends in .h5, for example {path / 'trace.h5'}"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={str(out)!r}: cannot be made ({error.strerror}); name another place") from error
    return path


def _case(request: Request, progress: Progress, like: Run | None) -> Case | ModuleCase:
    if request.own_module:
        return build_module_case(request)
    return build_case(request, progress=progress, like=like)


def _reference(text: str) -> Run:
    spec = parse_spec(text)
    if spec.kind != "stored":
        raise UserError(f"ref={text!r}: is no stored run; name one, for example trace.h5:torch")
    trace, name = stored(spec)
    return trace[name]


def _work() -> Path:
    from parity.harness.folders import cache_folder

    return cache_folder() / "work"
