"""Examples in docstrings are run: what they show is what happens."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

FACE = Path(__file__).resolve().parents[2] / "src" / "parity"
ROOMS = [FACE, *(path for path in FACE.iterdir() if path.is_symlink())]


def modules_with_examples() -> list[str]:
    """Names of our modules whose source shows a prompt."""
    files = sorted({path for room in ROOMS for path in room.rglob("*.py")})
    shown = [
        path.relative_to(FACE.parent).with_suffix("") for path in files if ">>> " in path.read_text("utf-8")
    ]
    return [".".join(path.parts).removesuffix(".__init__") for path in shown]


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_of_a_module_are_true(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path / "cache"))
    found = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    assert found.attempted > 0
    assert found.failed == 0


def test_the_python_call_is_documented_by_examples():
    assert "parity" in modules_with_examples()
