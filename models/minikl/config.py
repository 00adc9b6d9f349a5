"""Sizes of MiniKL: rows of one table, no code per size."""

from __future__ import annotations

from dataclasses import dataclass

from parity.harness.errors import UserError


@dataclass(frozen=True)
class MiniKLConfig:
    """Sizes, with the field names and defaults of the original's configuration.

    `g` is the number of key/value heads: 1 is MQA, `num_heads` is MHA, GQA lies between. `ffn` is GLU, or
    FFN: two linear layers with nothing between them. With `is_nested` the model takes jagged batches too.
    """

    max_seq_len: int = 32768
    d_model: int = 512
    theta: float = 1e6
    num_heads: int = 8
    g: int = 8
    ffn: str = "GLU"
    num_layers: int = 4
    vocab_size: int = 5000
    is_nested: bool = False

    def __post_init__(self) -> None:
        if self.d_model % (2 * self.num_heads):
            raise UserError(f"d_model={self.d_model}: must give {self.num_heads} heads of an even width")
        if self.g < 1 or self.num_heads % self.g:
            raise UserError(f"g={self.g}: must divide the {self.num_heads} query heads")
        if self.ffn not in ("GLU", "FFN"):
            raise UserError(f"ffn={self.ffn!r}: use GLU or FFN")

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.d_model // self.num_heads

    @property
    def inner_size(self) -> int:
        """Channels inside the feed-forward part: 8/3 of the width, cut to a whole number, or 4 times."""
        return 8 * self.d_model // 3 if self.ffn == "GLU" else 4 * self.d_model


ROWS: dict[str, MiniKLConfig] = {
    "minikl": MiniKLConfig(vocab_size=10215),
    "minikl-tiny": MiniKLConfig(max_seq_len=256, d_model=128, num_heads=4, g=2, num_layers=3, vocab_size=512),
}
