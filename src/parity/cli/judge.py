"""`parity judge`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from parity.judging import Judged, Least


@click.command("judge")
@click.argument("result", metavar="RESULT|TRACE.h5")
@click.option(
    "--tol", metavar="PROFILE|FILE", help="auto, fp32, bf16, atb-fp16 ... or a TOML file.  [the run's own]"
)
@click.option("--cand", metavar="LABEL", help="One candidate.  [all]")
@click.option(
    "--ref", metavar="RUN", help="The run of a trace that is trusted.  [torch, ref, or the only one]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON instead of a table.")
@click.option("--verbose", "-v", is_flag=True, help="Every tap in the table, healthy ones too.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    result: str,
    tol: str | None,
    cand: str | None,
    ref: str | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Judge what was run before with other tolerances, and say the least that would pass.

    RESULT is the folder of a run, its report.json, or a trace with several runs. Nothing is executed.

    \b
    parity judge parity-20260101-120000 --tol bf16
    parity judge out/ --tol msit-logits
    parity judge out/report.json --tol tolerances.toml --json
    parity judge trace.h5 --ref torch --cand onnx

    Exit status: 0 parity, 1 divergence, 2 usage or data error, 3 inconclusive, 4 a candidate had failed.
    """
    from parity.judging import judge

    from .progress import ConsoleProgress
    from .show import show_result

    judged = judge(result, tol=tol, cand=cand, ref=ref, progress=ConsoleProgress())
    if as_json:
        from parity.reports.json_report import dumps

        click.echo(dumps(judged.to_json()))
    else:
        show_result(judged.result, as_json=False, verbose=verbose)
        _show(judged)
    ctx.exit(judged.exit_code)


def _show(judged: Judged) -> None:
    for label, least in judged.least.items():
        click.echo("")
        click.echo(f"{label} would pass with {_words(least)}")
        finite = {tap: value for tap, value in least.taps.items() if value < float("inf")}
        for tap, value in list(finite.items())[:8]:
            lines = f'taps = "{tap}"', f"atol = {value:.3g}", f"rtol = {value:.3g}", 'reason = "..."'
            click.echo("\n".join(f"  {line}" for line in ("[[override]]", *lines)))
        if len(finite) > 8:
            click.echo(f"  and {len(finite) - 8} more taps; --json has them all")


def _words(least: Least) -> str:
    if least.bound == float("inf"):
        return "no tolerance: something is missing, not finite, or of another shape"
    said = [f"atol = rtol = {least.bound:.3g}"]
    if least.floor is not None:
        said.append(f"{least.floor:.3g} times the noise floor (8 are allowed)")
    said.append(f"the profile {least.profile}" if least.profile else "no profile")
    return "; or ".join(said)
