"""Where a case's weights come from: trained on the spot and cached, drawn at random, or somebody's file."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from parity.harness.case import Model
from parity.harness.errors import UserError
from parity.harness.folders import cache_folder
from parity.harness.progress import Progress, Silent
from parity.models import find_model

from .files import read_state
from .training.settings import SETTINGS, settings_for

WIDENED = (torch.bfloat16, torch.float16)


def training_folder(model_name: str) -> Path:
    """Where the training of a model lives: another one for other sizes, settings or documentation."""
    identity = [asdict(find_model(model_name).config), asdict(settings_for(model_name)), sys.version_info[:2]]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    return cache_folder() / "checkpoints" / f"{model_name}-{digest}"


def ensure_checkpoint(model_name: str, *, progress: Progress | None = None) -> Path:
    """The trained checkpoint of a model, trained now if there is none and it takes minutes.

    A training that was stopped is gone on with. UserError for a model that takes hours.
    """
    from .training.loop import train

    progress = progress or Silent()
    if model_name not in SETTINGS:
        raise UserError(
            f"weights: {model_name} has no training here; give --weights FILE, or --weights random:0"
        )
    folder = training_folder(model_name)
    done = folder / "model.pt"
    if done.is_file():
        return done
    if not SETTINGS[model_name].on_the_spot:
        raise UserError(
            f"weights: {model_name} is not trained yet and that takes hours; `parity train {model_name}` "
            "does it, --weights FILE takes a checkpoint that you have, --weights random:0 random weights"
        )
    progress.say(f"no trained {model_name} in {folder}: training it now, a few minutes, once")
    return train(model_name, folder, resume=(folder / "training.pt").is_file(), progress=progress).path


def load_weights(
    spec: str | None, model: Model, *, progress: Progress | None = None
) -> tuple[dict[str, Tensor], str, str]:
    """State_dict in float32, digest of the source, label, for what `--weights` says.

    None is the trained checkpoint, `random:SEED` are random weights, anything else a torch file. A bf16 or
    fp16 checkpoint is widened, which is exact, and the label says so; its digest is that of the file's bits.
    """
    if spec is None:
        path = ensure_checkpoint(model.name, progress=progress)
        source, label = read_state(path), "trained"
    elif spec.partition(":")[0] == "random":
        source, label = _random(spec, model), spec
    else:
        source, label = read_state(Path(spec).expanduser()), spec
    _check(source, model)
    state, widened = _widen(source)
    return state, digest_of(source), label + (f" ({widened} widened to float32)" if widened else "")


def digest_of(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names (sorted), dtypes, shapes and bytes."""
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _random(spec: str, model: Model) -> dict[str, Tensor]:
    seed = spec.partition(":")[2]
    if not seed.isdigit():
        raise UserError(f"weights={spec!r}: should be random:SEED with a whole number, for example random:0")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        module = model.build()
    draw = getattr(model, "init_random", None)
    if draw is not None:
        draw(module, int(seed))
    return module.state_dict()


def _check(state: Mapping[str, Tensor], model: Model) -> None:
    check = getattr(model, "check_state", None)
    if check is not None:
        check(state)


def _widen(source: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    state, widened = {}, set()
    for name, tensor in source.items():
        if tensor.dtype == torch.float64:
            raise UserError(
                f"weights: {name} is float64, which float32 would round; convert the checkpoint first"
            )
        if tensor.dtype in WIDENED:
            widened.add(str(tensor.dtype).removeprefix("torch."))
            tensor = tensor.float()
        state[name] = tensor
    return state, " and ".join(sorted(widened))
