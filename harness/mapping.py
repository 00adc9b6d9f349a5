"""Declared differences between two models: which candidate name means which reference name, and how its
array is laid out.

A map file is TOML; all names on the left are the candidate's, before renaming, and may be globs. Stars on
the right take what the stars on the left matched, in order:

    [rename]
    "module:layers.*.attn" = "module:h.*.attention"
    [axes]
    "module:layers.*" = "b t d"
    [inputs]
    "tokens" = "input_ids"            # the candidate's input = the reference's argument
    [[transform]]
    taps = "module:layers.*.attn"
    op = "transpose"                  # transpose, squeeze, reshape or dequantize; applied in file order
    args = [0, 2, 1]

Nothing is inferred: an array that no entry names is handed on untouched.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UserError, did_you_mean

_SECTIONS = ("rename", "axes", "inputs", "transform")
_OPS = ("transpose", "squeeze", "reshape", "dequantize")


@dataclass(frozen=True)
class Transform:
    """One declared operation on the arrays of the taps that a glob names."""

    taps: str
    op: str
    args: Any

    def __str__(self) -> str:
        """In words, for the report."""
        return f"{self.op} {self.args}"

    def __call__(self, tap: str, array: np.ndarray) -> np.ndarray:
        """The array with this operation undone or done; UserError where it does not fit."""
        try:
            return _dequantize(array, **self.args) if self.op == "dequantize" else _reshaped(array, self)
        except (ValueError, TypeError, IndexError) as error:
            raise UserError(
                f"transform={self.taps!r}: {self} does not fit {tap!r} of shape {tuple(array.shape)}: {error}"
            ) from error


def _reshaped(array: np.ndarray, transform: Transform) -> np.ndarray:
    args = tuple(transform.args)
    if transform.op == "transpose":
        return array.transpose(args)
    if transform.op == "squeeze":
        return np.squeeze(array, args)
    return array.reshape(args)


def _dequantize(
    array: np.ndarray, *, scale: float | list[float], zero_point: int | list[int] = 0, axis: int | None = None
) -> np.ndarray:
    """(q - zero_point) * scale in float32; one scale, or one per index along `axis`."""
    if array.dtype.kind not in "iu":
        raise TypeError(f"dequantize needs integers, the record holds {array.dtype}")
    scales, zeros = np.asarray(scale, np.float32), np.asarray(zero_point, np.int64)
    if (scales.ndim or zeros.ndim) and axis is None:
        raise ValueError("several scales need an axis")
    shape = [1] * array.ndim
    if axis is not None:
        shape[axis] = -1
    centred = array.astype(np.int64) - (zeros.reshape(shape) if zeros.ndim else zeros)
    return centred.astype(np.float32) * (scales.reshape(shape) if scales.ndim else scales)


@dataclass(frozen=True)
class TapMap:
    """Renames, axes, inputs and transforms of one candidate."""

    source: str = ""
    renames: Mapping[str, str] = field(default_factory=dict)
    axes_of: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    transforms: Sequence[Transform] = ()

    def rename(self, tap: str) -> str:
        """The reference's name of a candidate tap; its own name where no entry names it."""
        pattern = _find(self.renames, tap, self.source)
        return tap if pattern is None else _fill(pattern, tap, self.renames[pattern])

    def names(self, taps: Iterable[str]) -> dict[str, str]:
        """Reference name -> candidate tap, in order; UserError if two taps end up under one name."""
        table: dict[str, str] = {}
        for tap in taps:
            name = self.rename(tap)
            other = table.setdefault(name, tap)
            if other != tap:
                raise UserError(f"map={self.source!r}: {other!r} and {tap!r} are both mapped onto {name!r}")
        return table

    def axes(self, tap: str) -> str | None:
        """The declared axes of a candidate tap (after its transforms); None where none are declared."""
        pattern = _find(self.axes_of, tap, self.source)
        return None if pattern is None else self.axes_of[pattern]

    def input(self, name: str) -> str:
        """The reference's argument that the candidate calls `name`."""
        return self.inputs.get(name, name)

    def apply(self, tap: str, array: np.ndarray) -> np.ndarray:
        """The array after every transform whose glob names this candidate tap, in file order."""
        for transform in self._chain(tap):
            array = transform(tap, array)
        return array

    def rule(self, tap: str) -> str:
        """What the map does to a tap, in words; empty if nothing."""
        renamed = _find(self.renames, tap, self.source) is not None
        words = [f"renamed from {tap}"] if renamed else []
        words += [str(transform) for transform in self._chain(tap)]
        return ", ".join(words) + f" (declared in {self.source})" if words else ""

    def transformed(self, tap: str) -> bool:
        """Whether a tap's array is changed, not only its name."""
        return bool(self._chain(tap))

    def unmatched(self, taps: Iterable[str]) -> list[str]:
        """Entries that name none of these candidate taps, as `section "name"`."""
        known = list(taps)
        entries = [("rename", key) for key in self.renames] + [("axes", key) for key in self.axes_of]
        entries += [("transform", item.taps) for item in self.transforms]
        return [f'{name} "{key}"' for name, key in entries if not any(_match(key, tap) for tap in known)]

    def unmatched_inputs(self, names: Iterable[str]) -> list[str]:
        """Entries of [inputs] that name none of the candidate's inputs."""
        return [f'inputs "{key}"' for key in self.inputs if key not in set(names)]

    def _chain(self, tap: str) -> list[Transform]:
        return [item for item in self.transforms if _match(item.taps, tap)]


def _match(pattern: str, tap: str) -> bool:
    return re.match(_regex(pattern), tap) is not None


def _regex(pattern: str) -> str:
    """A glob as a regular expression in which every star is a group; `[` is no special sign in tap names."""
    pieces = [re.escape(piece) for piece in pattern.split("*")]
    return "(?s:" + "(.*)".join(pieces) + r")\Z"


def _find(table: Mapping[str, str], tap: str, source: str) -> str | None:
    """The entry for a tap: its exact name, else the one glob that matches; UserError for two."""
    if tap in table:
        return tap
    globs = [pattern for pattern in table if "*" in pattern and _match(pattern, tap)]
    if len(globs) > 1:
        raise UserError(
            f"map={source!r}: {globs[0]!r} and {globs[1]!r} both match {tap!r}; make one narrower"
        )
    return globs[0] if globs else None


def _fill(pattern: str, tap: str, template: str) -> str:
    match = re.match(_regex(pattern), tap)
    assert match is not None
    pieces = template.split("*")
    return "".join(a + b for a, b in zip(pieces, [*match.groups()[: len(pieces) - 1], ""], strict=True))


def load_map(path: str | Path) -> TapMap:
    """Read a map file; UserError for what is no map: unknown keys, wrong types, two names mapped onto one."""
    source = Path(path)
    try:
        data = tomllib.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"map={str(path)!r}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"map={str(path)!r}: is not TOML: {error}") from error
    _known(str(path), data, _SECTIONS, "section")
    tables = {name: _table(str(path), name, data.get(name, {})) for name in ("rename", "axes", "inputs")}
    for section in ("rename", "inputs"):
        _one_to_one(str(path), section, tables[section])
    entries = data.get("transform", [])
    if not isinstance(entries, list):
        raise UserError(f"map={str(path)!r}: transform is a list; write [[transform]]")
    transforms = tuple(_transform(str(path), entry) for entry in entries)
    return TapMap(source.name, tables["rename"], tables["axes"], tables["inputs"], transforms)


def _known(source: str, data: Mapping[str, Any], options: Sequence[str], what: str) -> None:
    for key in data:
        if key not in options:
            raise UserError(f"map={source!r}: unknown {what} {key!r}. {did_you_mean(key, options)}")


def _table(source: str, section: str, table: Any) -> dict[str, str]:
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise UserError(f'map={source!r}: [{section}] holds lines like "candidate name" = "text"')
    return table


def _one_to_one(source: str, section: str, table: Mapping[str, str]) -> None:
    for left, right in table.items():
        if section == "rename" and left.count("*") < right.count("*"):
            raise UserError(f"map={source!r}: {right!r} has more stars than {left!r}: nothing fills them")
        twins = [key for key, value in table.items() if value == right]
        if len(twins) > 1:
            raise UserError(f"map={source!r}: {twins[0]!r} and {twins[1]!r} are both mapped onto {right!r}")


def _transform(source: str, entry: Mapping[str, Any]) -> Transform:
    _known(source, entry, ("taps", "op", "args"), "key of [[transform]]")
    for key in ("taps", "op", "args"):
        if key not in entry:
            raise UserError(f"map={source!r}: a [[transform]] lacks {key!r}")
    op, args = entry["op"], entry["args"]
    if op not in _OPS:
        raise UserError(f"map={source!r}: op={op!r} is unknown. {did_you_mean(str(op), _OPS)}")
    if op == "dequantize":
        if not isinstance(args, dict) or "scale" not in args:
            raise UserError(
                f"map={source!r}: dequantize takes args = {{ scale = .., zero_point = .., axis = .. }}"
            )
        _known(source, args, ("scale", "zero_point", "axis"), "argument of dequantize")
    elif not isinstance(args, list) or not all(type(value) is int for value in args):
        raise UserError(f"map={source!r}: {op} takes args = [whole numbers], not {args!r}")
    return Transform(str(entry["taps"]), op, args)
