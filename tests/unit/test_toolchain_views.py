"""The loader is led by folders of links; nothing inside the package is ever written."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from parity.harness.errors import UserError
from parity.targets.sophgo.toolchain import CHIP_LIBRARIES, Toolchain, hostlibs
from parity.targets.sophgo.toolchain.hostlibs import Host, host
from parity.targets.sophgo.toolchain.views import links_of, view

needs_host = pytest.mark.skipif(bool(host().problems()), reason=f"this host: {host().problems()}")


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A folder laid out as the package is, with empty files."""
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tpu_mlir"
    names = {files[0] for row in CHIP_LIBRARIES.values() for files in row.values()}
    shipped = ("libc.so.6", "libstdc++.so.6", "libgcc_s.so.1")
    for name in (*names, *(f"third_party/{name}" for name in shipped)):
        path = folder / "lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (folder / "bin").mkdir()
    (folder / "bin" / "tpuc-opt").touch()
    return folder


@pytest.fixture
def toolchain(package) -> Toolchain:
    return Toolchain(package.parent, package, None, "1.0", adopted=True)


def a_host(**changes) -> Host:
    """A host whose libraries lie in one folder, each as new as it must be."""
    names = (*hostlibs.REQUIRED, *hostlibs.OPTIONAL)
    return replace(Host({name: Path("/usr/lib/libc.so.6") for name in names}, {}, (2, 36)), **changes)


@needs_host
def test_a_view_leads_to_the_libraries_of_this_host_and_of_one_chip(package):
    folder = view(package, "bm1688")
    links = {path.name: path.readlink() for path in folder.iterdir()}
    assert links["libcmodel.so"] == package / "lib" / "libcmodel_bm1688.so"
    assert links["libbmlib.so.0"] == package / "lib" / "libbmlib_bm1684x.so.0"
    for name in hostlibs.REQUIRED:
        assert links[name] == host().libraries[name]
        assert package not in links[name].parents


@needs_host
def test_chips_of_the_cvi_family_need_no_link_of_their_own(package):
    assert not {"libcmodel.so", "libbmlib.so.0"} & {path.name for path in view(package, "cv181x").iterdir()}


@needs_host
def test_an_older_package_has_one_bmlib_for_all_but_the_newest_chip(package, toolchain):
    (package / "lib" / "libbmlib_bm1684x.so.0").rename(package / "lib" / "libbmlib.so.0")
    assert not (view(package, "bm1684x") / "libbmlib.so.0").exists()
    assert toolchain.library("libbmlib.so.0", "bm1684x") == package / "lib" / "libbmlib.so.0"
    newest = view(package, "bm1684x2") / "libbmlib.so.0"
    assert newest.readlink() == package / "lib" / "libbmlib_bm1684x2.so.0"


@needs_host
def test_a_view_is_made_once_and_mended_when_a_link_is_lost(package):
    folder = view(package, "bm1684x")
    before = folder.stat().st_mtime_ns
    assert view(package, "bm1684x") == folder
    assert folder.stat().st_mtime_ns == before
    (folder / "libc.so.6").unlink()
    assert view(package, "bm1684x") == folder
    assert (folder / "libc.so.6").exists()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@needs_host
def test_another_package_has_another_view(package, tmp_path):
    first = view(package, "bm1684x")
    package.rename(tmp_path / "moved")
    assert view(tmp_path / "moved", "bm1684x") != first


def test_an_old_libstdcxx_gives_way_to_that_of_the_package(package, tmp_path):
    old, new = tmp_path / "old.so", tmp_path / "new.so"
    old.write_bytes(b"GLIBCXX_3.4.29\0")
    new.write_bytes(b"GLIBCXX_3.4.29\0GLIBCXX_3.4.30\0")
    libraries = a_host().libraries
    shipped = str(package / "lib" / "third_party" / "libstdc++.so.6")
    for file, expected in ((old, shipped), (None, shipped), (new, str(new))):
        found = a_host(libraries={**libraries, "libstdc++.so.6": file})
        assert links_of(package, "cv181x", found)["libstdc++.so.6"] == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"glibc": (2, 31)}, "glibc=2.31: TPU-MLIR needs 2.34 or newer"),
        ({"glibc": None}, "no glibc"),
        (
            {
                "libraries": {**a_host().libraries, "libtinfo.so.6": None},
                "reasons": {"libtinfo.so.6": "cannot open shared object file"},
            },
            "libtinfo.so.6: cannot open shared object file; install the system package that holds",
        ),
    ],
    ids=["old", "none", "tinfo"],
)
def test_a_host_that_lacks_something_says_what(changes, words):
    (problem,) = a_host(**changes).problems()
    assert words in problem


def test_an_unfit_host_is_an_error_when_a_child_is_to_be_started(toolchain, tmp_path, monkeypatch):
    monkeypatch.setattr("parity.targets.sophgo.toolchain.views.host", lambda: a_host(glibc=(2, 31)))
    with pytest.raises(UserError, match=r"glibc=2\.31"):
        toolchain.environment("cv181x", tmp_path / "work")


def test_an_unknown_chip_names_the_nearest(toolchain, tmp_path):
    with pytest.raises(UserError, match="Did you mean 'cv181x'"):
        toolchain.environment("cv181", tmp_path)


@needs_host
def test_what_this_process_was_told_does_not_reach_a_child(toolchain, tmp_path, monkeypatch):
    for name in ("PYTHONPATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONHOME", "SECRET"):
        monkeypatch.setenv(name, "/nowhere")
    found = toolchain.environment("cv181x", tmp_path / "work")
    assert "/nowhere" not in found.values()
    assert found["LD_LIBRARY_PATH"].split(":")[1:] == [str(toolchain.package / "lib")]


@needs_host
def test_a_child_writes_at_home_in_its_work_folder(toolchain, tmp_path):
    found = toolchain.environment("cv181x", tmp_path / "work")
    for name in ("HOME", "TMPDIR"):
        assert Path(found[name]).is_dir()
        assert tmp_path / "work" in Path(found[name]).parents


@needs_host
def test_a_kernel_is_built_in_the_work_folder_by_the_package_s_own_scripts(toolchain, tmp_path, monkeypatch):
    """Every child may have to build one: without either variable the compiler dies of a null string."""
    monkeypatch.chdir(tmp_path)
    found = toolchain.environment("bm1688", Path("work"))
    assert found["PWD"] == str(tmp_path / "work")
    assert found["PPL_RUNTIME_PATH"] == str(toolchain.package / "cross_toolchains" / "ppl_compile" / "deps")


@needs_host
def test_programs_of_this_host_start_in_that_environment(toolchain, tmp_path):
    """The stock scripts' environment breaks even `ls`."""
    found = toolchain.environment("bm1684x", tmp_path)
    for argv in (["/bin/ls", "/"], [sys.executable, "-c", "import ctypes, ssl"]):
        subprocess.run(argv, env=found, check=True, capture_output=True)


def test_tools_and_libraries_are_found_by_name(toolchain):
    lib = toolchain.package / "lib"
    assert toolchain.tool("tpuc-opt") == toolchain.package / "bin" / "tpuc-opt"
    assert toolchain.library("libcmodel.so", "bm1684x2") == lib / "libcmodel_bm1684x2.so"
    assert toolchain.library("libcviruntime.so", "cv181x") == lib / "libcviruntime.so"
    with pytest.raises(UserError, match=r"has no bin/no-such-tool"):
        toolchain.tool("no-such-tool")


@needs_host
def test_a_cache_that_cannot_be_written_is_named(package, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="set PARITY_CACHE to a folder that can"):
        view(package, "cv181x")


@needs_host
def test_the_package_is_left_as_it_was(package, tmp_path):
    before = {path: path.lstat().st_mtime_ns for path in package.rglob("*")}
    for chip in CHIP_LIBRARIES:
        Toolchain(package, package, None, "1.0", adopted=True).environment(chip, tmp_path / chip)
    assert {path: path.lstat().st_mtime_ns for path in package.rglob("*")} == before


@needs_host
def test_many_processes_may_make_one_view_at_once(package):
    code = (
        "import sys; from pathlib import Path; from parity.targets.sophgo.toolchain.views import view; "
        "print(view(Path(sys.argv[1]), 'bm1684x'))"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code, package], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = {child.communicate()[0].strip() for child in children}
    assert [child.returncode for child in children] == [0] * 4
    (folder,) = said
    assert {path.name for path in Path(folder).iterdir()} >= set(hostlibs.REQUIRED)
    assert len(list(Path(folder).parent.iterdir())) == 1
