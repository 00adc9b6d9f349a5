"""The tokens that both sides of a comparison would emit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenStep:
    """The token that each side would emit after one step, for one sequence.

    `explained` is how far the two logits may move against each other within what is allowed, if known.
    """

    step: int
    sequence: int
    expected: int
    actual: int
    expected_margin: float
    actual_margin: float
    explained: float | None = None

    @property
    def tie(self) -> bool | None:
        """Whether what is allowed explains the other choice; None where nobody says what is."""
        return None if self.explained is None else abs(self.expected_margin) <= self.explained


@dataclass(frozen=True)
class Tokens:
    """Texts of both sides and where they part; `free` says whether the candidate ran on its own tokens."""

    compared: int = 0
    agreed: int = 0
    flips: tuple[TokenStep, ...] = ()
    expected_text: tuple[str, ...] = ()
    actual_text: tuple[str, ...] = ()
    free: bool = False
