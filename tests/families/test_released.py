"""Released models: recognised, counted, and built as a reader of its own says (released/reader.py).

Adding one is adding its file.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from offline.build.build import build, plan_build, pruned_config
from tests.families.released.reader import (
    MODELS,
    Named,
    Released,
    bytes_of,
    first_of_each,
    read,
    write,
)
from tests.sample_maps import uniform_map
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layouts import LAYOUTS
from vllm_moe_prune.rewrite import Drop, Slice
from vllm_moe_prune.routing_map import RoutingMap


def half(model: Released) -> list[int]:
    """Two of each four experts, so that each group of a router keeps as many."""
    return [expert for expert in range(model.experts) if expert % 4 in (0, 3)]


def made(model: Released, folder: Path, *, contents: bool) -> Checkpoint:
    tensors = [*model.tensors(model.experts), *model.tensors(model.experts, part="drafts")]
    config = model.config(model.experts, model.top_k)
    write(folder, config, tensors, contents=contents)
    return Checkpoint.open(folder)


def the_map(model: Released, base: Checkpoint) -> RoutingMap:
    top_k = min(model.top_k, len(half(model)))
    return uniform_map(base.folder, [half(model)] * len(base.expert_counts()), top_k=top_k)


def expected(
    model: Released, kept: list[int], *, part: str = "tensors"
) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What a pruned small model holds: the file with another E, bytes of the experts that stay."""
    before = {(one.pattern, one.name): one for one in model.tensors(model.experts, part=part)}
    found = {}
    for after in model.tensors(len(kept), part=part):
        source = before.get((after.pattern, after.name))
        if after.expert is not None:
            source = _of_expert(before, after, kept[after.expert])
        assert source is not None
        content, rows = bytes_of(source), model.rows(source, kept)
        if rows is not None:
            content = b"".join(content[begin:end] for begin, end in rows)
        found[after.name] = (after.dtype, after.shape, content)
    return found


def _of_expert(before: dict[tuple[str, str], Named], after: Named, expert: int) -> Named:
    tail = after.pattern.partition("{expert}")[2]
    begin = after.name[: len(after.name) - len(tail) - len(str(after.expert))]
    return before[after.pattern, f"{begin}{expert}{tail}"]


def test_there_is_a_released_model_of_every_family() -> None:
    """But of language models whose release is part of a larger one, or that nobody released."""
    found = {Released.read(name).fields["config"]["model_type"] for name in MODELS}
    parts = {name for name in LAYOUTS if name.endswith("_text")}
    assert set(LAYOUTS) - found - parts == {"granitemoeshared", "mellum", "axk1"}
    assert len(MODELS) >= 45


@pytest.mark.parametrize("name", first_of_each(MODELS))
def test_a_small_one_is_built_byte_for_byte(name: str, tmp_path: Path) -> None:
    model = Released.read(name, small=True)
    base, kept = made(model, tmp_path / "base", contents=True), half(model)
    routing_map = the_map(model, base)
    if "refused" in model.fields:
        with pytest.raises(PruneError, match=model.fields["refused"]):
            build(base, routing_map, tmp_path / "out", mtp="drop")
        return
    build(base, routing_map, tmp_path / "out", mtp="drop")
    assert read(tmp_path / "out") == expected(model, kept)
    config = model.without_drafts(model.config(len(kept), min(model.top_k, len(kept))))
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config


def test_layers_with_a_table_of_experts_stay_whole(tmp_path: Path) -> None:
    """DeepSeek-V4's first layers: the others lose experts, and the checkpoint is a compact one."""
    model = Released.read("deepseek-ai--DeepSeek-V4-Flash", small=True)
    base, tables = made(model, tmp_path / "base", contents=True), model.numbers("hash")
    whole = list(range(model.experts))
    kept = [whole if layer in tables else half(model) for layer in base.expert_counts()]
    assert len(kept) > len(tables) > 0
    assert (
        build(base, uniform_map(base.folder, kept), tmp_path / "out", mtp="drop").form == "compact"
    )
    found, before = read(tmp_path / "out"), read(base.folder)
    for layer in tables:
        names = [name for name in before if name.startswith(f"layers.{layer}.ffn.")]
        assert any("tid2eid" in name for name in names)
        assert all(found[name] == before[name] for name in names)
    after = expected(model, half(model))
    others = [name for name in after if f"layers.{max(base.expert_counts())}." in name]
    assert others and all(found[name] == after[name] for name in others)


@pytest.mark.parametrize(
    "name", first_of_each(name for name in MODELS if "drafts" in Released.read(name).fields)
)
def test_draft_layers_keep_as_many(name: str, tmp_path: Path) -> None:
    model = Released.read(name, small=True)
    if "refused" in model.fields:
        pytest.skip("nothing can be dropped")
    base = made(model, tmp_path / "base", contents=True)
    build(base, the_map(model, base), tmp_path / "out", mtp="prune")
    found = read(tmp_path / "out")
    settings = RoutingMap.load(tmp_path / "out").provenance.settings
    drafts = list(model.tensors(len(half(model)), part="drafts"))
    of_experts = any("gate.weight" in one.name for one in drafts)
    assert ("mtp_kept" in settings) == of_experts
    kept = settings.get("mtp_kept", {"0": half(model)})
    assert isinstance(kept, dict)
    (ids, *others) = kept.values()
    assert isinstance(ids, list) and all(one == ids for one in others)
    rest = expected(model, [int(str(one)) for one in ids], part="drafts")
    assert {name: found[name] for name in rest} == rest
    assert found.keys() == rest.keys() | expected(model, half(model)).keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_whole_one_is_planned(name: str, tmp_path: Path) -> None:
    """At full size, with a hole in place of the weights."""
    model = Released.read(name)
    base, kept = made(model, tmp_path / "base", contents=False), half(model)
    layers = model.numbers(model.fields["experts_in"])
    assert base.expert_counts() == dict.fromkeys(layers, model.experts)
    assert base.layout.top_k(base.config) == model.top_k
    if "refused" in model.fields:
        return
    routing_map = the_map(model, base)
    plan = plan_build(base, routing_map, mtp="drop")
    left = [op for op in plan.operations if not isinstance(op, Drop)]
    found = {op.target.name: (op.target.dtype, op.target.shape) for op in left}
    assert found == {one.name: (one.dtype, one.shape) for one in model.tensors(len(kept))}
    assert all(op.rows[: len(kept)] == tuple(kept) for op in left if isinstance(op, Slice))
    config = model.without_drafts(model.config(len(kept), min(model.top_k, len(kept))))
    assert pruned_config(base.config, base, plan.routing_map, plan.operations) == config
