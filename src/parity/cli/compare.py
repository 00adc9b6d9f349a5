"""`parity compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import JUDGING, given, options, trace_and_run

if TYPE_CHECKING:
    from parity.harness.comparison import Result


@click.command("compare")
@click.argument("reference", metavar="REF.h5[:RUN]")
@click.argument("candidate", metavar="CAND.h5[:RUN]")
@click.option("--ref-run", metavar="NAME", help="The run that is trusted.  [torch, ref, or the only one]")
@click.option("--cand-run", metavar="NAME", help="The run that is held against it.")
@options(JUDGING)
@click.option("--out", metavar="DIR", help="Write report.json and report.html there.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON instead of a table.")
@click.option("--verbose", "-v", is_flag=True, help="Every tap in the table, healthy ones too.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    reference: str,
    candidate: str,
    ref_run: str | None,
    cand_run: str | None,
    out: str | None,
    as_json: bool,
    verbose: bool,
    **values: Any,
) -> None:
    """Hold two stored runs against each other; nothing is executed.

    \b
    parity compare before.h5 after.h5
    parity compare trace.h5 trace.h5 --ref-run torch --cand-run onnx
    parity compare ref.h5:torch board.h5:cvi --tol bf16 --taps 'layer*.q'
    parity compare ref.h5 board.h5 --map renames.toml --out report/

    Exit status: 0 parity, 1 divergence, 2 usage or data error, 3 inconclusive.
    """
    from parity.harness.comparison import Result
    from parity.stored import compare_traces

    from .progress import ConsoleProgress
    from .show import show_result

    (ref_path, ref_run), (cand_path, cand_run) = (
        _side(reference, ref_run, "ref"),
        _side(candidate, cand_run, "cand"),
    )
    comparison = compare_traces(
        ref_path, cand_path, ref_run=ref_run, cand_run=cand_run, progress=ConsoleProgress(), **given(values)
    )
    result = _reported(Result((comparison,)), out)
    show_result(result, as_json=as_json, verbose=verbose)
    ctx.exit(result.exit_code)


def _side(text: str, run: str | None, side: str) -> tuple[str, str | None]:
    """The file and the run that an argument names; a run is named once."""
    path, named = trace_and_run(text)
    if named and run:
        raise click.UsageError(f"{side}-run={run!r}: {text} names a run too; name it once")
    return path, named or run


def _reported(result: Result, out: str | None) -> Result:
    from parity.driver import new_folder
    from parity.stages import write_reports

    if out is None:
        return result
    folder: Path = new_folder(out)
    return write_reports(result, {"html": folder / "report.html", "json": folder / "report.json"})
