"""`parity power`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .show import show_json

if TYPE_CHECKING:
    from parity.powering import Power


@click.command("power")
@click.argument("result", metavar="RESULT")
@click.option("--cand", metavar="LABEL", help="One candidate of the run.  [all]")
@click.option("--taps", metavar="GLOB", help="Only these taps.")
@click.option(
    "--tol", metavar="PROFILE|FILE", help="Other tolerances than the run's own: auto, fp32 ... or a file."
)
@click.option("--json", "as_json", is_flag=True, help="Print every tap as JSON.")
def command(result: str, cand: str | None, taps: str | None, tol: str | None, as_json: bool) -> None:
    """Say, for every tap of a finished run, how small an error its tolerances would have caught.

    RESULT is the folder of a run or its report.json, its trace beside it. Errors of known size are planted
    into what the candidate recorded, and the whole is compared and judged again: `scale` multiplies all
    values of a record by 1 + size, `channel` and `row` those of one channel or row of middling size, `value`
    moves one value by a share of the tensor's RMS.

    \b
    parity power parity-20260101-120000
    parity power out/ --cand cvi --taps 'layer0.*'
    parity power out/ --tol bf16 --json

    Exit status: 0, or 2 when there is nothing to look at.
    """
    from parity.powering import power

    from .progress import ConsoleProgress

    found = power(result, cand=cand, taps=taps, tol=tol, progress=ConsoleProgress())
    if as_json:
        show_json({label: [_plain(one) for one in powers] for label, powers in found.items()})
        return
    for label, powers in found.items():
        _show(label, powers)


def _plain(one: Power) -> dict[str, object]:
    return {
        "tap": one.tap,
        "step": one.step,
        "caught": dict(one.caught),
        "floor": one.floor,
        "undetectable": one.undetectable,
        "reason": one.reason,
    }


def _show(label: str, powers: tuple[Power, ...]) -> None:
    from parity.powering import KINDS, weakest

    from .show import show_table

    rows = [
        (
            one.tap,
            str(one.step),
            *(_size(one, kind) for kind in KINDS),
            "" if one.floor is None else f"{one.floor:.1e}",
            _why(one),
        )
        for one in powers
    ]
    click.echo(f"{label}: smallest error that is caught, relative; floor: the noise that its format explains")
    show_table([("tap", "step", *KINDS, "floor", ""), *rows])
    last = weakest(powers)
    if last is not None and last.caught["scale"]:
        click.echo(
            f"an error of {last.caught['scale']:.1e} in the scale of any tap that was looked at is caught"
        )
    blind = sum(one.undetectable for one in powers)
    if blind:
        click.echo(f"{blind} of {len(powers)} taps would not show a bug that doubles their values")


def _size(one: Power, kind: str) -> str:
    if kind not in one.caught:
        return "any" if one.caught.get("scale") == 0.0 else "-"
    size = one.caught[kind]
    return "never" if size is None else "any" if size == 0.0 else f"{size:.1e}"


def _why(one: Power) -> str:
    if one.reason:
        return one.reason if one.caught else f"undetectable: {one.reason}"
    return "undetectable: under the noise that its format explains" if one.undetectable else ""
