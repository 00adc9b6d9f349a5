"""Training of reference checkpoints: AdamW, warmup and cosine, clipping, resumable to the bit.

Every batch is drawn from (seed, step) alone, so a training that was stopped, however it was stopped, goes
on with the same text in the same order and ends in the same bits as one that ran through with as many
threads. A kill loses at most the `SAVE_EVERY` steps since the last save.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity.fixtures.scenarios import parse_policy
from parity.harness.case import CachePolicy, Model
from parity.harness.errors import UserError
from parity.harness.progress import Bar, Progress, Silent
from parity.models import find_model

from ..files import read_torch, save_whole
from .measure import accuracy, greedy_text, windowed
from .settings import Settings, learning_rate, settings_for
from .text import Text, library_text

FORMAT = 1
SAVE_EVERY = 50
SAY_EVERY = 200
PROMPT = "The return value is "
SAMPLE_LENGTH = 120


@dataclass(frozen=True)
class TrainResult:
    """What a training came to. `path` is the finished checkpoint, or the file to resume from.

    `loss` is that of the last step, `accuracy` the share of held-out characters predicted.
    """

    model: str
    path: Path
    step: int
    steps: int
    loss: float
    accuracy: float
    sample: str
    seconds: float

    @property
    def finished(self) -> bool:
        """Whether all steps were done; only then there is a checkpoint to use."""
        return self.step == self.steps


@dataclass
class _Training:
    """What changes while training, and what it needs to go on."""

    settings: Settings
    policy: CachePolicy
    seed: int
    module: nn.Module
    optimizer: torch.optim.Optimizer
    ids: Tensor
    identity: dict[str, Any]
    step: int = 0

    def advance(self) -> tuple[float, float]:
        """One step; loss and share of next characters predicted, on its batch before the update."""
        batch = batch_at(self.ids, self.settings, self.seed, self.step).to(
            next(self.module.parameters()).device
        )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, self.step)
        logits = windowed(self.module, batch[:, :-1], self.policy)
        target = batch[:, 1:]
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.max_norm)
        self.optimizer.step()
        self.step += 1
        return float(loss.detach()), float((logits.argmax(dim=-1) == target).float().mean())

    def save(self, path: Path) -> None:
        data = {
            "state": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        save_whole(data | {"identity": self.identity}, path)

    def load(self, path: Path) -> None:
        """UserError if the file belongs to another training."""
        data = read_torch(path)
        if not isinstance(data, dict) or "identity" not in data:
            raise UserError(f"resume={str(path)!r}: is no training that was stopped")
        differ = [key for key, value in self.identity.items() if data["identity"].get(key) != value]
        if differ:
            fields = ", ".join(differ)
            raise UserError(
                f"resume={str(path)!r}: is another training ({fields} differ); use another folder"
            )
        self.module.load_state_dict(data["state"])
        self.optimizer.load_state_dict(data["optimizer"])
        self.step = data["step"]


def train(
    model_name: str,
    out_dir: str | Path,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    until: int | None = None,
    resume: bool = False,
    seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    progress: Progress | None = None,
    text: Text | None = None,
) -> TrainResult:
    """Train a model into `out_dir`: `training.pt` while it goes on, `model.pt` (a state_dict) at the end.

    `steps` sets another length of the whole training, the schedule with it. `minutes` and `until` (a step)
    stop early; `resume` goes on from there. `text` defaults to the standard library's documentation.
    """
    progress, folder = progress or Silent(), Path(out_dir)
    settings = settings_for(model_name)
    settings = settings if steps is None else replace(settings, steps=_positive("steps", steps))
    settings = settings if threads is None else replace(settings, threads=_positive("threads", threads))
    model, text = find_model(model_name), text or library_text()
    training = _begin(model, settings, seed, text, device)
    running, done = folder / "training.pt", folder / "model.pt"
    _open_folder(training, running, done, resume)
    begin, loss = time.monotonic(), float("nan")
    stop = min(settings.steps, settings.steps if until is None else _positive("until", until))
    limit = float("inf") if minutes is None else 60.0 * _positive("minutes", minutes)
    with _threads(settings), progress.stage(f"training {model_name}", settings.steps) as bar:
        bar.advance(training.step)
        while training.step < stop and time.monotonic() - begin < limit:
            loss = _some_steps(training, stop, begin + limit, progress, bar)
            training.save(running)
    with _threads(settings):
        return _finish(model, training, text, loss, time.monotonic() - begin, running, done, progress)


@contextmanager
def _threads(settings: Settings) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _begin(model: Model, settings: Settings, seed: int, text: Text, device: str) -> _Training:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = model.build().to(device).train()
    identity = {
        "format": FORMAT,
        "model": model.name,
        "sizes": asdict(model.config),
        "settings": {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(settings).items()},
        "seed": seed,
        "text": hashlib.sha256(text.training.encode()).hexdigest(),
    }
    policy = parse_policy("window", model)
    ids = encode(text.training, settings)
    if len(ids) <= settings.length + 1:
        raise UserError(f"text={len(ids)} characters: too short for passages of {settings.length}")
    return _Training(settings, policy, seed, module, make_optimizer(module, settings), ids, identity)


def _open_folder(training: _Training, running: Path, done: Path, resume: bool) -> None:
    """Go on from what a folder holds, or make sure that nothing in it would be overwritten."""
    if resume:
        training.load(running)
        return
    for path in (done, running):
        if path.exists():
            raise UserError(
                f"out={str(path)!r}: is there already; resume it, remove it or use another folder"
            )


def _some_steps(training: _Training, stop: int, deadline: float, progress: Progress, bar: Bar) -> float:
    """Steps up to the next save; the last one's loss."""
    loss = share = float("nan")
    for _ in range(SAVE_EVERY - training.step % SAVE_EVERY):
        if training.step >= stop or time.monotonic() >= deadline:
            break
        loss, share = training.advance()
        bar.advance()
        if training.step % SAY_EVERY == 0:
            progress.say(
                f"step {training.step} of {training.settings.steps}: loss {loss:.3f}, "
                f"next-character accuracy {share:.1%}"
            )
    return loss


def _finish(
    model: Model,
    training: _Training,
    text: Text,
    loss: float,
    seconds: float,
    running: Path,
    done: Path,
    progress: Progress,
) -> TrainResult:
    finished = training.step == training.settings.steps
    module = training.module.eval()
    held_out = encode(text.held_out, training.settings)
    share = accuracy(module, held_out, training.policy)
    sample = greedy_text(model, module, PROMPT, SAMPLE_LENGTH, training.policy)
    if finished:
        save_whole(module.state_dict(), done)
    progress.say(
        f"next-character accuracy on {len(held_out)} held-out characters: {share:.1%}; it writes: {sample!r}"
    )
    path = done if finished else running
    return TrainResult(model.name, path, training.step, training.settings.steps, loss, share, sample, seconds)


def batch_at(ids: Tensor, settings: Settings, seed: int, step: int) -> Tensor:
    """The passages of one step, `[batch, length + 1]`: a function of seed and step, of nothing else."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    starts = torch.randint(0, len(ids) - settings.length, (settings.batch, 1), generator=generator)
    return ids[starts + torch.arange(settings.length + 1)]


def make_optimizer(module: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """AdamW; vectors (biases, norms) do not decay."""
    decaying = [p for p in module.parameters() if p.dim() > 1]
    others = [p for p in module.parameters() if p.dim() <= 1]
    groups = [
        {"params": decaying, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)


def encode(text: str, settings: Settings) -> Tensor:
    """Character codes `[N]`, those above `clip_code` replaced by it, as the original was trained."""
    return torch.tensor([min(ord(character), settings.clip_code) for character in text])


def _positive(name: str, value: float) -> Any:
    if value <= 0:
        raise UserError(f"{name}={value}: should be above 0")
    return value
