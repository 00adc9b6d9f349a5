"""Folders that are whole or not there, keys that change when they must, children that end with us."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from parity.harness.errors import UserError
from parity.harness.progress import Silent
from parity.targets.sophgo.compile import CompileJob, manifest, process, store
from parity.targets.sophgo.compile.artefact import artefact_in, place_of, stored_artefact
from parity.targets.sophgo.compile.chips import CHIPS
from parity.targets.sophgo.compile.estimate import announce, check_space, estimate
from parity.targets.sophgo.compile.job import sha256
from parity.targets.sophgo.toolchain import Toolchain

TOOLCHAIN = Toolchain(Path("root"), Path("package"), None, "1.30.2", adopted=True)
JOB = CompileJob("seg_0", b"graph", "bm1684x", "w4f16")


def place(job: CompileJob, cache: Path, digest: str = "d", toolchain: Toolchain = TOOLCHAIN) -> str:
    return place_of(job, digest, toolchain, cache).name


def test_everything_that_decides_an_artefact_is_in_its_key(tmp_path):
    table, other = tmp_path / "t.txt", tmp_path / "o.txt"
    table.write_text("x 1 -1 1\n")
    other.write_text("x 2 -2 2\n")
    int8 = replace(JOB, mode="int8", calibration=table)
    jobs = [
        JOB,
        replace(JOB, name="seg_1"),
        replace(JOB, chip="bm1688"),
        replace(JOB, mode="w4bf16"),
        replace(JOB, mode="f16"),
        replace(JOB, group_size=32),
        replace(JOB, qtable=table),
        replace(JOB, taps={"a": "b"}),
        replace(JOB, outputs=("y",)),
        int8,
        replace(int8, calibration=other),
    ]
    names = [place(job, tmp_path) for job in jobs]
    names += [place(JOB, tmp_path, "e"), place(JOB, tmp_path, "d", replace(TOOLCHAIN, version="1.31"))]
    assert len(set(names)) == len(names)


def test_the_place_of_a_table_is_not_in_the_key(tmp_path):
    """Only what it says: a copy elsewhere finds the same artefact."""
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("x 1 -1 1\n")
    one, two = (replace(JOB, qtable=tmp_path / name) for name in ("a.txt", "b.txt"))
    assert place(one, tmp_path) == place(two, tmp_path)


def test_a_default_that_is_said_is_the_same_as_one_that_is_not(tmp_path):
    assert place(JOB, tmp_path) == place(replace(JOB, group_size=64, mode="W4F16"), tmp_path)


def test_int8_needs_a_table_and_others_take_none(tmp_path):
    with pytest.raises(UserError, match="int8 needs the ranges"):
        stored_artefact(replace(JOB, mode="int8"), "d", TOOLCHAIN, tmp_path)
    with pytest.raises(UserError, match="w4f16 takes none"):
        stored_artefact(replace(JOB, calibration=tmp_path / "t.txt"), "d", TOOLCHAIN, tmp_path)


def whole(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "seg_0.bmodel").write_bytes(b"model")
    facts = {"format": manifest.KIND, "version": manifest.VERSION, "file": "seg_0.bmodel"}
    manifest.write(folder, {**facts, "sha256": sha256(b"model")})
    return folder


def test_a_whole_artefact_is_found(tmp_path):
    found = artefact_in(whole(tmp_path / "a"), CHIPS["bm1684x"], "seg_0")
    assert found is not None
    assert found.file.read_bytes() == b"model"
    assert found.tpu.name == "seg_0_tpu.mlir"


@pytest.mark.parametrize("damage", ["file", "gone", "manifest", "cut", "version", "none"])
def test_a_damaged_artefact_is_none(tmp_path, damage):
    folder = whole(tmp_path / "a")
    path = folder / "manifest.json"
    if damage == "file":
        (folder / "seg_0.bmodel").write_bytes(b"modem")
    elif damage == "gone":
        (folder / "seg_0.bmodel").unlink()
    elif damage == "manifest":
        path.write_text("[]")
    elif damage == "cut":
        path.write_text(path.read_text()[:-4])
    elif damage == "version":
        path.write_text(json.dumps({**json.loads(path.read_text()), "version": 0}))
    else:
        path.unlink()
    assert artefact_in(folder, CHIPS["bm1684x"], "seg_0") is None


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    def half_made() -> None:
        with store.fresh(tmp_path, "a") as folder:
            (folder / "half").write_text("")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        half_made()
    assert list(tmp_path.iterdir()) == []
    with store.fresh(tmp_path, "a") as folder:
        (folder / store.MANIFEST).write_text("{}")
        store.publish(folder, tmp_path / "a", whole_there)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def whole_there(place: Path) -> bool:
    return (place / store.MANIFEST).is_file()


def test_of_two_that_make_the_same_the_first_stays(tmp_path):
    with store.fresh(tmp_path, "a") as one, store.fresh(tmp_path, "a") as two:
        for folder, text in ((one, "1"), (two, "2")):
            (folder / store.MANIFEST).write_text(text)
        store.publish(one, tmp_path / "a", whole_there)
        store.publish(two, tmp_path / "a", whole_there)
    assert (tmp_path / "a" / store.MANIFEST).read_text() == "1"


def test_a_place_without_manifest_is_taken_over(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "rest").write_text("")
    with store.fresh(tmp_path, "a") as folder:
        (folder / store.MANIFEST).write_text("{}")
        store.publish(folder, tmp_path / "a", whole_there)
    assert [path.name for path in (tmp_path / "a").iterdir()] == [store.MANIFEST]


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_has_is_not(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead, alive, elsewhere = (
        tmp_path / f".a@{host}@{pid}@x"
        for host, pid in ((platform.node(), gone.pid), (platform.node(), os.getpid()), ("other", gone.pid))
    )
    for folder in (dead, alive, elsewhere):
        folder.mkdir()
    with store.fresh(tmp_path, "b"):
        assert not dead.exists()
        assert alive.exists()
        assert elsewhere.exists()


def test_a_cache_that_cannot_be_written_is_the_users_to_mend(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written to"), store.fresh(tmp_path / "file", "a"):
        pass


def sleeping(folder: Path) -> list[str]:
    """A child that tells its process id and sleeps."""
    code = f"import os, time; open({str(folder / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    return [sys.executable, "-c", code]


def wait_for(path: Path) -> int:
    for _ in range(500):
        if path.is_file() and path.read_text():
            return int(path.read_text())
        time.sleep(0.02)
    raise AssertionError(f"{path} did not come")


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_child_is_killed_when_its_parent_is_interrupted(tmp_path):
    def beat() -> None:
        wait_for(tmp_path / "pid")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        process.run(sleeping(tmp_path), env=os.environ, cwd=tmp_path, log=tmp_path / "log", beat=beat)
    assert not alive(wait_for(tmp_path / "pid"))


def test_a_child_does_not_outlive_a_parent_that_is_killed(tmp_path):
    code = (
        "import os, pathlib; from parity.targets.sophgo.compile import process\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        f"process.run({sleeping(tmp_path)!r}, env=os.environ, cwd=here, log=here / 'log')"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    child = wait_for(tmp_path / "pid")
    parent.kill()
    parent.wait()
    for _ in range(200):
        if not alive(child):
            break
        time.sleep(0.02)
    assert not alive(child)


def test_what_a_child_prints_is_in_the_log_with_its_command(tmp_path):
    (tmp_path / "log").write_text("before\n")
    command = [sys.executable, "-c", "import sys; print('out'); sys.exit(3)"]
    ended = process.run(command, env=os.environ, cwd=tmp_path, log=tmp_path / "log")
    assert (ended.status, ended.output) == (3, "out\n")
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0] == "before"
    assert lines[1].startswith("$ ")
    assert lines[2] == "out"


def test_endings_are_words():
    assert process.ending(255) == "exit status 255"
    assert process.ending(-11) == "killed by SIGSEGV"


def test_what_it_will_take_grows_with_the_graphs_and_shrinks_with_processors():
    small, large = estimate([1 << 20]), estimate([400 << 20])
    assert large.seconds > 10 * small.seconds
    assert 2000 < large.memory < 4000
    assert estimate([1 << 20] * 4, parallel=2).seconds == pytest.approx(estimate([1 << 20] * 4).seconds / 2)
    assert str(small).startswith("1 to compile: about 1 s, ")
    assert "min" in str(estimate([4000 << 20]))


def test_a_full_disk_is_said_before_compiling(tmp_path):
    with pytest.raises(UserError, match=r"MB of disk and .* are free; make room"):
        check_space(tmp_path / "cache", estimate([1 << 50]))
    check_space(tmp_path / "cache", estimate([1 << 10]))


@pytest.mark.parametrize("change", [{"lint": 7}, {"notes": None}, {"size": 6}, None])
def test_a_manifest_of_which_a_word_is_another_is_no_artefact(tmp_path, change):
    folder = whole(tmp_path / "a")
    assert manifest.read(folder) is not None
    facts = json.loads((folder / "manifest.json").read_text())
    if change is None:
        del facts["version"]
    (folder / "manifest.json").write_text(json.dumps({**facts, **(change or {})}))
    assert manifest.read(folder) is None


def test_what_is_sealed_comes_back_as_it_was():
    facts = {"b": 1, "a": {"x": [1, 2.5, None]}}
    assert store.unsealed(store.sealed(facts)) == facts
    for text in ("{}", "[]", "7", json.dumps(facts), store.sealed(facts).replace("2.5", "2.6"), "{"):
        with pytest.raises(ValueError, match=r"seal|Expecting"):
            store.unsealed(text)


class Said(Silent):
    """A progress that keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def test_what_is_not_in_the_cache_is_announced_before_it_is_compiled(tmp_path):
    said = Said()
    announce([JOB, replace(JOB, name="seg_1")], TOOLCHAIN, tmp_path, said)
    assert said.lines == [str(estimate([5, 5]))]
    whole(place_of(JOB, sha256(b"graph"), TOOLCHAIN, tmp_path))
    announce([JOB, replace(JOB, name="seg_1")], TOOLCHAIN, tmp_path, said)
    assert said.lines[1:] == [str(estimate([5]))]
    announce([JOB], TOOLCHAIN, tmp_path, said)
    assert len(said.lines) == 2


def test_what_the_disk_cannot_hold_is_refused_when_it_is_announced(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    with pytest.raises(UserError, match=r"MB of disk and 1 are free; make room"):
        announce([JOB], TOOLCHAIN, tmp_path, Said())


@pytest.mark.parametrize(
    ("chip", "mode", "word"),
    [("cv181x", "int8", "F16"), ("cv181x", "int8", "F32"), ("cv181x", "bf16", "W4F16"),
     ("bm1684x", "f16", "INT8")],
)  # fmt: skip
def test_a_format_that_the_chip_has_not_is_refused_before_anything_is_compiled(tmp_path, chip, mode, word):
    table, qtable = tmp_path / "t.txt", tmp_path / "q.txt"
    table.write_text("x 1 -1 1\n")
    qtable.write_text(f"layer0.o_Add {word}\n")
    job = replace(JOB, chip=chip, mode=mode, qtable=qtable, calibration=table if mode == "int8" else None)
    with pytest.raises(UserError, match=f"asks for layer0.o_Add in {word}, which a build for {chip} in"):
        stored_artefact(job, "d", TOOLCHAIN, tmp_path)


@pytest.mark.parametrize("word", ["BF16", "INT8"])
def test_a_format_that_the_chip_has_is_taken(tmp_path, word):
    table, qtable = tmp_path / "t.txt", tmp_path / "q.txt"
    table.write_text("x 1 -1 1\n")
    qtable.write_text(f"layer0.o_Add {word}\n")
    job = replace(JOB, chip="cv181x", mode="int8", qtable=qtable, calibration=table)
    assert stored_artefact(job, "d", TOOLCHAIN, tmp_path) is None
