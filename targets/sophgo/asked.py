"""What the argument of `cvi:` or `bm1684x:` says: chip, mode, level, tables, or files compiled elsewhere."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from parity.harness.errors import UserError, did_you_mean

from .compile.chips import CHIPS, MODES, Chip, Mode, chip_named, group_size_for, mode_for
from .compile.tables import check_formats, read_qtable

#: Behind a segment's name, in a folder with one table each.
ENDING = "_qtable.txt"
#: How far towards the chip a candidate goes. `tapped` is the simulator on a build whose taps are outputs.
LEVELS = ("onnx", "top", "tpu", "sim", "tapped")
SUFFIXES = tuple(dict.fromkeys(chip.suffix for chip in CHIPS.values()))


@dataclass(frozen=True)
class Asked:
    """One candidate of a chip; `path` is what was compiled elsewhere."""

    chip: Chip
    mode: Mode
    level: str = "sim"
    masked: bool = False
    group_size: int = 0
    table: Path | None = None
    qtable: Path | None = None
    path: Path | None = None
    mode_said: bool = False

    @property
    def computed_in(self) -> str:
        """The number format that its error is judged by: a float format, or a profile of quantization."""
        if self.level in ("onnx", "top"):
            return "float32"
        return computed_in(self.mode)


def computed_in(mode: Mode) -> str:
    """The arithmetic of a mode."""
    if mode.calibrated:
        return "w8a8"
    if mode.weight_bits is not None:
        return f"w{mode.weight_bits}a16"
    return {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[mode.format]


def parse_arg(name: str, arg: str, *, chip: str, mode: str) -> Asked:
    """Words joined by +, in any order; `chip` and `mode` are the target's own. UserError for others."""
    path, words = _path(name, arg)
    group: int | None = None
    asked = Asked(chip_named(chip), MODES[mode], path=path)
    for word in words:
        key, equals, value = word.partition("=")
        if equals:
            if key == "group":
                group = _number(name, value)
            elif key == "table":
                asked = replace(asked, table=_file(f"{name}:table", value, folder=True))
            elif key == "qtable":
                asked = replace(asked, qtable=_file(f"{name}:qtable", value, folder=True))
            else:
                near = did_you_mean(key, ("group", "table", "qtable"))
                raise UserError(f"{name}:{arg}: {key!r} is unknown. {near}")
        elif word in CHIPS:
            chip = word
        elif word.lower() in MODES:
            mode = word
            asked = replace(asked, mode_said=True)
        elif word in LEVELS:
            asked = replace(asked, level=word)
        elif word == "masked":
            asked = replace(asked, masked=True)
        else:
            known = (*LEVELS, *MODES, *CHIPS, "masked", "group=N", "table=FILE", "qtable=FILE")
            near = did_you_mean(word, known)
            raise UserError(f"{name}:{arg}: {word!r} is neither a word nor a path that exists. {near}")
    return _sound(name, replace(asked, chip=chip_named(chip)), mode, group)


def _sound(name: str, asked: Asked, mode: str, group: int | None) -> Asked:
    """The chip belongs to the target, and has the mode and the formats of the qtable."""
    family = "cvi" if name == "cvi" else "bm"
    if asked.chip.family != family:
        own = ", ".join(chip.name for chip in CHIPS.values() if chip.family == family)
        raise UserError(f"{name}:{asked.chip.name}: is a chip of another family; {name} takes {own}")
    if asked.path is not None and asked.level not in ("sim", "tapped"):
        raise UserError(
            f"{name}:{asked.path}: files compiled elsewhere run on the simulator only; drop {asked.level!r}"
        )
    found = mode_for(asked.chip, mode)
    if asked.qtable is not None:
        for path in set(qtables(asked.qtable).values()) or {asked.qtable}:
            check_formats(path, read_qtable(path), asked.chip, found)
    return replace(asked, mode=found, group_size=group_size_for(found, group))


def qtables(path: Path | None, names: Collection[str] = ()) -> dict[str, Path]:
    """Segment -> table: the one of all of `names`, or those of a folder. UserError for a table of none."""
    if path is None or not path.is_dir():
        return {} if path is None else dict.fromkeys(names, path)
    found = {file.name.removesuffix(ENDING): file for file in sorted(path.glob(f"*{ENDING}"))}
    if not found:
        raise UserError(f"qtable={str(path)!r}: holds no SEGMENT{ENDING}")
    lost = [name for name in found if names and name not in names]
    if lost:
        raise UserError(f"qtable={str(found[lost[0]])!r}: is of no segment. {did_you_mean(lost[0], names)}")
    return found


def _path(name: str, arg: str) -> tuple[Path | None, list[str]]:
    """The path that the argument begins with, if it does, and the words."""
    if arg and Path(arg).exists():
        return Path(arg).absolute(), []
    words = [word for word in arg.split("+") if word]
    if words and ("/" in words[0] or words[0].endswith(SUFFIXES) or Path(words[0]).exists()):
        return _file(name, words[0], folder=True), words[1:]
    return None, words


def _file(name: str, text: str, *, folder: bool = False) -> Path:
    path = Path(text)
    if not path.exists() or (path.is_dir() and not folder):
        raise UserError(f"{name}={text!r}: there is no such file")
    return path.absolute()


def _number(name: str, text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"{name}:group={text}: should be a whole number, for example group=64")
    return int(text)
