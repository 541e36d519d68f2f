"""A build: what is in the folder, that it computes the same, and that it is whole or absent."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from offline.build.build import build, plan_build
from offline.runs.owned import MANIFEST
from tests.reference import reference_model
from tests.sample_maps import mixed_map, uniform_map
from vllm_moe_prune.checkpoint import COMPACT_FOLDER, INDEX_FILE, Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.routing_map import MAP_FILE, MATRIX_FILE, RoutingMap

UNIFORM = [(0, 2, 5, 7), (1, 2, 3, 4), (7, 6, 1, 0), (2, 4, 5, 6)]
COMPANIONS = {
    "LICENSE",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "out"
    assert build(Checkpoint.open(base), uniform_map(base, UNIFORM), out).form == "plain"
    return out


@pytest.fixture(scope="module")
def compact(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compact") / "out"
    small = 400_000
    plan = build(Checkpoint.open(base), mixed_map(base), out, max_shard_bytes=small)
    assert plan.form == "compact"
    return out


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def config(folder: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return fields


def test_plain_has_the_weights_the_companions_the_map_and_a_card(plain: Path) -> None:
    assert names(plain) == {
        *COMPANIONS,
        *("model.safetensors", INDEX_FILE, "README.md", MAP_FILE, MANIFEST),
    }


def test_compact_has_its_weights_where_no_other_reader_looks(compact: Path) -> None:
    assert names(compact) == {
        *COMPANIONS,
        *(COMPACT_FOLDER, "README.md", MAP_FILE, MATRIX_FILE, MANIFEST),
    }
    weights = names(compact / COMPACT_FOLDER)
    assert INDEX_FILE in weights
    assert len(weights) >= 3
    assert all(name == INDEX_FILE or name.endswith(".safetensors") for name in weights)


@pytest.mark.parametrize("form", ["plain", "compact"])
def test_companions_are_copied_byte_by_byte(
    form: str, base: Path, request: pytest.FixtureRequest
) -> None:
    out: Path = request.getfixturevalue(form)
    for name in COMPANIONS - {"config.json"}:
        assert (out / name).read_bytes() == (base / name).read_bytes()
    messages = [{"role": "user", "content": "the cat"}]
    ours, theirs = (
        AutoTokenizer.from_pretrained(folder).apply_chat_template(messages)["input_ids"]
        for folder in (out, base)
    )
    assert ours == theirs


def test_config_carries_one_number_the_maximum(base: Path, plain: Path, compact: Path) -> None:
    changed = {"num_local_experts": 4, "num_experts_per_tok": 2}
    assert config(plain) == config(base) | changed
    assert config(compact) == config(base) | {"num_local_experts": 8, "num_experts_per_tok": 2}


def test_the_map_beside_the_weights_is_the_map(base: Path, plain: Path, compact: Path) -> None:
    assert RoutingMap.load(plain).digest() == uniform_map(base, UNIFORM).digest()
    assert RoutingMap.load(compact).digest() == mixed_map(base).digest()


def test_the_card_says_what_was_pruned_and_how_to_serve_it(plain: Path, compact: Path) -> None:
    assert "plain: 16 of 32 experts in 4 layers" in (plain / "README.md").read_text()
    card = (compact / "README.md").read_text()
    assert "base_model: tiny" in card
    assert "vllm serve . --load-format pruned_moe" in card


def test_plain_in_transformers_equals_the_base_with_dropped_experts_masked(
    base: Path, plain: Path
) -> None:
    ids = torch.randint(5, 128, (1, 12), generator=torch.Generator().manual_seed(3))
    opened = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    with torch.no_grad():
        ours = opened(ids).logits
        masked = reference_model(base, uniform_map(base, UNIFORM), torch.float32)(ids).logits
        whole = reference_model(base, None, torch.float32)(ids).logits
    assert float((ours - masked).abs().max()) < 1e-5
    assert float((ours - whole).abs().max()) > 1e-2  # pruning this model changes it


def test_transformers_refuses_a_compact_checkpoint(compact: Path) -> None:
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(compact)


def test_a_plan_counts_what_a_build_writes(base: Path, plain: Path) -> None:
    checkpoint, built = Checkpoint.open(base), Checkpoint.open(plain)
    plan = plan_build(checkpoint, uniform_map(base, UNIFORM))
    assert plan.num_bytes == built.num_bytes
    assert plan.expert_bytes == built.expert_bytes()
    assert plan.expert_bytes * 8 == checkpoint.expert_bytes() * 4
    assert (plan.dropped, plan.merged) == (4 * 4 * 3, 0)
    assert plan.base_bytes == checkpoint.num_bytes


def test_what_no_pruning_touches_is_byte_equal(base: Path, plain: Path, compact: Path) -> None:
    whole = Checkpoint.open(base)
    untouched = [name for name in whole.stored if ".block_sparse_moe." not in name]
    assert len(untouched) == 4 * 6 + 3
    for built in (Checkpoint.open(plain), Checkpoint.open(compact)):
        for name in untouched:
            assert built.raw(name) == whole.raw(name)


def test_a_compact_checkpoint_is_no_base(compact: Path) -> None:
    checkpoint = Checkpoint.open(compact)
    with pytest.raises(PruneError, match="is a compact pruned checkpoint"):
        plan_build(checkpoint, RoutingMap.load(compact))


def test_a_map_for_another_base_is_refused_before_anything_is_written(
    base: Path, tmp_path: Path
) -> None:
    routing_map = uniform_map(base, UNIFORM)
    other = routing_map.model_copy(
        update={"base": routing_map.base.model_copy(update={"routers": "sha256:other"})}
    )
    with pytest.raises(PruneError, match=r"another base \(tiny\): the routers hash differs"):
        build(Checkpoint.open(base), other, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    build(Checkpoint.open(base), other, tmp_path / "out", allow_other=True)


def test_further_files_lie_beside_the_weights(base: Path, tmp_path: Path) -> None:
    checkpoint, routing_map = Checkpoint.open(base), uniform_map(base, UNIFORM)
    build(checkpoint, routing_map, tmp_path / "out", beside={"facts.json": "{}\n"})
    assert (tmp_path / "out" / "facts.json").read_text() == "{}\n"


def test_what_belongs_into_the_output_is_there_before_it_has_its_name(
    base: Path, tmp_path: Path
) -> None:
    out, routing_map = tmp_path / "out", uniform_map(base, [(0, 1)] * 4)

    def full(folder: Path) -> None:
        assert {"config.json", MAP_FILE, "README.md"} <= names(folder) and not out.exists()
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(PruneError, match=r"no space left on the disk of .*; nothing was written"):
        build(Checkpoint.open(base), routing_map, out, finish=full)
    assert not list(tmp_path.iterdir())
    build(Checkpoint.open(base), routing_map, out, finish=lambda f: (f / "page").touch())
    assert "page" in names(out)


def test_a_result_that_is_not_as_planned_is_not_kept(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offline.build.build.write_shards", _write_nothing)
    with pytest.raises(PruneError, match="has no safetensors weights"):
        build(Checkpoint.open(base), uniform_map(base, UNIFORM), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def _write_nothing(*_: Any, **__: Any) -> None:
    return


@pytest.mark.parametrize("inside", [False, True])
def test_a_build_never_replaces_its_own_base(inside: bool, base: Path) -> None:
    out = base.parent if inside else base
    before = names(base)
    with pytest.raises(PruneError, match=f"would replace {base}"):
        build(Checkpoint.open(base), uniform_map(base, UNIFORM), out, force=True)
    assert names(base) == before
