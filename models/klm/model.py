"""KLM as references and targets see it: one object per row. Torch is imported when weights are touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, cast

from parity.harness.case import Role, Wiring
from parity.harness.errors import UserError, did_you_mean

from .config import ROWS, KLMConfig
from .renames import families, renames
from .roles import roles
from .wiring import taps, widths, wiring

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class KLMModel:
    """One row of the family; fulfils `harness.case.Model`."""

    name: str
    config: KLMConfig

    @property
    def vocab_size(self) -> int:
        """Character codes that the model knows."""
        return self.config.vocab_size

    @property
    def window(self) -> int:
        """Rows that the deployed model attends to: the window of a bare `window` cache policy."""
        return self.config.window

    @cached_property
    def wiring(self) -> Wiring:
        """Segments without a mask, as the default static build has them."""
        return wiring(self.config)

    @cached_property
    def masked_wiring(self) -> Wiring:
        """The same with an additive mask as last input of every segment that attends."""
        return wiring(self.config, masked=True)

    @cached_property
    def roles(self) -> tuple[Role, ...]:
        """What the op behind each tap is."""
        return roles(self.config)

    @cached_property
    def taps(self) -> tuple[str, ...]:
        """Canonical tap names in execution order."""
        return taps(self.config)

    @cached_property
    def widths(self) -> Mapping[str, int]:
        """Values of each tap per token and sequence."""
        return widths(self.config)

    @cached_property
    def renames(self) -> Mapping[str, str]:
        """Names of all original programs -> canonical tap."""
        return renames(self.config)

    @cached_property
    def rename_families(self) -> Mapping[str, Mapping[str, str]]:
        """The same apart for each family of original programs."""
        return families(self.config)

    def build(self) -> nn.Module:
        """The whole model in eval mode, weights as torch's current generator draws them."""
        from .module import KLM

        return KLM(self.config).eval()

    def init_random(self, module: nn.Module, seed: int) -> None:
        """Draw weights from `seed` alone."""
        from .module import KLM
        from .weights import init_random

        init_random(cast(KLM, module), seed)

    def rope(self, module: nn.Module, positions: Tensor) -> Tensor:
        """Rotary rows `[2, B, T, D]` of the module's own tables for positions `[B, T]`; -1 reads row 0."""
        from .module import KLM

        newest = int(positions.max()) if positions.numel() else -1
        if newest >= self.config.max_length:
            raise UserError(
                f"position={newest}: {self.name} has rotary rows for 0..{self.config.max_length - 1} only"
            )
        return cast("Tensor", cast(KLM, module).body.rotary_embedding(positions))

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """UserError for a checkpoint whose keys, shapes or values cannot be this model's."""
        from .weights import check_state

        check_state(self.config, state)

    def split(self, state: Mapping[str, Tensor], *, masked: bool = False) -> dict[str, nn.Module]:
        """Segment modules in wiring order, loaded strictly from a whole checkpoint."""
        from .weights import split

        return split(self.config, state, masked=masked)

    def merge(
        self, segments: Mapping[str, Mapping[str, Tensor]], tables: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The whole checkpoint from segments' state_dicts; `tables` holds the rotary tables."""
        from .weights import merge

        return merge(self.config, segments, tables)

    def encode(self, text: str) -> tuple[int, ...]:
        """Character codes; UserError for one outside the vocabulary.

        Nothing is clipped here. The public checkpoints were trained on text whose codes above 128 had become
        128, so codes 129..511 are in the vocabulary but hit rows that were never trained.
        """
        for position, character in enumerate(text):
            if ord(character) >= self.vocab_size:
                raise UserError(
                    f"prompt: character {character!r} at position {position} has code {ord(character)}; "
                    f"{self.name} knows 0..{self.vocab_size - 1}; replace it"
                )
        return tuple(map(ord, text))

    def decode(self, ids: tuple[int, ...]) -> str:
        """Text of character codes."""
        return "".join(map(chr, ids))


def find(name: str) -> KLMModel:
    """The row of this name."""
    if name not in ROWS:
        raise UserError(f"model={name!r}: KLM has no such size. {did_you_mean(name, ROWS)}")
    return KLMModel(name, ROWS[name])
