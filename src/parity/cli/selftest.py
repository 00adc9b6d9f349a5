"""`parity selftest`."""

from __future__ import annotations

import click

from .show import show_json


@click.command("selftest")
@click.option("-k", "names", default="*", metavar="GLOB", help="Only patches of these names.")
@click.option("--cand", multiple=True, metavar="SPEC", help="Only on this target; repeatable.")
@click.option("--full", is_flag=True, help="Every target that a patch applies to, bf16 emulation too.")
@click.option(
    "--seed", type=int, default=0, metavar="N", help="Draws the further targets of a plain run.  [0]"
)
@click.option("--json", "as_json", is_flag=True, help="Print every outcome as JSON.")
@click.pass_context
def command(
    ctx: click.Context, /, names: str, cand: tuple[str, ...], full: bool, seed: int, as_json: bool
) -> None:
    """Plant known bugs, make harmless changes, and score what parity says of them.

    Each is one small named patch, run through the public call against a reference that was recorded without
    it. Counted are bugs that were detected, located exactly (tap and step), located to the segment and
    explained, and harmless changes that were flagged. A bug that moves nothing by more than rounding may is
    listed apart, with its size. The catalogue lies in tests/mutations of the source checkout.

    \b
    parity selftest
    parity selftest -k 'rope-*' --cand segmented
    parity selftest --full --json > score.json

    Exit status: 0 when every aim is reached, 1 when one is missed, 2 without the source checkout.
    """
    from parity.selftesting import lines, selftest

    from .progress import ConsoleProgress

    score = selftest(names, cand=cand, full=full, seed=seed, progress=ConsoleProgress())
    if as_json:
        show_json(score.to_json())
    else:
        click.echo("\n".join(lines(score)))
    ctx.exit(1 if score.missed_aims() else 0)
