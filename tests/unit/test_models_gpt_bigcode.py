"""GPT-BigCode: against transformers step by step, its names, its checkpoints both ways."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from parity.harness.errors import UserError
from parity.models.gpt_bigcode import ROWS, GPTBigCodeConfig, from_huggingface, to_huggingface
from parity.models.gpt_bigcode.module import GPTBigCode
from parity.models.gpt_bigcode.roles import roles, taps
from parity.models.gpt_bigcode.weights import (
    HEAD,
    TABLE,
    draw,
    from_checkpoint,
    init_random,
    shapes,
    to_checkpoint,
)
from parity.reference.huggingface import read_folder, write_folder


def _oracle() -> Any:
    path = Path(__file__).parent / "model_oracle.py"
    spec = importlib.util.spec_from_file_location("model_oracle", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


oracle = _oracle()
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
TINY = ROWS["gpt-bigcode-tiny"]
NOISE = 5e-5


@cache
def made(config: GPTBigCodeConfig = TINY, seed: int = 0) -> GPTBigCode:
    module = GPTBigCode(config).eval()
    init_random(module, seed)
    return module


@cache
def theirs(config: GPTBigCodeConfig = TINY, seed: int = 0) -> Any:
    """The library's model with the same weights, from our names, loaded strictly."""
    about = transformers.GPTBigCodeConfig.from_dict(to_huggingface(config))
    about._attn_implementation = "eager"
    module = transformers.GPTBigCodeForCausalLM(about).eval()
    module.load_state_dict(made(config, seed).state_dict(), strict=True)
    return module


def checkpoint() -> dict[str, Tensor]:
    return to_checkpoint(TINY, made().state_dict())


@pytest.mark.parametrize("batch", oracle.BATCHES)
def test_logits_and_caches_equal_those_of_transformers_over_prefill_and_64_decode_steps(batch: str) -> None:
    worst, count = oracle.compare(made(), theirs(), TINY.vocab_size, batch)
    assert worst < NOISE
    assert count > 500_000


def test_both_kinds_of_gelu_are_those_of_transformers() -> None:
    ids, logits = oracle.some_ids(TINY.vocab_size, 2, 9), []
    for kind in ("gelu", "gelu_pytorch_tanh"):
        config = replace(TINY, activation_function=kind)
        with torch.no_grad():
            logits.append(made(config)(ids)[0])
            torch.testing.assert_close(logits[-1], theirs(config)(ids).logits, atol=NOISE, rtol=0)
    assert (logits[0] - logits[1]).abs().max() > 10 * NOISE


def test_the_full_size_has_the_keys_shapes_and_parameters_of_transformers() -> None:
    config = ROWS["wizardcoder-15b"]
    with torch.device("meta"):
        own = GPTBigCode(config)
        other = transformers.GPTBigCodeForCausalLM(transformers.GPTBigCodeConfig(**to_huggingface(config)))
    table = {key: tuple(value.shape) for key, value in own.state_dict().items()}
    assert table == {key: tuple(value.shape) for key, value in other.state_dict().items()} == shapes(config)
    assert sum(p.numel() for p in own.parameters()) == sum(p.numel() for p in other.parameters())
    assert (config.n_layer, config.n_embd, config.n_head, config.head_dim) == (40, 6144, 48, 128)
    assert (config.inner_size, config.vocab_size, config.n_positions) == (24576, 49153, 8192)


def test_every_tap_is_recorded_in_the_order_of_the_roles() -> None:
    sink = oracle.recorded(made(), oracle.some_ids(TINY.vocab_size, 2, 7))
    oracle.check_roles(made(), roles(TINY), sink)
    assert taps(TINY)[:4] == ("word", "pos", "embed", "layer0.residual")
    assert taps(TINY)[-2:] == ("final", "logits")


def test_slices_of_the_fused_projection_are_where_the_roles_say() -> None:
    sink = oracle.recorded(made(), oracle.some_ids(TINY.vocab_size, 2, 7))
    slices = [role for role in roles(TINY) if role.role == "slice"]
    assert len(slices) == 3 * TINY.n_layer
    for role in slices:
        first, count = int(role.parameters["first"]), int(role.parameters["count"])
        fused = sink.seen[role.inputs[0]][0][..., first : first + count]
        heads = fused.reshape(*fused.shape[:2], int(role.parameters["num_heads"]), -1).swapaxes(1, 2)
        assert np.array_equal(sink.seen[role.taps][0], heads)


def test_incremental_and_full_passes_agree_and_positions_go_on_by_themselves() -> None:
    module, ids = made(), oracle.some_ids(TINY.vocab_size, 2, 24)
    with torch.no_grad():
        full, _ = module(ids)
        parts, past = [], None
        for start, stop in ((0, 9), (9, 10), (10, 17), (17, 24)):
            logits, past = module(ids[:, start:stop], past=past)
            parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), full, atol=NOISE, rtol=0)


def test_only_the_position_table_knows_positions() -> None:
    module, ids = made(), oracle.some_ids(TINY.vocab_size, 1, 5)
    with torch.no_grad():
        here, there = (module(ids, positions_bt=torch.arange(at, at + 5)[None])[0] for at in (0, 7))
        moved = GPTBigCode(TINY).eval()
        state = dict(module.state_dict())
        state["transformer.wpe.weight"] = state["transformer.wpe.weight"].roll(7, dims=0)
        moved.load_state_dict(state)
        again, _ = moved(ids, positions_bt=torch.arange(7, 12)[None])
    assert not torch.allclose(here, there, atol=0.1)
    assert torch.equal(here, again)


def test_random_weights_are_alive_and_each_is_drawn_by_its_key_alone() -> None:
    module, before = GPTBigCode(TINY).eval(), torch.get_rng_state()
    init_random(module, 3)
    assert torch.equal(torch.get_rng_state(), before)
    oracle.check_alive(module, TINY.vocab_size)
    state = module.state_dict()
    assert state.keys() == shapes(TINY).keys()
    assert all(torch.equal(state[key], draw(TINY, key, 3)) for key in state)
    assert not torch.equal(state[TABLE], draw(TINY, TABLE, 4))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("shard_bytes", [None, 300_000], ids=["one-file", "shards"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_checkpoint_comes_back_bit_for_bit(
    tmp_path: Path, kind: str, shard_bytes: int | None, dtype: torch.dtype
) -> None:
    state = {key: value.to(dtype) for key, value in checkpoint().items()}
    files = write_folder(tmp_path, to_huggingface(TINY), state, kind=kind, shard_bytes=shard_bytes)
    folder = read_folder(tmp_path)
    assert folder.files == files
    assert (len(files) > 1) == (shard_bytes is not None)
    assert oracle.same(folder.state, state)
    assert replace(from_huggingface(folder.config), n_inner=None, static_length=64) == TINY
    loaded = from_checkpoint(TINY, folder.state)
    assert loaded.notes == (f"{HEAD} is {TABLE}, to which it is tied",)
    assert oracle.same(to_checkpoint(TINY, loaded.state), state)


def test_transformers_reads_what_we_write_and_we_read_what_it_writes(tmp_path: Path) -> None:
    ids = oracle.some_ids(TINY.vocab_size, 1, 6)
    write_folder(tmp_path / "ours", to_huggingface(TINY), checkpoint(), shard_bytes=300_000)
    model = transformers.GPTBigCodeForCausalLM.from_pretrained(tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs")
    folder = read_folder(tmp_path / "theirs")
    config = replace(from_huggingface(folder.config), n_inner=None, static_length=64)
    assert config == TINY
    module = GPTBigCode(config).eval()
    module.load_state_dict(from_checkpoint(config, folder.state).state, strict=True)
    with torch.no_grad():
        assert torch.equal(module(ids)[0], made()(ids)[0])
        torch.testing.assert_close(model(ids).logits, made()(ids)[0], atol=NOISE, rtol=0)


def test_older_files_load_with_a_note_of_what_was_done() -> None:
    plain = {key.removeprefix("transformer."): value for key, value in checkpoint().items()}
    plain["h.0.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
    plain["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    loaded = from_checkpoint(TINY, plain)
    assert oracle.same(loaded.state, made().state_dict())
    assert loaded.notes[:2] == ("'transformer.' put before every name of the body", "2 causal masks dropped")


def broken(change: str) -> dict[str, Tensor]:
    state = checkpoint()
    weight = "transformer.h.1.attn.c_attn.weight"
    if change == "transposed":
        state[weight] = state[weight].T.contiguous()
        state["transformer.h.0.mlp.c_fc.weight"] = state["transformer.h.0.mlp.c_fc.weight"].T.contiguous()
    elif change == "missing":
        del state[weight], state["transformer.ln_f.bias"]
    elif change == "extra":
        state["transformer.h.3.ln_1.weight"] = state["score.weight"] = torch.ones(2)
    elif change == "nan":
        state[weight] = state[weight].clone().index_fill(0, torch.tensor([3]), torch.nan)
    elif change == "int8":
        state[weight] = state[weight].to(torch.int8)
    elif change == "head":
        state[HEAD] = state[TABLE] + 1
    elif change == "mask":
        state["transformer.h.0.attn.bias"] = torch.ones(8, 8, dtype=torch.bool)
    return state


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("transposed", r"another shape: .*c_fc.* should be \[512, 128\], transposed, .*c_attn"),
        ("missing", r"missing: transformer\.h\.1\.attn\.c_attn\.weight, transformer\.ln_f\.bias"),
        ("extra", r"unexpected: score\.weight, transformer\.h\.3\.ln_1\.weight"),
        ("nan", r"not finite: transformer\.h\.1\.attn\.c_attn\.weight"),
        ("int8", r"no floating-point numbers: transformer\.h\.1\.attn\.c_attn\.weight \(torch\.int8\)"),
        ("head", r"lm_head\.weight and transformer\.wte\.weight differ"),
        ("mask", r"transformer\.h\.0\.attn\.bias is no causal mask"),
    ],
)
def test_a_checkpoint_that_cannot_be_is_refused_with_a_list(change: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        from_checkpoint(TINY, broken(change))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"model_type": "gpt2"}, "model_type='gpt2'"),
        ({"multi_query": False}, "multi_query=False"),
        ({"scale_attn_weights": False}, "scale_attn_weights=False"),
        ({"activation_function": "relu"}, "activation_function='relu'"),
        ({"n_head": 7}, "n_embd=128"),
    ],
)
def test_a_configuration_that_is_not_built_here_is_refused(data: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        from_huggingface({**to_huggingface(TINY), **data})
