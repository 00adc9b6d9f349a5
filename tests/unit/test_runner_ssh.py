"""Packages to a board and dumps back. The transport is played by a script that runs commands in a folder."""

from __future__ import annotations

import json
import os
import sys
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from parity.cli import _run
from parity.cli.board import command
from parity.harness.errors import CandidateError, UserError
from parity.targets.sophgo.runner.program import write_program
from parity.targets.sophgo.runner.ssh import Board

SSH = """#!/bin/sh
echo "$1" >> "{log}"
shift
cd "{home}" && exec /bin/sh -c "$*"
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home folder of who logs in."""
    folder, tools = tmp_path / "home", tmp_path / "bin"
    folder.mkdir()
    tools.mkdir()
    script = tools / "ssh"
    script.write_text(SSH.format(log=tmp_path / "hosts", home=folder))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    return folder


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "package"
    (folder / "models").mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"format": "parity-board", "version": 99}))
    (folder / "models" / "a b.cvimodel").write_bytes(bytes(range(256)) * 1000)
    write_program(folder)
    return folder


def dump_on(home: Path) -> Path:
    folder = home / "parity-board" / "dump"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    (folder / "step_000000.npz").write_bytes(b"x" * 100_000)
    return folder


def test_a_pushed_package_is_the_same_on_the_board_and_replaces_the_one_before(home, package, tmp_path):
    Board("root@board").push(package)
    there = home / "parity-board" / "package"
    assert (there / "models" / "a b.cvimodel").read_bytes() == (
        package / "models" / "a b.cvimodel"
    ).read_bytes()
    assert os.access(there / "runner.pyz", os.X_OK)
    (there / "stale").write_text("")
    Board("root@board").push(package)
    assert not (there / "stale").exists()
    assert set((tmp_path / "hosts").read_text().split()) == {"root@board"}


def test_a_fetched_dump_is_the_boards_own(home, tmp_path):
    there = dump_on(home)
    out = Board("b", "parity-board").fetch(tmp_path / "dump")
    assert {item.name: item.read_bytes() for item in out.iterdir()} == {
        item.name: item.read_bytes() for item in there.iterdir()
    }
    with pytest.raises(UserError, match="is not an empty folder"):
        Board("b").fetch(out)


def test_a_folder_name_is_never_read_as_a_command(home, package):
    name = "a; touch evil $(touch evil)"
    Board("b", name).push(package)
    assert (home / name / "package" / "package.json").is_file()
    assert not (home / "evil").exists()


@pytest.mark.parametrize("host", ["", "-oProxyCommand=evil"])
def test_a_host_that_would_be_an_option_is_refused(host):
    with pytest.raises(UserError, match="is no host"):
        Board(host)


def test_a_dump_that_is_not_there_leaves_nothing_behind(home, tmp_path, capfd):
    with pytest.raises((CandidateError, UserError), match="the words above say why"):
        Board("b").fetch(tmp_path / "dump")
    assert "parity-board/dump" in capfd.readouterr().err
    (home / "parity-board" / "dump").mkdir(parents=True)
    with pytest.raises(CandidateError, match="holds no dump; run it first"):
        Board("b").fetch(tmp_path / "dump")
    assert not list(tmp_path.glob("*dump*"))


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "sub/evil", "link"])
def test_what_no_dump_holds_is_refused_before_it_is_written(home, tmp_path, name, monkeypatch):
    bad = tmp_path / "bad.tar"
    with tarfile.open(bad, "w") as archive:
        member = tarfile.TarInfo(name)
        if name == "link":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    (tmp_path / "bin" / "ssh").write_text(f"#!/bin/sh\ncat {bad}\n")
    with pytest.raises(CandidateError, match="is no file of a dump"):
        Board("b").fetch(tmp_path / "dump")
    assert not list(tmp_path.rglob("evil"))
    assert not (tmp_path / "dump").exists()


def test_a_host_that_cannot_be_reached_is_said_so(home, tmp_path, package):
    (tmp_path / "bin" / "ssh").write_text("#!/bin/sh\nexit 255\n")
    for call in (lambda b: b.push(package), lambda b: b.fetch(tmp_path / "d")):
        with pytest.raises(UserError, match="ssh could not reach it; try `ssh b true`"):
            call(Board("b"))


def test_without_ssh_the_way_by_hand_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="copy the package by hand"):
        Board("b")


def test_what_the_board_says_against_a_package_is_heard(home, package, capfd):
    """The program runs there for real, and refuses this package."""
    Board("b").push(package)
    with pytest.raises(UserError, match="status 2; the words above"):
        Board("b").run(python=sys.executable, lib="", force=True)
    assert "runner: parity-board/package: is no board package of version 1" in capfd.readouterr().err


def test_the_commands_speak_of_what_they_did(home, package, tmp_path):
    done = CliRunner().invoke(command, ["push", "root@board", str(package)])
    assert done.exit_code == 0, done.output
    assert done.output == f"{package} is on root@board in parity-board/package\n"
    dump_on(home)
    done = CliRunner().invoke(command, ["fetch", "root@board", "--out", str(tmp_path / "d")])
    assert done.output == f"{tmp_path / 'd'}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["board", "push", "b", "nowhere"], 2, "package='nowhere': is no board package"),
        (["board", "simulate", "nowhere"], 2, "toolchain|is no board package"),
        (["board", "package", "--cand", "segmented"], 2, "cand='segmented': is no chip with a board"),
        (["board", "package", "--cand", "cvii"], 2, "Did you mean 'cvi'"),
        (["board", "package", "--cand", "cvi:tpu"], 2, "a board runs compiled models; leave out 'tpu'"),
    ],
)
def test_mistakes_are_one_sentence(arguments, code, sentence, capsys, home, monkeypatch, tmp_path):
    import re

    monkeypatch.chdir(tmp_path)
    assert _run(arguments) == code
    assert re.search(sentence, capsys.readouterr().err)
