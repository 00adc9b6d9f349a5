"""`parity budget`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .options import CASE, EXECUTION, given, options
from .show import show_json, show_table

if TYPE_CHECKING:
    from parity.budgeting import Budgeted


@click.command("budget")
@click.option("--ref", metavar="SPEC", help="The side that is trusted.  [torch]")
@click.option("--cand", metavar="SPEC", help="The side whose error is shared out.")
@options(CASE, EXECUTION)
@click.option("--share-weights", is_flag=True, help="Load the reference's weights into a module candidate.")
@click.option("--target-kl", type=float, metavar="NATS", help="Plan what to keep right for this KL.")
@click.option("--qtable", metavar="DIR", help="Write the plan as the compiler's tables, and run with them.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def command(ctx: click.Context, /, as_json: bool, **values: Any) -> None:
    """Say which parts of a candidate own its error in the logits, and which to keep in higher precision.

    Each segment alone is run by the candidate and all else by the reference; what it does to the logits is
    its share. What all shares leave open of the whole is interaction, or a bug between parts. More --steps
    mean more tokens and less scatter.

    \b
    parity budget --cand torch:bf16
    parity budget --cand cvi:int8 --steps 8 --target-kl 1e-3
    parity budget --cand cvi:int8 --target-kl 1e-3 --qtable tables/
    parity run --cand cvi:int8+qtable=tables/
    parity budget --model mypkg.net:build --inputs inputs.npz --cand module:mypkg.port:build

    Exit status: 0, 1 where the plan does not reach --target-kl.
    """
    from parity.budgeting import budget

    from .progress import ConsoleProgress

    result = budget(progress=ConsoleProgress(), **given(values))
    show_json(result.to_json()) if as_json else _print(result)
    ctx.exit(result.exit_code)


def _print(result: Budgeted) -> None:
    found = result.budget
    rows: list[tuple[str, ...]] = [("part", f"{found.metric} alone", "share", "flips")]
    own = [share for share in found.ranked if share.error or share.flips]
    for share in own:
        rows.append((share.part, f"{share.error:.2e}", f"{found.share_of(share):.1%}", str(share.flips)))
    if len(own) < len(found.shares):
        rows.append((f"{len(found.shares) - len(own)} other parts", "0", "", ""))
    rows.append(("sum", f"{found.singles:.2e}", f"{found.explained:.1%} explained", ""))
    rows.append(("together", f"{found.whole:.2e}", "", str(found.flips)))
    show_table(rows)
    for note in found.notes:
        click.echo(f"note: {note}")
    if found.plan is not None:
        kept = ", ".join(found.plan.parts) or "nothing"
        reached = "reaches" if found.plan.reached else "does not reach"
        click.echo(
            f"plan: keep {kept} in higher precision; {found.metric} {found.plan.measured:.2e} {reached} "
            f"{result.target:g} (the shares say {found.plan.predicted:.2e})"
        )
    if result.tables:
        click.echo(f"written: {', '.join(result.tables)}")
    if result.achieved is not None:
        click.echo(f"compiled and run with them: {found.metric} {result.achieved:.2e}")
