"""What holds for the whole tree: rooms, links, the wheel, who imports whom, and what the README says."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parents[2]
FACE = ROOT / "src" / "parity"
ROOMS = ("harness", "models", "fixtures", "reference", "targets", "reports")
MAX_LINES = 400
#: One idea each all the same: numba's cache watches a single file, so the compiled pass lies in one.
LONG = {"harness/metrics/kernel.py": 620}
#: Put together here, so that this file does not hold what it looks for.
MACHINE = re.compile(
    "|".join(f"/{name}/" for name in ("work", "root", "farm")) + r"|[a-z0-9.-]+\.(?:internal|corp)\b"
)


def tracked() -> list[Path]:
    """Files under version control, or all but what is made where there is none."""
    if not (ROOT / ".git").exists():
        pytest.skip("no version control here to list the files")
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [ROOT / name for name in done.stdout.split("\0") if name]
    return [path for path in files if path.is_file() and not path.is_symlink()]


def sources(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*.py")) if "__pycache__" not in path.parts)


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_is_linked_relatively(room):
    link = FACE / room
    assert link.is_symlink()
    assert link.readlink() == Path("../..") / room
    assert (link / "__init__.py").is_file()


def test_every_folder_with_code_is_a_room_or_stands_beside_them():
    beside = {"src", "tests", "examples", "out", "build", "dist"}
    holders = {path.name for path in ROOT.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert holders - beside <= set(ROOMS)
    assert {path.name for path in FACE.iterdir() if path.is_symlink()} == set(ROOMS)


def face_imports(path: Path) -> Iterator[str]:
    """Imports in a room's file that reach the face: `parity` itself, or a module of it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [_resolved(path, node.level, f"{node.module or ''}.{alias.name}") for alias in node.names]
        else:
            continue
        for name in names:
            words = name.split(".")
            if words[0] == "parity" and (len(words) < 2 or words[1] not in ROOMS):
                yield f"{path.relative_to(ROOT)}:{node.lineno}: {name}"


def _resolved(path: Path, level: int, name: str) -> str:
    """The absolute name of a relative import in a room's file."""
    package = ["parity", *path.relative_to(ROOT).parent.parts]
    return ".".join([*package[: len(package) - level + 1], *name.strip(".").split(".")])


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_imports_the_face(room):
    assert [line for path in sources(ROOT / room) for line in face_imports(path)] == []


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("import parity", 1),
        ("from parity import run", 1),
        ("import parity.driver", 1),
        ("from parity.driver import run", 1),
        ("from ... import driver", 1),
        ("from parity.harness.errors import UserError", 0),
        ("from parity import harness", 0),
        ("from ..errors import UserError", 0),
        ("from . import records", 0),
    ],
)
def test_the_scan_for_the_face_sees_it(tmp_path, monkeypatch, code, count):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "harness" / "trace" / "x.py"
    path.parent.mkdir(parents=True)
    path.write_text(code)
    assert len(list(face_imports(path))) == count


def test_no_file_names_a_machine():
    """Paths of one machine and names of package hosts have no place in what others clone."""
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in MACHINE.finditer(text)]
    assert found == []


def test_no_file_is_longer_than_one_idea():
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_bytes().splitlines())
        for path in tracked()
        if path.suffix == ".py"
    }
    assert {
        name: lines
        for name, lines in lengths.items()
        if lines > LONG.get(name, MAX_LINES + 300 * name.startswith("tests/"))
    } == {}


def test_the_walls_between_the_rooms_hold():
    lint = Path(sys.executable).with_name("lint-imports")
    if not lint.exists():
        pytest.skip("import-linter is not installed")
    done = subprocess.run(
        [lint, "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy so that nothing is left in the tree."""
    pytest.importorskip("setuptools", minversion="77", reason="setuptools >= 77 builds the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    copy, out = folder / "tree", folder / "out"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in (*ROOMS, "src"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy / name)
    out.mkdir()
    code = f"import setuptools.build_meta as b; print(b.build_wheel({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return zipfile.ZipFile(next(out.glob("*.whl")))


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_every_file_that_code_reads(wheel):
    assets = (".toml", ".j2", ".css", ".js", ".html", ".typed")
    wanted = {
        f"parity/{path.relative_to(FACE)}"
        for room in (FACE, *(FACE / room for room in ROOMS))
        for path in room.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix in (".py", *assets)
    }
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert wanted - held == set()
    assert {name for name in held - wanted if not name.endswith(".md")} == set()
    assert "parity/fixtures/scenarios/default.toml" in held


@pytest.mark.slow
def test_the_wheel_declares_the_command_and_the_plugin(wheel):
    name = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    text = wheel.read(name).decode()
    assert "parity = parity.cli:main" in text
    assert "parity.pytest_plugin = parity.pytest_plugin" in text


def readme() -> str:
    path = ROOT / "README.md"
    if not path.exists():
        pytest.skip("there is no README.md yet")
    return path.read_text(encoding="utf-8")


def commands(text: str) -> list[list[str]]:
    """The `parity` commands of ```console blocks, one per line, continued lines joined."""
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    words = [
        shlex.split(line.strip().removeprefix("$ "), comments=True) for line in lines if "parity" in line
    ]
    return [line[1:] for line in words if line[:1] == ["parity"]]


def parse(words: list[str]) -> None:
    """Raise click's error if a command line does not parse; nothing is executed."""
    from parity.cli import cli

    command: click.Command = cli
    context = click.Context(cli, info_name="parity")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        _, found, words = command.resolve_command(context, words)
        assert found is not None
        command, context = found, click.Context(found, parent=context)
    if not {"--help", "-h", "--version"} & set(words):
        command.make_context(command.name, list(words), parent=context.parent)


def test_the_commands_of_the_readme_parse():
    found = commands(readme())
    assert found, "README.md shows no parity command in a ```console block"
    for words in found:
        parse(words)


def test_a_command_that_does_not_parse_is_noticed():
    text = "```console\n$ parity run --cand onnx \\\n    --steps 3   # three\n$ make demo\n```\n"
    assert commands(text) == [["run", "--cand", "onnx", "--steps", "3"]]
    for words in (["run", "--nosuch"], ["rnu"], ["trace", "sl", "x.h5"], ["run", "--steps", "many"]):
        with pytest.raises(click.UsageError):
            parse(words)


def test_the_links_of_the_readme_lead_somewhere():
    targets = re.findall(r"\]\(([^)\s]+)\)", readme())
    local = [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]
    assert [target for target in local if not (ROOT / target).exists()] == []
