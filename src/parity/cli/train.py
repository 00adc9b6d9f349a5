"""`parity train`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from .options import given
from .show import show_json


@click.command("train")
@click.argument("model")
@click.option("--out", metavar="DIR", help="Folder of the checkpoint.  [the cache, where a run finds it]")
@click.option("--steps", type=int, metavar="N", help="Another length of the training; needs --out.")
@click.option("--minutes", type=float, metavar="M", help="Stop after so long; the next call goes on.")
@click.option("--until", type=int, metavar="STEP", help="Stop at a step; the next call goes on.")
@click.option("--seed", type=int, metavar="N", help="Another seed; needs --out.")
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:N.  [cpu]")
@click.option("--json", "as_json", is_flag=True, help="Print loss, accuracy and path as JSON.")
def command(model: str, out: str | None, as_json: bool, **values: Any) -> None:
    """Train a reference checkpoint on the standard library's documentation; a stopped one is gone on with.

    \b
    parity train klm-tiny                    a few minutes on two cores
    parity train klm --minutes 60            hours; in as many sittings as you like
    parity train klm-tiny --steps 50 --out quick/
    parity run --model klm-tiny --weights quick/model.pt --cand onnx
    """
    from parity.reference.checkpoints import training_folder
    from parity.reference.training.loop import train

    from .progress import ConsoleProgress

    if out is None:
        _refuse_other_trainings(values)
    folder = training_folder(model) if out is None else Path(out)
    progress = ConsoleProgress()
    if out is None and (folder / "model.pt").is_file():
        progress.say(f"{model} is trained already; remove {folder} to train it anew")
        done = {"model": model, "path": str(folder / "model.pt")}
    else:
        resume = (folder / "training.pt").is_file()
        done = asdict(train(model, folder, resume=resume, progress=progress, **given(values)))
    show_json(done) if as_json else click.echo(done["path"])


def _refuse_other_trainings(values: dict[str, Any]) -> None:
    """The cache holds the training that runs expect, and no other."""
    for name in ("steps", "seed"):
        if values[name] is not None:
            raise click.UsageError(
                f"{name}={values[name]}: is another training than a run expects; add --out DIR"
            )
