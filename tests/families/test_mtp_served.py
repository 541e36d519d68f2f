"""vLLM drafts with a pruned MTP layer, and answers as without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from offline.build.build import build
from tests.families.mtp import make_with_mtp
from tests.families.test_build import sliced_map
from tests.vllm_probe import probe
from vllm_moe_prune.checkpoint import Checkpoint

PROMPTS = [[1, 5, 9, 20, 33, 7], [1, 40, 41, 42, 50, 51]]
DRAFTING = {"speculative_config": {"method": "mtp", "num_speculative_tokens": 1}}

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(make_with_mtp("glm4_moe", tmp_path_factory.mktemp("glm")))


@pytest.fixture(scope="module")
def expected(base: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    """What the model without its draft layer answers."""
    out = tmp_path_factory.mktemp("drop") / "out"
    build(base, sliced_map(base), out, mtp="drop")
    return tokens(out)


def tokens(folder: Path, **arguments: Any) -> list[list[int]]:
    answers = probe(
        folder, PROMPTS, steps=8, dtype="float32", skip_tokenizer_init=True, **arguments
    )
    return [found for found, _ in answers]


def test_a_pruned_draft_layer_loads_and_drafts(
    base: Checkpoint, expected: list[list[int]], tmp_path: Path
) -> None:
    build(base, sliced_map(base), tmp_path / "out", mtp="prune")
    assert tokens(tmp_path / "out", **DRAFTING) == expected
    assert tokens(base.folder, **DRAFTING) != expected


def test_map_only_leaves_the_bases_draft_layer_out(
    base: Checkpoint, expected: list[list[int]], tmp_path: Path
) -> None:
    sliced_map(base).save(tmp_path)
    extra = {"routing_map": str(tmp_path)}
    found = tokens(base.folder, load_format="pruned_moe", model_loader_extra_config=extra)
    assert found == expected
