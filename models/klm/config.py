"""Sizes of KLM, the Keyboard LM: rows of one table, no code per size."""

from __future__ import annotations

from dataclasses import dataclass

from parity.harness.errors import UserError


@dataclass(frozen=True)
class KLMConfig:
    """Sizes, with the field names of the public checkpoints' configuration.

    `effective_length` is the context of the deployed model: its segments are handed
    `effective_length - 1` rows of keys and values, the current token's among them.
    """

    max_length: int = 131072
    effective_length: int = 512
    vocab_size: int = 512
    hidden_size: int = 512
    tie_word_embeddings: bool = True
    num_layers: int = 6
    num_attention_heads: int = 8
    num_kv_heads: int = 2
    ffn_hidden_size: int = 2048

    def __post_init__(self) -> None:
        if self.hidden_size % (2 * self.num_attention_heads):
            raise UserError(
                f"hidden_size={self.hidden_size}: must give {self.num_attention_heads} heads of an even width"
            )
        if self.num_attention_heads % self.num_kv_heads:
            raise UserError(
                f"num_kv_heads={self.num_kv_heads}: must divide the {self.num_attention_heads} query heads"
            )
        if not 2 <= self.effective_length <= self.max_length:
            raise UserError(
                f"effective_length={self.effective_length}: must lie in 2..max_length={self.max_length}"
            )

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def group_size(self) -> int:
        """Query heads that share one key/value head; they lie side by side."""
        return self.num_attention_heads // self.num_kv_heads

    @property
    def window(self) -> int:
        """Rows of keys and values that the deployed model attends to, the current token's included."""
        return self.effective_length - 1


ROWS: dict[str, KLMConfig] = {
    "klm": KLMConfig(),
    "klm-tiny": KLMConfig(
        max_length=2048,
        effective_length=64,
        hidden_size=128,
        num_layers=4,
        num_attention_heads=4,
        ffn_hidden_size=384,
    ),
}
