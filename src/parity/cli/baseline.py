"""`parity baseline`."""

from __future__ import annotations

import click

from .show import show_json


@click.group("baseline")
def command() -> None:
    """Keep a result, and say what got worse since, even within its tolerance.

    \b
    parity baseline save out/ --out parity-baseline.json
    parity baseline check out/ parity-baseline.json
    """


@command.command("save")
@click.argument("result", metavar="RESULT")
@click.option("--out", default="parity-baseline.json", show_default=True, metavar="FILE", help="Where to.")
@click.option("--force", is_flag=True, help="Keep a result that is not at parity.")
def save(result: str, out: str, force: bool) -> None:
    """Write the baseline of a finished run: small, readable, made to be committed.

    \b
    parity baseline save parity-20260101-120000
    parity baseline save out/report.json --out baselines/klm.json
    """
    from parity.baselines import baseline_save

    click.echo(f"baseline  {baseline_save(result, out, force=force)}")


@command.command("check")
@click.argument("result", metavar="RESULT")
@click.argument("baseline", default="parity-baseline.json", metavar="[FILE]")
@click.option(
    "--factor", default=2.0, show_default=True, metavar="X", help="How many times an error may grow."
)
@click.option("--json", "as_json", is_flag=True, help="Print what got worse as JSON.")
@click.pass_context
def check(ctx: click.Context, /, result: str, baseline: str, factor: float, as_json: bool) -> None:
    """Hold a finished run against a baseline of the same case.

    A tap got worse when its error over what is allowed grew by the factor and left the noise; so did a
    candidate that shows less than it did.

    \b
    parity baseline check out/
    parity baseline check out/ baselines/klm.json --factor 3 --json

    Exit status: 0 no worse, 5 worse though within tolerance, else that of the result itself; 2 where the two
    do not compare.
    """
    from parity.baselines import baseline_check

    found = baseline_check(result, baseline, factor=factor)
    if as_json:
        show_json(found.to_json())
    else:
        for item in found.regressions:
            click.echo(f"WORSE     {item.text}")
        click.echo(
            f"{found.compared} taps held against {baseline}: {len(found.regressions)} things got worse"
        )
        if found.result.exit_code:
            click.echo(f"the result itself is not at parity: exit status {found.result.exit_code}")
    ctx.exit(found.exit_code)
