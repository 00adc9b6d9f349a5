"""`parity compile`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import given
from .show import show_json

if TYPE_CHECKING:
    from parity.compiling import Compiled


@click.command("compile")
@click.argument("files", nargs=-1, metavar="[FILE.onnx]...", type=click.Path(path_type=Path))
@click.option("--chip", required=True, metavar="NAME", help="cv181x, bm1684x ...; ascend310b with --dry-run.")
@click.option("--mode", metavar="NAME", help="bf16, int8, f16, w4f16 ...  [bf16 on CVI, f16 on BM]")
@click.option(
    "--segment-mode", multiple=True, metavar="GLOB=MODE", help="Another mode for some segments; repeatable."
)
@click.option("--group-size", type=int, metavar="N", help="Weights per scale, of w8* and w4*.  [64]")
@click.option("--model", metavar="NAME", help="A model row.  [klm-tiny]")
@click.option("--weights", metavar="SPEC", help="Checkpoint path, or random:SEED.  [the trained one]")
@click.option("--segments", metavar="GLOB", help="Only these segments.")
@click.option("--window", type=int, metavar="N", help="Cache rows of the static shapes.  [the model's own]")
@click.option("--masked", is_flag=True, help="With a mask input, for histories shorter than the window.")
@click.option("--tapped", is_flag=True, help="With every tap as a further output (instrumented).")
@click.option(
    "--calibration", type=click.Path(path_type=Path), metavar="PATH", help="Thresholds for int8, made before."
)
@click.option("--calibrator", metavar="NAME", help="max (ours) or stock, for int8 without a table.  [max]")
@click.option("--scenario", metavar="NAME|FILE", help="Where int8 gets a model's activations.  [default]")
@click.option(
    "--samples",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="Inputs by name, where int8 gets an ONNX file's activations; repeatable.",
)
@click.option("--qtable", type=click.Path(path_type=Path), metavar="PATH", help="Operators kept in a format.")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder of the files.  [MODEL-CHIP-MODE]"
)
@click.option("--combine", is_flag=True, help="Also one .bmodel that holds every net.")
@click.option("--num-device", type=int, metavar="N", help="Devices that share a net; only 1.")
@click.option("--strict", is_flag=True, help="Stop before compiling what is known to abort or miscompute.")
@click.option(
    "--dry-run", is_flag=True, help="Only write what the vendor's tools take; print their commands."
)
@click.option("--json", "as_json", is_flag=True, help="Print files, formats and findings as JSON.")
def command(files: tuple[Path, ...], segment_mode: tuple[str, ...], as_json: bool, **values: Any) -> None:
    """Compile a model's segments, or ONNX files, for a Sophgo chip by the real compiler.

    \b
    parity compile --model klm --chip cv181x --mode bf16
    parity compile --chip cv181x --mode int8 --scenario default
    parity compile --chip bm1684x --mode w4f16 --group-size 64 --segment-mode seg_head=f16 --combine
    parity compile block.onnx --chip bm1684x --mode int8 --samples a.npz --samples b.npz
    parity compile block.onnx --chip ascend310b --dry-run
    parity run --ref torch --cand cvi:klm-cv181x-bf16

    What was compiled before comes from the cache. The number formats that the compiler really chose are read
    back and printed; one that it put silently in the place of another is an error.
    """
    from parity.compiling import Order, compile_order
    from parity.compiling.order import parse_modes

    from .progress import ConsoleProgress

    order = Order(files=files, modes=parse_modes(segment_mode), **given(values))
    made = compile_order(order, progress=ConsoleProgress())
    if as_json:
        show_json(made.to_json())
    elif order.dry_run:
        click.echo("\n".join(made.lines))
    else:
        _show(made)


def _show(made: Compiled) -> None:
    """One line per artefact: its file, size and effective formats; what computes in another format."""
    from .show import show_table

    rows = [
        (
            str(made.folder and made.folder / artefact.file.name),
            f"{artefact.manifest['size'] / 1e6:.2f} MB",
            artefact.manifest["mode"],
            ", ".join(f"{count} {name}" for name, count in sorted(artefact.manifest["formats"].items())),
        )
        for artefact in made.artefacts
    ]
    show_table([("file", "size", "mode", "operators compute in"), *rows])
    kept = {
        f"{item['kind'].partition('.')[2]} in {item['format']}: {item['why']}"
        for artefact in made.artefacts
        for item in artefact.manifest["kept"]
    }
    for line in sorted(kept):
        click.echo(line)
    if made.combined is not None:
        click.echo(f"all in one: {made.combined}")
    click.echo(f"{made.cached} of {len(made.artefacts)} from the cache")
