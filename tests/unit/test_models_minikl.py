"""MiniKL: against its formulas written out with torch's own parts, nested against padded, its checkpoints."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from parity.harness.errors import UserError
from parity.models.minikl import ROWS, MiniKLConfig
from parity.models.minikl.module import MiniKL
from parity.models.minikl.roles import roles, taps
from parity.models.minikl.weights import draw, from_checkpoint, init_random, shapes, to_checkpoint
from parity.reference.files import read_state, save_whole
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
TINY = ROWS["minikl-tiny"]
KINDS = {
    "MHA": replace(TINY, g=4),
    "GQA": TINY,
    "MQA": replace(TINY, g=1),
    "FFN": replace(TINY, ffn="FFN"),
}
NOISE = 1e-4
LENGTHS = (5, 9, 1, 4)


@cache
def made(config: MiniKLConfig = TINY) -> MiniKL:
    module = MiniKL(config).eval()
    init_random(module, 0)
    return module


def turned(x_htd: Tensor, theta: float) -> Tensor:
    """Neighbouring channels as one complex number, times exp(-i position theta^(-2 pair / width))."""
    pair = torch.arange(x_htd.shape[-1] // 2, dtype=torch.float64)
    angle = torch.arange(x_htd.shape[1])[:, None] * theta ** (-2 * pair / x_htd.shape[-1])
    turn = torch.polar(torch.ones_like(angle), -angle)
    number = torch.view_as_complex(x_htd.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(number * turn).flatten(-2).to(x_htd.dtype)


def formula(config: MiniKLConfig, ids_t: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Logits `[T, V]`, keys and values `[G, T, D]` per layer, of one whole sequence, from weights by name."""
    state = made(config).state_dict()

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, config.d_model // config.num_heads)).transpose(0, 1)

    x, keys, values = F.embedding(ids_t, state["embeddings.weight"]), [], []
    for i in range(config.num_layers):
        at = f"layers.{i}."
        norm1, norm2 = torch.nn.RMSNorm(config.d_model), torch.nn.RMSNorm(config.d_model)
        norm1.weight.data, norm2.weight.data = state[at + "norm1.weight"], state[at + "norm2.weight"]
        h = norm1(x)
        q, k, v = (heads(linear(f"{at}attention.w_{name}", h)) for name in "qkv")
        q, k = turned(q, config.theta), turned(k, config.theta)
        attn = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, enable_gqa=True)[0]
        x = x + linear(at + "attention.w_o", attn.transpose(0, 1).flatten(1))
        h = norm2(x)
        if config.ffn == "GLU":
            inner = linear(at + "ffn.w_up_a", h) * F.silu(linear(at + "ffn.w_up_b", h))
        else:
            inner = linear(at + "ffn.w_up", h)
        x = x + linear(at + "ffn.w_down", inner)
        keys.append(k)
        values.append(v)
    return linear("fc", x), keys, values


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", oracle.BATCHES)
@torch.no_grad()
def test_logits_and_caches_equal_the_formula_over_prefill_and_64_decode_steps(kind: str, batch: str) -> None:
    config, module = KINDS[kind], made(KINDS[kind])
    past, held, tokens, logits = None, None, [], []
    for new, positions in oracle.history(config.vocab_size, batch):
        held = positions if held is None else torch.cat((held, positions), dim=1)
        mask = oracle.seen(positions, held) if batch != "one" else None
        got, past = module(new, positions_bt=positions, mask_bts=mask, past=past)
        tokens.append(new)
        logits.append(got)
    assert past is not None
    assert held is not None
    all_tokens, all_logits = torch.cat(tokens, dim=1), torch.cat(logits, dim=1)
    for b, real in enumerate(held >= 0):
        expected, keys, values = formula(config, all_tokens[b][real])
        torch.testing.assert_close(all_logits[b][real], expected, atol=NOISE, rtol=0)
        for layer in range(config.num_layers):
            torch.testing.assert_close(past.ks[layer][b][:, real], keys[layer], atol=NOISE, rtol=0)
            torch.testing.assert_close(past.vs[layer][b][:, real], values[layer], atol=NOISE, rtol=0)
        assert held[b][real].tolist() == list(range(int(real.sum())))


def test_the_original_has_17_7_million_parameters_at_its_defaults() -> None:
    with torch.device("meta"):
        module = MiniKL(MiniKLConfig())
    assert sum(p.numel() for p in module.parameters()) == 17_731_120
    assert {key: tuple(value.shape) for key, value in module.state_dict().items()} == shapes(MiniKLConfig())
    assert MiniKLConfig().inner_size == 1365
    assert ROWS["minikl"].vocab_size == 10215


@pytest.mark.parametrize("kind", KINDS)
def test_every_tap_is_recorded_in_the_order_of_the_roles(kind: str) -> None:
    module = made(KINDS[kind])
    sink = oracle.recorded(module, oracle.some_ids(TINY.vocab_size, 2, 7))
    oracle.check_roles(module, roles(KINDS[kind]), sink)
    assert taps(TINY)[:3] == ("embed", "rope", "layer0.residual")
    assert len(taps(TINY)) == 4 + 13 * TINY.num_layers


@pytest.mark.parametrize("part", ["w_q", "w_k", "w_v"])
def test_queries_keys_and_values_all_learn(part: str) -> None:
    module = MiniKL(TINY)
    init_random(module, 0)
    module(oracle.some_ids(TINY.vocab_size, 1, 6))[0].square().sum().backward()
    for layer in module.layers:
        grad = layer.get_parameter(f"attention.{part}.weight").grad
        assert grad is not None
        assert grad.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_norm_has_the_eps_of_its_number_format(dtype: torch.dtype) -> None:
    norm = MiniKL(TINY).to(dtype).layers[0].get_submodule("norm1")
    x = torch.full((1, TINY.d_model), 1e-4, dtype=dtype)
    expected = x / (x.square().mean(-1, keepdim=True) + torch.finfo(dtype).eps).sqrt()
    torch.testing.assert_close(norm(x), expected)
    assert (expected < 0.5).all() == (dtype == torch.float32)


def nested_pair(config: MiniKLConfig) -> tuple[MiniKL, MiniKL, Tensor, Tensor]:
    """A model that takes jagged batches, one that does not, with the same weights; a batch of both kinds."""
    nested, padded = MiniKL(replace(config, is_nested=True)), MiniKL(config)
    for module in (nested, padded):
        init_random(module, 0)
    rows = [oracle.some_ids(config.vocab_size, n, seed=n) for n in LENGTHS]
    ids = torch.nested.nested_tensor(rows, layout=torch.jagged)
    return nested, padded, ids, torch.nested.to_padded_tensor(ids, 7)


def real_rows(positions: Tensor, *tensors: Tensor) -> list[Tensor]:
    """`[B, T, ...]` -> `[N, ...]` without padding; jagged tensors have none."""
    return [x.values() if x.is_nested else x[positions >= 0] for x in tensors]


@pytest.mark.parametrize("kind", KINDS)
def test_a_nested_batch_gives_the_logits_caches_and_gradients_of_the_padded_one(kind: str) -> None:
    nested, padded, ids, dense = nested_pair(KINDS[kind])
    logits, caches = nested(ids)
    wanted, wanted_caches = padded(dense)
    at = caches.positions
    assert at.tolist() == [[*range(n), *[-1] * (max(LENGTHS) - n)] for n in LENGTHS]
    assert logits.is_nested
    mine, other = real_rows(at, logits, wanted)
    torch.testing.assert_close(mine, other, atol=NOISE, rtol=0)
    for layer in range(TINY.num_layers):
        for name in ("ks", "vs"):
            have, want = (getattr(c, name)[layer].transpose(1, 2) for c in (caches, wanted_caches))
            assert have.is_nested
            for row, n in enumerate(LENGTHS):
                torch.testing.assert_close(have[row], want[row, :n], atol=NOISE, rtol=0)
    answers = torch.randint(0, TINY.vocab_size, (sum(LENGTHS),), generator=torch.Generator().manual_seed(5))
    for rows in (mine, other):
        F.cross_entropy(rows, answers).backward()
    for (key, first), second in zip(nested.named_parameters(), padded.parameters(), strict=True):
        assert first.grad is not None, key
        assert first.grad.abs().max() > 0, key
        torch.testing.assert_close(first.grad, second.grad, atol=1e-5, rtol=1e-4)


def test_a_nested_batch_records_the_taps_of_the_padded_one() -> None:
    nested, padded, ids, dense = nested_pair(TINY)
    at = torch.tensor([[*range(n), *[-1] * (max(LENGTHS) - n)] for n in LENGTHS])
    want = oracle.recorded(padded, dense, at)
    have = oracle.recorded(nested, ids, at)
    assert list(have.seen) == list(want.seen)
    real = np.zeros(at.shape, bool)
    for row, n in enumerate(LENGTHS):
        real[row, :n] = True
    for tap, (array, axes, positions) in have.seen.items():
        other, other_axes, _ = want.seen[tap]
        assert axes == other_axes
        letters = axes.split()
        token = letters.index("t" if "t" in letters else "p")
        assert np.array_equal(positions, at)
        rows, wanted = (np.moveaxis(x, (letters.index("b"), token), (0, 1))[real] for x in (array, other))
        np.testing.assert_allclose(rows, wanted, atol=NOISE, err_msg=tap)


def test_nested_batches_with_an_empty_or_a_single_sequence_pass() -> None:
    module = made(replace(TINY, is_nested=True))
    for lengths in ((3,), (4, 0, 2)):
        rows = [oracle.some_ids(TINY.vocab_size, n, seed=n) for n in lengths]
        with torch.no_grad():
            logits, _ = module(torch.nested.nested_tensor(rows, layout=torch.jagged))
            for row, ids in zip(logits.unbind(), rows, strict=True):
                assert row.shape == (len(ids), TINY.vocab_size)
                if len(ids):
                    torch.testing.assert_close(row, module(ids[None])[0][0], atol=NOISE, rtol=0)


def test_nested_batches_are_refused_where_they_cannot_be_right() -> None:
    nested, padded, ids, _ = nested_pair(TINY)
    with torch.no_grad():
        _, past = nested(oracle.some_ids(TINY.vocab_size, 4, 3))
    with pytest.raises(UserError, match="is_nested=False"):
        padded(ids)
    for name, value in (("past", past), ("positions_bt", torch.zeros(4, 9, dtype=torch.long))):
        with pytest.raises(UserError, match="starts at position 0"):
            nested(ids, **{name: value})
    holes = torch.nested.narrow(
        oracle.some_ids(TINY.vocab_size, 2, 6),
        1,
        torch.tensor([1, 2]),
        torch.tensor([2, 3]),
        layout=torch.jagged,
    )
    with pytest.raises(UserError, match="without holes"):
        nested(holes)


def test_random_weights_are_alive_and_each_is_drawn_by_its_key_alone() -> None:
    module, before = MiniKL(TINY).eval(), torch.get_rng_state()
    init_random(module, 3)
    assert torch.equal(torch.get_rng_state(), before)
    oracle.check_alive(module, TINY.vocab_size)
    state = module.state_dict()
    assert state.keys() == shapes(TINY).keys()
    assert all(torch.equal(state[key], draw(TINY, key, 3)) for key in state)


@pytest.mark.parametrize("prefix", ["", "module."], ids=["plain", "data-parallel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_an_original_checkpoint_comes_back_bit_for_bit(
    tmp_path: Path, prefix: str, dtype: torch.dtype
) -> None:
    state = {key: value.to(dtype) for key, value in to_checkpoint(TINY, made().state_dict()).items()}
    save_whole({prefix + key: value for key, value in state.items()}, tmp_path / "pretrain_model.pth")
    loaded = from_checkpoint(TINY, read_state(tmp_path / "pretrain_model.pth"))
    assert oracle.same(loaded.state, state)
    assert loaded.notes == (("'module.' taken off every name",) if prefix else ())
    module = MiniKL(TINY).to(dtype)
    module.load_state_dict(loaded.state, strict=True)
    assert oracle.same(to_checkpoint(TINY, module.state_dict()), state)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_tables_that_layers_share_are_written_for_each(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("safetensors")
    state = to_checkpoint(TINY, made().state_dict())
    write_folder(tmp_path, {"model_type": "minikl"}, state, kind=kind, shard_bytes=300_000)
    assert oracle.same(read_folder(tmp_path).state, state)


def test_a_saved_table_is_used_as_it_was_saved() -> None:
    state = made().state_dict()
    rounded = {k: v.bfloat16().float() if "rope_" in k else v for k, v in state.items()}
    module, ids = MiniKL(TINY).eval(), oracle.some_ids(TINY.vocab_size, 1, 30)
    module.load_state_dict(from_checkpoint(TINY, rounded).state)
    with torch.no_grad():
        assert not torch.equal(module(ids)[0], made()(ids)[0])


def broken(change: str) -> dict[str, Tensor]:
    state = to_checkpoint(TINY, made().state_dict())
    weight, table = "layers.1.ffn.w_up_b.weight", "layers.1.attention.rope.rope_sin"
    if change == "transposed":
        state[weight] = state[weight].T.contiguous()
        state["layers.0.attention.w_k.weight"] = state["layers.0.attention.w_k.weight"].T.contiguous()
    elif change == "missing":
        del state[weight], state["fc.bias"]
    elif change == "layernorm":
        state["layers.0.norm1.bias"] = state["layers.2.norm2.bias"] = torch.zeros(128)
    elif change == "nan":
        state[weight] = state[weight].clone().index_fill(0, torch.tensor([3]), torch.nan)
    elif change == "table":
        state[table] = state[table].roll(1, dims=0)
    elif change == "wider":
        state[weight] = torch.zeros(344, 128)
    return state


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("transposed", r"another shape: .*w_k.*\[128, 64\], should be \[64, 128\], transposed, .*w_up_b"),
        ("missing", r"missing: fc\.bias, layers\.1\.ffn\.w_up_b\.weight"),
        ("layernorm", r"unexpected: layers\.0\.norm1\.bias, layers\.2\.norm2\.bias"),
        ("nan", r"not finite: layers\.1\.ffn\.w_up_b\.weight"),
        ("table", r"layers\.0\.attention\.rope\.rope_sin and layers\.1\.attention\.rope\.rope_sin differ"),
        ("wider", r"w_up_b\.weight \[344, 128\], should be \[341, 128\]"),
    ],
)
def test_a_checkpoint_that_cannot_be_is_refused_with_a_list(change: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        from_checkpoint(TINY, broken(change))


def test_tables_of_another_base_are_refused() -> None:
    with pytest.raises(UserError, match=r"layers\.0\.attention\.rope\.rope_sin is not that of theta=10000"):
        from_checkpoint(replace(TINY, theta=1e4), made().state_dict())


@pytest.mark.parametrize(
    ("field", "value"),
    [("d_model", 100), ("g", 3), ("g", 0), ("ffn", "glu")],
    ids=["width", "g3", "g0", "ffn"],
)
def test_sizes_that_cannot_be_are_refused(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"{field}={value!r}"):
        replace(TINY, **{field: value})
