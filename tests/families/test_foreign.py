"""Families that only vLLM has, served as built, against the base whose dropped experts are barred.

With ``--matrix`` the outcomes are written into docs/families.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.dummy_model import write_tokenizer
from offline.build.build import build
from offline.engines.local.transformers import TransformersEngine
from tests.families.foreign import CONFIGS, EXPERTS, barred, make_foreign
from tests.families.matrix import Matrix
from tests.families.test_serving import (
    DIFFERENT,
    PARALLEL,
    PROMPTS,
    STEPS,
    UNIFORM,
    difference,
    kept_map,
)
from tests.vllm_probe import Answer, probe
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

LIMIT = 1e-4
KEPT = {"plain": UNIFORM, "compact": DIFFERENT}


def served(folder: Path, **arguments: Any) -> list[Answer]:
    return probe(
        folder,
        PROMPTS,
        steps=STEPS,
        dtype="float32",
        skip_tokenizer_init=True,
        trust_remote_code=True,
        **arguments,
    )


@pytest.mark.parametrize("parallel", PARALLEL)
@pytest.mark.parametrize("form", KEPT)
@pytest.mark.parametrize("family", CONFIGS)
def test_served_as_the_barred_base(
    family: str, form: str, parallel: str, tmp_path: Path, matrix: Matrix
) -> None:
    base = Checkpoint.open(make_foreign(family, tmp_path / "base"))
    assert base.expert_counts() == {1: EXPERTS, 2: EXPERTS}
    kept = {layer: KEPT[form][layer] for layer in base.expert_counts()}
    assert build(base, kept_map(base, KEPT[form]), tmp_path / "out").form == form
    load_format = "auto" if form == "plain" else "pruned_moe"
    found = served(tmp_path / "out", load_format=load_format, **PARALLEL[parallel])
    expected = served(barred(base, kept, tmp_path / "barred"))
    worst = difference(found, expected, same_tokens=True)
    matrix.add(family, form, parallel, worst)
    whole = served(base.folder)
    assert difference(whole, expected, same_tokens=False) > 100 * LIMIT
    assert worst <= LIMIT


@pytest.mark.parametrize("family", CONFIGS)
def test_transformers_cannot_score_them(family: str, tmp_path: Path, matrix: Matrix) -> None:
    folder = make_foreign(family, tmp_path / "base")
    write_tokenizer(folder, 60)
    with pytest.raises(PruneError, match="transformers cannot open") as caught:
        TransformersEngine(folder, dtype="float32")
    message = caught.value.message.replace(str(folder), "it").splitlines()[0]
    matrix.add(family, "transformers", "TP1", message[:160])
