"""`parity import`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from .options import given
from .show import show_json, show_table

if TYPE_CHECKING:
    from parity.importing import Imported

#: Names that are listed of each side; --json lists all.
LISTED = 12


@click.command("import")
@click.argument("path", required=False)
@click.option(
    "--out", "-o", metavar="FILE.h5", default="trace.h5", show_default=True,
    help="Trace file; runs are appended.",
)  # fmt: skip
@click.option("--kind", metavar="KIND", help="Kind of dump.  [what it looks like]")
@click.option("--run", metavar="NAME", help="Name of the run.  [the dump's]")
@click.option("--map", metavar="FILE", help="Declared renames and layouts (TOML).")
@click.option("--against", metavar="TRACE[:RUN]", help="The reference: its taps, shapes and token ids.")
@click.option("--model", metavar="NAME", help="A model row whose taps the names are held against.")
@click.option("--step-offset", type=int, metavar="N", help="Step N of the scenario is step 0 of the dump.")
@click.option("--prompt", metavar="TEXT", help="The prompt that the dump must be of; needs a model.")
@click.option("--tokens", metavar="IDS|FILE.json", help="The same as token ids: 1,2,3.")
@click.option(
    "--dtype", metavar="NAME", help="Number format the device computed in, where the dump is silent."
)
@click.option("--manifest", metavar="FILE", help="Sidecar that says names, shapes, formats or scales.")
@click.option(
    "--atc-json", metavar="FILE", help="What `atc --mode=1 --om=x --json=FILE` wrote: names of an .om."
)
@click.option(
    "--onnx", metavar="FILE", help="With --atc-json: the graph the .om was made from, for its value names."
)
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="A setting of the kind; repeatable."
)
@click.option("--kinds", is_flag=True, help="List the kinds of dumps and their settings.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, every name listed.")
def command(path: str | None, kinds: bool, as_json: bool, settings: tuple[str, ...], **values: Any) -> None:
    """Read what a device wrote and append it to a trace file as a run; nothing is compared.

    PATH is a file or a folder; what kind it is shows in its names and first bytes. Names become taps by
    declared rules only, and those that no rule ties together are listed, on both sides.

    \b
    parity import board/dump -o board.h5
    parity import out.npz --manifest seg_0_tensor_info.txt --against trace.h5:torch
    parity import npy/ --kind npy --map names.toml --step-offset 3 --json
    parity import traced_tensors.pt --set run=device --model klm-tiny
    parity compare trace.h5:torch board.h5
    """
    if kinds:
        _show_kinds(as_json=as_json)
        return
    if path is None:
        raise click.UsageError("path: name a dump, for example `parity import board/dump`")
    from parity.importing import import_dump

    from .progress import ConsoleProgress

    said = dict(_pairs(settings))
    found = import_dump(path, settings=said, progress=ConsoleProgress(), **given(values))
    show_json(found.to_json()) if as_json else _show(found)


def _pairs(settings: Iterable[str]) -> Iterable[tuple[str, str]]:
    seen: set[str] = set()
    for text in settings:
        name, _, value = text.partition("=")
        if not name or not value or name in seen:
            raise click.UsageError(f"set={text!r}: should be NAME=VALUE, each NAME once")
        seen.add(name)
        yield name, value


def _show_kinds(*, as_json: bool) -> None:
    from parity.targets.dumps import READERS
    from parity.targets.dumps.detect import reader

    readers = [reader(kind) for kind in READERS]
    if as_json:
        show_json([{"kind": r.kind, "summary": r.summary, "settings": dict(r.settings)} for r in readers])
        return
    for made in readers:
        show_table([(f"{made.kind:12}", made.summary)])
        for name, meaning in made.settings.items():
            show_table([(" " * 12, f"{name}: {meaning}")])


def _show(found: Imported) -> None:
    formats = ", ".join(f"{count} {name}" for name, count in found.dtypes.items())
    state = "" if found.complete else ", INCOMPLETE"
    click.echo(
        f"{found.trace}:{found.run}: {found.records} records of {found.steps} steps from a dump of kind "
        f"{found.kind} ({formats or 'no tensors'}{state})"
    )
    for rule, count in found.rules.items():
        click.echo(f"  {count} {rule}")
    if found.known:
        _list("of the dump's names have no tap", found.unmatched)
        _list("of the reference's taps are not in the dump", found.absent)
    else:
        _list("of the dump's names are held against nothing (say --against or --model)", found.unmatched)
    for note in found.notes:
        click.echo(f"note: {note}")


def _list(title: str, names: tuple[str, ...]) -> None:
    if names:
        more = f" ... and {len(names) - LISTED} more (--json lists all)" if len(names) > LISTED else ""
        click.echo(f"{len(names)} {title}: {', '.join(names[:LISTED])}{more}")
