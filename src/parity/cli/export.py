"""`parity export`."""

from __future__ import annotations

from typing import Any

import click

from .options import given
from .show import show_json


@click.command("export")
@click.option("--model", metavar="NAME", help="A model row.  [klm-tiny]")
@click.option("--weights", metavar="SPEC", help="Checkpoint path, or random:SEED.  [the trained one]")
@click.option("--segments", metavar="GLOB", help="Only these segments.")
@click.option("--batch", type=int, metavar="N", help="Sequences of the static shapes.  [1]")
@click.option("--window", type=int, metavar="N", help="Cache rows of the static shapes.  [the model's own]")
@click.option("--masked", is_flag=True, help="With a mask input, for histories shorter than the window.")
@click.option("--exporter", metavar="NAME", help="script (what the originals used) or dynamo.  [script]")
@click.option("--opset", type=int, metavar="N", help="ONNX opset.")
@click.option("--out", metavar="DIR", default="segmented", show_default=True, help="Folder of the files.")
@click.option("--json", "as_json", is_flag=True, help="Print the paths as JSON.")
def command(out: str, as_json: bool, **values: Any) -> None:
    """Write ONNX segments under the originals' names: seg_head, seg_0 ..., seg_tail, rope.npz, weights.

    \b
    parity export --out klm_models/segmented
    parity export --model klm --weights klm.pt --batch 1 --out klm_models/segmented
    parity run --cand onnx:klm_models/segmented
    """
    from parity.stages import export

    from .progress import ConsoleProgress

    written = export(out, progress=ConsoleProgress(), **given(values))
    show_json([str(path) for path in written]) if as_json else click.echo("\n".join(map(str, written)))
