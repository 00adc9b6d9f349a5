"""`parity run`."""

from __future__ import annotations

from typing import Any

import click

from .options import CASE, EXECUTION, JUDGING, given, options


@click.command("run")
@click.option("--ref", metavar="SPEC", help="The side that is trusted.  [torch; onnx for a graph]")
@click.option(
    "--cand",
    multiple=True,
    metavar="SPEC",
    help="A side that is not; repeatable.  [segmented,onnx,prefilled]",
)
@options(CASE, EXECUTION, JUDGING)
@click.option("--replay", metavar="MODE", help="forced, free or isolated.  [forced]")
@click.option("--stages", is_flag=True, help="Run a chip's candidate at every stage and name the guilty one.")
@click.option("--share-weights", is_flag=True, help="Load the reference's weights into a module candidate.")
@click.option("--capture", metavar="LEVEL", help="full, or sketch[:N] numbers instead of a row.  [full]")
@click.option("--max-bytes", metavar="SIZE", help="Refuse to record more, for example 500M or 2G.")
@click.option("--out", metavar="DIR", help="Where trace.h5 and the reports go.  [a dated folder]")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON instead of a table.")
@click.option("--verbose", "-v", is_flag=True, help="Every tap in the table, healthy ones too.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    ref: str | None,
    cand: tuple[str, ...],
    out: str | None,
    as_json: bool,
    verbose: bool,
    **values: Any,
) -> None:
    """Hold candidates against a reference: record, replay, compare, judge, report.

    A SPEC is a target with its options (torch, torch:bf16, torch:fp64@cuda, segmented:grow, onnx), a stored
    run (trace.h5:RUN), files (onnx:DIR, prefilled:DIR) or a module (module:PKG:FACTORY). label=SPEC names it.

    \b
    parity run
    parity run --ref torch --cand segmented --cand onnx
    parity run --cand onnx,prefilled --scenario wrap --json
    parity run --ref before/trace.h5:torch --cand onnx:exported/
    parity run --model mypkg.net:build --inputs inputs.npz --cand onnx
    """
    from parity.driver import run

    from .progress import ConsoleProgress
    from .show import show_result

    result = run(ref, cand or None, out=out, progress=ConsoleProgress(), **given(values))
    show_result(result, as_json=as_json, verbose=verbose)
    ctx.exit(result.exit_code)
