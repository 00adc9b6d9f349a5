"""Training text that every machine has: the prose of the standard library's documentation.

Topics of the language reference and docstrings, reflowed to one paragraph per line. Tables, code and
one-word entries are left out: on raw pages a small model learns indentation, and its greedy text is spaces.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from parity.harness.errors import UserError

HELD_OUT_EVERY = 16
MIN_CHARACTERS = 100_000


@dataclass(frozen=True)
class Text:
    """What is learnt, and what is only measured on."""

    training: str
    held_out: str


def library_text() -> Text:
    """Split by whole documents (a topic, a module), every 16th held out; a paragraph counts once.

    UserError where the standard library has no sources and thus too little text.
    """
    seen: set[str] = set()
    parts: dict[bool, list[str]] = {False: [], True: []}
    for index, document in enumerate([*_topics(), *_docstrings()]):
        fresh = [line for line in paragraphs(document) if line not in seen]
        seen.update(fresh)
        parts[index % HELD_OUT_EVERY == HELD_OUT_EVERY // 2] += fresh
    text = Text("\n".join(parts[False]), "\n".join(parts[True]))
    if len(text.training) < MIN_CHARACTERS or not text.held_out:
        raise UserError(
            f"text={len(text.training)} characters: this Python has too little documentation to train on; "
            "install its standard library's sources"
        )
    return text


def paragraphs(document: str) -> list[str]:
    """The paragraphs of a page that are prose, each on one line."""
    joined = (" ".join(_content(block)) for block in re.split(r"\n\s*\n", document))
    return [line for line in joined if _is_prose(line)]


def _content(block: str) -> Iterator[str]:
    """Words of the lines that are no rules or underlines."""
    for line in block.splitlines():
        if re.search(r"\w", line):
            yield from line.split()


def _is_prose(line: str) -> bool:
    if len(line) < 40 or line[-1] not in ".:;!?" or ">>>" in line:
        return False
    letters = sum(character.isalpha() or character == " " for character in line)
    return letters >= 0.9 * len(line)


def _topics() -> list[str]:
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        return []
    return [topics[name] for name in sorted(topics)]


def _docstrings() -> Iterator[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for name in sorted(sys.stdlib_module_names):
        for path in (root / f"{name}.py", *sorted((root / name).glob("*.py"))):
            if path.is_file():
                yield "\n\n".join(_docstrings_of(path))


def _docstrings_of(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old modules have escapes that newer compilers warn of
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
