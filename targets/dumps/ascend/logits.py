"""Files of MindIE's `run_pa` and of msit: `logits_{step}.pth`, `input_ids_{i}.pth`, `output_ids_{i}.txt`.

The cheapest end-to-end candidate: no layer is seen, but the prompt is checked and every step compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from parity.harness.arrays import to_array, to_tensor

from ..core import Contents, Dumped, ReadOptions, bad, checked_settings, read_text
from ..torch_files import checked_tensor, load_torch
from .choice import SETTINGS, Choice, arithmetic, token_ids
from .tree import folders

TAP = "logits"
_LOGITS = re.compile(r"logits_(?:(?P<dataset>.+)_(?P<key>[^_]+)_)?(?P<step>\d{1,9})\.pth")
_INPUT, _OUTPUT = re.compile(r"input_ids_(\d{1,9})\.pth"), re.compile(r"output_ids_(\d{1,9})\.txt")
_AXES = {1: "v", 2: "b v", 3: "b t v"}


@dataclass
class LogitsDump:
    """Steps of one request or batch; iterating opens one file at a time."""

    root: Path
    steps: Mapping[int, Path]
    choice: Choice

    def __iter__(self) -> Iterator[Dumped]:
        self.choice.used.clear()
        for number, path in self.steps.items():
            tensor = checked_tensor(path, TAP, load_torch(path))
            dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
            del tensor
            if self.choice.wants(TAP):
                axes = _AXES.get(len(shape), "")
                yield Dumped(TAP, shape, dtype, partial(_load, path), step=number, axes=axes, tap=TAP)
        self.choice.finish(self.root)


def _load(path: Path) -> np.ndarray:
    return np.array(to_array(checked_tensor(path, TAP, load_torch(path))), copy=True)


class LogitsReader:
    """`logits`: logits and token ids of a served model, step by step."""

    kind = "logits"
    summary = "logits_N.pth, input_ids_N.pth, output_ids_N.txt of MindIE run_pa and msit"
    settings: Mapping[str, str] = {
        "steps": SETTINGS["steps"],
        "leave_out": SETTINGS["leave_out"],
        "request": "which {dataset}_{key} to read, where msit wrote several",
    }

    def detects(self, path: Path) -> bool:
        """A file named logits_N.pth, or a folder with one at its top."""
        try:
            names = [path.name] if path.is_file() else [entry.name for entry in path.iterdir()]
        except OSError:
            return False
        return any(_LOGITS.fullmatch(name) for name in names)

    def read(self, path: Path, options: ReadOptions) -> Contents:
        """Open a folder of logits, or one file."""
        checked_settings(self, options)
        choice = Choice.of(options)
        folder = path if path.is_dir() else path.parent
        names = next(folders(path))[1] if path.is_dir() else [path.name]
        found = _steps(folder, names, options.text("request", ""))
        steps = dict(choice.chosen(found.items(), lambda item: item[0], path))
        tokens, notes = _prompts(folder, names)
        facts, said = arithmetic(options)
        fed = {} if tokens is None else _fed(folder, names, tokens)
        dump = LogitsDump(path, steps, choice)
        if sorted(steps) != list(range(min(steps), min(steps) + len(steps))):
            notes.append(f"steps are not in one row: {sorted(steps)}")
        return Contents(
            self.kind, facts, dump, tokens=tokens, notes=(*said, *notes), fed=fed, count=len(steps)
        )


def _steps(folder: Path, names: Sequence[str], request: str) -> dict[int, Path]:
    requests: dict[str, dict[int, Path]] = {}
    for name in names:
        if match := _LOGITS.fullmatch(name):
            of = f"{match['dataset']}_{match['key']}" if match["dataset"] else ""
            steps = requests.setdefault(of, {})
            if int(match["step"]) in steps:
                raise bad(folder / name, f"step {match['step']} comes twice")
            steps[int(match["step"])] = folder / name
    if not requests:
        raise bad(folder, "holds no logits_N.pth")
    if request and request not in requests:
        raise bad(folder, f"request={request!r} is not in it; it has {', '.join(sorted(requests))[:200]}")
    if not request and len(requests) > 1:
        raise bad(folder, f"holds several requests: {', '.join(sorted(requests))[:200]}; say request=NAME")
    chosen = requests[request] if request else next(iter(requests.values()))
    return dict(sorted(chosen.items()))


def _prompts(folder: Path, names: Sequence[str]) -> tuple[np.ndarray | None, list[str]]:
    """Prompts `[B, T]` in the order of their numbers; nothing, and a note, where their lengths differ."""
    rows = []
    for number, name in _numbered(_INPUT, names):
        tensor = checked_tensor(folder / name, f"input_ids_{number}", load_torch(folder / name))
        rows.append(token_ids(np.array(to_array(tensor), copy=True), folder / name, name))
    if not rows:
        return None, ["no input_ids_N.pth: that this is the scenario's prompt is not checked"]
    if len({row.shape[1] for row in rows}) > 1:
        return None, [f"{len(rows)} prompts of different lengths: they are not held against the scenario"]
    return np.concatenate(rows), []


def _fed(folder: Path, names: Sequence[str], tokens: np.ndarray) -> dict[int, np.ndarray]:
    """What each step was fed: the prompt, then what was generated, as far as all rows have it."""
    rows = [_ids(folder / name) for _, name in _numbered(_OUTPUT, names)]
    fed = {0: tokens}
    if len(rows) != len(tokens):
        return fed
    for at in range(min(map(len, rows)) - 1 if rows else 0):
        fed[at + 1] = np.array([[row[at]] for row in rows], np.int64)
    return fed


def _numbered(pattern: re.Pattern[str], names: Sequence[str]) -> list[tuple[int, str]]:
    return sorted((int(match[1]), name) for name in names if (match := pattern.fullmatch(name)))


def _ids(path: Path) -> list[int]:
    words = read_text(path).split()
    if not words or not all(word.isdecimal() and len(word) < 12 for word in words):
        raise bad(path, "should hold token ids parted by blanks")
    return [int(word) for word in words]


def write_logits(
    folder: Path,
    logits: Sequence[np.ndarray],
    prompts: Sequence[np.ndarray],
    generated: Sequence[Sequence[int]],
) -> None:
    """A folder like run_pa's, for tests and round trips."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    for step, array in enumerate(logits):
        torch.save(to_tensor(array).reshape(array.shape), folder / f"logits_{step}.pth")
    for number, prompt in enumerate(prompts):
        torch.save(to_tensor(prompt), folder / f"input_ids_{number}.pth")
    for number, ids in enumerate(generated):
        (folder / f"output_ids_{number}.txt").write_text(" ".join(map(str, ids)))
