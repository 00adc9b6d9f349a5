"""The passages of a text that are scored: windows of a full context and the tokens behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from parity.harness.case import Case, Scenario
from parity.harness.errors import UserError

from .request import DEFAULT_MODEL, Request

if TYPE_CHECKING:
    from parity.harness.case import Model

#: Context of a window where the model has no own.
CONTEXT = 64


def text_of(text: str | Path | None, request: Request, model: Model) -> tuple[np.ndarray, str]:
    """Token ids `[N]` and what they are."""
    if text is not None:
        path = Path(text)
        try:
            return np.array(model.encode(path.read_text(encoding="utf-8")), np.int64), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"text={str(path)!r}: cannot be read: {error}") from error
    if request.prompt is not None:
        return np.array(model.encode(request.prompt), np.int64), "the prompt"
    if request.scenario is not None:
        from parity.fixtures import load_scenario

        return np.array(
            load_scenario(request.scenario, model).ids[0], np.int64
        ), f"scenario {request.scenario}"
    return _held_out(request.model or DEFAULT_MODEL, model)


def _held_out(name: str, model: Model) -> tuple[np.ndarray, str]:
    """What training never saw, its rare characters replaced as they were in training."""
    from parity.reference.training.settings import SETTINGS
    from parity.reference.training.text import library_text

    if name not in SETTINGS:
        raise UserError(f"text: there is no held-out text for {name}; name a file with --text")
    clip = SETTINGS[name].clip_code
    ids = np.minimum(np.array([ord(letter) for letter in library_text().held_out], np.int64), clip)
    return ids, "held-out documentation"


@dataclass(frozen=True)
class Window:
    """A passage `[context + scored + 1]`; the i-th logits should say the token at `context + i + 1`."""

    case: Case
    ids: np.ndarray
    context: int

    @property
    def scored(self) -> int:
        """Tokens whose prediction is scored."""
        return len(self.ids) - self.context - 1

    @property
    def targets(self) -> np.ndarray:
        """Tokens that came, `[scored]`."""
        return self.ids[self.context + 1 :]

    def scenario(self, *, at_once: bool) -> Scenario:
        """One prefill of everything, or a full context and one decode step per scored token."""
        prompt = self.ids[:-1] if at_once else self.ids[: self.context]
        steps = 0 if at_once else self.scored
        return replace(
            self.case.scenario, ids=(tuple(map(int, prompt)),), steps=steps, pad_to=None, resets=(), texts=()
        )


def windows_of(case: Case, ids: np.ndarray, tokens: int, length: int) -> Iterator[Window]:
    """Passages spread evenly over the text. UserError where it is too short for one."""
    context = case.scenario.policy.window or min(CONTEXT, max(1, len(ids) // 4))
    limit = getattr(case.model.config, "max_length", None)
    length = length if limit is None else min(length, limit - context - 1)
    if len(ids) < context + 2 or length < 1:
        raise UserError(
            f"text={len(ids)} tokens: too short; a window needs {context} of context and one to predict"
        )
    length = min(length, len(ids) - context - 1)
    number = min(-(-tokens // length), max(1, (len(ids) - context - 1) // length))
    starts = np.linspace(0, len(ids) - context - length - 1, number).round().astype(int)
    left = tokens
    for start in starts:
        size = min(length, left)
        left -= size
        yield Window(case, ids[start : start + context + size + 1], context)


def positive(name: str, value: int) -> int:
    """The value; UserError for one below 1."""
    if value < 1:
        raise UserError(f"{name}={value}: must be at least 1")
    return value
