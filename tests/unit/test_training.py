"""Training: schedule, text, clipping, checkpoints that resume to the bit; where weights come from."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from parity.harness.case import CachePolicy
from parity.harness.errors import UserError
from parity.harness.progress import Bar
from parity.models import find_model
from parity.reference import checkpoints
from parity.reference.checkpoints import digest_of, ensure_checkpoint, load_weights, training_folder
from parity.reference.training import loop
from parity.reference.training.loop import batch_at, encode, make_optimizer, train
from parity.reference.training.measure import accuracy, greedy_text, windowed
from parity.reference.training.settings import SETTINGS, Settings, learning_rate, settings_for
from parity.reference.training.text import Text, library_text, paragraphs

TINY = find_model("klm-tiny")
SHORT = Settings(steps=4, batch=2, length=16, learning_rate=1e-3, warmup=2, on_the_spot=True, threads=1)
WORDS = Text("the list of the names is a list. " * 40, "the name of the list is the first one. " * 20)


class Heard:
    """A progress that keeps what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.done = 0

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Bar]:
        self.total = total
        yield self

    def advance(self, amount: int = 1) -> None:
        self.done += amount

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Trainings of four small steps on a few words, and a cache folder of our own."""
    monkeypatch.setitem(SETTINGS, "klm-tiny", SHORT)
    monkeypatch.setattr(loop, "library_text", lambda: WORDS)
    monkeypatch.setattr(loop, "SAVE_EVERY", 1)
    monkeypatch.setattr(loop, "SAMPLE_LENGTH", 4)
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path / "cache"))
    return tmp_path


def tensors(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(path, weights_only=True)
    return state


def test_the_rate_warms_up_linearly_and_falls_as_a_cosine() -> None:
    settings = Settings(steps=110, batch=1, length=1, learning_rate=1.0, warmup=10, final_share=0.1)
    assert [learning_rate(settings, step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert learning_rate(settings, 10) == pytest.approx(1.0)
    assert learning_rate(settings, 60) == pytest.approx(0.55)
    assert learning_rate(settings, 110) == pytest.approx(0.1)
    falling = [learning_rate(settings, step) for step in range(10, 111)]
    assert falling == sorted(falling, reverse=True)


def test_a_resumed_training_ends_in_the_bits_of_an_uninterrupted_one(short: Path) -> None:
    through = train("klm-tiny", short / "through")
    stopped = train("klm-tiny", short / "stopped", until=2)
    assert (through.finished, stopped.finished) == (True, False)
    assert not (short / "stopped" / "model.pt").exists()
    torch.manual_seed(999)
    resumed = train("klm-tiny", short / "stopped", resume=True)
    assert resumed.step == 4
    assert resumed.loss == through.loss
    first, second = (
        torch.load(short / name / "training.pt", weights_only=True) for name in ("through", "stopped")
    )
    for part in ("state", "optimizer"):
        torch.testing.assert_close(first[part], second[part], rtol=0, atol=0)
    ours, theirs = tensors(through.path), tensors(resumed.path)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_other_seeds_give_other_weights_and_the_generator_is_left_alone(short: Path) -> None:
    before = torch.get_rng_state()
    one, other = (train("klm-tiny", short / str(seed), seed=seed, until=1) for seed in (0, 1))
    assert one.loss != other.loss
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_depend_on_seed_and_step_alone() -> None:
    ids = torch.arange(1000)
    first = batch_at(ids, SHORT, 0, 5)
    assert torch.equal(first, batch_at(ids, SHORT, 0, 5))
    assert not torch.equal(first, batch_at(ids, SHORT, 0, 6))
    assert first.shape == (2, 17)
    assert torch.equal(first[:, 1:] - first[:, :-1], torch.ones(2, 16, dtype=torch.int64))


def test_gradients_are_clipped_to_the_stated_norm(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    real = nn.utils.clip_grad_norm_

    def watched(parameters: Iterator[nn.Parameter], max_norm: float) -> Tensor:
        kept = list(parameters)
        norm = real(kept, max_norm)
        clipped = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in kept if p.grad is not None]))
        norms.append((max_norm, float(clipped), float(norm)))
        return norm

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", watched)
    monkeypatch.setitem(SETTINGS, "klm-tiny", replace(SHORT, max_norm=0.01))
    train("klm-tiny", short / "out", until=1)
    (max_norm, clipped, norm) = norms[0]
    assert max_norm == 0.01
    assert norm > 0.01
    assert clipped == pytest.approx(0.01, rel=1e-3)


def test_vectors_do_not_decay() -> None:
    module = TINY.build()
    decaying, others = make_optimizer(module, SHORT).param_groups
    assert decaying["weight_decay"] == 0.1
    assert others["weight_decay"] == 0.0
    assert {p.dim() for p in decaying["params"]} == {2}
    assert {p.dim() for p in others["params"]} == {1}


def test_training_text_is_clipped_as_the_original_was() -> None:
    assert encode("a\u2019\u0080~", SHORT).tolist() == [97, 128, 128, 126]


def test_paragraphs_of_prose_come_on_one_line_and_the_rest_is_left_out() -> None:
    page = (
        "Title of the page\n*****************\n\n"
        "The first paragraph is wrapped\nover two   lines of the page.\n\n"
        "   code = [1, 2, 3]\n   more(code)[0] += {'a': 1}\n\nSee also:\n"
    )
    assert paragraphs(page) == ["The first paragraph is wrapped over two lines of the page."]


def test_training_predicts_under_the_window_that_the_model_is_deployed_with() -> None:
    module = TINY.build()
    policy = CachePolicy("window", 3)
    ids = torch.tensor([[70, 71, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81, 82]])
    changed = ids.clone()
    changed[0, 0] = 99
    with torch.no_grad():
        before, after = windowed(module, ids, policy), windowed(module, changed, policy)
    reach = TINY.config.num_layers * 2
    assert torch.equal(before[0, reach + 1 :], after[0, reach + 1 :])
    assert not torch.equal(before[0, reach], after[0, reach])


def test_accuracy_counts_right_characters() -> None:
    class Next(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, ids: Tensor, **_: Tensor) -> tuple[Tensor, None]:
            return nn.functional.one_hot((ids + 1) % 10, 10).float(), None

    ids = torch.arange(1000) % 10
    assert accuracy(Next(), ids, CachePolicy("window", 8)) == 1.0
    assert accuracy(Next(), ids.flip(0), CachePolicy("window", 8)) == 0.0


def test_greedy_text_follows_the_policy_with_a_cache_as_without_one() -> None:
    module = TINY.build()
    TINY.init_random(module, 0)  # type: ignore[attr-defined]
    policy = CachePolicy("window", 5)
    text = greedy_text(TINY, module, "The list", 12, policy)
    for length in range(8, 20):
        with torch.no_grad():
            logits = windowed(module, torch.tensor([TINY.encode(text[:length])]), policy)
        assert TINY.encode(text[length]) == (int(logits[0, -1].argmax()),)


def test_progress_tells_loss_accuracy_and_a_sample(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAY_EVERY", 2)
    heard = Heard()
    result = train("klm-tiny", short / "out", progress=heard)
    assert (heard.done, heard.total) == (4, 4)
    assert heard.lines[0].startswith("step 2 of 4: loss ")
    assert "next-character accuracy" in heard.lines[0]
    assert f"held-out characters: {result.accuracy:.1%}" in heard.lines[-1]
    assert repr(result.sample) in heard.lines[-1]


def test_a_time_limit_stops_between_steps_and_leaves_a_training_to_resume(short: Path) -> None:
    result = train("klm-tiny", short / "out", minutes=1e-9)
    assert (result.step, result.finished) == (0, False)
    assert train("klm-tiny", short / "out", resume=(result.path.exists())).finished


def test_nothing_is_overwritten_and_no_foreign_training_is_resumed(short: Path) -> None:
    train("klm-tiny", short / "out", until=1)
    with pytest.raises(UserError, match="is there already"):
        train("klm-tiny", short / "out")
    with pytest.raises(UserError, match="is another training"):
        train("klm-tiny", short / "out", resume=True, seed=8)
    with pytest.raises(UserError, match=r"settings.* differ"):
        train("klm-tiny", short / "out", resume=True, steps=9)
    with pytest.raises(UserError, match="there is no such file"):
        train("klm-tiny", short / "empty", resume=True)
    done = train("klm-tiny", short / "out", resume=True)
    done.path.rename(short / "out" / "training.pt")
    with pytest.raises(UserError, match="is no training that was stopped"):
        train("klm-tiny", short / "out", resume=True)


def test_a_training_uses_its_own_number_of_threads_and_gives_it_back(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        loop, "batch_at", lambda *args: used.append(torch.get_num_threads()) or batch_at(*args)
    )
    used: list[int] = []
    before = torch.get_num_threads()
    train("klm-tiny", short / "row", until=1)
    train("klm-tiny", short / "said", until=1, threads=2)
    assert used == [1, 2]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"threads": 0}, {"minutes": -1.0}, {"until": 0}], ids=str)
def test_lengths_of_a_training_are_above_zero(short: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(wrong))}=.*above 0"):
        train("klm-tiny", short / "out", **wrong)  # type: ignore[arg-type]


def test_models_without_settings_are_answered_with_those_that_have_them() -> None:
    with pytest.raises(UserError, match="Did you mean 'klm-tiny'"):
        settings_for("klm-tny")


def test_a_missing_checkpoint_is_trained_once_and_said(short: Path) -> None:
    heard = Heard()
    path = ensure_checkpoint("klm-tiny", progress=heard)
    assert path == training_folder("klm-tiny") / "model.pt"
    assert short in path.parents
    assert "training it now" in heard.lines[0]
    heard.lines.clear()
    assert ensure_checkpoint("klm-tiny", progress=heard) == path
    assert heard.lines == []


def test_a_stopped_training_is_gone_on_with(short: Path) -> None:
    train("klm-tiny", training_folder("klm-tiny"), until=2)
    heard = Heard()
    ensure_checkpoint("klm-tiny", progress=heard)
    assert heard.done == 4


def test_a_model_that_takes_hours_is_not_trained_on_the_spot(short: Path) -> None:
    with pytest.raises(UserError, match="parity train klm"):
        ensure_checkpoint("klm")


def test_an_unwritable_cache_is_an_error_in_words(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (short / "file").write_text("in the way")
    monkeypatch.setenv("PARITY_CACHE", str(short / "file"))
    with pytest.raises(UserError, match="cannot be written"):
        ensure_checkpoint("klm-tiny")


def test_random_weights_are_named_by_their_seed() -> None:
    state, digest, label = load_weights("random:3", TINY)
    assert label == "random:3"
    assert load_weights("random:3", TINY)[1] == digest
    assert load_weights("random:4", TINY)[1] != digest
    TINY.build().load_state_dict(state)


@pytest.mark.parametrize("spec", ["random", "random:", "random:x", "random:-1"])
def test_random_weights_need_a_seed(spec: str) -> None:
    with pytest.raises(UserError, match="random:SEED"):
        load_weights(spec, TINY)


def test_trained_weights_are_the_default(short: Path) -> None:
    state, digest, label = load_weights(None, TINY)
    assert label == "trained"
    assert digest == digest_of(tensors(ensure_checkpoint("klm-tiny"))) == digest_of(state)


def test_half_precision_checkpoints_are_widened_and_it_is_said(tmp_path: Path) -> None:
    source = {key: tensor.bfloat16() for key, tensor in TINY.build().state_dict().items()}
    torch.save(source, tmp_path / "half.pt")
    state, digest, label = load_weights(str(tmp_path / "half.pt"), TINY)
    assert label == f"{tmp_path / 'half.pt'} (bfloat16 widened to float32)"
    assert digest == digest_of(source) != digest_of(state)
    assert all(torch.equal(state[key].bfloat16(), source[key]) for key in source)


def test_the_digest_sees_names_shapes_dtypes_and_bits_but_no_order() -> None:
    base = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    same = {"b": torch.ones(4), "a": torch.zeros(3, 2).T}
    assert digest_of(base) == digest_of(same)
    others = [
        {"a": torch.zeros(2, 3), "c": torch.ones(4)},
        {"a": torch.zeros(3, 2), "b": torch.ones(4)},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.ones(4)},
        {"a": -torch.zeros(2, 3), "b": torch.ones(4)},
    ]
    assert len({digest_of(state) for state in [base, *others]}) == 5


def bad_file(folder: Path, kind: str) -> Path:
    path = folder / "weights.pt"
    state = {key: tensor.clone() for key, tensor in TINY.build().state_dict().items()}
    if kind == "text":
        path.write_text("no weights")
    elif kind == "empty":
        path.touch()
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a", "b")
    elif kind == "folder":
        path.mkdir()
    elif kind == "object":
        torch.save({"model": TINY.build()}, path)
    elif kind == "nested":
        torch.save({"state": state}, path)
    elif kind == "nan":
        state["final_ln.bias"][3] = torch.nan
        torch.save(state, path)
    elif kind == "double":
        torch.save({key: tensor.double() for key, tensor in state.items()}, path)
    elif kind == "other":
        torch.save({f"module.{key}": tensor for key, tensor in state.items()}, path)
    elif kind == "truncated":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:100_000])
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "there is no such file"),
        ("folder", "is a folder"),
        ("text", "or is damaged"),
        ("empty", "or is damaged"),
        ("zip", "or is damaged"),
        ("truncated", "or is damaged"),
        ("object", "or is damaged"),
        ("nested", "holds no table of tensors"),
        ("nan", r"NaN or infinity in final_ln.bias \(1 of 128\)"),
        ("double", "is float64"),
        ("other", "unexpected: module.body"),
    ],
)
def test_a_bad_checkpoint_file_is_one_sentence(tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_weights(str(bad_file(tmp_path, kind)), TINY)


def test_a_checkpoint_of_another_size_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save(TINY.build().state_dict(), tmp_path / "tiny.pt")
    with pytest.raises(UserError, match=r"missing: body.blocks.4"):
        load_weights(str(tmp_path / "tiny.pt"), find_model("klm"))


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/parity"),
        ("linux", {}, "/home/me/.cache/parity"),
        ("darwin", {}, "/home/me/Library/Caches/parity"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/parity"),
        ("linux", {"PARITY_CACHE": "/mine"}, "/mine"),
    ],
)
def test_the_cache_lies_where_the_platform_wants_it(
    monkeypatch: pytest.MonkeyPatch, platform: str, variables: dict[str, str], expected: str
) -> None:
    for name in ("PARITY_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(checkpoints.sys, "platform", platform)
    assert checkpoints.cache_folder() == Path(expected)


@pytest.mark.slow
def test_the_librarys_text_is_prose_and_split_without_overlap() -> None:
    text = library_text()
    assert len(text.training) > 10 * len(text.held_out) > 500_000
    assert not set(text.training.splitlines()) & set(text.held_out.splitlines())


@pytest.mark.slow
def test_the_trained_model_predicts_most_held_out_characters(tmp_path: Path) -> None:
    result = train("klm-tiny", tmp_path / "out")
    assert result.accuracy >= 0.55
    words = result.sample.split()
    assert len(words) >= 12
    assert {"the", "is", "a"} & set(words)
