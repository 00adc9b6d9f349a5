"""Factories that a person names: whatever is wrong with them is one sentence."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from parity.harness.errors import UserError
from parity.harness.imports import build_module, describe, load_factory


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a package `theirs`; what is imported from it is forgotten afterwards."""
    package = tmp_path / "theirs"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "net.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def __init__(self):\n"
        "        super().__init__(2, 2)\n"
        "    @classmethod\n"
        "    def small(cls):\n"
        "        return cls()\n"
        "def build():\n"
        "    from theirs import late\n"
        "    return Net()\n"
        "def broken():\n"
        "    raise RuntimeError('no weights')\n"
        "def wrong():\n"
        "    return 3\n"
        "ready = Net()\n"
        "number = 3\n"
    )
    (package / "late.py").write_text("")
    (package / "bad.py").write_text("x = 1\ny = x.nothing\n")
    (package / "needs.py").write_text("import not_installed_anywhere\n")
    (package / "typo.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "theirs":
            del sys.modules[name]


def test_a_factory_in_the_working_folder_is_found_and_the_path_put_back(folder: Path) -> None:
    before = list(sys.path)
    factory = load_factory("theirs.net:build")
    assert sys.path == before
    assert factory.__name__ == "build"


@pytest.mark.parametrize("attribute", ["build", "Net", "Net.small", "ready"])
def test_a_function_a_class_a_method_and_a_module_all_give_a_module(folder: Path, attribute: str) -> None:
    assert isinstance(build_module(f"theirs.net:{attribute}"), torch.nn.Module)


def test_random_weights_are_the_same_each_time_and_the_generator_is_put_back(folder: Path) -> None:
    state = torch.get_rng_state()
    first, second = build_module("theirs.net:build", seed=7), build_module("theirs.net:build", seed=7)
    other = build_module("theirs.net:build", seed=8)
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight, other.weight)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("theirs/net.py:build", "write mypkg.net:build"),
        ("theirs.net", "is not PKG.MOD:FACTORY"),
        ("theirs.nett:build", "no module 'theirs.nett' in theirs. Did you mean 'net'"),
        ("thiers.net:build", "Did you mean 'theirs'"),
        ("theirs.net:buildd", "Did you mean 'build'"),
        ("theirs.net:number", "is a int, but should be a function"),
        ("theirs.bad:build", r"AttributeError: .*bad.py:2, in <module>: y = x.nothing"),
        ("theirs.needs:build", r"not_installed_anywhere.*needs.py:1"),
        ("theirs.typo:build", r"SyntaxError: .*typo.py:1"),
    ],
)
def test_a_wrong_name_or_a_broken_file_is_one_sentence(folder: Path, spec: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_factory(spec)


def test_a_failing_factory_names_the_line_and_a_wrong_return_its_type(folder: Path) -> None:
    with pytest.raises(UserError, match=r"RuntimeError: no weights \(.*net.py:12, in broken"):
        build_module("theirs.net:broken")
    with pytest.raises(UserError, match="returned a int, but should return"):
        build_module("theirs.net:wrong")


def test_an_error_without_a_frame_of_the_user_is_told_by_itself() -> None:
    assert describe(ValueError("odd")) == "ValueError: odd"
