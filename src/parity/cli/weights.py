"""`parity weights`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .options import given
from .show import show_json, show_table

if TYPE_CHECKING:
    from parity.harness.weights import Report


@click.command("weights")
@click.argument("cand", metavar="CANDIDATE")
@click.option("--ref", metavar="FILE|DIR|module:...", help="The trusted weights.  [the model's checkpoint]")
@click.option("--model", metavar="NAME|PKG:FACTORY", help="A model row, or your own factory.  [klm-tiny]")
@click.option("--weights", metavar="SPEC", help="Checkpoint path, or random:SEED.  [the trained one]")
@click.option("--seed", type=int, metavar="N", help="Seed of whatever a factory draws.")
@click.option("--verbose", "-v", is_flag=True, help="Every tensor, healthy ones too.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def command(ctx: click.Context, /, cand: str, verbose: bool, as_json: bool, **values: Any) -> None:
    """Hold the weights of a CANDIDATE against the reference's by content, before anything runs.

    A CANDIDATE is a file (.pt, .bin, .safetensors, .npz, .onnx), a folder of ONNX segments,
    module:PKG:FACTORY, or one of segmented and onnx, made of the checkpoint now. Codes are held against it
    with their scales undone. Named are weights that are transposed, permuted, swapped, split or joined in
    another order, scaled, sign flipped, saturated, cut off instead of rounded, unused, used twice or missing.

    \b
    parity weights exported/
    parity weights seg_0.onnx --weights model.pt
    parity weights model-int8.onnx --ref model.safetensors
    parity weights module:mypkg.port:build --model mypkg.net:build --json

    Exit status: 0 every weight is there and right, 1 something is wrong, 3 nothing could be matched.
    """
    from parity.weighing import weights

    from .progress import ConsoleProgress

    report = weights(cand, progress=ConsoleProgress(), **given(values))
    show_json(report.to_json()) if as_json else _print(report, verbose)
    ctx.exit(report.exit_code)


def _print(report: Report, verbose: bool) -> None:
    shown = [row for row in report.rows if verbose or row.relation.level != "ok"]
    if shown:
        head = ("candidate", "is", "of the reference", "")
        rows = [(r.candidate, r.relation.kind, r.reference or "-", r.relation.detail) for r in shown]
        show_table([head, *rows])
    for names in report.tied:
        click.echo(f"tied      {', '.join(names)}")
    for name in report.missing:
        click.echo(f"missing   {name}: no tensor of the candidate holds it")
    if report.absent:
        click.echo(f"absent    {', '.join(report.absent)}: no weights, so a candidate may lack them")
    click.echo(_sentence(report))


def _sentence(report: Report) -> str:
    if not report.matched:
        return "INCONCLUSIVE  no tensor of the candidate is one of the reference's"
    wrong = len(report.faults)
    if wrong or report.missing:
        lacking = len(report.missing)
        return f"DIVERGENCE    {wrong} of {len(report.rows)} tensors are wrong, {lacking} are missing"
    return (
        f"PARITY        {report.matched} of {len(report.rows)} tensors are the reference's, none is missing"
    )
