"""`parity prefill`."""

from __future__ import annotations

from pathlib import Path

import click

from .options import given
from .show import show_json


@click.command("prefill")
@click.option("--prompt", metavar="TEXT", help="What the cache is filled with.")
@click.option("--prompt-file", metavar="FILE", help="The same, from a UTF-8 file.")
@click.option("--scenario", metavar="NAME|FILE", help="Prompts of a scenario instead.")
@click.option("--model", metavar="NAME", help="A model row.  [klm-tiny]")
@click.option("--weights", metavar="SPEC", help="Checkpoint path, or random:SEED.  [the trained one]")
@click.option("--batch", type=int, metavar="N", help="Sequences; one prompt is replicated.")
@click.option("--cache", metavar="POLICY", help="Cache policy: full, window, window(N).")
@click.option(
    "--out", metavar="DIR", default="prefilled", show_default=True, help="Folder that the files go to."
)
@click.option("--json", "as_json", is_flag=True, help="Print the paths as JSON.")
def command(
    prompt: str | None, prompt_file: str | None, out: str, as_json: bool, **values: str | None
) -> None:
    """Fill a KV cache on the host and write it as files: past_k, past_v, rope as .npy and .pt.

    \b
    parity prefill --prompt "The return value is " --out prefilled/
    parity prefill --prompt-file story.txt --model klm --out prefilled/
    parity run --prompt "The return value is " --cand prefilled:prefilled/
    """
    from parity.stages import prefill

    from .progress import ConsoleProgress

    if [prompt, prompt_file, values["scenario"]].count(None) != 2:
        raise click.UsageError("prompt: give exactly one of --prompt, --prompt-file, --scenario")
    text = prompt if prompt_file is None else _read(prompt_file)
    written = prefill(out, progress=ConsoleProgress(), **given({**values, "prompt": text}))
    show_json([str(path) for path in written]) if as_json else click.echo("\n".join(map(str, written)))


def _read(path: str) -> str:
    from parity.harness.errors import UserError

    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompt-file={path!r}: cannot be read: {error}") from error
