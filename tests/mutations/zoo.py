"""Modules of other libraries, as somebody would bring them: `NAME` is right, `NAME_port` claims to be."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_IDS = np.random.default_rng(0).integers(0, 64, (2, 9))
INPUTS: dict[str, dict[str, np.ndarray]] = {
    "llama": {"input_ids": _IDS},
    "gpt2": {"input_ids": _IDS},
    "encoder": {"ids": _IDS},
    "convolution": {"input": np.random.default_rng(1).standard_normal((2, 3, 12, 12)).astype(np.float32)},
}


def finished(module: nn.Module) -> nn.Module:
    """What a port's factory returns; a planted bug stands in the place of this function."""
    return module


def _alive(module: nn.Module) -> nn.Module:
    """Weights under which every part shows: libraries draw them so small that a lost bias is nothing."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(1 + 0.1 * noise)
            else:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
    return module.eval()


def llama() -> nn.Module:
    """Two layers, grouped heads; the plain attention, so that a port may have any."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_cache=False,
        attn_implementation="eager",
    )
    return _alive(transformers.LlamaForCausalLM(config))


def gpt2() -> nn.Module:
    """Two layers, tied embeddings."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=64,
        n_positions=32,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
        attn_implementation="eager",
    )
    return _alive(transformers.GPT2LMHeadModel(config))


class Attention(nn.Module):
    """Causal attention with one packed projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return self.out(self.mixed(q, k, v).transpose(1, 2).flatten(2))

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Functional code between two modules."""
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


class Layer(nn.Module):
    """Pre-norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, 4)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 96), nn.Linear(96, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(self.activated(self.up(self.norm2(x))))

    def activated(self, x: Tensor) -> Tensor:
        """Functional code between two modules."""
        return nn.functional.gelu(x)


class Encoder(nn.Module):
    """Plain torch.nn, with functional code between the modules."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(64, 32), nn.Embedding(16, 32)
        self.layers = nn.ModuleList(Layer(32) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 64)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def encoder() -> nn.Module:
    """Three layers."""
    return _alive(Encoder())


def convolution() -> nn.Module:
    """No transformer at all."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(288, 10),
    )
    torch.nn.init.uniform_(body[1].running_mean, -0.2, 0.2)
    torch.nn.init.uniform_(body[1].running_var, 0.5, 1.5)
    return body.eval()


def _port(build: Any) -> Any:
    def port() -> nn.Module:
        with torch.no_grad():
            return finished(build())

    return port


llama_port, gpt2_port, encoder_port, convolution_port = map(_port, (llama, gpt2, encoder, convolution))
