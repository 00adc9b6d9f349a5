"""A prompt that is fed in chunks: every target that can, agrees; one that cannot, says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import parity

pytestmark = pytest.mark.slow
PROMPT = "The quick brown fox jumps"


@pytest.fixture
def chunked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path / "cache"))

    def run(cand: list[str], **options: Any) -> Any:
        chosen = {"weights": "random:0", "steps": 3, "prompt": PROMPT, "scenario": "short", **options}
        return parity.run("torch", cand, out=tmp_path / "out", report=False, **chosen)

    return run


@pytest.mark.parametrize("chunks", ["16", "7,1", "24"])
def test_a_chunked_prefill_agrees_in_every_layout(chunks: str, chunked: Any) -> None:
    layouts = ["segmented", "segmented:grow", "segmented:recompute", "g=torch:grow"]
    result = chunked(layouts, chunks=chunks)
    assert [found.verdict for found in result] == ["parity"] * 4
    assert {found.tokens.compared for found in result} == {4}


@pytest.mark.parametrize("scenario", ["batch3", "batch3-right"])
def test_a_padded_batch_in_chunks_emits_what_it_emits_at_once(scenario: str, chunked: Any) -> None:
    found = chunked(["segmented:grow"], scenario=scenario, chunks="5", prompt=None)["segmented:grow"]
    assert found.verdict == "parity"
    assert found.tokens.agreed == found.tokens.compared == 4 * 3


def test_a_prompt_from_files_cannot_be_chunked_and_that_is_said(chunked: Any) -> None:
    with pytest.raises(parity.UserError, match="not fed in chunks"):
        chunked(["prefilled"], chunks="8")
