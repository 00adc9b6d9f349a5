"""`parity audit`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .show import show_json

if TYPE_CHECKING:
    from parity.auditing import Audit, Sprung


@click.command("audit")
@click.argument("tolerances", default="auto", metavar="[PROFILE|FILE]")
@click.option(
    "--format", "formats", multiple=True, metavar="NAME", help="Candidates' number format; repeatable."
)
@click.option("--traps", metavar="DIR", help="Your own: DIR/bugs/*.npz and DIR/harmless/*.npz.")
@click.option("--json", "as_json", is_flag=True, help="Print every trap as JSON.")
@click.option("--verbose", "-v", is_flag=True, help="Every trap, those that were judged rightly too.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    tolerances: str,
    formats: tuple[str, ...],
    traps: str | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Run a tolerance policy against traps: what it would miss, and where it would cry wolf.

    \b
    parity audit                             the default policy, in every number format
    parity audit fp32                        a profile, in the format that it is meant for
    parity audit tolerances.toml --format bfloat16 --verbose
    parity audit tolerances.toml --traps traps/

    An npz of your own holds `expected` and `actual`, and for a noise floor `twin0`, `twin1` ...: further
    healthy computations of the same values.

    Exit status: 0 nothing missed, flagged or left undecided, 1 otherwise, 2 usage or data error.
    """
    from parity.auditing import audit

    from .progress import ConsoleProgress

    found = audit(tolerances, formats=formats, traps=traps, progress=ConsoleProgress())
    if as_json:
        show_json(found.to_json())
    else:
        _show(found, verbose=verbose)
    ctx.exit(found.exit_code)


def _show(found: Audit, *, verbose: bool) -> None:
    from .show import show_table

    shown = [trap for trap in found.traps if verbose or trap.missed or trap.cried or trap.undecided]
    if shown:
        rows = [
            (
                _judged(trap),
                trap.name,
                trap.format,
                trap.verdict,
                trap.doubt if trap.undecided else trap.why,
            )
            for trap in shown
        ]
        show_table([("", "trap", "format", "verdict", "why it fools tolerances"), *rows])
    bugs = sum(not trap.harmless for trap in found.traps)
    click.echo(
        f"{found.policy}: misses {len(found.missed)} of {bugs} faults, "
        f"flags {len(found.cried)} of {len(found.traps) - bugs} harmless changes"
        + (f"; nothing can be said of {len(found.undecided)}" if found.undecided else "")
    )


def _judged(trap: Sprung) -> str:
    if trap.undecided:
        return "UNDECIDED"
    return "MISSED" if trap.missed else "CRIED WOLF" if trap.cried else "right"
