"""`parity models`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from .show import show_json, show_table


def described() -> list[dict[str, Any]]:
    """Every model: its configuration, number of parameters, segments and taps."""
    import torch

    from parity.models import find_model, known_models

    rows = []
    for name in known_models():
        model = find_model(name)
        with torch.device("meta"):
            parameters = sum(weight.numel() for weight in model.build().parameters())
        segments = [segment.name for segment in model.wiring.segments]
        rows.append(
            {
                "name": name,
                "parameters": parameters,
                "vocabulary": model.vocab_size,
                "window": model.window,
                "segments": segments,
                "taps": len(model.taps),
                "config": asdict(model.config),
            }
        )
    return rows


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON, with configurations and segments.")
def command(as_json: bool) -> None:
    """List the models; one of your own is --model PKG:FACTORY.

    \b
    parity models
    parity models --json
    """
    rows = described()
    if as_json:
        show_json(rows)
        return
    show_table(
        [
            (
                row["name"],
                f"{row['parameters'] / 1e6:.2f} M parameters",
                f"window {row['window']}",
                f"{len(row['segments'])} segments",
                f"{row['taps']} taps",
            )
            for row in rows
        ]
    )
