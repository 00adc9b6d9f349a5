"""Sizes of GPT-BigCode models (StarCoder, WizardCoder): rows of one table, and Hugging Face's config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from parity.harness.errors import UserError

ACTIVATIONS = ("gelu", "gelu_pytorch_tanh")
FIXED = {"multi_query": True, "scale_attn_weights": True, "add_cross_attention": False}
"""Keys of config.json that would make it another model, with the values that are built here."""


@dataclass(frozen=True)
class GPTBigCodeConfig:
    """Sizes, with the field names and defaults of Hugging Face's configuration.

    `static_length` is the context of the deployed model: tokens of a static prefill, rows of its cache.
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_pytorch_tanh"
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True
    static_length: int = 512

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head:
            raise UserError(f"n_embd={self.n_embd}: must be a multiple of n_head={self.n_head}")
        if self.activation_function not in ACTIVATIONS:
            raise UserError(
                f"activation_function={self.activation_function!r}: use one of {', '.join(ACTIVATIONS)}"
            )
        if not 1 <= self.static_length <= self.n_positions:
            raise UserError(
                f"static_length={self.static_length}: must lie in 1..n_positions={self.n_positions}"
            )

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.n_embd // self.n_head

    @property
    def inner_size(self) -> int:
        """Channels between the two linear layers of the MLP."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner


ROWS: dict[str, GPTBigCodeConfig] = {
    "wizardcoder-15b": GPTBigCodeConfig(
        vocab_size=49153,
        n_positions=8192,
        n_embd=6144,
        n_layer=40,
        n_head=48,
        n_inner=24576,
        activation_function="gelu",
    ),
    "gpt-bigcode-tiny": GPTBigCodeConfig(
        vocab_size=512, n_positions=256, n_embd=128, n_layer=3, n_head=4, static_length=64
    ),
}


def from_huggingface(data: Mapping[str, Any]) -> GPTBigCodeConfig:
    """Read config.json; absent keys have Hugging Face's defaults. UserError for what is not built here."""
    if data.get("model_type") != "gpt_bigcode":
        raise UserError(f"model_type={data.get('model_type')!r}: should be 'gpt_bigcode'")
    for key, value in FIXED.items():
        if data.get(key, value) != value:
            raise UserError(
                f"{key}={data[key]!r}: only {value} is built here; this checkpoint is another model"
            )
    own = {key: data[key] for key in asdict(GPTBigCodeConfig()) if key in data}
    own.setdefault("static_length", min(512, own.get("n_positions", 1024)))
    return GPTBigCodeConfig(**own)


def to_huggingface(config: GPTBigCodeConfig) -> dict[str, Any]:
    """What config.json must say; `static_length` is ours alone."""
    sizes = {key: value for key, value in asdict(config).items() if key != "static_length"}
    named = {"architectures": ["GPTBigCodeForCausalLM"], "model_type": "gpt_bigcode"}
    return {**named, **sizes, "n_inner": config.inner_size, **FIXED}
