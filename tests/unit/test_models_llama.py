"""LLaMA: against transformers step by step, its names, its checkpoints both ways."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parity.harness.errors import UserError
from parity.harness.tracer import recording
from parity.models.llama import ROWS, LlamaConfig, from_huggingface, to_huggingface
from parity.models.llama.module import Llama, RMSNorm, frequencies, rotary_rows, rotate
from parity.models.llama.roles import roles, taps
from parity.models.llama.weights import (
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
TINY = ROWS["llama-tiny"]
NOISE = 5e-5
ODD = replace(TINY, head_width=24, rope_theta=500.0, tie_word_embeddings=True, rms_norm_eps=1e-2)
"""A head that is narrower than its share, another base, a tied head, an eps that shows."""


@cache
def made(config: LlamaConfig = TINY) -> Llama:
    module = Llama(config).eval()
    init_random(module, 0)
    return module


@cache
def theirs(config: LlamaConfig = TINY) -> Any:
    """The library's model with the same weights, from our names, loaded strictly."""
    about = transformers.LlamaConfig.from_dict(to_huggingface(config))
    about._attn_implementation = "eager"
    module = transformers.LlamaForCausalLM(about).eval()
    module.load_state_dict(made(config).state_dict(), strict=True)
    return module


def checkpoint() -> dict[str, Tensor]:
    return to_checkpoint(TINY, made().state_dict())


@pytest.mark.parametrize("batch", oracle.BATCHES)
def test_logits_and_caches_equal_those_of_transformers_over_prefill_and_64_decode_steps(batch: str) -> None:
    worst, count = oracle.compare(made(), theirs(), TINY.vocab_size, batch)
    assert worst < NOISE
    assert count > 500_000


def test_other_heads_bases_and_ties_are_those_of_transformers() -> None:
    ids = oracle.some_ids(TINY.vocab_size, 2, 40)
    with torch.no_grad():
        torch.testing.assert_close(made(ODD)(ids)[0], theirs(ODD)(ids).logits, atol=NOISE, rtol=0)
        for field in ("rope_theta", "rms_norm_eps"):
            other = Llama(replace(ODD, **{field: getattr(TINY, field)})).eval()
            other.load_state_dict(made(ODD).state_dict())
            assert (other(ids)[0] - theirs(ODD)(ids).logits).abs().max() > 10 * NOISE


@pytest.mark.parametrize("name", ["tinyllama-1.1b", "llama-7b"])
def test_the_full_sizes_have_the_keys_shapes_and_parameters_of_transformers(name: str) -> None:
    config = ROWS[name]
    with torch.device("meta"):
        own = Llama(config)
        other = transformers.LlamaForCausalLM(transformers.LlamaConfig(**to_huggingface(config)))
    table = {key: tuple(value.shape) for key, value in own.state_dict().items()}
    assert table == {key: tuple(value.shape) for key, value in other.state_dict().items()} == shapes(config)
    count = sum(p.numel() for p in own.parameters())
    assert count == {"tinyllama-1.1b": 1_100_048_384, "llama-7b": 6_738_415_616}[name]


def test_every_tap_is_recorded_in_the_order_of_the_roles() -> None:
    sink = oracle.recorded(made(), oracle.some_ids(TINY.vocab_size, 2, 7))
    oracle.check_roles(made(), roles(TINY), sink)
    assert taps(TINY)[:3] == ("embed", "rope", "layer0.residual")
    assert len(taps(TINY)) == 4 + 13 * TINY.num_hidden_layers


def test_a_tied_head_is_known_to_the_roles() -> None:
    assert roles(ODD)[-1].weights == (TABLE,)
    assert roles(TINY)[-1].weights == (HEAD,)


def test_incremental_and_full_passes_agree_and_positions_go_on_by_themselves() -> None:
    module, ids = made(), oracle.some_ids(TINY.vocab_size, 2, 24)
    with torch.no_grad():
        full, _ = module(ids)
        parts, past = [], None
        for start, stop in ((0, 9), (9, 10), (10, 17), (17, 24)):
            logits, past = module(ids[:, start:stop], past=past)
            parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), full, atol=NOISE, rtol=0)


def test_rotation_is_multiplication_by_a_unit_complex_number() -> None:
    x = torch.randn(2, 4, 6, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    positions = torch.arange(1999, 2005).expand(2, 6)
    angle = positions[..., None].float() * frequencies(TINY)
    turn = torch.polar(torch.ones_like(angle), angle).to(torch.complex128)[:, None]
    expected = torch.complex(x[..., :16], x[..., 16:]) * turn
    actual = rotate(x, rotary_rows(TINY, positions).double())
    torch.testing.assert_close(
        actual, torch.cat((expected.real, expected.imag), dim=-1), atol=1e-6, rtol=1e-6
    )


def test_rotary_rows_keep_right_angles_in_a_module_of_low_precision() -> None:
    module, positions, sink = Llama(TINY).eval().bfloat16(), torch.tensor([[0, 1, 1999, -1]]), oracle.Sink()
    with torch.no_grad(), recording(sink):
        module(oracle.some_ids(512, 1, 4), positions_bt=positions)
    rows, _, _ = sink.seen["rope"]
    assert str(rows.dtype) == "bfloat16"
    for row, position in enumerate((0, 1, 1999, 0)):
        for channel in range(TINY.head_dim):
            angle = position / 10000.0 ** (2 * (channel % 16) / TINY.head_dim)
            assert float(rows[0, 0, row, channel]) == pytest.approx(math.cos(angle), abs=2**-8)
            assert float(rows[1, 0, row, channel]) == pytest.approx(math.sin(angle), abs=2**-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_norm_computes_in_float32_at_least(dtype: torch.dtype) -> None:
    norm = RMSNorm(TINY)
    norm.weight.data = draw(TINY, "model.norm.weight", 0)
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e-3
    scaled = x.to(dtype).double() / (x.to(dtype).double().square().mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = scaled.to(dtype) * norm.to(dtype).weight
    room = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2**-7}[dtype]
    torch.testing.assert_close(norm(x.to(dtype)), expected, atol=0, rtol=room)


def test_random_weights_are_alive_and_each_is_drawn_by_its_key_alone() -> None:
    module, before = Llama(TINY).eval(), torch.get_rng_state()
    init_random(module, 3)
    assert torch.equal(torch.get_rng_state(), before)
    oracle.check_alive(module, TINY.vocab_size)
    state = module.state_dict()
    assert state.keys() == shapes(TINY).keys()
    assert all(torch.equal(state[key], draw(TINY, key, 3)) for key in state)
    assert torch.equal(draw(ODD, HEAD, 3), draw(ODD, TABLE, 3))
    assert not torch.equal(draw(TINY, HEAD, 3), draw(TINY, TABLE, 3))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("shard_bytes", [None, 300_000], ids=["one-file", "shards"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_a_checkpoint_comes_back_bit_for_bit(
    tmp_path: Path, kind: str, shard_bytes: int | None, dtype: torch.dtype
) -> None:
    state = {key: value.to(dtype) for key, value in checkpoint().items()}
    files = write_folder(tmp_path, to_huggingface(TINY), state, kind=kind, shard_bytes=shard_bytes)
    folder = read_folder(tmp_path)
    assert folder.files == files
    assert (len(files) > 1) == (shard_bytes is not None)
    assert oracle.same(folder.state, state)
    assert replace(from_huggingface(folder.config), head_width=None, static_length=64) == TINY
    loaded = from_checkpoint(TINY, folder.state)
    assert loaded.notes == ()
    assert oracle.same(to_checkpoint(TINY, loaded.state), state)


def test_transformers_reads_what_we_write_and_we_read_what_it_writes(tmp_path: Path) -> None:
    ids = oracle.some_ids(TINY.vocab_size, 1, 6)
    write_folder(tmp_path / "ours", to_huggingface(TINY), checkpoint(), shard_bytes=300_000)
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs")
    folder = read_folder(tmp_path / "theirs")
    config = replace(from_huggingface(folder.config), head_width=None, static_length=64)
    assert config == TINY
    module = Llama(config).eval()
    module.load_state_dict(from_checkpoint(config, folder.state).state, strict=True)
    with torch.no_grad():
        assert torch.equal(module(ids)[0], made()(ids)[0])
        torch.testing.assert_close(model(ids).logits, made()(ids)[0], atol=NOISE, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_saved_frequencies_are_dropped_only_where_the_configuration_gives_them(dtype: torch.dtype) -> None:
    state = checkpoint()
    for i in range(TINY.num_hidden_layers):
        state[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = frequencies(TINY).to(dtype)
    loaded = from_checkpoint(TINY, state)
    assert oracle.same(loaded.state, made().state_dict())
    assert loaded.notes == ("3 tables of rotary frequencies dropped, equal to the configuration's",)
    with pytest.raises(UserError, match=r"other frequencies than rope_theta=20000 and head_dim=32"):
        from_checkpoint(replace(TINY, rope_theta=20000.0), state)


def broken(change: str) -> dict[str, Tensor]:
    state = checkpoint()
    weight = "model.layers.1.self_attn.k_proj.weight"
    if change == "transposed":
        state[weight] = state[weight].T.contiguous()
        state["model.layers.0.mlp.up_proj.weight"] = state["model.layers.0.mlp.up_proj.weight"].T.contiguous()
    elif change == "missing":
        del state[weight], state["model.norm.weight"], state[HEAD]
    elif change == "extra":
        state["model.layers.1.self_attn.q_proj.bias"] = state["score.weight"] = torch.ones(2)
    elif change == "inf":
        state[weight] = state[weight].clone().index_fill(0, torch.tensor([3]), torch.inf)
    elif change == "int8":
        state[weight] = state[weight].to(torch.int8)
    return state


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("transposed", r"another shape: .*up_proj.* should be \[352, 128\], transposed, .*k_proj"),
        ("missing", r"missing: lm_head\.weight, .*k_proj\.weight, model\.norm\.weight"),
        ("extra", r"unexpected: model\.layers\.1\.self_attn\.q_proj\.bias, score\.weight"),
        ("inf", r"not finite: model\.layers\.1\.self_attn\.k_proj\.weight"),
        ("int8", r"no floating-point numbers: model\.layers\.1\.self_attn\.k_proj\.weight \(torch\.int8\)"),
    ],
)
def test_a_checkpoint_that_cannot_be_is_refused_with_a_list(change: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        from_checkpoint(TINY, broken(change))


def test_a_tied_head_that_differs_is_refused() -> None:
    tied = to_checkpoint(ODD, made(ODD).state_dict())
    assert HEAD not in tied
    assert from_checkpoint(ODD, tied).notes == (f"{HEAD} is {TABLE}, to which it is tied",)
    with pytest.raises(UserError, match=r"lm_head\.weight and model\.embed_tokens\.weight differ"):
        from_checkpoint(ODD, {**tied, HEAD: tied[TABLE] + 1})


OLD = {"rope_parameters": None, "rope_theta": 500.0, "rope_scaling": None}


def test_old_and_new_files_say_the_base_in_different_places() -> None:
    assert from_huggingface({**to_huggingface(TINY), **OLD}).rope_theta == 500.0
    bare = {key: value for key, value in to_huggingface(TINY).items() if "rope" not in key}
    assert from_huggingface(bare).rope_theta == 10000.0
    assert from_huggingface({**bare, "num_key_value_heads": None}).num_key_value_heads == 4


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"model_type": "mistral"}, "model_type='mistral'"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_type='llama3'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type='linear'"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3"),
        ({"head_dim": 15}, "head_dim=15"),
        ({"head_dim": None, "num_attention_heads": 7}, "hidden_size=128"),
    ],
)
def test_a_configuration_that_is_not_built_here_is_refused(data: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        from_huggingface({**to_huggingface(TINY), **data})
