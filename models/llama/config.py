"""Sizes of LLaMA models: rows of one table, and Hugging Face's config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from parity.harness.errors import UserError

FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
"""Keys of config.json that would make it another model, with the values that are built here."""


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes, with the field names and defaults of Hugging Face's configuration.

    `head_width` None is hidden_size / num_attention_heads. `static_length` is the number of cache slots of
    the deployed model.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_width: int | None = None
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False
    static_length: int = 1024

    def __post_init__(self) -> None:
        if self.head_width is None and self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"hidden_size={self.hidden_size}: must be a multiple of "
                f"num_attention_heads={self.num_attention_heads}"
            )
        if self.head_dim % 2:
            raise UserError(f"head_dim={self.head_dim}: must be even, halves are rotated against each other")
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"num_key_value_heads={self.num_key_value_heads}: must divide the "
                f"{self.num_attention_heads} query heads"
            )
        if not 1 <= self.static_length <= self.max_position_embeddings:
            raise UserError(
                f"static_length={self.static_length}: must lie in "
                f"1..max_position_embeddings={self.max_position_embeddings}"
            )

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.head_width or self.hidden_size // self.num_attention_heads


ROWS: dict[str, LlamaConfig] = {
    "llama-7b": LlamaConfig(),
    "tinyllama-1.1b": LlamaConfig(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_key_value_heads=4,
        rms_norm_eps=1e-5,
    ),
    "llama-tiny": LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        static_length=64,
    ),
}


def from_huggingface(data: Mapping[str, Any]) -> LlamaConfig:
    """Read config.json; absent keys have Hugging Face's defaults. UserError for what is not built here."""
    if data.get("model_type") != "llama":
        raise UserError(f"model_type={data.get('model_type')!r}: should be 'llama'")
    for key, value in FIXED.items():
        if data.get(key, value) != value:
            raise UserError(
                f"{key}={data[key]!r}: only {value} is built here; this checkpoint is another model"
            )
    own = {key: data[key] for key in asdict(LlamaConfig()) if key in data}
    own["head_width"] = data.get("head_dim")
    own["rope_theta"] = _rope_theta(data)
    if own.get("num_key_value_heads") is None:
        own["num_key_value_heads"] = own.get("num_attention_heads", 32)
    own.setdefault("static_length", min(1024, own.get("max_position_embeddings", 2048)))
    return LlamaConfig(**own)


def _rope_theta(data: Mapping[str, Any]) -> float:
    """The base of the angles, where it lies in files of old and new versions; no scaling of any kind."""
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UserError(f"rope_type={kind!r}: only unscaled rotary positions are built here")
    return float(rope.get("rope_theta", data.get("rope_theta", 10000.0)))


def to_huggingface(config: LlamaConfig) -> dict[str, Any]:
    """What config.json must say, for old and new versions; `static_length` is ours alone."""
    sizes = asdict(config)
    del sizes["static_length"], sizes["head_width"]
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    named = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    return {**named, **sizes, "head_dim": config.head_dim, "rope_parameters": rope, **FIXED}
