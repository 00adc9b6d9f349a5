"""`parity invariants`."""

from __future__ import annotations

from typing import Any

import click

from .options import CASE, EXECUTION, given, options


@click.command("invariants")
@click.option(
    "--cand",
    multiple=True,
    metavar="SPEC",
    help="A target to be looked at; repeatable.  [segmented, onnx; torch for a module of yours]",
)
@options(CASE, EXECUTION)
@click.option("--causal", is_flag=True, help="Of a module of yours: outputs ignore what is later on axis 1.")
@click.option("--json", "as_json", is_flag=True, help="Print every invariant as JSON.")
@click.pass_context
def command(ctx: click.Context, /, cand: tuple[str, ...], as_json: bool, **values: Any) -> None:
    """Check what must hold of a target whatever a reference computes: none is run.

    Of our models: a rotation keeps the norm, attention stays within its values, older cache rows never
    change, rows beyond t stay untouched, outputs at t ignore tokens after t, batch rows do not mix. Of a
    module of yours: batch rows do not mix, and with --causal that its outputs ignore what comes later.

    \b
    parity invariants --cand onnx
    parity invariants --cand segmented:grow --scenario batch3
    parity invariants --model mypkg.net:build --inputs inputs.npz --causal

    Exit status: 0 all hold, 1 one is broken, 2 usage or data error, 3 nothing could be checked, 4 a candidate
    failed to run.
    """
    from parity.invariance import invariants

    from .progress import ConsoleProgress
    from .show import show_json

    result = invariants(cand=cand or None, progress=ConsoleProgress(), **given(values))
    if as_json:
        show_json(result.to_json())
    else:
        for report in result.reports:
            click.echo(f"{report.verdict.upper():<14}{report.label}{_said(report.failure or report.refused)}")
            for one in report.found:
                click.echo(f"  {one.sentence}")
    ctx.exit(result.exit_code)


def _said(text: str) -> str:
    return f": {text}" if text else ""
