"""A Python 3.10 is found by executing candidates; what only looks like one is passed over with a reason."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from parity.harness.errors import UserError
from parity.targets.sophgo.toolchain import interpreter
from parity.targets.sophgo.toolchain.interpreter import candidates, find_python, try_python


def answer(**changes) -> str:
    said = {"version": [3, 10, 4], "kind": "cpython", "wide": True, "missing": [], **changes}
    return f"echo '{json.dumps(said)}'"


def program(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def bare(tmp_path, monkeypatch) -> Path:
    """A home with nothing in it; the search sees no interpreter of this machine."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(interpreter, "_FIXED", ())
    monkeypatch.setattr(interpreter, "_CONDA", ("~/miniconda3",))
    variables = [variable for variable, _, _ in interpreter._MANAGED]
    for name in (interpreter.VARIABLE, *variables, *interpreter._CONDA_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    return home


def test_a_shim_that_leads_nowhere_is_passed_over(tmp_path, bare):
    shim = program(
        tmp_path / "bin" / "python3.10", "echo 'pyenv: python3.10: command not found' >&2; exit 127"
    )
    good = program(bare / ".pyenv" / "versions" / "3.10.13" / "bin" / "python3.10", answer())
    found, tried = find_python()
    assert found == good
    assert [(one.path, bool(one.reason)) for one in tried] == [(shim, True), (good, False)]
    assert tried[0].reason == "exits 127 (pyenv: python3.10: command not found)"


@pytest.mark.parametrize(
    "place",
    [
        ".pyenv/versions/3.10.2/bin/python3.10",
        ".local/share/uv/python/cpython-3.10.14-linux-x86_64-gnu/bin/python3.10",
        ".asdf/installs/python/3.10.1/bin/python3.10",
        ".local/share/mise/installs/python/3.10.9/bin/python3.10",
        "miniconda3/bin/python3.10",
        "miniconda3/envs/p310/bin/python3.10",
    ],
)
def test_what_version_managers_installed_is_found(bare, place):
    good = program(bare / place, answer())
    assert find_python()[0] == good


def test_a_folder_named_by_a_variable_is_searched(tmp_path, monkeypatch):
    good = program(tmp_path / "elsewhere" / "versions" / "3.10.1" / "bin" / "python3.10", answer())
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "elsewhere"))
    assert find_python()[0] == good


def test_a_plain_python_on_the_path_may_be_one(tmp_path):
    good = program(tmp_path / "bin" / "python", answer())
    assert find_python()[0] == good


def test_a_file_with_two_names_is_tried_once(tmp_path):
    good = program(tmp_path / "bin" / "python3.10", answer())
    (tmp_path / "bin" / "python3").symlink_to(good)
    assert list(candidates()) == [good]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (answer(version=[3, 9, 2]), "is Python 3.9.2"),
        (answer(kind="pypy"), "is pypy, not a 64-bit CPython"),
        (answer(wide=False), "is cpython, not a 64-bit CPython"),
        (answer(missing=["ensurepip"]), "lacks ensurepip (the system package python3.10-venv)"),
        ("echo hello", "does not answer as a Python does"),
        ("echo '[1, 2]'", "does not answer as a Python does"),
        ("exit 3", "exits 3 (without a word)"),
        ("kill -9 $$", "exits -9 (without a word)"),
    ],
)
def test_each_candidate_that_does_not_do_says_why(tmp_path, body, reason):
    assert try_python(program(tmp_path / "python3.10", body)).reason == reason


def test_one_that_cannot_be_executed_says_so(tmp_path):
    path = tmp_path / "python3.10"
    path.write_bytes(b"\x7fELF but not really")
    assert try_python(path).reason == "cannot be executed (Permission denied)"
    path.chmod(0o755)
    assert try_python(path).reason == "cannot be executed (Exec format error)"


def test_one_that_does_not_answer_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(interpreter, "_SECONDS", 0.2)
    assert (
        "does not answer within" in try_python(program(tmp_path / "python3.10", "exec /bin/sleep 60")).reason
    )


def test_this_python_is_recognised_as_another_version():
    tried = try_python(Path(sys.executable))
    assert tried.reason == f"is Python {'.'.join(map(str, sys.version_info[:3]))}"


def test_without_any_the_error_names_what_was_tried_and_how_to_give_one(tmp_path):
    old = program(tmp_path / "bin" / "python3", answer(version=[3, 8, 1]))
    with pytest.raises(UserError) as caught:
        find_python()
    said = str(caught.value)
    assert f"{old} is Python 3.8.1" in said
    assert "--python PATH" in said
    assert "PARITY_PYTHON310" in said


def test_with_nothing_to_try_the_error_says_where_it_looked():
    with pytest.raises(UserError, match="nothing on PATH, nor with pyenv, uv, asdf, mise or conda"):
        find_python()


@pytest.mark.parametrize("by_variable", [True, False], ids=["variable", "option"])
def test_a_named_one_that_does_not_do_is_an_error_and_not_a_hint(tmp_path, monkeypatch, by_variable):
    program(tmp_path / "bin" / "python3.10", answer())
    named = program(tmp_path / "mine", answer(version=[3, 12, 0]))
    if by_variable:
        monkeypatch.setenv(interpreter.VARIABLE, str(named))
    with pytest.raises(UserError, match=r"is Python 3\.12\.0; TPU-MLIR needs Python 3\.10") as caught:
        find_python(None if by_variable else named)
    assert str(caught.value).startswith("PARITY_PYTHON310=" if by_variable else "python=")


def test_the_variables_of_this_python_do_not_reach_a_candidate(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    body = f'test -z "$PYTHONHOME" || exit 9\n{answer()}'
    assert try_python(program(tmp_path / "python3.10", body)).reason == ""
