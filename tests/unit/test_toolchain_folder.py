"""Choosing, adopting, explaining and removing: every state that the cache can be in has a sentence."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

from parity.cli import main
from parity.harness.errors import UserError
from parity.harness.progress import Silent
from parity.targets.sophgo.toolchain import Toolchain, board, install, installed, packages, why_missing
from parity.targets.sophgo.toolchain.adopt import adopt, find_package
from parity.targets.sophgo.toolchain.choice import choice_file, folder, to_facts, write_choice
from parity.targets.sophgo.toolchain.probe import text_version
from parity.targets.sophgo.toolchain.remove import removable, remove
from parity.targets.sophgo.toolchain.stages import last_words
from parity.targets.sophgo.toolchain.status import status

ROOM = Path(__file__).resolve().parents[2] / "targets" / "sophgo"


#: What a choice held before there was a self-test.
OLDER = '{"root": "/r", "package": "/r", "python": null, "version": "1", "adopted": true}'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "toolchains"


@pytest.fixture
def parity(monkeypatch, capsys):
    """`parity("toolchain", ...)`: exit status, standard output, standard error."""

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["parity", *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr()
        return int(stopped.value.code or 0), said.out, said.err

    return run


def compiler(package: Path, body: str = "exit 0") -> Path:
    """A folder with a tpuc-opt that does what `body` says."""
    path = package / "bin" / "tpuc-opt"
    path.parent.mkdir(parents=True)
    (package / "python").mkdir()
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return package


def chosen(package: Path, *, adopted: bool = True) -> Toolchain:
    toolchain = Toolchain(package, package, None, "9.9.9", adopted)
    write_choice({**to_facts(toolchain), "bytes": None, "probe": {"chips": {}}, "selftest": None})
    return toolchain


def test_without_one_the_error_says_how_to_get_one():
    with pytest.raises(
        UserError, match=r"is not installed; `parity toolchain install tpu-mlir` installs one"
    ):
        installed()
    assert why_missing() is not None


def test_the_chosen_one_is_what_is_used(tmp_path):
    toolchain = chosen(compiler(tmp_path / "package"))
    assert installed() == toolchain
    assert why_missing() is None


def test_one_that_has_gone_is_named(tmp_path):
    chosen(compiler(tmp_path / "package")).tool("tpuc-opt").unlink()
    assert "bin/tpuc-opt is gone" in str(why_missing())


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"root": 1}', '"x"', OLDER])
def test_a_damaged_choice_is_an_error_that_names_the_file(text):
    choice_file().parent.mkdir(parents=True)
    choice_file().write_text(text)
    with pytest.raises(UserError, match=r"tpu-mlir\.json: cannot be read"):
        installed()
    assert status()["usable"] is False


def test_what_an_interrupted_install_left_is_no_toolchain_and_is_named(parity):
    compiler(folder() / "tpu-mlir-1.30.2")
    assert status()["half_made"] == [str(folder() / "tpu-mlir-1.30.2")]
    code, out, _ = parity("toolchain", "status")
    assert code == 2
    assert "was left by an interrupted install" in out
    assert "is not installed" in out


def test_the_reason_of_a_failed_install_is_told_to_whoever_asks_later(monkeypatch):
    monkeypatch.setenv("PARITY_PYTHON310", "/no/such/python")
    with pytest.raises(UserError, match="/no/such/python"):
        install.install(install.Request(), Silent())
    assert str(why_missing()) == (
        "toolchain=tpu-mlir: is not installed; the last install failed: PARITY_PYTHON310='/no/such/python': "
        "cannot be executed (No such file or directory); `parity toolchain install tpu-mlir` installs one, "
        "`parity toolchain use PATH` adopts one"
    )


@pytest.fixture
def without_python(monkeypatch) -> None:
    """The search for an interpreter is not what is tested."""
    monkeypatch.setattr(install, "find_python", lambda chosen: (Path("/usr/bin/false"), []))


@pytest.mark.usefixtures("without_python")
def test_no_space_is_said_before_anything_is_done(monkeypatch, cache):
    class Usage:
        free = 1_000_000_000

    monkeypatch.setattr(install.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(UserError, match=r"1\.00 GB are free, installing needs 1\.6\d GB; make room"):
        install.install(install.Request(), Silent())
    assert not list(cache.glob("tpu-mlir-*/"))


@pytest.mark.usefixtures("without_python")
def test_what_was_downloaded_needs_no_space_again(monkeypatch, cache):
    class Usage:
        free = install.INSTALLED_BYTES + 1_000_000

    monkeypatch.setattr(install.shutil, "disk_usage", lambda path: Usage)
    assert install.space_problem(downloads=True)
    assert install.space_problem(downloads=False) is None
    (cache / "wheels").mkdir(parents=True)
    with (cache / "wheels" / "tpu_mlir.whl").open("wb") as file:
        file.truncate(packages.COMPILER_BYTES + packages.OTHERS_BYTES)
    assert install.space_problem(downloads=True) is None


@pytest.mark.usefixtures("without_python")
def test_a_stage_that_fails_says_which_and_where_its_log_is():
    with pytest.raises(UserError, match=r"environment of /usr/bin/false failed: .*log: .*install\.log"):
        install.install(install.Request(), Silent())


@pytest.mark.usefixtures("without_python")
def test_a_half_made_environment_is_removed_before_it_is_made_anew(cache):
    old = compiler(cache / "tpu-mlir-1.30.2")
    with pytest.raises(UserError, match="failed"):
        install.install(install.Request(), Silent())
    assert not (old / "bin").exists()


@pytest.mark.usefixtures("without_python")
@pytest.mark.parametrize(
    ("held", "words"),
    [
        (None, "is not a folder"),
        ([], "holds no tpu_mlir wheel, but version 1.30.2 is wanted"),
        (
            ["tpu_mlir-1.29-py3-none-any.whl"],
            "holds tpu_mlir-1.29-py3-none-any.whl, but version 1.30.2 is wanted",
        ),
    ],
    ids=["none", "empty", "another"],
)
def test_a_folder_of_wheels_that_lacks_the_compiler_is_refused(tmp_path, held, words):
    wheels = tmp_path / "wheels"
    if held is not None:
        wheels.mkdir()
        for name in held:
            (wheels / name).touch()
    with pytest.raises(UserError, match=words):
        install.install(install.Request(wheels=wheels), Silent())


@pytest.mark.usefixtures("without_python")
def test_an_install_that_fails_leaves_no_half(cache):
    with pytest.raises(UserError, match="failed"):
        install.install(install.Request(), Silent())
    assert {path.name for path in cache.iterdir()} <= {
        "tpu-mlir.failed",
        "tpu-mlir.lock",
        "install.log",
        "tmp",
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "Collecting x\nERROR: No matching distribution found for x\n",
            "No matching distribution found for x",
        ),
        (
            "WARNING: Retrying after connection broken by 'NewConnectionError('<x>: Failed to establish "
            "a connection: [Errno 111] Connection refused')': /simple/x/\nERROR: No matching distribution\n",
            "the registry does not answer (Connection refused); No matching distribution",
        ),
        (
            "WARNING: connection broken by 'ReadTimeoutError(\"Read timed out.\")'\nERROR: gone\n",
            "the registry does not answer (timed out); gone",
        ),
        (
            "something\nOSError: [Errno 28] No space left on device\n\n",
            "OSError: [Errno 28] No space left on device",
        ),
        ("", "no reason was given"),
    ],
    ids=["pip", "refused", "timeout", "other", "empty"],
)
def test_the_reason_is_found_in_what_pip_said(tmp_path, text, words):
    log = tmp_path / "log"
    log.write_text(text)
    assert last_words(log) == words


@pytest.mark.parametrize(
    "below", ["", "tpu_mlir", "install", "tpu-mlir/install", "lib/python3.10/site-packages/tpu_mlir"]
)
def test_the_package_is_found_below_what_a_person_names(tmp_path, below):
    package = compiler(tmp_path / "named" / below)
    assert find_package(tmp_path / "named") == package


def test_the_scripts_of_an_environment_are_not_taken_for_the_package(tmp_path):
    compiler(tmp_path / "lib" / "python3.10" / "site-packages" / "tpu_mlir")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tpuc-opt").touch()
    assert find_package(tmp_path).name == "tpu_mlir"


def test_a_path_that_is_no_toolchain_says_what_was_looked_for(tmp_path, parity):
    with pytest.raises(UserError, match=r"there is none of \./bin/tpuc-opt, tpu_mlir/bin/tpuc-opt"):
        find_package(tmp_path)
    code, _, err = parity("toolchain", "use", tmp_path / "nowhere")
    assert code == 2
    assert "is not a folder" in err


def test_one_that_does_not_start_is_not_adopted(tmp_path):
    package = compiler(tmp_path / "package", "echo 'version GLIBC_2.99 not found' >&2; exit 1")
    with pytest.raises(UserError, match=r"its tpuc-opt does not start here: exits 1: version GLIBC_2\.99"):
        adopt(package, Silent())
    assert not choice_file().exists()


def test_a_named_python_that_cannot_load_the_bindings_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"cannot load the bindings: .*/no/python cannot be executed"):
        adopt(compiler(tmp_path / "package"), Silent(), python="/no/python")


def test_one_without_bindings_is_adopted_and_its_lacks_are_said(tmp_path):
    said: list[str] = []

    class Telling(Silent):
        def say(self, line: str) -> None:
            said.append(line)

    package = compiler(tmp_path / "package")
    toolchain = adopt(package, Telling())
    assert (toolchain.python, toolchain.adopted, toolchain.root) == (None, True, package)
    assert toolchain.version.startswith("unknown-")
    assert "no Python loads its bindings" in said[0]
    assert any(
        line.startswith("cv181x: cannot be simulated with it: has no libcviruntime.so") for line in said
    )
    assert installed() == toolchain


def test_the_version_is_read_from_the_compiler(tmp_path):
    path = tmp_path / "tpuc-opt"
    path.write_bytes(b"\x7fELF\0v1.2.3\0v1.30.2-20260831\0")
    assert text_version(path) == "1.30.2-20260831"


def test_an_adopted_one_is_forgotten_and_left(tmp_path, parity):
    package = compiler(tmp_path / "package")
    chosen(package)
    assert parity("toolchain", "remove", "tpu-mlir", "--yes")[0] == 0
    assert why_missing() is not None
    assert (package / "bin" / "tpuc-opt").exists()


def test_removing_takes_what_is_ours_and_nothing_else(cache, tmp_path):
    outside = compiler(tmp_path / "outside")
    compiler(cache / "tpu-mlir-1.30.2")
    (cache / "tpu-mlir-linked").symlink_to(outside)
    (cache / "mine.txt").write_text("kept")
    chosen(cache / "tpu-mlir-1.30.2", adopted=False)
    assert remove(Silent()) > 0
    assert (outside / "bin" / "tpuc-opt").exists()
    assert {path.name for path in cache.iterdir()} == {"mine.txt", "tpu-mlir.lock"}
    assert removable() == {}


def test_removing_nothing_is_said(parity):
    assert parity("toolchain", "remove", "tpu-mlir") == (0, "tpu-mlir: nothing of it is here\n", "")


def test_removing_asks(cache, parity, monkeypatch):
    compiler(cache / "tpu-mlir-1.30.2")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    code, out, _ = parity("toolchain", "remove", "tpu-mlir")
    assert code == 130
    assert "tpu-mlir-1.30.2" in out
    assert (cache / "tpu-mlir-1.30.2").exists()


def test_scripts_can_read_the_status(parity, tmp_path):
    chosen(compiler(tmp_path / "package"))
    code, out, _ = parity("toolchain", "status", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["toolchain"]["version"] == "9.9.9"
    assert found["host"]["glibc"]


def test_a_runtime_that_lacks_functions_names_them():
    lacking = board._ask("libm", ("libm.so.6",), ("cos", "no_such_function"))
    assert lacking.lacks == ("no_such_function",)
    assert Path(str(lacking.file)).name.startswith("libm")
    absent = board._ask("libx", ("libno-such-thing.so",), ("f",))
    assert absent.file is None
    assert "libno-such-thing.so" in absent.reason


def test_a_runtime_that_is_there_but_broken_gives_the_loaders_reason(tmp_path):
    broken = tmp_path / "libbmrt.so"
    broken.write_bytes(b"not a library")
    found = board._ask("libbmrt.so", ("libno-such-thing.so", str(broken)), ())
    assert "invalid ELF header" in found.reason or "file too short" in found.reason


def test_every_function_that_the_runner_calls_is_asked_for():
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOM / "runner").rglob("*.py"))
    called = set(re.findall(r"\b(?:CVI_NN_|bmrt_|bm_dev_)\w+", text))
    assert called == {name for _, functions in board.RUNTIMES.values() for name in functions}
