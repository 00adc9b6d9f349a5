"""The command line's surface: its options are a promise, its help is quick and shows how it is used."""

from __future__ import annotations

import subprocess
import sys
import time

import click
import pytest
from click.testing import CliRunner

from parity.cli import COMMANDS, cli
from parity.cli.run import command as run_command

RUN_OPTIONS = {
    "--ref", "--cand",
    "--model", "--inputs", "--weights", "--scenario", "--prompt", "--steps", "--batch", "--cache", "--chunks",
    "--seed",
    "--dtype", "--device", "--threads", "--segments", "--exporter", "--opset",
    "--taps", "--tol", "--map", "--force",
    "--replay", "--stages", "--share-weights", "--capture", "--max-bytes",
    "--out", "--json", "--verbose", "-v",
}  # fmt: skip


def options_of(command: click.Command) -> set[str]:
    return {name for item in command.params if isinstance(item, click.Option) for name in item.opts}


def subcommands() -> list[tuple[str, ...]]:
    groups = {name: cli.get_command(click.Context(cli), name) for name in COMMANDS}
    inner = [
        (name, sub)
        for name, group in groups.items()
        if isinstance(group, click.Group)
        for sub in group.commands
    ]
    return [(name,) for name in COMMANDS] + inner


def test_the_options_of_a_run_are_frozen():
    """A new one needs a user's opinion, an explanation without internals, and two users who differ."""
    assert options_of(run_command) == RUN_OPTIONS


def test_every_option_of_a_run_is_a_word_of_the_python_call():
    from parity.request import Request

    words = {option.removeprefix("--").replace("-", "_") for option in RUN_OPTIONS - {"-v"}}
    assert words - {"json", "verbose"} == set(Request.__dataclass_fields__)


@pytest.mark.parametrize("path", subcommands(), ids=" ".join)
def test_every_command_has_help_with_an_example(path):
    done = CliRunner().invoke(cli, [*path, "--help"])
    assert done.exit_code == 0, done.output
    assert f"parity {' '.join(path)}" in done.output.partition("Usage:")[2].partition("\n")[2]
    assert "Usage: cli " + " ".join(path) in done.output


def test_every_option_is_explained():
    for path in subcommands():
        command: click.Command = cli
        for name in path:
            assert isinstance(command, click.Group)
            found = command.get_command(click.Context(command), name)
            assert found is not None
            command = found
        for item in command.params:
            assert not isinstance(item, click.Option) or item.help, f"{path}: {item.opts}"


def child(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


HEAVY = "{'torch', 'onnxruntime', 'h5py', 'numpy', 'numba', 'rich', 'jinja2'}"


@pytest.mark.parametrize(
    "what",
    [
        "import parity",
        "import parity.harness, parity.models, parity.fixtures",
        "import parity.reference, parity.targets, parity.reports",
        "from parity.cli import cli; cli.main(['--help'], standalone_mode=False)",
        "from parity.cli import cli; cli.main(['run', '--help'], standalone_mode=False)",
        "import parity.registry; parity.registry.targets()",
    ],
)
def test_nothing_heavy_is_loaded_by(what):
    done = child(f"import sys\n{what}\nsys.exit(' '.join(sorted({HEAVY} & set(sys.modules))) or 0)")
    assert done.returncode == 0, done.stderr


def test_a_comparison_of_traces_does_not_load_torch():
    done = child("import sys, parity.harness.compare, parity.harness.trace; sys.exit('torch' in sys.modules)")
    assert done.returncode == 0, done.stderr


def test_help_comes_in_a_moment():
    """Under 0.3 s beyond what starting this Python costs on a machine that is busy now; the best of five."""
    bare, helped = (
        min(_seconds(code) for _ in range(5))
        for code in (
            "import click",
            "from parity.cli import main; import sys; sys.argv[1:] = ['--help']; main()",
        )
    )
    assert helped - bare < 0.2
    assert helped < max(0.3, 3 * bare)


def _seconds(code: str) -> float:
    begin = time.perf_counter()
    child(code)
    return time.perf_counter() - begin


def test_an_unknown_command_names_the_nearest():
    done = child("from parity.cli import main; import sys; sys.argv[1:] = ['rnu']; main()")
    assert done.returncode == 2
    assert "Did you mean 'run'" in done.stderr


def test_zero_is_said_and_nothing_is_not():
    from parity.cli.options import given

    said = {"steps": 0, "seed": None, "taps": (), "force": False, "tol": "fp32"}
    assert given(said) == {"steps": 0, "tol": "fp32"}
