"""Settings that change nothing are said, not swallowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from offline.compress.recipe.reading import read_recipe
from vllm_moe_prune.errors import PruneError

BASE: dict[str, Any] = {"model": Path("base"), "keep": 4}
LOTTERY = {"method": "lottery", "compare": "none"}
IDLE: list[tuple[dict[str, Any], str, str]] = [
    ({"floor": 2}, "--floor 2", "--budget"),
    ({"tensor_parallel": 2}, "--tensor-parallel 2", "--engine vllm"),
    ({"ray_address": "auto"}, "--ray-address auto", "--replicas"),
    ({"engine": "vllm", "device": "cpu"}, "--device cpu", "--engine transformers; vLLM takes "),
    ({"domains": "code:2"}, "--domains code:2", "a criterion: "),
    ({"phases": "merge", "prune_evaluations": 9}, "--prune-evaluations 9", "a pruning phase"),
    (LOTTERY | {"lora_rank": 4}, "--lora-rank 4", "--trainable lora"),
    (LOTTERY | {"finetune": False, "processes": 2}, "--processes 2", "--finetune"),
    (LOTTERY | {"rounds": 2, "drop_per_round": 2}, "--drop-per-round 2", "no --rounds, "),
]


@pytest.mark.parametrize(("flags", "what", "hint"), IDLE, ids=[what for _, what, _ in IDLE])
def test_a_flag_that_changes_nothing_is_refused(
    flags: dict[str, Any], what: str, hint: str
) -> None:
    with pytest.raises(PruneError) as caught:
        read_recipe(BASE | flags)
    assert caught.value.message == f"{what} changes nothing here"
    assert str(caught.value.hint).startswith(f"it goes with {hint}")


def test_a_file_may_have_a_setting_for_another_use_and_a_note_tells_of_it(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("base: {model: base}\nmethod: {budget: 9, floor: 2}\n")
    assert read_recipe({}, file)[1] == ()
    found, notes = read_recipe({"keep": 4}, file)
    assert found.method.keep == 4
    assert notes == (f"recipe {file}: floor changes nothing, it goes with --budget",)
    with pytest.raises(PruneError, match="--floor 3 changes nothing"):
        read_recipe({"keep": 4, "floor": 3}, file)
