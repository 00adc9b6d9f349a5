"""How each model is trained: rows of one table, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from parity.harness.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Settings:
    """One training. `batch` sequences of `length` characters per step.

    `on_the_spot`: short enough to be done when a run finds no checkpoint. `threads`: None leaves torch's
    number; with a number the bits do not depend on how many cores a machine has.
    """

    steps: int
    batch: int
    length: int
    learning_rate: float
    warmup: int
    final_share: float = 0.02
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    max_norm: float = 1.0
    clip_code: int = 128
    on_the_spot: bool = False
    threads: int | None = None


SETTINGS: dict[str, Settings] = {
    "klm": Settings(steps=20_000, batch=16, length=1024, learning_rate=1e-3, warmup=500),
    # One thread: a step takes 0.09 s; two take 0.06 s on two idle cores, but 0.22 to 1 s beside other work.
    "klm-tiny": Settings(
        steps=1800, batch=8, length=128, learning_rate=3e-3, warmup=100, on_the_spot=True, threads=1
    ),
}


def settings_for(name: str) -> Settings:
    """The row of a model."""
    if name not in SETTINGS:
        raise UserError(
            f"model={name!r}: there are no training settings for it. {did_you_mean(name, SETTINGS)}"
        )
    return SETTINGS[name]


def learning_rate(settings: Settings, step: int) -> float:
    """Rate of step 0, 1, ...: linear warmup, then a cosine down to `final_share` of the peak."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    share = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))
    return settings.learning_rate * (settings.final_share + (1.0 - settings.final_share) * cosine)
