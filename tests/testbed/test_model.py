from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.testbed.model import WEIGHTS, make_testbed
from benchmarks.testbed.puzzles import distinct
from benchmarks.testbed.taskfiles import GENERATED, TASKS
from benchmarks.testbed.text import downloaded
from offline.engines.local.transformers import TransformersEngine
from offline.maps.map_space import Space
from offline.maps.moe_shape import MoeShape
from offline.tasks.catalog import get_task
from offline.tasks.splits import load_items
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import Provenance


def test_the_shipped_file_is_small_and_says_how_it_was_made() -> None:
    assert WEIGHTS.stat().st_size <= 50_000_000
    with safe_open(WEIGHTS, framework="pt") as file:
        made = json.loads(file.metadata()["made"])
    assert made["tokens"] > 1_000_000
    assert len(made["text_sha256"]) == 6


def test_checkpoint_has_eight_experts_in_every_layer(bare_model: Path) -> None:
    counts = Checkpoint.open(bare_model).expert_counts()
    assert list(counts.values()) == [8] * 4


def test_digits_are_single_tokens_and_text_survives(bare_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bare_model)
    assert tokenizer.tokenize("47+38=") == ["4", "7", "+", "3", "8", "="]
    text = "def f(x):\n    return x  # \u00e9\u4e2d\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_an_answer_is_the_same_tokens_alone_and_after_its_prompt(bare_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bare_model)
    for name in ("arithmetic", "pattern", "lookup"):
        for puzzle in distinct(name, "test", 50):
            whole = tokenizer.encode(f"{puzzle.prompt} {puzzle.answer}\n")
            parts = tokenizer.encode(puzzle.prompt) + tokenizer.encode(f" {puzzle.answer}\n")
            assert whole == parts


def test_the_model_has_learnt_and_masking_half_hurts(bare_model: Path) -> None:
    engine = TransformersEngine(bare_model, dtype="float32")
    asked = distinct("pattern", "test", 20)

    def loss() -> float:
        """Mean loss of an answer's tokens."""
        total = 0.0
        for puzzle in asked:
            prompt = engine.tokenizer.encode(puzzle.prompt)
            answer = engine.tokenizer.encode(f" {puzzle.answer}")
            scores = engine.logits([prompt + answer])[0, len(prompt) - 1 : -1].log_softmax(dim=-1)
            total -= scores.gather(1, torch.tensor(answer)[:, None]).mean().item()
        return total / len(asked)

    whole = loss()
    space = Space.of(MoeShape.of(Checkpoint.open(bare_model)), 4)
    kept = {layer: (0, 1, 2, 3) for layer in space.layers}
    engine.apply(space.routing_map(kept, Provenance.now("test")))
    assert whole < 3  # chance is 8.3
    assert loss() > whole + 1


def test_embeddings_are_tied(bare_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(bare_model, dtype=torch.float32)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_an_existing_folder_is_refused_and_replaced_only_by_force(tmp_path: Path) -> None:
    out = make_testbed(tmp_path / "model", tasks=False)
    with pytest.raises(PruneError, match="already exists"):
        make_testbed(out, tasks=False)
    (out / "other").touch()
    with pytest.raises(PruneError, match="other was not written by vmprune"):
        make_testbed(out, force=True, tasks=False)
    (out / "other").unlink()
    (out / "config.json").unlink()
    make_testbed(out, force=True, tasks=False)
    assert (out / "config.json").exists()
    assert not (out / "other").exists()


@pytest.mark.skipif(not downloaded(), reason="needs the packages with the text")
def test_tasks_are_read_with_disjoint_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = make_testbed(tmp_path / "model")
    for name in (*TASKS, *GENERATED):
        task = get_task(str(out / "tasks" / f"{name}.yaml"))
        splits = {split: load_items(task, split) for split in ("search", "selection", "test")}
        assert len(splits["search"]) + len(splits["selection"]) >= 1500
        assert len(splits["test"]) >= 600
        keys = [item.key for items in splits.values() for item in items]
        assert len(set(keys)) == len(keys)
