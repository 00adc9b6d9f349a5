"""`parity scenarios`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .show import show_json, show_table

if TYPE_CHECKING:
    from parity.harness.case import Scenario


@click.command("scenarios")
@click.argument("name", required=False)
@click.option(
    "--model", metavar="NAME", default="klm-tiny", show_default=True, help="The model it is laid out for."
)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def command(name: str | None, model: str, as_json: bool) -> None:
    """List the scenarios, or show one as a model would get it: NAME is a named one or a TOML file.

    \b
    parity scenarios
    parity scenarios wrap
    parity scenarios mine.toml --model klm --json
    """
    from parity.fixtures import known_scenarios, load_scenario
    from parity.models import find_model

    if name is None:
        known = known_scenarios()
        show_json(known) if as_json else show_table(list(known.items()))
        return
    scenario = load_scenario(name, find_model(model))
    show_json(scenario.to_json()) if as_json else show_table(_lines(scenario))


def _lines(scenario: Scenario) -> list[tuple[str, ...]]:
    texts = scenario.texts or tuple(str(list(ids)) for ids in scenario.ids)
    lengths = ", ".join(str(len(ids)) for ids in scenario.ids)
    fill = f", filled to {scenario.pad_to} on the {scenario.padding}" if scenario.pad_to else ""
    return [
        ("name", scenario.name),
        ("prompts", f"{scenario.batch} of {lengths} tokens{fill}"),
        *((f"prompt {index}", repr(text)) for index, text in enumerate(texts)),
        ("steps", str(scenario.steps)),
        ("cache policy", str(scenario.policy)),
        ("resets", ", ".join(map(str, scenario.resets)) or "none"),
        ("sampling", scenario.sampling),
        ("seed", str(scenario.seed)),
    ]
