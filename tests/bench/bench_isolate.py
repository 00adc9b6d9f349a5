"""What isolation costs: a port of 4 layers, 128 wide, against thirty lines of plain hooks in the same run.

    python tests/bench/bench_isolate.py [--check]

The plain hooks are what people write themselves: capture what each leaf of the reference is given and
returns, feed each leaf of the port the same, rank by error. They are blind to the code between leaves;
isolation sees it. Planted are two faults, one of either kind. Times are medians of runs that take turns, so
that whatever else the machine does hits all of them; what is printed is ratios, and the forwards counted.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity.harness.isolation import EXPECTED, HANDED
from parity.harness.module_pinned import PinnedModules
from parity.harness.tracer.memory import MemoryRun

LAYERS, WIDTH, HEADS, TOKENS, ROUNDS = 4, 128, 4, 512, 25
#: Of forwards of the reference in time, of plain hooks in time, and how many times a model of its size runs.
MOST_FORWARDS, MOST_HOOKS, MOST_CALLS = 4.0, 2.5, 3


class Block(nn.Module):
    """A pre-norm block; `gain` scales the first sum and should be 1."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.norm1, self.norm2, self.gain = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), gain
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norm1(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        mid = x + self.gain * self.out(mixed)
        return mid + self.down(F.gelu(self.up(self.norm2(mid))))


class Net(nn.Module):
    """Counts its calls."""

    def __init__(self, *, gain: float = 1.0, eps: float = 1e-5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block(gain if at == 1 else 1.0) for at in range(LAYERS))
        self.blocks[2].norm2.eps = eps  # type: ignore[union-attr]
        self.norm, self.calls = nn.LayerNorm(WIDTH), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def plain_hooks(reference: nn.Module, port: nn.Module, x: Tensor) -> dict[str, float]:
    """Relative error of each leaf of the port on what the reference's leaf was given."""
    seen: dict[str, tuple[Any, Tensor]] = {}

    def keep(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, output: Tensor) -> None:
            seen[path] = args, output

        return hook

    leaves = {path: part for path, part in reference.named_modules() if not list(part.children())}
    handles = [part.register_forward_hook(keep(path)) for path, part in leaves.items()]
    reference(x)
    for handle in handles:
        handle.remove()
    theirs = dict(port.named_modules())
    errors = {}
    for path, (args, output) in seen.items():
        own = theirs[path](*args)
        errors[path] = float((own - output).norm() / output.norm())
    return errors


def isolated(reference: nn.Module, port: nn.Module, x: Tensor) -> MemoryRun:
    """What `parity` records of the port in isolation."""
    run = MemoryRun("isolated")
    PinnedModules(reference, port).run({"x": x}, {"x": x}, run, 0)
    return run


def convicted(run: MemoryRun, right: MemoryRun) -> list[str]:
    """Taps that are off by more than rounding, in execution order."""
    held = {record.tap: record.read() for record in (*run.records(), *right.records())}
    pairs = [(r.tap, r.read(), held.get(r.tap + EXPECTED, held.get(r.tap))) for r in run.records()]
    pairs = [pair for pair in pairs if not pair[0].endswith(EXPECTED)]
    return [tap for tap, own, want in pairs if np.abs(own - want).max() > 1e-4]


def medians(*works: Callable[[], object]) -> list[float]:
    """Milliseconds of each, taking turns."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(ROUNDS):
        for kept, work in zip(times, works, strict=True):
            start = time.perf_counter()
            work()
            kept.append(time.perf_counter() - start)
    return [1e3 * statistics.median(kept) for kept in times]


@torch.no_grad()
def measured(tokens: int) -> tuple[float, float, int]:
    """Isolation in forwards of the reference and in plain hooks, and how many models were executed."""
    reference, port, x = Net().eval(), Net(gain=1.1, eps=0.1).eval(), torch.randn(1, tokens, WIDTH)
    found = convicted(isolated(reference, port, x), isolated(reference, Net().eval(), x))
    blamed = [path for path, error in plain_hooks(reference, port, x).items() if error > 1e-4]
    reference.calls = port.calls = 0
    isolated(reference, port, x)
    calls = reference.calls + port.calls
    forward, hooks, ours = medians(
        lambda: reference(x), lambda: plain_hooks(reference, port, x), lambda: isolated(reference, port, x)
    )
    print(f"{LAYERS} layers, {WIDTH} wide, {tokens} tokens; one forward of the reference {forward:.1f} ms")
    print(f"  plain hooks  {hooks / forward:.1f} forwards; convict {', '.join(blamed)}")
    print(f"  isolation    {ours / forward:.1f} forwards, {ours / hooks:.1f} x plain hooks, {ours:.1f} ms")
    print(f"               {calls} models executed; convicts {', '.join(found)}")
    if found != [f"module:blocks.1.norm2{HANDED}.0", "module:blocks.2.norm2"]:
        sys.exit("isolation should convict what blocks.1.norm2 is handed, and blocks.2.norm2")
    return ours / forward, ours / hooks, calls


def main() -> None:
    measured(TOKENS // 16)
    forwards, hooks, calls = measured(TOKENS)
    over = forwards > MOST_FORWARDS or hooks > MOST_HOOKS or calls > MOST_CALLS
    if "--check" in sys.argv[1:] and over:
        limits = f"{MOST_FORWARDS:g} forwards, {MOST_HOOKS:g} x plain hooks, {MOST_CALLS} models"
        sys.exit(f"isolation takes more than {limits}")


if __name__ == "__main__":
    main()
