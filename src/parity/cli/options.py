"""The options of a run, shared by the commands that execute something."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[F], F]

#: Which case: model, weights, inputs.
CASE = (
    click.option(
        "--model",
        metavar="NAME|PKG:FACTORY|FILE.onnx",
        help="A model row, or your own factory or graph.  [klm-tiny]",
    ),
    click.option("--inputs", metavar="FILE.npz", help="Inputs of your own module, by argument name."),
    click.option("--weights", metavar="SPEC", help="Checkpoint path, or random:SEED.  [the trained one]"),
    click.option("--scenario", metavar="NAME|FILE", help="A named scenario or a TOML file.  [default]"),
    click.option("--prompt", metavar="TEXT", help="Prompt instead of the scenario's."),
    click.option("--steps", type=int, metavar="N", help="Decode steps after the prompt."),
    click.option("--batch", type=int, metavar="N", help="Sequences; one prompt is replicated."),
    click.option("--cache", metavar="POLICY", help="Cache policy: full, window, window(N)."),
    click.option("--chunks", metavar="N[,N...]", help="Feed the prompt in pieces; the last length repeats."),
    click.option("--seed", type=int, metavar="N", help="Seed of whatever is random."),
)

#: How it is executed.
EXECUTION = (
    click.option(
        "--dtype", metavar="NAME", help="Number format of targets that name none: fp32, bf16, fp16, fp64."
    ),
    click.option("--device", metavar="NAME", help="cpu, cuda, cuda:N."),
    click.option("--threads", type=int, metavar="N", help="Threads of torch and ONNX Runtime."),
    click.option("--segments", metavar="GLOB", help="Run, export or compile only these segments."),
    click.option("--exporter", metavar="NAME", help="ONNX exporter: dynamo or script.  [dynamo]"),
    click.option("--opset", type=int, metavar="N", help="ONNX opset."),
)

#: How runs are compared.
JUDGING = (
    click.option("--taps", multiple=True, metavar="GLOB", help="Compare only these taps; repeatable."),
    click.option("--tol", metavar="PROFILE|FILE", help="auto, fp32, fp16, bf16 ... or a TOML file.  [auto]"),
    click.option("--map", metavar="FILE", help="Declared renames and layouts (TOML)."),
    click.option("--force", is_flag=True, help="Compare runs of different cases; the report says so."),
)


def options(*groups: tuple[Callable[[F], F], ...]) -> Callable[[F], F]:
    """Decorate a command with groups of options."""

    def decorate(function: F) -> F:
        for group in reversed(groups):
            for option in reversed(group):
                function = option(function)
        return function

    return decorate


def trace_and_run(text: str) -> tuple[str, str | None]:
    """Split `FILE.h5[:RUN]`; a name without a known ending is a file."""
    match = re.match(r"^(.+\.(?:h5|hdf5)):(.+)$", text, re.DOTALL)
    return (match[1], match[2]) if match else (text, None)


def given(values: dict[str, Any]) -> dict[str, Any]:
    """Only what was said on the command line, so that defaults stand in one place; a 0 was said."""
    return {
        key: value for key, value in values.items() if not (value is None or value is False or value == ())
    }
