"""KLM whole: sizes and keys of the public checkpoints, values against independent computations."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from parity.harness.errors import UserError
from parity.models.klm import ROWS, KLMConfig, find
from parity.models.klm.module import KLM, Caches, attend, rotate

CONFIG = KLMConfig(
    max_length=128,
    effective_length=16,
    vocab_size=128,
    hidden_size=32,
    num_layers=2,
    num_attention_heads=4,
    ffn_hidden_size=48,
)
NOISE = {"atol": 2e-5, "rtol": 1e-5}


def made(config: KLMConfig = CONFIG, seed: int = 0) -> KLM:
    from parity.models.klm.weights import init_random

    module = KLM(config).eval()
    init_random(module, seed)
    return module


def some_ids(batch: int, length: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, CONFIG.vocab_size, (batch, length), generator=generator)


def test_the_full_size_has_the_parameters_and_keys_of_the_original() -> None:
    module = KLM(ROWS["klm"])
    assert sum(parameter.numel() for parameter in module.parameters()) == 23_117_312
    keys = set(module.state_dict())
    assert len(keys) == 114
    assert {
        "embedding.word_embeddings.weight",
        "body.rotary_embedding.cos_cached",
        "body.rotary_embedding.sin_cached",
        "body.blocks.5.attention.out_proj.bias",
        "body.blocks.0.mlp.gate_proj.weight",
        "body.blocks.0.ln1.weight",
        "final_ln.bias",
        "lm_head.lm_head.weight",
    } <= keys


def test_the_head_is_tied_to_the_embedding() -> None:
    module = made()
    assert module.lm_head.lm_head.weight is module.embedding.word_embeddings.weight


def test_incremental_and_full_passes_agree_within_float_noise() -> None:
    module, ids = made(), some_ids(2, 24)
    with torch.no_grad():
        full, _ = module(ids)
        parts, past = [], None
        for start, stop in ((0, 9), (9, 10), (10, 17), (17, 24)):
            logits, past = module(ids[:, start:stop], past=past)
            parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), full, **NOISE)


def test_a_later_token_never_changes_an_earlier_row_with_or_without_a_cache() -> None:
    module, ids = made(), some_ids(1, 12)
    changed = ids.clone()
    changed[0, -1] = (changed[0, -1] + 1) % CONFIG.vocab_size
    with torch.no_grad():
        _, past = module(ids[:, :4])
        for cache, start in ((None, 0), (past, 4)):
            before, _ = module(ids[:, start:], past=cache)
            after, _ = module(changed[:, start:], past=cache)
            assert torch.equal(before[:, :-1], after[:, :-1])
            assert not torch.equal(before[:, -1], after[:, -1])


def test_left_padding_under_a_mask_leaves_a_sequence_as_it_is_alone() -> None:
    module, ids = made(), some_ids(1, 7)
    padded = torch.cat((torch.full((1, 3), 5), ids), dim=1)
    at = torch.tensor([[-1, -1, -1, 0, 1, 2, 3, 4, 5, 6]])
    real = (at >= 0)[:, :, None] == (at >= 0)[:, None, :]
    mask = real & (at[:, :, None] >= at[:, None, :])
    with torch.no_grad():
        alone, _ = module(ids)
        together, caches = module(padded, positions_bt=at, mask_bts=mask)
    torch.testing.assert_close(together[:, 3:], alone, **NOISE)
    assert caches.positions is not None
    assert caches.positions.tolist() == at.tolist()
    assert torch.isfinite(together).all()


def test_a_mask_with_a_window_hides_older_rows() -> None:
    module, ids, window = made(), some_ids(1, 10), 4
    row = torch.arange(10)
    behind = row[:, None] - row
    changed = ids.clone()
    changed[0, 0] = (changed[0, 0] + 1) % CONFIG.vocab_size
    mask = ((behind >= 0) & (behind < window))[None]
    with torch.no_grad():
        before, after = (module(x, mask_bts=mask)[0] for x in (ids, changed))
    reach = CONFIG.num_layers * (window - 1)
    assert torch.equal(before[:, reach + 1 :], after[:, reach + 1 :])
    assert not torch.equal(before[:, reach], after[:, reach])


def test_positions_go_on_after_the_newest_cached_row() -> None:
    module, ids = made(), some_ids(2, 6)
    with torch.no_grad():
        _, past = module(ids[:, :4], positions_bt=torch.arange(10, 14).expand(2, 4))
        implied, grown = module(ids[:, 4:], past=past)
        stated, _ = module(ids[:, 4:], past=past, positions_bt=torch.arange(14, 16).expand(2, 2))
    assert torch.equal(implied, stated)
    assert grown.positions is not None
    assert grown.positions[0].tolist() == list(range(10, 16))


def test_a_cache_without_positions_needs_them_said() -> None:
    module, ids = made(), some_ids(1, 4)
    with torch.no_grad():
        _, past = module(ids)
        blind = Caches(past.ks, past.vs)
        with pytest.raises(UserError, match="positions_bt=None"):
            module(ids, past=blind)
        rows = module.body.rotary_embedding(torch.arange(4, 8)[None])
        by_rows, _ = module(ids, past=blind, rope_cbtd=rows)
        by_position, _ = module(ids, past=past)
    assert torch.equal(by_rows, by_position)


def test_tables_are_used_as_they_were_loaded() -> None:
    module, ids = made(), some_ids(1, 5)
    state = module.state_dict()
    state["body.rotary_embedding.cos_cached"] = state["body.rotary_embedding.cos_cached"].bfloat16().float()
    rounded = KLM(CONFIG).eval()
    rounded.load_state_dict(state)
    positions = torch.arange(5)[None]
    rope = find("klm-tiny").rope(rounded, positions)
    assert torch.equal(rope[0, 0], state["body.rotary_embedding.cos_cached"][:5])
    with torch.no_grad():
        assert not torch.equal(rounded(ids)[0], module(ids)[0])


def test_rotation_is_multiplication_by_a_unit_complex_number() -> None:
    x = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    rope = made().body.rotary_embedding(torch.arange(40, 46).expand(2, 6))
    turn = torch.complex(rope[0], rope[1])[:, None, :, :4]
    expected = torch.complex(x[..., :4], x[..., 4:]) * turn
    torch.testing.assert_close(rotate(x, rope), torch.cat((expected.real, expected.imag), dim=-1))


@pytest.mark.slow
def test_rotation_equals_that_of_transformers() -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 6, 8, generator=generator)
    k = torch.randn(2, 2, 6, 8, generator=generator)
    rope = made().body.rotary_embedding(torch.arange(40, 46).expand(2, 6))
    theirs = llama.apply_rotary_pos_emb(q, k, rope[0], rope[1])
    torch.testing.assert_close((rotate(q, rope), rotate(k, rope)), theirs, rtol=0, atol=0)


def test_the_table_holds_the_angles_of_the_formula() -> None:
    rope = made().body.rotary_embedding(torch.tensor([[0, 1, 77, -1]]))
    for row, position in enumerate((0, 1, 77, 0)):
        for channel in range(CONFIG.head_dim):
            angle = position / 10000.0 ** (2 * (channel % 4) / CONFIG.head_dim)
            assert rope[0, 0, row, channel].item() == pytest.approx(math.cos(angle), abs=1e-5)
            assert rope[1, 0, row, channel].item() == pytest.approx(math.sin(angle), abs=1e-5)


@pytest.mark.parametrize("num_new", [1, 3, 7], ids=["one-new", "chunk", "no-past"])
def test_attention_equals_its_formula_written_out(num_new: int) -> None:
    generator = torch.Generator().manual_seed(2)
    q = torch.randn(2, 4, num_new, 8, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, 2, 4, 7, 8, generator=generator, dtype=torch.float64)
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) / math.sqrt(8)
    for j in range(num_new):
        scores[:, :, j, 7 - num_new + j + 1 :] = -torch.inf
    expected = torch.einsum("bhts,bhsd->bhtd", scores.softmax(dim=-1), v)
    torch.testing.assert_close(attend(q, k, v, None), expected)


def test_a_block_equals_its_formula_written_out() -> None:
    module, ids = made(), some_ids(1, 5)
    block = module.body.blocks[0]
    state = {name: tensor.double() for name, tensor in block.state_dict().items()}
    x = module.embedding(ids).double()
    rope = module.body.rotary_embedding(torch.arange(5)[None])

    def linear(name: str, value: Tensor) -> Tensor:
        return value @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, value: Tensor) -> Tensor:
        centred = value - value.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5)
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    h = norm("ln1", x)
    q = rotate(linear("attention.q_proj", h).view(1, 5, 4, 8).transpose(1, 2), rope.double())
    k = rotate(linear("attention.k_proj", h).view(1, 5, 2, 8).transpose(1, 2), rope.double())
    v = linear("attention.v_proj", h).view(1, 5, 2, 8).transpose(1, 2)
    heads = [attend(q[:, i : i + 1], k[:, i // 2][:, None], v[:, i // 2][:, None], None) for i in range(4)]
    mid = x + linear("attention.out_proj", torch.cat(heads, dim=1).transpose(1, 2).reshape(1, 5, 32))
    g = norm("ln2", mid)
    expected = mid + linear("mlp.down_proj", F.silu(linear("mlp.up_proj", g)) * linear("mlp.gate_proj", g))
    with torch.no_grad():
        actual, _, _ = block(x.float(), rope, None, None, None)
    torch.testing.assert_close(actual.double(), expected, atol=1e-5, rtol=1e-5)


def test_random_weights_are_alive_reproducible_and_leave_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second, other = made(seed=3), made(seed=3), made(seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.embedding.word_embeddings.weight, other.embedding.word_embeddings.weight)
    torch.set_rng_state(before)
    find("klm-tiny").init_random(first, 9)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        logits = first(some_ids(4, 24))[0]
    margin = torch.diff(logits.topk(2).values, dim=-1).abs()
    assert 1.0 < logits.std() < 6.0
    assert margin.median() > 0.1
    assert logits.argmax(dim=-1).unique().numel() > 20


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_size", 34), ("num_kv_heads", 3), ("effective_length", 1), ("effective_length", 999)],
)
def test_sizes_that_cannot_be_are_refused(field: str, value: int) -> None:
    from dataclasses import replace

    with pytest.raises(UserError, match=f"{field}={value}"):
        replace(CONFIG, **{field: value})
