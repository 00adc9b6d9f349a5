"""Folders as Hugging Face lays them out: config.json, and weights in one file or in shards with an index.

Weights are data: `.safetensors`, or `.bin` read with `weights_only=True`. No name in an index leaves the
folder, and no folder that holds weights is written into.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from parity.harness.errors import UserError

from .files import read_state, save_whole

SAFETENSORS, BIN = "model.safetensors", "pytorch_model.bin"
KINDS = {"safetensors": SAFETENSORS, "bin": BIN}


@dataclass(frozen=True)
class Folder:
    """What a folder holds: config.json, weights under the names of the files, and which files they were."""

    config: dict[str, Any]
    state: dict[str, Tensor]
    files: tuple[str, ...]


def read_folder(path: Path) -> Folder:
    """Everything in it; safetensors are preferred to .bin where both lie there.

    UserError for a missing or damaged file, and for an index that disagrees with its shards.
    """
    config = _read_json(path, "config.json")
    for name in KINDS.values():
        if (path / name).is_file():
            return Folder(config, _read_weights(path / name), (name,))
        if (path / f"{name}.index.json").is_file():
            return Folder(config, *_read_shards(path, f"{name}.index.json"))
    raise UserError(f"weights={str(path)!r}: holds neither {SAFETENSORS} nor {BIN} nor an index of shards")


def _read_shards(path: Path, index: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    table = _read_json(path, index).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(v, str) for v in table.values()):
        raise UserError(f"weights={str(path / index)!r}: has no weight_map of tensor names to files")
    files = tuple(dict.fromkeys(cast(dict[str, str], table).values()))
    if away := [name for name in files if Path(name).name != name or name in (".", "..")]:
        raise UserError(f"weights={str(path / index)!r}: names files outside its folder: {', '.join(away)}")
    if missing := [name for name in files if not (path / name).is_file()]:
        raise UserError(
            f"weights={str(path)!r}: {len(missing)} of {len(files)} shards are missing: {', '.join(missing)}"
        )
    state: dict[str, Tensor] = {}
    for name in files:
        shard = _read_weights(path / name)
        _check_shard(name, shard, {key for key, file in table.items() if file == name})
        state |= shard
    return state, files


def _check_shard(name: str, shard: Mapping[str, Tensor], promised: set[str]) -> None:
    absent, extra = sorted(promised - shard.keys()), sorted(shard.keys() - promised)
    if absent or extra:
        raise UserError(
            f"weights={name!r}: disagrees with the index; absent: {', '.join(absent) or 'none'}; "
            f"not in the index: {', '.join(extra) or 'none'}"
        )


def _read_weights(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".bin":
        return read_state(path)
    load_file = _safetensors("load_file")
    try:
        return cast(dict[str, Tensor], load_file(path))
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise UserError(f"weights={str(path)!r}: is no safetensors file, or is damaged ({error})") from error


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        data = json.loads((path / name).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"weights={str(path)!r}: {name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"weights={str(path / name)!r}: is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise UserError(f"weights={str(path / name)!r}: should hold a JSON object")
    return data


def _safetensors(function: str) -> Any:
    try:
        import safetensors.torch as library
    except ImportError as error:
        raise UserError("safetensors is not installed; pip install parity[hf]") from error
    return getattr(library, function)


def write_folder(
    path: Path,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    kind: str = "safetensors",
    shard_bytes: int | None = None,
) -> tuple[str, ...]:
    """Write config.json and the weights, in shards of at most `shard_bytes`; names of the files.

    Every file appears whole, and the index after its shards. A larger tensor has a shard of its own.
    UserError where the folder holds weights already, of which a reader might take the wrong ones.
    """
    if kind not in KINDS:
        raise UserError(f"kind={kind!r}: use one of {', '.join(KINDS)}")
    path.mkdir(parents=True, exist_ok=True)
    held = [n for name in KINDS.values() for n in (name, f"{name}.index.json") if (path / n).exists()]
    if held:
        raise UserError(f"folder={str(path)!r}: holds {', '.join(held)} already; choose another or empty it")
    shards = list(_shards(state, shard_bytes))
    stem, suffix = KINDS[kind].rsplit(".", 1)
    names = [f"{stem}-{i + 1:05}-of-{len(shards):05}.{suffix}" for i in range(len(shards))]
    names = names if len(shards) > 1 else [KINDS[kind]]
    for name, shard in zip(names, shards, strict=True):
        _write_weights(path / name, shard)
    if len(shards) > 1:
        table = dict(chain.from_iterable(((key, n) for key in s) for n, s in zip(names, shards, strict=True)))
        total = sum(tensor.nbytes for tensor in state.values())
        _write_json(
            path / f"{KINDS[kind]}.index.json", {"metadata": {"total_size": total}, "weight_map": table}
        )
    _write_json(path / "config.json", config)
    return tuple(names)


def _shards(state: Mapping[str, Tensor], limit: int | None) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if shard and limit is not None and sum(t.nbytes for t in shard.values()) + tensor.nbytes > limit:
            yield shard
            shard = {}
        shard[key] = tensor
    yield shard


def _write_weights(path: Path, shard: Mapping[str, Tensor]) -> None:
    """Each tensor with memory of its own: shared memory is refused by one kind, saved whole by the other."""
    own = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, tensor in shard.items()
    }
    if path.suffix == ".bin":
        save_whole(own, path)
    else:
        _write_whole(path, _safetensors("save")(own, metadata={"format": "pt"}))


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    _write_whole(path, (json.dumps(data, indent=2) + "\n").encode())


def _write_whole(path: Path, content: bytes) -> None:
    """Write beside `path`, then rename: a reader and a crash see the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"file={str(path)!r}: cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
