"""What a disabled tracer costs a decode step, and what recording costs: ratios of one run.

    python tests/bench/bench_tracer.py

The step is one token of a Keyboard-LM-like model (6 layers, 512 wide, 8 heads on 2 key heads, 511 cached
rows) and of its small sister (4 layers, 128 wide). The taps' own cost is measured by calling exactly the
taps and scopes of one step without the model: differences of two noisy step times would say nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity.harness.tracer import executing, recording, trace_tensor
from parity.harness.tracer.memory import MemoryRun

LIMIT = 0.01


@contextlib.contextmanager
def no_scope(_: str) -> Iterator[None]:
    yield


def no_tap(*_: object, **__: object) -> None:
    """The model without a tracer."""


class Decoder(nn.Module):
    """One decoded token; `tap` and `scope` are the tracer's, or stand-ins that do nothing."""

    def __init__(self, layers: int, width: int, heads: int, kv_heads: int, cached: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = heads, kv_heads, width // heads
        kv = 2 * kv_heads * self.dim
        self.qkv = nn.ModuleList(nn.Linear(width, width + kv) for _ in range(layers))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.up = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(layers))
        self.down = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(layers))
        self.head = nn.Linear(width, 512, bias=False)
        self.past = [torch.randn(2, 1, kv_heads, cached, self.dim) for _ in range(layers)]

    def forward(self, x: Tensor, tap: Callable[..., None], scope: Callable[..., object]) -> Tensor:
        tap("input_embed", x, axes="b t d")
        for i in range(len(self.qkv)):
            with scope(f"layer{i}"):  # type: ignore[attr-defined]
                x = x + self.attend(i, F.layer_norm(x, x.shape[-1:]), tap)
                x = x + self.down[i](F.silu(self.up[i](F.layer_norm(x, x.shape[-1:]))))
        logits: Tensor = self.head(x)
        tap("logits", logits, axes="b t v")
        return logits

    def attend(self, i: int, x: Tensor, tap: Callable[..., None]) -> Tensor:
        kv = self.kv_heads * self.dim
        q, k, v = self.qkv[i](x).split((x.shape[-1], kv, kv), dim=-1)
        q, k, v = (t.unflatten(-1, (-1, self.dim)).transpose(1, 2) for t in (q, k, v))
        ks, vs = (torch.cat([past, new], dim=2) for past, new in zip(self.past[i], (k, v), strict=True))
        ks, vs = (t.repeat_interleave(self.heads // self.kv_heads, dim=1) for t in (ks, vs))
        tap("q", q, axes="b h t d")
        tap("k_repeated", ks, axes="b h p d")
        tap("v_repeated", vs, axes="b h p d")
        out = F.scaled_dot_product_attention(q, ks, vs)
        tap("attn_output", out, axes="b h t d")
        projected: Tensor = self.out[i](out.transpose(1, 2).flatten(2))
        return projected


def best(work: Callable[[], object], repeat: int = 200) -> float:
    """Seconds of the fastest of many calls."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def taps_alone(layers: int, x: Tensor) -> None:
    """The tracer's calls of one step, disabled."""
    trace_tensor("input_embed", x, axes="b t d")
    for i in range(layers):
        with executing(f"layer{i}"):
            trace_tensor("q", x, axes="b h t d")
            trace_tensor("k_repeated", x, axes="b h p d")
            trace_tensor("v_repeated", x, axes="b h p d")
            trace_tensor("attn_output", x, axes="b h t d")
    trace_tensor("logits", x, axes="b t v")


def measure(layers: int, width: int, heads: int, kv_heads: int, cached: int) -> dict[str, float]:
    """Ratios to the step without a tracer, and whether the outputs are the same bits."""
    torch.manual_seed(0)
    model = Decoder(layers, width, heads, kv_heads, cached).eval()
    x = torch.randn(1, 1, width)
    run = MemoryRun("bench")
    with torch.no_grad():
        plain = best(lambda: model(x, no_tap, no_scope))
        disabled = best(lambda: taps_alone(layers, x))
        expected = model(x, no_tap, no_scope)
        same = torch.equal(expected, model(x, trace_tensor, executing))
        with recording(run):
            same = same and torch.equal(expected, model(x, trace_tensor, executing))
            enabled = best(lambda: model(x, trace_tensor, executing), 20)
    return {"step": plain, "disabled": disabled / plain, "recorded": enabled / plain, "same": float(same)}


SIZES = {"klm": (6, 512, 8, 2, 511), "klm-tiny": (4, 128, 4, 2, 63)}


def main() -> None:
    """Print one line per size."""
    for name, size in SIZES.items():
        r = measure(*size)
        verdict = "ok" if r["disabled"] < LIMIT and r["same"] else "TOO MUCH"
        print(
            f"{name:9} step {1e6 * r['step']:7.0f} us   disabled taps {100 * r['disabled']:.2f} % of a step "
            f"(limit {100 * LIMIT:.0f} %)   recorded x{r['recorded']:.2f}   "
            f"bitwise equal {bool(r['same'])}   {verdict}"
        )


if __name__ == "__main__":
    main()
