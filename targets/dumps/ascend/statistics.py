"""Dumps that hold statistics in place of tensors: what can still be compared, and what cannot.

A tensor's maximum, minimum, mean and norm become a record `NAME:statistics` of that many float64 numbers.
It can be held against another statistics dump only; no element, channel or token is ever seen.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..core import Dumped, bad, read_text

#: The records' numbers, in this order, as far as a dump has them.
NUMBERS = ("max", "min", "mean", "norm")
_WORDS = {"avg": "mean", "l2norm": "norm"}
NOTE = (
    "holds statistics, no tensors: records named NAME:statistics keep maximum, minimum, mean and norm, and "
    "can be compared with another statistics dump only"
)


def entry(name: str, said: Mapping[str, Any], path: Path, meta: Mapping[str, Any]) -> Dumped | None:
    """The record of one tensor's statistics; None where a dump states none (an empty or complex tensor)."""
    found = {word: number for key, value in said.items() for word, number in _number(key, value, path)}
    words = [word for word in NUMBERS if word in found]
    if not words:
        return None
    values = np.array([found[word] for word in words], np.float64)
    told = {**meta, "statistics": words}
    return Dumped(f"{name}:statistics", values.shape, "float64", values.copy, meta=told)


def _number(key: str, value: Any, path: Path) -> Iterator[tuple[str, float]]:
    plain = key.strip().lower().removesuffix(" value")
    word = _WORDS.get(plain, plain)
    if word not in NUMBERS or value is None or str(value).strip() in ("", "N/A", "null", "None"):
        return
    text = {"true": "1", "false": "0"}.get(str(value).strip().lower(), value)
    try:
        yield word, float(text)
    except (ValueError, TypeError, OverflowError) as error:
        raise bad(path, f"the statistic {key} is {str(value)[:40]!r}, which is no number") from error


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a csv by column name; UserError for what is no table."""
    try:
        rows = [row for row in csv.reader(io.StringIO(read_text(path)), strict=True) if row]
    except csv.Error as error:
        raise bad(path, f"is no csv ({error})") from error
    if not rows:
        raise bad(path, "is empty; should begin with a line of column names")
    header = [word.strip() for word in rows[0]]
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise bad(
                path, f"line {number} has {len(row)} columns, its header {len(header)}; it is cut short"
            )
    return [dict(zip(header, row, strict=True)) for row in rows[1:]]


def column(row: Mapping[str, str], name: str, path: Path) -> str:
    """A column that must be there."""
    if name not in row:
        raise bad(path, f"has no column {name!r}; its columns are {', '.join(row)[:120]}")
    return row[name]
